//! The lock of a machine: whoever holds it is the only one, in this process or another, that starts,
//! stops, changes or deletes the machine.
//!
//! It is a lock on the file `lock` in the machine's folder, behind a queue of this process's own
//! tasks. The file says who holds it and what for, so that others can wait, refuse or interrupt with
//! knowledge. It goes with the folder when the machine is deleted, so a lock counts only while its
//! file is still the one in the folder and the machine's row is there.

use std::fs;
use std::io::{self, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::admission::Request;
use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::identifier::{OperationId, VmId};
use crate::lock::{KeyedGuard, KeyedLocks};

/// The locks of all machines.
#[derive(Debug)]
pub(super) struct VmLocks {
    data: DataDirectory,
    keyed: KeyedLocks,
}

/// Holds the lock of one machine.
#[derive(Debug)]
pub(super) struct VmGuard {
    id: VmId,
    directory: PathBuf,
    keyed: KeyedGuard,
}

/// What the holder of a lock says of itself. Only ever a hint: it may have ended since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    pub(super) request: Request,
    /// None when no operation does it: a process that watches over machines.
    pub(super) operation: Option<OperationId>,
}

impl VmLocks {
    pub(super) fn new(data: DataDirectory) -> Self {
        let keyed = KeyedLocks::in_folders(data.vms(), "lock");
        Self { data, keyed }
    }

    /// Takes the lock if nobody holds it. Creates the folder of a machine that never had one; the
    /// caller makes sure that the machine exists, before and after.
    pub(super) fn try_acquire(&self, id: &VmId) -> Result<Option<VmGuard>> {
        for _ in 0..8 {
            let directory = self.folder(id)?;
            match self.keyed.try_acquire(id.as_str()) {
                Ok(Some(keyed)) if is_current(&keyed, &self.keyed.path(id.as_str())) => {
                    return Ok(Some(VmGuard { id: id.clone(), directory, keyed }));
                }
                Ok(None) => return Ok(None),
                // The folder was removed in between.
                Ok(Some(_)) | Err(_) => {}
            }
        }
        Err(self.gone(id))
    }

    /// Waits for the lock.
    pub(super) async fn acquire(&self, id: &VmId, cancel: &CancellationToken) -> Result<VmGuard> {
        for _ in 0..8 {
            let directory = self.folder(id)?;
            match self.keyed.acquire(id.as_str(), cancel).await {
                Ok(keyed) if is_current(&keyed, &self.keyed.path(id.as_str())) => {
                    return Ok(VmGuard { id: id.clone(), directory, keyed });
                }
                Err(error) if error.is_cancelled() => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Err(self.gone(id))
    }

    /// Who holds the lock, as far as it has said.
    pub(super) fn holder(&self, id: &VmId) -> Option<Holder> {
        let text = fs::read(self.keyed.path(id.as_str())).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn folder(&self, id: &VmId) -> Result<PathBuf> {
        let directory = self.data.vm(id);
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::io(format!("cannot create the machine's folder `{}`", directory.display()), error))
            }
            _ => Ok(directory),
        }
    }

    fn gone(&self, id: &VmId) -> Error {
        Error::failed(format!("the machine's folder `{}` cannot be locked", self.data.vm(id).display()))
            .with_hint("check that the folder is yours and on a local file system")
    }
}

impl VmGuard {
    pub(super) fn id(&self) -> &VmId {
        &self.id
    }

    /// The machine's folder.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Tells others what the lock is held for.
    pub(super) fn tell(&self, holder: &Holder) -> Result<()> {
        let write = || -> io::Result<()> {
            let mut file = self.keyed.file();
            let text = serde_json::to_vec(holder)?;
            // A reader in between sees broken JSON, and takes it for nothing known.
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(&text)
        };
        write().map_err(|error| Error::io(format!("cannot write the lock of machine {}", self.id), error))
    }

    /// Removes the folder of a machine that turned out not to exist.
    pub(super) fn discard(self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(path = %self.directory.display(), %error, "the folder of a deleted machine stays");
        }
    }
}

/// Whether the locked file is the one that others would lock.
fn is_current(guard: &KeyedGuard, path: &Path) -> bool {
    let same = || -> io::Result<bool> {
        let (held, there) = (guard.file().metadata()?, fs::metadata(path)?);
        Ok(held.ino() == there.ino() && held.dev() == there.dev())
    };
    same().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locks() -> (tempfile::TempDir, VmLocks, VmLocks) {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(folder.path()).unwrap();
        (folder, VmLocks::new(data.clone()), VmLocks::new(data))
    }

    #[tokio::test]
    async fn a_holder_is_known_to_another_process() {
        let (_folder, here, there) = locks();
        let id = VmId::random();
        let guard = here.try_acquire(&id).unwrap().unwrap();
        let holder = Holder { request: Request::Start, operation: Some(OperationId::random()) };
        guard.tell(&holder).unwrap();
        guard.tell(&holder).unwrap();
        assert!(there.try_acquire(&id).unwrap().is_none());
        assert_eq!(there.holder(&id), Some(holder));
        drop(guard);
        assert!(there.try_acquire(&id).unwrap().is_some());
    }

    #[tokio::test]
    async fn a_lock_on_a_removed_folder_is_not_taken_for_one() {
        let (_folder, here, there) = locks();
        let id = VmId::random();
        let guard = here.try_acquire(&id).unwrap().unwrap();
        let cancel = CancellationToken::new();
        let waiter = tokio::spawn(async move { there.acquire(&id, &cancel).await.unwrap() });
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        guard.discard();
        let second = waiter.await.unwrap();
        assert!(second.directory().join("lock").exists(), "what is locked is what is there");
    }
}
