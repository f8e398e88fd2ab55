//! Prune: what can be made again, or belongs to nothing.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ImageService;
use super::flatten::blocking;
use super::record::Image;
use crate::error::{Error, Result};
use crate::operation::record::OperationKind;
use crate::operation::{Operation, Task};
use crate::store;

/// What to remove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneImages {
    /// Only say what would go.
    pub dry_run: bool,
    /// Also every cached blob, and every image that no machine uses and that can be pulled again.
    pub all: bool,
}

/// What went, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReport {
    pub dry_run: bool,
    pub items: Vec<PrunedItem>,
    /// Bytes on the disk that this frees.
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedItem {
    pub kind: PrunedKind,
    /// Name of an image, digest of a blob.
    pub name: String,
    /// Bytes on the disk.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrunedKind {
    Image,
    /// A layer in the blob cache.
    Blob,
    /// A part of a layer that nobody downloads now.
    PartialBlob,
}

impl ImageService {
    /// Removes what is of no more use: without `all`, blobs that belong to no image on record and
    /// downloads that were given up.
    pub fn prune(&self, request: PruneImages, parent: Option<&Operation>) -> Task<PruneReport> {
        let this = self.clone();
        self.shared.data.use_reserve();
        self.shared
            .operations
            .spawn(OperationKind::ImagePrune, "", parent, move |operation| this.run_prune(request, operation))
    }

    async fn run_prune(self, request: PruneImages, operation: Operation) -> Result<PruneReport> {
        if !request.dry_run {
            self.reconcile().await?;
        }
        let items = operation
            .cancelled()
            .run_until_cancelled(self.prunable(request))
            .await
            .ok_or_else(Error::cancelled)??;
        let bytes = items.iter().map(|item| item.bytes).sum();
        Ok(PruneReport { dry_run: request.dry_run, items, bytes })
    }

    /// What goes, or would; done unless it is a dry run.
    pub(crate) async fn prunable(&self, request: PruneImages) -> Result<Vec<PrunedItem>> {
        let mut items = Vec::new();
        let (root, all) = (self.shared.data.root().to_owned(), request.all);
        let look = move |connection: &store::Transaction<'_>| {
            let used = if all { store::images::used_ids(connection)? } else { HashSet::new() };
            Ok((store::images::list(connection, &root)?, used))
        };
        let (images, used) = self.shared.store.read(look).await?;
        let goes = |image: &Image| request.all && can_be_pulled_again(image) && !used.contains(&image.id);
        let (going, mut kept): (Vec<Image>, Vec<Image>) = images.into_iter().partition(goes);
        for (number, image) in going.iter().enumerate() {
            // Names of one content share its files: they go with the last of them.
            let size = allocated(image);
            let freed = if request.dry_run {
                let mut staying = kept.iter().chain(&going[number + 1..]);
                !staying.any(|other| other.content_id == image.content_id)
            } else {
                match super::remove::delete(&self.shared.store, &self.shared.data, &image.name).await {
                    Ok((_, freed)) => freed,
                    // A machine was made of it since, or somebody else deleted it.
                    Err(error)
                        if matches!(
                            error.kind(),
                            crate::ErrorKind::Conflict | crate::ErrorKind::NotFound
                        ) =>
                    {
                        kept.push(image.clone());
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            };
            let bytes = if freed { size } else { 0 };
            items.push(PrunedItem { kind: PrunedKind::Image, name: image.name.clone(), bytes });
        }
        let in_use: HashSet<String> = if request.all {
            HashSet::new()
        } else {
            let layers = kept.iter().flat_map(|image| &image.layers);
            layers.filter_map(|layer| layer.digest.strip_prefix("sha256:").map(str::to_owned)).collect()
        };
        let (folder, dry_run) = (self.shared.data.blobs(), request.dry_run);
        let blobs = blocking(move || prune_blobs(&folder, &in_use, dry_run)).await?;
        items.extend(blobs);
        Ok(items)
    }

    /// Bytes on the disk of the layers in the cache, which none but a later pull needs.
    pub(crate) async fn cached_bytes(&self) -> Result<u64> {
        let folder = self.shared.data.blobs();
        let blobs = blocking(move || prune_blobs(&folder, &HashSet::new(), true)).await?;
        Ok(blobs.iter().map(|item| item.bytes).sum())
    }
}

/// Whether there is a place to get it from again. One that was promoted is nowhere else.
pub(crate) fn can_be_pulled_again(image: &Image) -> bool {
    image.managed && image.reference.is_some()
}

/// Bytes on the disk of an image's folder.
fn allocated(image: &Image) -> u64 {
    let Some(folder) = image.files.rootfs.parent() else { return 0 };
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
}

/// Whether the name still is this file's.
fn is_named(file: &fs::File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(file), Ok(named)) => identity(file) == identity(named),
        _ => false,
    }
}

fn prune_blobs(folder: &Path, in_use: &HashSet<String>, dry_run: bool) -> Result<Vec<PrunedItem>> {
    let fail = |error| Error::io(format!("cannot read `{}`", folder.display()), error);
    let mut items = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Ok(metadata) = entry.metadata() else { continue };
        let (kind, digest) = match name.strip_suffix(".partial") {
            Some(digest) => (PrunedKind::PartialBlob, digest.to_owned()),
            None if in_use.contains(&name) => continue,
            None => (PrunedKind::Blob, name.clone()),
        };
        // A download holds the lock on its file; with the lock in hand nobody begins one.
        let lock = if kind == PrunedKind::PartialBlob {
            match fs::File::open(entry.path()).map(|file| file.try_lock().map(|()| file)) {
                // Since it was opened it may have become a whole blob, and the name another download's.
                Ok(Ok(file)) if is_named(&file, &entry.path()) => Some(file),
                _ => continue,
            }
        } else {
            None
        };
        if !dry_run {
            let path: PathBuf = entry.path();
            match fs::remove_file(&path) {
                Ok(()) => {}
                // Another prune was here first; the space is its.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(Error::io(format!("cannot remove `{}`", path.display()), error));
                }
            }
        }
        drop(lock);
        items.push(PrunedItem { kind, name: format!("sha256:{digest}"), bytes: metadata.blocks() * 512 });
    }
    items.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(items)
}
