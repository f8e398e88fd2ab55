//! Work space of an operation, outside every final name until it is published by a rename.
//!
//! A staging folder belongs to the process that holds the lock on the `.lock` file in it. One whose
//! lock is free has lost its owner: it is garbage, and [`sweep`] removes it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::identifier::OperationId;
use crate::lock::FileLock;

/// A staging folder of this process. Dropping it removes what was not renamed away.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    _lock: FileLock,
}

impl Staging {
    /// Creates the folder of an operation.
    pub async fn create(data: &DataDirectory, id: &OperationId) -> Result<Self> {
        let path = data.staging(id);
        let fail = |error| Error::io(format!("cannot create the staging folder `{}`", path.display()), error);
        // Between the folder and its lock another process's sweep must not see it.
        let _gate = FileLock::acquire(&gate(data), &CancellationToken::new()).await?;
        fs::create_dir(&path).map_err(fail)?;
        let lock = FileLock::try_acquire(&path.join(".lock"))
            .map_err(fail)?
            .ok_or_else(|| Error::failed(format!("the staging folder `{}` is locked", path.display())))?;
        Ok(Self { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // One without its lock file looks as if it had no owner: a sweep may have been faster.
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a staging folder could not be removed");
        }
    }
}

/// Removes the staging folders whose owner is gone; returns how many.
pub async fn sweep(data: &DataDirectory) -> Result<usize> {
    let _gate = FileLock::acquire(&gate(data), &CancellationToken::new()).await?;
    let root = data.staging_root();
    let fail = |error| Error::io(format!("cannot clean `{}`", root.display()), error);
    let mut removed = 0;
    for entry in fs::read_dir(&root).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        // A folder half removed has lost its lock file; then taking the lock creates it anew.
        let gone = match FileLock::try_acquire(&path.join(".lock")) {
            Ok(None) => continue,
            Ok(Some(_lock)) => fs::remove_dir_all(&path),
            Err(_) if path.is_dir() => fs::remove_dir_all(&path),
            Err(_) => fs::remove_file(&path),
        };
        match gone {
            Ok(()) => removed += 1,
            // Its owner lives, and was just removing it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
    }
    Ok(removed)
}

/// Held for the milliseconds of creating one folder or of one sweep.
fn gate(data: &DataDirectory) -> PathBuf {
    data.locks().join("staging")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sweep_takes_what_has_no_owner_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(folder.path()).unwrap();
        let mine = Staging::create(&data, &OperationId::random()).await.unwrap();
        let orphan = data.staging(&OperationId::random());
        fs::create_dir_all(orphan.join("image")).unwrap();
        assert_eq!(sweep(&data).await.unwrap(), 1);
        assert!(mine.path().exists());
        assert!(!orphan.exists());
        let path = mine.path().to_owned();
        drop(mine);
        assert!(!path.exists());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_sweep_goes_on_while_owners_remove_their_folders() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(folder.path()).unwrap();
        let owner = data.clone();
        let working = tokio::spawn(async move {
            for _ in 0..300 {
                let staging = Staging::create(&owner, &OperationId::random()).await.unwrap();
                for number in 0..20 {
                    fs::write(staging.path().join(number.to_string()), "").unwrap();
                }
            }
        });
        while !working.is_finished() {
            sweep(&data).await.unwrap();
        }
        working.await.unwrap();
        sweep(&data).await.unwrap();
        assert_eq!(fs::read_dir(data.staging_root()).unwrap().count(), 0);
    }
}
