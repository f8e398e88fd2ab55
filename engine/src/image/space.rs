//! Room on a file system.

use std::path::Path;

use crate::error::{Error, Result};

/// Bytes that an ordinary user may still write where `path` lies.
pub(crate) fn free(path: &Path) -> Result<u64> {
    let statistics = nix::sys::statvfs::statvfs(path)
        .map_err(|error| Error::io(format!("cannot look at `{}`", path.display()), error.into()))?;
    Ok(statistics.blocks_available().saturating_mul(statistics.fragment_size()))
}
