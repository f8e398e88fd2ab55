//! A file or a folder, as records.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, PROC_SUPER_MAGIC, SYSFS_MAGIC, statfs};

use crate::links::{Sent, Turn};
use crate::wire::{Attributes, MAX_PATH, Writer};
use crate::{TransferError, extended};

/// Bytes of a file read at once.
const CHUNK: usize = 64 * 1024;

/// A folder that is being read.
struct Level {
    /// Names still to be done, the last one next.
    names: Vec<OsString>,
    path: PathBuf,
    /// From what is copied.
    relative: PathBuf,
    device: u64,
}

/// Writes what is at `source` into `out`; a link that `source` itself is, is followed. `sent` is told
/// how many bytes of content went out.
///
/// Links in a folder stay links. What cannot be read, and what is neither file, folder nor link, is
/// left out with a warning in the stream.
pub fn pack(source: &Path, out: impl Write, sent: &mut dyn FnMut(u64)) -> Result<(), TransferError> {
    let metadata = fs::metadata(source).map_err(|error| TransferError::file(source, error))?;
    let mut writer = Writer::new(BufWriter::with_capacity(CHUNK, out)).map_err(TransferError::Stream)?;
    if metadata.is_file() {
        // Opened before anything is said, so that its error is that of the whole.
        let file = File::open(source).map_err(|error| TransferError::file(source, error))?;
        writer.file(attributes(&metadata), OsStr::new("")).map_err(TransferError::Stream)?;
        content(&mut writer, file, source, sent)?;
    } else if metadata.is_dir() {
        tree(&mut writer, source, &metadata, sent)?;
    } else {
        return Err(TransferError::file(source, io::Error::other("is neither a file nor a folder")));
    }
    writer.end().map_err(TransferError::Stream)
}

fn tree<W: Write>(
    writer: &mut Writer<W>,
    source: &Path,
    metadata: &Metadata,
    sent: &mut dyn FnMut(u64),
) -> Result<(), TransferError> {
    let names = names(source).map_err(|error| TransferError::file(source, error))?;
    folder(writer, source, metadata, OsStr::new(""))?;
    let mut links = Sent::new();
    let mut levels =
        vec![Level { names, path: source.to_owned(), relative: PathBuf::new(), device: metadata.dev() }];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        let (path, relative) = (level.path.join(&name), level.relative.join(&name));
        let device = level.device;
        match entry(writer, &path, &relative, device, &mut links, sent) {
            Ok(Some(below)) => levels.push(below),
            Ok(None) => {}
            Err(TransferError::File { path, source }) => {
                let text = format!("`{}` was left out: {source}", path.escape_debug());
                writer.warning(&text).map_err(TransferError::Stream)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn entry<W: Write>(
    writer: &mut Writer<W>,
    path: &Path,
    relative: &Path,
    device: u64,
    links: &mut Sent,
    sent: &mut dyn FnMut(u64),
) -> Result<Option<Level>, TransferError> {
    let fail = |error: io::Error| TransferError::file(path, error);
    if relative.as_os_str().len() >= MAX_PATH {
        return Err(fail(io::ErrorKind::InvalidFilename.into()));
    }
    let metadata = fs::symlink_metadata(path).map_err(fail)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        if metadata.dev() != device && is_made_up(path) {
            return Err(fail(io::Error::other("its files are made up by the kernel")));
        }
        let names = names(path).map_err(fail)?;
        folder(writer, path, &metadata, relative.as_os_str())?;
        let (path, relative) = (path.to_owned(), relative.to_owned());
        return Ok(Some(Level { names, path, relative, device: metadata.dev() }));
    }
    if kind.is_symlink() {
        let leads_to = fs::read_link(path).map_err(fail)?;
        let link = writer.link(attributes(&metadata), relative.as_os_str(), leads_to.as_os_str());
        link.map_err(TransferError::Stream)?;
    } else if kind.is_file() {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK);
        let file = options.open(path).map_err(fail)?;
        // It may be another one by now.
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() {
            return Err(fail(io::Error::other("is no file any more")));
        }
        let (relative, attributes) = (relative.as_os_str(), attributes(&metadata));
        match links.turn(&metadata, relative.len()) {
            Turn::Plain => writer.file(attributes, relative),
            Turn::First(number) => writer.named(attributes, relative, number),
            Turn::Again { number, is_last } => {
                writer.name(number, relative, is_last).map_err(TransferError::Stream)?;
                return Ok(None);
            }
        }
        .map_err(TransferError::Stream)?;
        content(writer, file, path, sent)?;
    } else {
        let what = match kind {
            kind if kind.is_block_device() || kind.is_char_device() => "it is a device",
            kind if kind.is_socket() => "it is a socket",
            _ => "it is a pipe",
        };
        return Err(fail(io::Error::other(what)));
    }
    Ok(None)
}

/// A folder and its extended attributes, which are left behind where it cannot be opened any more.
fn folder<W: Write>(
    writer: &mut Writer<W>,
    path: &Path,
    metadata: &Metadata,
    relative: &OsStr,
) -> Result<(), TransferError> {
    writer.folder(attributes(metadata), relative).map_err(TransferError::Stream)?;
    match OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECTORY).open(path) {
        Ok(folder) => extended::each(&folder, |name, value| writer.extended(name, value)),
        Err(_) => Ok(()),
    }
    .map_err(TransferError::Stream)
}

/// What a file holds, then its extended attributes: writing would take some of them away again.
fn content<W: Write>(
    writer: &mut Writer<W>,
    mut file: File,
    path: &Path,
    sent: &mut dyn FnMut(u64),
) -> Result<(), TransferError> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Half a file must not look like a whole one: this ends the copy.
            Err(error) => {
                return Err(TransferError::Stream(io::Error::other(format!(
                    "`{}` cannot be read: {error}",
                    path.display()
                ))));
            }
        };
        writer.data(&buffer[..length]).map_err(TransferError::Stream)?;
        sent(length as u64);
    }
    extended::each(&file, |name, value| writer.extended(name, value)).map_err(TransferError::Stream)?;
    writer.file_end().map_err(TransferError::Stream)
}

fn names(path: &Path) -> io::Result<Vec<OsString>> {
    let mut names: Vec<OsString> =
        fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<_>>()?;
    names.sort_unstable_by(|a, b| b.as_bytes().cmp(a.as_bytes()));
    Ok(names)
}

/// Whether a mounted folder holds the kernel's state instead of files: some of those never end.
fn is_made_up(path: &Path) -> bool {
    statfs(path).is_ok_and(|system| {
        [PROC_SUPER_MAGIC, SYSFS_MAGIC, CGROUP2_SUPER_MAGIC].contains(&system.filesystem_type())
    })
}

fn attributes(metadata: &Metadata) -> Attributes {
    Attributes {
        mode: metadata.mode() & 0o7777,
        seconds: metadata.mtime(),
        nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or_default(),
    }
}
