//! Images that go: deleted on request, or found to be half of something.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use super::flatten::blocking;
use super::record::Image;
use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::identifier::OperationId;
use crate::staging::Staging;
use crate::store::{self, Store};

/// Deletes an image that no machine uses. The row goes in one brief transaction, the files after it, unless
/// another name shares them. Returns whether they went.
pub(crate) async fn delete(store: &Store, data: &DataDirectory, name: &str) -> Result<(Image, bool)> {
    let (root, name) = (data.root().to_owned(), name.to_owned());
    let (image, last) = store
        .transaction(move |transaction| {
            let image = store::images::find(transaction, &root, &name)?;
            let machines = store::images::used_by(transaction, &image.id)?;
            if !machines.is_empty() {
                return Err(store::images::in_use(&image.name, &machines));
            }
            let last = store::images::delete(transaction, &image)?;
            Ok((image, last))
        })
        .await?;
    if let (true, Some(content)) = (last, &image.content_id) {
        let folder = data.image(content);
        blocking(move || remove_folder(folder)).await?;
    }
    Ok((image, last))
}

/// Removes the files of an image whose row is gone. Blocking.
pub(super) fn remove_folder(folder: PathBuf) -> Result<()> {
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("cannot remove `{}`", folder.display()), error)
                .with_hint("the image is no longer on record; what is left goes when vmdeck starts next"))
        }
        _ => Ok(()),
    }
}

/// Brings `images/` and the store in line after a process died.
///
/// Folders without a row are moved away within a transaction: whoever publishes holds the same lock
/// between naming the folder and committing the row, so that no image is taken for an orphan. Rows
/// whose root file system is gone, and which no machine uses, are removed.
pub(crate) async fn reconcile(store: &Store, data: &DataDirectory) -> Result<()> {
    let (root, images) = (data.root().to_owned(), data.images());
    // A look without a lock: nearly always there is nothing to do.
    let look = {
        let (root, images) = (root.clone(), images.clone());
        store.read(move |connection| survey(connection, &root, &images)).await?
    };
    if look.orphans.is_empty() && look.lost.is_empty() {
        return Ok(());
    }
    let staging = Staging::create(data, &OperationId::random()).await?;
    let trash = staging.path().to_owned();
    store
        .transaction(move |transaction| {
            let found = survey(transaction, &root, &images)?;
            for orphan in &found.orphans {
                tracing::warn!(path = %orphan.display(), "removing files that belong to no image");
                let name = orphan.file_name().unwrap_or_default();
                match fs::rename(orphan, trash.join(name)) {
                    Ok(()) => {}
                    // Whoever deleted the image was just removing its files.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => {
                        return Err(Error::io(format!("cannot remove `{}`", orphan.display()), error));
                    }
                }
            }
            for image in &found.lost {
                tracing::warn!(image = image.name, "removing an image whose files are gone");
                store::images::delete(transaction, image)?;
            }
            Ok(())
        })
        .await?;
    blocking(move || {
        drop(staging);
        Ok(())
    })
    .await
}

struct Survey {
    orphans: Vec<PathBuf>,
    lost: Vec<Image>,
}

fn survey(
    connection: &store::Connection,
    root: &std::path::Path,
    images: &std::path::Path,
) -> Result<Survey> {
    let known: HashSet<String> =
        store::images::content_ids(connection)?.iter().map(|id| id.as_str().to_owned()).collect();
    let fail = |error| Error::io(format!("cannot read `{}`", images.display()), error);
    let mut orphans = Vec::new();
    for entry in fs::read_dir(images).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if !entry.file_name().to_str().is_some_and(|name| known.contains(name)) {
            orphans.push(entry.path());
        }
    }
    let mut lost = Vec::new();
    for image in store::images::list(connection, root)? {
        let gone = matches!(fs::metadata(&image.files.rootfs), Err(error) if error.kind() == std::io::ErrorKind::NotFound);
        if gone && image.managed && store::images::used_by(connection, &image.id)?.is_empty() {
            lost.push(image);
        }
    }
    Ok(Survey { orphans, lost })
}
