//! Where a copy goes, by the rules of `cp` and `docker cp`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::TransferError;

/// A folder that is there, and the name in it that what is copied is to have; without a name the
/// content of what is copied goes into the folder itself.
#[derive(Debug)]
pub struct Target {
    pub(crate) folder: OwnedFd,
    pub(crate) name: Option<OsString>,
    /// As it is shown.
    pub(crate) path: PathBuf,
}

impl Target {
    /// Resolves what a user has written: in a folder that is there the copy keeps its name, which
    /// is `source_name`; any other path is that of the copy itself, and its folder must be there.
    ///
    /// # Errors
    /// When there is no such folder, or a path that ends in `/` is none.
    pub fn resolve(path: &Path, source_name: Option<&OsStr>) -> Result<Self, TransferError> {
        if path.is_dir() {
            let shown = source_name.map_or_else(|| path.to_owned(), |name| path.join(name));
            return Ok(Self { folder: folder(path)?, name: source_name.map(OsStr::to_owned), path: shown });
        }
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(TransferError::NoFolder(path.display().to_string()));
        }
        // What is written to a link goes where it leads.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let Some(name) = path.file_name() else {
            return Err(TransferError::Target(format!("`{}` names no file", path.display())));
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Ok(Self { folder: folder(parent)?, name: Some(name.to_owned()), path: path.clone() })
    }
}

fn folder(path: &Path) -> Result<OwnedFd, TransferError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|error| match io::Error::from(error) {
        error if error.kind() == io::ErrorKind::NotFound => {
            TransferError::NoFolder(path.display().to_string())
        }
        error => TransferError::file(path, error),
    })
}
