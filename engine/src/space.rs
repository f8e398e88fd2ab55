//! Room on a file system.

use std::io;
use std::path::Path;

use crate::error::{Error, Result};

/// In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) total: u64,
    /// What an ordinary user may still write.
    pub(crate) free: u64,
}

impl Space {
    /// Of the file system that `path` lies on. Blocking, brief.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let statistics = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(statistics.f_frsize);
        Ok(Self { total: bytes(statistics.f_blocks), free: bytes(statistics.f_bavail) })
    }
}

/// Bytes that an ordinary user may still write where `path` lies.
pub(crate) fn free(path: &Path) -> Result<u64> {
    let space = Space::at(path);
    Ok(space.map_err(|error| Error::io(format!("cannot look at `{}`", path.display()), error))?.free)
}
