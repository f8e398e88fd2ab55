//! An SFTP server, version 3 (draft-ietf-secsh-filexfer-02), which is what OpenSSH's `scp` and
//! `sftp` and editors speak. It has the rights of the user it runs as, and no others.

mod packet;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::stat::Mode;
use nix::unistd::mkdir;

use packet::{Attributes, MAX_PACKET, Parser, Reply};

/// Open files and folders of one client.
const MAX_HANDLES: usize = 256;

/// Most bytes read at once; OpenSSH asks for 32 KiB.
const MAX_READ: u32 = 128 * 1024;

/// Names in one answer to a client that reads a folder.
const NAMES: usize = 64;

const VERSION: u32 = 3;

/// `SSH_FX_…`
mod status {
    pub(super) const OK: u32 = 0;
    pub(super) const EOF: u32 = 1;
    pub(super) const NO_SUCH_FILE: u32 = 2;
    pub(super) const PERMISSION_DENIED: u32 = 3;
    pub(super) const FAILURE: u32 = 4;
    pub(super) const BAD_MESSAGE: u32 = 5;
    pub(super) const UNSUPPORTED: u32 = 8;
}

enum Handle {
    File {
        file: File,
        append: bool,
    },
    /// What is still to be listed, the last one next.
    Folder {
        path: PathBuf,
        names: Vec<std::ffi::OsString>,
    },
}

enum Failure {
    Io(io::Error),
    /// A status of its own.
    Status(u32, &'static str),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<nix::errno::Errno> for Failure {
    fn from(error: nix::errno::Errno) -> Self {
        Self::Io(error.into())
    }
}

impl From<packet::Short> for Failure {
    fn from(_: packet::Short) -> Self {
        Self::Status(status::BAD_MESSAGE, "the request is too short")
    }
}

#[derive(Default)]
struct Server {
    handles: BTreeMap<u32, Handle>,
    next: u32,
}

/// Serves one client until it goes.
pub(super) fn serve(mut input: impl Read, mut output: impl Write) -> io::Result<u8> {
    let mut server = Server::default();
    loop {
        let mut length = [0; 4];
        match input.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
            read => read?,
        }
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length == 0 || length > MAX_PACKET {
            return Err(io::Error::other("a request has no sensible length"));
        }
        let mut body = vec![0; length];
        input.read_exact(&mut body)?;
        let reply = server.answer(&body);
        output.write_all(&reply.finish())?;
        output.flush()?;
    }
}

