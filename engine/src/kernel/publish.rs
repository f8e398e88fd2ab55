//! Kernels enter and leave the store.
//!
//! A kernel is its row; its folder only belongs to it. Publishing renames a finished folder into
//! place and inserts the row in one transaction; what a crash between the two leaves is a folder
//! without a row, which [`remove_orphans`] takes away.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::record::Kernel;
use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::identifier::{OperationId, list_names};
use crate::staging::Staging;
use crate::store::{self, Store, Transaction};

/// What becomes of a kernel whose name is already taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameTaken {
    /// By the same kernel from the same source: that one is the result. By another: an error.
    SameSourceIsFine,
    /// Always an error.
    Conflict,
}

/// Moves `folder` to its final place and inserts the row. The window in which the name is checked,
/// the folder renamed and the row inserted is one transaction.
pub(super) async fn publish(
    data: &DataDirectory,
    store: &Store,
    staging: &Staging,
    folder: PathBuf,
    kernel: Kernel,
    taken: NameTaken,
) -> Result<Kernel> {
    let (place, root) = (data.kernel(&kernel.name), data.root().to_owned());
    let orphan = staging.path().join("orphan");
    let synced = folder.clone();
    tokio::task::spawn_blocking(move || sync_folder(&synced))
        .await
        .map_err(|error| Error::failed("publishing the kernel failed").with_source(error))??;
    store
        .transaction(move |transaction| {
            if let Some(known) = store::kernels::by_name(transaction, &root, &kernel.name)?
                && taken == NameTaken::SameSourceIsFine
                && known.source == kernel.source
            {
                return Ok(known);
            }
            store::kernels::insert(transaction, &root, &kernel)?;
            let fail = |error| Error::io(format!("cannot put the kernel at `{}`", place.display()), error);
            // No row had the name, so a folder that lies there belongs to nobody.
            match fs::rename(&place, &orphan) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
                _ => {}
            }
            fs::rename(&folder, &place).map_err(fail)?;
            sync_folder(place.parent().unwrap_or(&place))?;
            Ok(kernel)
        })
        .await
}

/// Deletes the row of a kernel that no machine uses, then its files.
pub(super) async fn delete(data: &DataDirectory, store: &Store, name: &str) -> Result<Kernel> {
    let (root, wanted) = (data.root().to_owned(), name.to_owned());
    let kernel = store
        .transaction(move |transaction| {
            let kernel = store::kernels::by_name(transaction, &root, &wanted)?
                .ok_or_else(|| super::unknown(&wanted))?;
            let users = store::kernels::used_by(transaction, &wanted)?;
            if !users.is_empty() {
                return Err(Error::conflict(format!(
                    "the kernel `{wanted}` is used by {}",
                    list_names(&users)
                ))
                .with_hint(
                    "let them boot another kernel by `vmdeck vm set NAME --kernel KERNEL` (one that runs has it from its next start on), or delete them",
                ));
            }
            store::kernels::delete(transaction, &wanted)?;
            Ok(kernel)
        })
        .await?;
    remove_orphans(data, store).await?;
    Ok(kernel)
}

/// Removes the folders that belong to no kernel. Those are moved away within a transaction, in which
/// nothing can be published, and removed after it.
pub(super) async fn remove_orphans(data: &DataDirectory, store: &Store) -> Result<()> {
    let kernels = data.kernels();
    if orphans(store, kernels.clone()).await?.is_empty() {
        return Ok(());
    }
    let staging = Staging::create(data, &OperationId::random()).await?;
    let away = staging.path().to_owned();
    store
        .transaction(move |transaction| {
            for (number, path) in folders_without_row(transaction, &kernels)?.into_iter().enumerate() {
                fs::rename(&path, away.join(format!("kernel-{number}")))
                    .map_err(|error| Error::io(format!("cannot move `{}` away", path.display()), error))?;
            }
            Ok(())
        })
        .await?;
    tokio::task::spawn_blocking(move || drop(staging))
        .await
        .map_err(|error| Error::failed("removing files of a kernel failed").with_source(error))
}

async fn orphans(store: &Store, kernels: PathBuf) -> Result<Vec<PathBuf>> {
    store.read(move |transaction| folders_without_row(transaction, &kernels)).await
}

fn folders_without_row(transaction: &Transaction<'_>, kernels: &Path) -> Result<Vec<PathBuf>> {
    let fail = |error| Error::io(format!("cannot read `{}`", kernels.display()), error);
    let known = store::kernels::names(transaction)?;
    let mut orphans = Vec::new();
    for entry in fs::read_dir(kernels).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if !entry.file_name().to_str().is_some_and(|name| known.contains(name)) {
            orphans.push(entry.path());
        }
    }
    Ok(orphans)
}

fn sync_folder(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io(format!("cannot write `{}`", path.display()), error))
}
