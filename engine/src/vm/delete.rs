//! Deleting: the row goes first, and with it the leases; the files follow.
//!
//! A file `deleted` in the machine's folder says that the folder is to go. It is written before the
//! row is removed, so a kill in between leaves either a machine or garbage that can be told from a
//! machine whose row was lost by accident: [`sweep`] removes the first and never the second.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::lock::VmGuard;
use super::record::Vm;
use super::{Shared, stop};
use crate::error::{Error, Result};
use crate::identifier::VmId;
use crate::lock::FileLock;
use crate::operation::Operation;
use crate::staging::Staging;
use crate::store;

const INTENT: &str = "deleted";

/// Deletes a machine, running or not: the caller holds its lock and has decided.
pub(super) async fn delete(shared: &Shared, guard: VmGuard, vm: &Vm, operation: &Operation) -> Result<()> {
    if let Some(run) = vm.run.as_ref().filter(|run| run.process.is_alive()) {
        operation.phase("kill").await;
        stop::end(shared, &guard, &run.process).await?;
    }
    shared.channels.forget(&vm.id);
    operation.phase("delete").await;
    let staging = Staging::create(&shared.data, operation.id()).await?;
    let fail = |error| Error::io(format!("cannot delete machine `{}`", vm.name), error);
    File::create(guard.directory().join(INTENT)).and_then(|file| file.sync_all()).map_err(fail)?;
    let id = vm.id.clone();
    let unused = shared
        .store
        .transaction(move |transaction| {
            store::vms::delete(transaction, &id)?;
            store::layers::take_unused(transaction)
        })
        .await?;
    // From here on it is deleted, and what remains is garbage: nothing that fails may say otherwise.
    let target = staging.path().join("vm");
    let data = shared.data.clone();
    let removing = move || {
        super::layer::remove(&data, &unused);
        if let Err(error) = fs::rename(guard.directory(), &target) {
            tracing::warn!(path = %guard.directory().display(), %error, "a deleted machine's folder stays for now");
        }
        drop(guard);
        drop(staging);
    };
    if tokio::task::spawn_blocking(removing).await.is_err() {
        tracing::warn!(vm = %vm.id, "the removal of a deleted machine's folder ended early");
    }
    Ok(())
}

/// Takes back an intent that was not carried out: the machine is still on record.
pub(super) fn forget_intent(guard: &VmGuard) -> Result<()> {
    match fs::remove_file(guard.directory().join(INTENT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("cannot change the folder of machine {}", guard.id()), error))
        }
        _ => Ok(()),
    }
}

/// Removes the folders of machines that were deleted, and the empty ones of those that never began.
pub(super) async fn sweep(shared: &Shared) -> Result<usize> {
    let root = shared.data.vms();
    let fail = |error| Error::io(format!("cannot clean `{}`", root.display()), error);
    let mut folders = Vec::new();
    for entry in fs::read_dir(&root).map_err(fail)? {
        if let Ok(name) = entry.map_err(fail)?.file_name().into_string() {
            folders.push(VmId::from_stored(name));
        }
    }
    if folders.is_empty() {
        return Ok(0);
    }
    // Rows are read after the folders: a machine's row is there before its folder.
    let without_row = shared
        .store
        .read(move |connection| {
            folders.retain(|id| !matches!(store::vms::state(connection, id), Ok(Some(_)) | Err(_)));
            Ok(folders)
        })
        .await?;
    let mut removed = 0;
    for id in without_row {
        match remove_garbage(&shared.data.vm(&id)) {
            Ok(true) => removed += 1,
            Ok(false) => {}
            Err(error) => tracing::warn!(%id, %error, "the folder of a deleted machine cannot be removed"),
        }
    }
    Ok(removed)
}

/// Removes a folder without a row if it is known to be garbage; whoever holds its lock removes it
/// by himself.
fn remove_garbage(folder: &Path) -> io::Result<bool> {
    let intended = folder.join(INTENT).try_exists()?;
    let empty = || -> io::Result<bool> {
        Ok(fs::read_dir(folder)?.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lock")))
    };
    if !intended && !empty()? {
        tracing::warn!(path = %folder.display(), "a machine's folder without a row is kept");
        return Ok(false);
    }
    let Some(_lock) = FileLock::try_acquire(&folder.join("lock"))? else { return Ok(false) };
    fs::remove_dir_all(folder)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_meant_to_go_goes() {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str, files: &[&str]| {
            let folder = root.path().join(name);
            fs::create_dir(&folder).unwrap();
            for file in files {
                fs::write(folder.join(file), "").unwrap();
            }
            folder
        };
        let deleted = folder("a", &["lock", "root.qcow2", INTENT]);
        let orphan = folder("b", &["lock", "root.qcow2"]);
        let never_begun = folder("c", &["lock"]);
        let held = folder("d", &["lock", INTENT]);
        let _lock = FileLock::try_acquire(&held.join("lock")).unwrap().unwrap();
        assert!(remove_garbage(&deleted).unwrap());
        assert!(!remove_garbage(&orphan).unwrap());
        assert!(remove_garbage(&never_begun).unwrap());
        assert!(!remove_garbage(&held).unwrap());
        assert!(!deleted.exists() && orphan.exists() && !never_begun.exists() && held.exists());
    }
}