impl Server {
    fn answer(&mut self, body: &[u8]) -> Reply {
        let (kind, rest) = body.split_first().map_or((0, &[][..]), |(kind, rest)| (*kind, rest));
        if kind == packet::INIT {
            let mut reply = Reply::without_id(packet::VERSION);
            reply.u32(VERSION);
            for (name, version) in [("posix-rename@openssh.com", "1"), ("fsync@openssh.com", "1")] {
                reply.bytes(name.as_bytes());
                reply.bytes(version.as_bytes());
            }
            return reply;
        }
        let mut parser = Parser::new(rest);
        let Ok(id) = parser.u32() else { return status_reply(0, status::BAD_MESSAGE, "no request") };
        match self.request(kind, id, &mut parser) {
            Ok(reply) => reply,
            Err(Failure::Status(code, text)) => status_reply(id, code, text),
            Err(Failure::Io(error)) => {
                let code = match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => status::NO_SUCH_FILE,
                    io::ErrorKind::PermissionDenied => status::PERMISSION_DENIED,
                    _ => status::FAILURE,
                };
                status_reply(id, code, &error.to_string())
            }
        }
    }

    fn request(&mut self, kind: u8, id: u32, parser: &mut Parser<'_>) -> Result<Reply, Failure> {
        match kind {
            packet::OPEN => {
                let (path, flags, attributes) = (parser.path()?, parser.u32()?, parser.attributes()?);
                let handle = open(path, flags, &attributes)?;
                self.add(id, handle)
            }
            packet::CLOSE => {
                let handle = parser.handle()?;
                self.handles.remove(&handle).ok_or(NO_HANDLE)?;
                Ok(ok(id))
            }
            packet::READ => {
                let (handle, offset, length) = (parser.handle()?, parser.u64()?, parser.u32()?);
                let mut data = vec![0; usize::try_from(length.min(MAX_READ)).unwrap_or(0)];
                let read = self.file(handle)?.0.read_at(&mut data, offset)?;
                if read == 0 && length > 0 {
                    return Err(Failure::Status(status::EOF, "end of file"));
                }
                let mut reply = Reply::new(packet::DATA, id);
                reply.bytes(&data[..read]);
                Ok(reply)
            }
            packet::WRITE => {
                let (handle, offset, data) = (parser.handle()?, parser.u64()?, parser.bytes()?);
                match self.file(handle)? {
                    (mut file, true) => file.write_all(data)?,
                    (file, false) => file.write_all_at(data, offset)?,
                }
                Ok(ok(id))
            }
            packet::STAT => Ok(attributes_reply(id, &fs::metadata(parser.path()?)?)),
            packet::LSTAT => Ok(attributes_reply(id, &fs::symlink_metadata(parser.path()?)?)),
            packet::FSTAT => {
                let handle = parser.handle()?;
                let metadata = match self.handles.get(&handle).ok_or(NO_HANDLE)? {
                    Handle::File { file, .. } => file.metadata()?,
                    Handle::Folder { path, .. } => fs::metadata(path)?,
                };
                Ok(attributes_reply(id, &metadata))
            }
            packet::SETSTAT => {
                let (path, attributes) = (parser.path()?, parser.attributes()?);
                set(path, None, &attributes)?;
                Ok(ok(id))
            }
            packet::FSETSTAT => {
                let (handle, attributes) = (parser.handle()?, parser.attributes()?);
                match self.handles.get(&handle).ok_or(NO_HANDLE)? {
                    Handle::File { file, .. } => set(Path::new(""), Some(file), &attributes)?,
                    Handle::Folder { path, .. } => set(path, None, &attributes)?,
                }
                Ok(ok(id))
            }
            packet::OPENDIR => {
                let path = parser.path()?.to_owned();
                let mut names: Vec<_> =
                    fs::read_dir(&path)?.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
                names.extend(["..".into(), ".".into()]);
                self.add(id, Handle::Folder { path, names })
            }
            packet::READDIR => {
                let handle = parser.handle()?;
                let Some(Handle::Folder { path, names }) = self.handles.get_mut(&handle) else {
                    return Err(NO_HANDLE);
                };
                let from = names.len().saturating_sub(NAMES);
                let listed: Vec<_> = names
                    .drain(from..)
                    .rev()
                    .filter_map(|name| Some((fs::symlink_metadata(path.join(&name)).ok()?, name)))
                    .collect();
                if listed.is_empty() {
                    return Err(Failure::Status(status::EOF, "end of folder"));
                }
                let mut reply = Reply::new(packet::NAME, id);
                reply.u32(u32::try_from(listed.len()).unwrap_or_default());
                for (metadata, name) in &listed {
                    reply.bytes(name.as_bytes());
                    reply.bytes(long_name(name, metadata).as_bytes());
                    reply.attributes(metadata);
                }
                Ok(reply)
            }
            packet::REMOVE => done(id, fs::remove_file(parser.path()?)),
            packet::RMDIR => done(id, fs::remove_dir(parser.path()?)),
            packet::MKDIR => {
                let (path, attributes) = (parser.path()?, parser.attributes()?);
                let mode = Mode::from_bits_truncate(attributes.mode.unwrap_or(0o777) & 0o7777);
                mkdir(path, mode)?;
                Ok(ok(id))
            }
            packet::REALPATH => {
                let path = parser.path()?;
                let real = fs::canonicalize(path).or_else(|_| absolute(path))?;
                Ok(name_reply(id, real.as_os_str()))
            }
            packet::READLINK => Ok(name_reply(id, fs::read_link(parser.path()?)?.as_os_str())),
            // OpenSSH has the two arguments in this order, against the draft; clients follow it.
            packet::SYMLINK => {
                let (leads_to, path) = (parser.path()?, parser.path()?);
                done(id, std::os::unix::fs::symlink(leads_to, path))
            }
            packet::RENAME => {
                let (from, to) = (parser.path()?, parser.path()?);
                if fs::symlink_metadata(to).is_ok() {
                    return Err(Failure::Status(status::FAILURE, "the name is taken"));
                }
                done(id, fs::rename(from, to))
            }
            packet::EXTENDED => match parser.bytes()? {
                b"posix-rename@openssh.com" => {
                    let (from, to) = (parser.path()?, parser.path()?);
                    done(id, fs::rename(from, to))
                }
                b"fsync@openssh.com" => {
                    let handle = parser.handle()?;
                    done(id, self.file(handle)?.0.sync_all())
                }
                _ => Err(UNSUPPORTED),
            },
            _ => Err(UNSUPPORTED),
        }
    }

    fn add(&mut self, id: u32, handle: Handle) -> Result<Reply, Failure> {
        if self.handles.len() >= MAX_HANDLES {
            return Err(Failure::Status(status::FAILURE, "too many files are open"));
        }
        self.next = self.next.wrapping_add(1);
        self.handles.insert(self.next, handle);
        let mut reply = Reply::new(packet::HANDLE, id);
        reply.bytes(&self.next.to_be_bytes());
        Ok(reply)
    }

    /// An open file, and whether writes go to its end.
    fn file(&self, handle: u32) -> Result<(&File, bool), Failure> {
        match self.handles.get(&handle) {
            Some(Handle::File { file, append }) => Ok((file, *append)),
            _ => Err(NO_HANDLE),
        }
    }
}

