//! Files that somebody named, which may be anything.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::O_NONBLOCK;

/// Opens a regular file to be read, and tells its length in bytes. Opening anything else neither waits, as
/// a fifo has one do until somebody writes into it, nor is it read.
///
/// # Errors
/// [`io::ErrorKind::IsADirectory`] for a folder, [`io::ErrorKind::InvalidInput`] for whatever else is no
/// regular file, and what open(2) says.
pub(crate) fn open(path: &Path) -> io::Result<(File, u64)> {
    // The flag means nothing for regular files (open(2)).
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder"));
    }
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    Ok((file, metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_regular_file_is_opened_and_nothing_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), b"hello").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        assert_eq!(open(&at("file")).unwrap().1, 5);
        assert_eq!(open(&at("link")).unwrap().1, 5);
        let kind = |name: &str| open(&at(name)).unwrap_err().kind();
        assert_eq!(kind("fifo"), io::ErrorKind::InvalidInput);
        assert_eq!(kind("."), io::ErrorKind::IsADirectory);
        assert_eq!(kind("none"), io::ErrorKind::NotFound);
        assert!(open(&at("socket")).is_err());
        assert_eq!(open(Path::new("/dev/zero")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
