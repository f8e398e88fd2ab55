//! Records, as files and folders below one folder.
//!
//! Every name on every path is opened from the folder above it, and never through a link: whatever
//! the stream says, and whoever changes the tree meanwhile, nothing outside is touched.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, fstatat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};

use crate::links::{Made, Received};
use crate::wire::{Attributes, Reader, Record};
use crate::{Target, TransferError, extended};

/// What is done with permissions that give rights to others than who unpacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// All twelve bits are kept.
    Trusted,
    /// Set-user-id, set-group-id and sticky bits are dropped, and so are capabilities of files.
    Untrusted,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub files: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Things that could not be put where they belong.
    pub skipped: u64,
}

/// A folder whose attributes are set when all in it is there. The extended ones, too: what is made in a
/// folder takes after its default access list.
struct Pending {
    path: Vec<OsString>,
    attributes: Attributes,
    extended: Vec<(OsString, Vec<u8>)>,
}

/// Most bytes of extended attributes of folders that are not done yet.
const MAX_PENDING: usize = 1 << 20;

struct Unpacker<'a> {
    target: &'a Target,
    policy: Policy,
    warn: &'a mut dyn FnMut(String),
    pending: Vec<Pending>,
    /// Bytes of extended attributes in `pending`.
    waiting: usize,
    /// Files that may get further names.
    linked: Received,
    /// Kinds of extended attributes that could not be set, each warned of once.
    told: BTreeSet<extended::Kind>,
    summary: Summary,
}

/// Unpacks a stream. `warn` gets one line for each thing left out, by the peer or here (its text is
/// the peer's: show it escaped); `received` is told how many bytes of content came in.
///
/// # Errors
/// When the stream is cut or makes no sense, or the disk does not take it. A file is there whole or
/// not at all; files before it stay.
pub fn unpack(
    input: impl Read,
    target: &Target,
    policy: Policy,
    warn: &mut dyn FnMut(String),
    received: &mut dyn FnMut(u64),
) -> Result<Summary, TransferError> {
    let mut reader = Reader::new(input);
    let mut unpacker = Unpacker {
        target,
        policy,
        warn,
        pending: Vec::new(),
        waiting: 0,
        linked: Received::new(),
        told: BTreeSet::new(),
        summary: Summary::default(),
    };
    // Whether the record before was of a folder that now waits for its attributes.
    let mut in_folder = false;
    loop {
        let record = reader.read()?;
        if let Record::Extended { name, value } = record {
            if in_folder {
                unpacker.extend_folder(name, value);
            }
            continue;
        }
        in_folder = false;
        match record {
            Record::Folder { attributes, path } => {
                let path = unpacker.begin(path)?;
                match unpacker.folder(&path, attributes) {
                    Ok(waits) => in_folder = waits,
                    Err(error) => unpacker.skip(&path, error)?,
                }
            }
            Record::Name { number, path, is_last } => {
                let path = unpacker.begin(path)?;
                if let Err(error) = unpacker.name(number, &path, received) {
                    unpacker.skip(&path, error)?;
                }
                if is_last {
                    unpacker.linked.forget(number);
                }
            }
            Record::Link { attributes, path, leads_to } => {
                let path = unpacker.begin(path)?;
                if let Err(error) = unpacker.link(&path, attributes, &leads_to) {
                    unpacker.skip(&path, error)?;
                }
            }
            Record::File { attributes, path, number } => {
                let path = unpacker.begin(path)?;
                let mut partial = match unpacker.create(&path) {
                    Ok(partial) => Some(partial),
                    Err(error) => {
                        unpacker.skip(&path, error)?;
                        None
                    }
                };
                loop {
                    match reader.read()? {
                        Record::Data(data) => {
                            if let Some(partial) = &mut partial {
                                let written = partial.file.write_all(&data);
                                written.map_err(|error| unpacker.error(&path, error))?;
                                unpacker.summary.bytes += data.len() as u64;
                            }
                            received(data.len() as u64);
                        }
                        Record::Extended { name, value } => {
                            if let Some(partial) = &partial {
                                unpacker.extend(&partial.file, &path, &name, &value);
                            }
                        }
                        Record::FileEnd => break,
                        Record::Warning(text) => (unpacker.warn)(text),
                        _ => return Err(TransferError::Malformed("a file has no end")),
                    }
                }
                let Some(partial) = partial else { continue };
                let identity = number.and_then(|number| Some((number, partial.file.metadata().ok()?)));
                match (unpacker.publish(partial, attributes), identity) {
                    (Ok(()), Some((number, there))) => unpacker.remember(number, path, &there)?,
                    (Ok(()), None) => {}
                    (Err(error), _) => unpacker.skip(&path, error)?,
                }
            }
            Record::Nowhere { path } => {
                unpacker.summary.skipped += 1;
                (unpacker.warn)(format!("`{path}` was left out: it is no path below what is copied"));
            }
            Record::Warning(text) => (unpacker.warn)(text),
            // Those of a file that is nowhere.
            Record::Data(data) => received(data.len() as u64),
            Record::FileEnd | Record::Extended { .. } => {}
            Record::End => {
                unpacker.settle(None)?;
                return Ok(unpacker.summary);
            }
        }
    }
}