const NO_HANDLE: Failure = Failure::Status(status::FAILURE, "no such handle");
const UNSUPPORTED: Failure = Failure::Status(status::UNSUPPORTED, "not supported");

fn open(path: &Path, flags: u32, attributes: &Attributes) -> Result<Handle, Failure> {
    let has = |flag: u32| flags & flag != 0;
    let (read, write, append) = (has(packet::FLAG_READ), has(packet::FLAG_WRITE), has(packet::FLAG_APPEND));
    let mut options = OpenOptions::new();
    options.read(read).write(write && !append).append(write && append);
    options.mode(attributes.mode.unwrap_or(0o666) & 0o7777);
    if write {
        options.create(has(packet::FLAG_CREATE)).truncate(has(packet::FLAG_TRUNCATE) && !append);
        options.create_new(has(packet::FLAG_CREATE) && has(packet::FLAG_EXCLUSIVE));
    }
    // A pipe or a terminal line would be waited for; what is not a file is no use at any offset.
    options.custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY);
    let file = options.open(path)?;
    if file.metadata()?.is_dir() {
        return Err(Failure::Status(status::FAILURE, "is a folder"));
    }
    Ok(Handle::File { file, append })
}

/// Sets what is given; of a file that is open when there is one.
fn set(path: &Path, file: Option<&File>, attributes: &Attributes) -> Result<(), Failure> {
    if let Some(size) = attributes.size {
        match file {
            Some(file) => file.set_len(size)?,
            None => OpenOptions::new().write(true).open(path)?.set_len(size)?,
        }
    }
    if let Some((uid, gid)) = attributes.owner {
        match file {
            Some(file) => std::os::unix::fs::fchown(file, Some(uid), Some(gid))?,
            None => std::os::unix::fs::chown(path, Some(uid), Some(gid))?,
        }
    }
    if let Some(mode) = attributes.mode {
        let permissions = fs::Permissions::from_mode(mode & 0o7777);
        match file {
            Some(file) => file.set_permissions(permissions)?,
            None => fs::set_permissions(path, permissions)?,
        }
    }
    if let Some((accessed, modified)) = attributes.times {
        let time = |seconds: u32| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into());
        let times = fs::FileTimes::new().set_accessed(time(accessed)).set_modified(time(modified));
        match file {
            Some(file) => file.set_times(times)?,
            None => File::open(path)?.set_times(times)?,
        }
    }
    Ok(())
}

/// A path that does not exist, made absolute and without `.` and `..`.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    let mut real = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            std::path::Component::ParentDir => drop(real.pop()),
            part => real.push(part),
        }
    }
    Ok(real)
}

/// A line as of `ls -l`, which some clients show.
fn long_name(name: &OsStr, metadata: &Metadata) -> String {
    let mode = metadata.mode();
    let kind = match mode & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o060_000 => 'b',
        0o020_000 => 'c',
        0o010_000 => 'p',
        0o140_000 => 's',
        _ => '-',
    };
    let bits: String =
        (0..9).map(|bit| if mode & (0o400 >> bit) == 0 { '-' } else { ['r', 'w', 'x'][bit % 3] }).collect();
    let (links, uid, gid, size) = (metadata.nlink(), metadata.uid(), metadata.gid(), metadata.len());
    format!("{kind}{bits} {links:4} {uid:8} {gid:8} {size:12} {}", name.to_string_lossy())
}

fn ok(id: u32) -> Reply {
    status_reply(id, status::OK, "")
}

fn done(id: u32, result: io::Result<()>) -> Result<Reply, Failure> {
    result?;
    Ok(ok(id))
}

fn status_reply(id: u32, code: u32, text: &str) -> Reply {
    let mut reply = Reply::new(packet::STATUS, id);
    reply.u32(code);
    reply.bytes(text.as_bytes());
    reply.bytes(b"en");
    reply
}

fn name_reply(id: u32, name: &OsStr) -> Reply {
    let mut reply = Reply::new(packet::NAME, id);
    reply.u32(1);
    reply.bytes(name.as_bytes());
    reply.bytes(name.as_bytes());
    reply.no_attributes();
    reply
}

fn attributes_reply(id: u32, metadata: &Metadata) -> Reply {
    let mut reply = Reply::new(packet::ATTRS, id);
    reply.attributes(metadata);
    reply
}

#[cfg(test)]
mod tests;
