//! A file that appears under its name when it is whole, and otherwise never was.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::{AtFlags, CWD, RenameFlags};

use crate::error::{Error, Result};
use crate::identifier::OperationId;

/// A file being written.
#[derive(Debug)]
pub(crate) struct Output {
    file: Option<File>,
    target: PathBuf,
    /// Its name until then, where the file system knows no files without one.
    interim: Option<PathBuf>,
}

impl Output {
    /// Begins a file. Where the file system can (O_TMPFILE, open(2)), it has no name before it is
    /// complete, so that nothing is left of it whatever happens.
    ///
    /// # Errors
    /// A conflict when `target` is there already.
    pub(crate) fn create(target: &Path) -> Result<Self> {
        let target = std::path::absolute(target)
            .map_err(|error| Error::io(format!("`{}` is no usable path", target.display()), error))?;
        if target.symlink_metadata().is_ok() {
            return Err(taken(&target));
        }
        let fail = |error| {
            Error::io(format!("cannot create `{}`", target.display()), error)
                .with_hint("name a file in a folder that exists and that you can write")
        };
        let folder = target.parent().unwrap_or(Path::new("/"));
        let nameless =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o644).open(folder);
        match nameless {
            Ok(file) => return Ok(Self { file: Some(file), target, interim: None }),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                return Err(fail(error));
            }
            // EOPNOTSUPP or EISDIR: this file system or kernel cannot.
            Err(_) => {}
        }
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.partial", OperationId::random()));
        let interim = folder.join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&interim).map_err(fail)?;
        Ok(Self { file: Some(file), target, interim: Some(interim) })
    }

    pub(crate) fn file(&mut self) -> &mut File {
        self.file.as_mut().expect("taken by `publish` only, which ends the value")
    }

    /// Gives the file its name, synced.
    pub(crate) fn publish(mut self) -> Result<PathBuf> {
        let fail = |error: std::io::Error| match error.kind() {
            ErrorKind::AlreadyExists => taken(&self.target),
            _ => Error::io(format!("cannot write `{}`", self.target.display()), error),
        };
        let file = self.file.take().expect("taken here only");
        file.sync_all().map_err(fail)?;
        let named = match &self.interim {
            Some(interim) => {
                rustix::fs::renameat_with(CWD, interim, CWD, &self.target, RenameFlags::NOREPLACE)
            }
            None => {
                use std::os::fd::AsRawFd;
                // open(2), "O_TMPFILE": how a file without a name gets one.
                let link = format!("/proc/self/fd/{}", file.as_raw_fd());
                rustix::fs::linkat(CWD, link, CWD, &self.target, AtFlags::SYMLINK_FOLLOW)
            }
        };
        named.map_err(|error| fail(error.into()))?;
        self.interim = None;
        Ok(self.target.clone())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(interim) = &self.interim {
            let _ = std::fs::remove_file(interim);
        }
    }
}

fn taken(target: &Path) -> Error {
    Error::conflict(format!("there is already a file `{}`", target.display()))
        .with_hint("choose another name, or remove that file first")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_there_as_a_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let count = || std::fs::read_dir(folder.path()).unwrap().count();
        let mut output = Output::create(&target).unwrap();
        output.file().write_all(b"half").unwrap();
        drop(output);
        assert_eq!(count(), 0);
        let (mut first, mut second) = (Output::create(&target).unwrap(), Output::create(&target).unwrap());
        first.file().write_all(b"first").unwrap();
        second.file().write_all(b"second").unwrap();
        first.publish().unwrap();
        assert_eq!(second.publish().unwrap_err().kind(), crate::ErrorKind::Conflict);
        assert_eq!(std::fs::read(&target).unwrap(), b"first");
        assert_eq!(count(), 1);
        assert_eq!(Output::create(&target).unwrap_err().kind(), crate::ErrorKind::Conflict);
        assert!(Output::create(&folder.path().join("none/out")).is_err());
    }
}