/// A file on its way. What is not published is removed.
struct Partial {
    file: File,
    folder: OwnedFd,
    name: OsString,
    published: bool,
}

/// What a file is called until it is whole. Two copies into one folder at once have two names.
fn partial_name() -> String {
    format!(".vmdeck-partial-{}-{:?}", std::process::id(), std::thread::current().id())
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published {
            let _ = unlinkat(&self.folder, partial_name().as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

impl Unpacker<'_> {
    /// Folders that are done get their attributes. Returns the path from the target's folder.
    fn begin(&mut self, path: Vec<OsString>) -> Result<Vec<OsString>, TransferError> {
        let path: Vec<OsString> = self.target.name.iter().cloned().chain(path).collect();
        self.settle(Some(&path))?;
        Ok(path)
    }

    fn settle(&mut self, next: Option<&[OsString]>) -> Result<(), TransferError> {
        while let Some(last) =
            self.pending.pop_if(|last| next.is_none_or(|next| !next.starts_with(&last.path)))
        {
            let Pending { path, attributes, extended } = last;
            self.waiting -= extended.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
            let set = self.open_folder(&path).and_then(|folder| {
                for (name, value) in &extended {
                    self.extend(&folder, &path, name, value);
                }
                self.attribute(&folder, attributes)
            });
            if let Err(error) = set {
                self.skip(&path, error)?;
            }
        }
        Ok(())
    }

    /// Makes a folder, or goes on with one that is there. Returns whether it waits for its attributes:
    /// the target's own folder keeps those it has.
    fn folder(&mut self, path: &[OsString], attributes: Attributes) -> Result<bool, Errno> {
        let Some((name, above)) = path.split_last() else { return Ok(false) };
        let above = self.open_folder(above)?;
        match mkdirat(&above, name.as_os_str(), Mode::S_IRWXU) {
            Ok(()) => {}
            // One that is there is gone on with; a link to one is not.
            Err(Errno::EEXIST) => drop(open_below(&above, name)?),
            Err(error) => return Err(error),
        }
        self.pending.push(Pending { path: path.to_vec(), attributes, extended: Vec::new() });
        Ok(true)
    }

    /// An extended attribute for the folder that was made last.
    fn extend_folder(&mut self, name: OsString, value: Vec<u8>) {
        let length = name.len() + value.len();
        let Some(folder) = self.pending.last_mut() else { return };
        if self.waiting + length <= MAX_PENDING {
            self.waiting += length;
            folder.extended.push((name, value));
        } else {
            let path = folder.path.clone();
            let path = self.shown(&path);
            let why = "there are too many of them in folders within each other";
            (self.warn)(format!("`{}` lacks its attribute `{}`: {why}", path.display(), name.display()));
        }
    }

    /// Sets an extended attribute. What cannot be set is warned of, and left behind: file systems differ
    /// in what they take.
    fn extend(&mut self, file: impl AsFd, path: &[OsString], name: &OsStr, value: &[u8]) {
        let Some(kind) = extended::Kind::of(name).filter(|kind| kind.is_taken(self.policy)) else { return };
        if let Err(error) = extended::set(file, name, value)
            && self.told.insert(kind)
        {
            let path = self.shown(path);
            let (path, name) = (path.display(), name.display());
            (self.warn)(format!("`{path}` lacks its attribute `{name}`: {error}; so may others"));
        }
    }

    /// A file that is there may get further names.
    fn remember(&mut self, number: u32, path: Vec<OsString>, there: &Metadata) -> Result<(), TransferError> {
        let below = path.get(self.target.name.iter().len()..).unwrap_or_default();
        let length = below.iter().map(|name| name.len() + 1).sum();
        let made = Made { path, device: there.dev(), inode: there.ino() };
        match self.linked.insert(number, length, made) {
            true => Ok(()),
            false => Err(TransferError::Malformed("too many files have further names")),
        }
    }

    /// Gives a file of this copy another name. Only to such a file, and only where it still is: nothing
    /// that was there before gets a name by what a peer says.
    fn name(&mut self, number: u32, path: &[OsString], received: &mut dyn FnMut(u64)) -> Result<(), Errno> {
        let made = self.linked.get(number).ok_or(Errno::ESTALE)?.clone();
        let (folder, name) = self.place(path)?;
        let (old, above) = made.path.split_last().ok_or(Errno::ESTALE)?;
        let above = self.open_folder(above)?;
        let partial = partial_name();
        let _ = unlinkat(&folder, partial.as_str(), UnlinkatFlags::NoRemoveDir);
        match linkat(&above, old.as_os_str(), &folder, partial.as_str(), AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ENOENT) => return Err(Errno::ESTALE),
            // This file system has no further names, or no more of them.
            Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::EXDEV | Errno::EMLINK) => {
                return self.copy(&above, old, &made, path, received);
            }
            Err(error) => return Err(error),
        }
        let linked = fstatat(&folder, partial.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).and_then(|there| {
            if (there.st_dev, there.st_ino) != (made.device, made.inode) {
                return Err(Errno::ESTALE);
            }
            renameat(&folder, partial.as_str(), &folder, name.as_os_str())
        });
        // It is still there where both names were of one file already (rename(2)).
        let _ = unlinkat(&folder, partial.as_str(), UnlinkatFlags::NoRemoveDir);
        linked?;
        self.summary.files += 1;
        Ok(())
    }

    /// A file of this copy once more, where it cannot have two names.
    fn copy(
        &mut self,
        above: &OwnedFd,
        old: &OsStr,
        made: &Made,
        path: &[OsString],
        received: &mut dyn FnMut(u64),
    ) -> Result<(), Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut source = File::from(openat(above, old, flags, Mode::empty())?);
        let failed = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        let there = source.metadata().map_err(failed)?;
        if (there.dev(), there.ino()) != (made.device, made.inode) {
            return Err(Errno::ESTALE);
        }
        let mut partial = self.create(path)?;
        let bytes = io::copy(&mut source, &mut partial.file).map_err(failed)?;
        self.summary.bytes += bytes;
        received(bytes);
        let nanoseconds = u32::try_from(there.mtime_nsec()).unwrap_or_default();
        let attributes = Attributes { mode: there.mode() & 0o7777, seconds: there.mtime(), nanoseconds };
        self.publish(partial, attributes)
    }

    fn link(&mut self, path: &[OsString], attributes: Attributes, leads_to: &OsStr) -> Result<(), Errno> {
        let (folder, name) = self.place(path)?;
        let partial = partial_name();
        let _ = unlinkat(&folder, partial.as_str(), UnlinkatFlags::NoRemoveDir);
        symlinkat(leads_to, &folder, partial.as_str())?;
        let time = time(attributes);
        let made = utimensat(&folder, partial.as_str(), &time, &time, UtimensatFlags::NoFollowSymlink)
            .and_then(|()| renameat(&folder, partial.as_str(), &folder, name.as_os_str()));
        if made.is_err() {
            let _ = unlinkat(&folder, partial.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        made?;
        self.summary.files += 1;
        Ok(())
    }

    fn create(&mut self, path: &[OsString]) -> Result<Partial, Errno> {
        let (folder, name) = self.place(path)?;
        let partial = partial_name();
        let _ = unlinkat(&folder, partial.as_str(), UnlinkatFlags::NoRemoveDir);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&folder, partial.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(Partial { file: file.into(), folder, name, published: false })
    }

    fn publish(&mut self, mut partial: Partial, attributes: Attributes) -> Result<(), Errno> {
        self.attribute(&partial.file, attributes)?;
        renameat(&partial.folder, partial_name().as_str(), &partial.folder, partial.name.as_os_str())?;
        partial.published = true;
        self.summary.files += 1;
        Ok(())
    }

    /// The folder and the name of a file or link. Only files and links are replaced: never a folder,
    /// and never a device that a user has given as the target.
    fn place(&self, path: &[OsString]) -> Result<(OwnedFd, OsString), Errno> {
        let (name, above) = path.split_last().ok_or(Errno::EISDIR)?;
        let folder = self.open_folder(above)?;
        match fstatat(&folder, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(there) => match SFlag::from_bits_truncate(there.st_mode) & SFlag::S_IFMT {
                SFlag::S_IFREG | SFlag::S_IFLNK => {}
                SFlag::S_IFDIR => return Err(Errno::EISDIR),
                _ => return Err(Errno::EEXIST),
            },
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
        Ok((folder, name.clone()))
    }

    fn open_folder(&self, path: &[OsString]) -> Result<OwnedFd, Errno> {
        let mut folder = self
            .target
            .folder
            .try_clone()
            .map_err(|error| error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw))?;
        for name in path {
            folder = open_below(&folder, name)?;
        }
        Ok(folder)
    }

    fn attribute(&self, file: impl AsFd, attributes: Attributes) -> Result<(), Errno> {
        let bits = match self.policy {
            Policy::Trusted => attributes.mode & 0o7777,
            Policy::Untrusted => attributes.mode & 0o777,
        };
        let time = time(attributes);
        futimens(&file, &time, &time)?;
        fchmod(&file, Mode::from_bits_truncate(bits))
    }

    /// Leaves one thing out when it has no place; ends the copy when nothing more can be written.
    fn skip(&mut self, path: &[OsString], error: Errno) -> Result<(), TransferError> {
        let why = match error {
            Errno::ELOOP | Errno::ENOTDIR => "what it belongs into is not a folder",
            Errno::EISDIR => "a folder has its name",
            Errno::EEXIST => "something has its name that is neither a file nor a link",
            Errno::ENOENT => "the folder it belongs into is missing",
            Errno::ENAMETOOLONG => "its name is too long here",
            Errno::ESTALE => "the file that it is another name of is not there",
            _ => return Err(self.error(path, error.into())),
        };
        if path.len() <= self.target.name.iter().len() {
            // It is what was asked for, as a whole.
            return Err(TransferError::Target(format!("`{}`: {why}", self.target.path.display())));
        }
        self.summary.skipped += 1;
        let text = format!("`{}` was left out: {why}", self.shown(path).display());
        (self.warn)(text);
        Ok(())
    }

    fn error(&self, path: &[OsString], error: io::Error) -> TransferError {
        TransferError::file(&self.shown(path), error)
    }

    fn shown(&self, path: &[OsString]) -> PathBuf {
        let below = path.get(self.target.name.iter().len()..).unwrap_or_default();
        below.iter().fold(self.target.path.clone(), |shown, name| shown.join(name))
    }
}

fn open_below(folder: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(folder, name, flags, Mode::empty())
}

fn time(attributes: Attributes) -> TimeSpec {
    TimeSpec::new(attributes.seconds, attributes.nanoseconds.into())
}

#[cfg(test)]
mod tests;
