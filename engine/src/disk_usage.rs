//! What vmdeck holds on the disk, and what of it could be freed.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Engine;
use crate::error::{Error, Result};
use crate::image::can_be_pulled_again;
use crate::image::record::Image;
use crate::kernel::record::Kernel;
use crate::snapshot::Snapshot;
use crate::space::Space;
use crate::vm::record::Vm;

/// Everything, item by item, and the sums.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    pub items: Vec<DiskUsageItem>,
    pub logical_bytes: u64,
    pub allocated_bytes: u64,
    pub reclaimable_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsageItem {
    pub kind: DiskUsageKind,
    pub name: String,
    /// Lengths of the files, holes included.
    pub logical_bytes: u64,
    /// Bytes they take on the disk. Blocks that files share count for each of them.
    pub allocated_bytes: u64,
    /// What `image prune --all` would free of it.
    pub reclaimable_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskUsageKind {
    Image,
    Kernel,
    Vm,
    /// Frozen disks, which snapshots and clones lie on.
    Snapshots,
    /// Layers of images, as they were downloaded.
    Cache,
    /// Work of operations under way.
    Staging,
    /// Store, logs, keys, locks, and the room set aside for a full disk.
    Other,
}

/// The disk that the data directory is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpace {
    pub total_bytes: u64,
    /// What this user may still take.
    pub free_bytes: u64,
}

impl Engine {
    /// How much room there is.
    pub async fn disk_space(&self) -> Result<DiskSpace> {
        let root = self.data().root().to_owned();
        let asked = tokio::task::spawn_blocking(move || Space::at(&root)).await;
        let space = asked
            .map_err(|error| Error::failed("asking for the room on the disk failed").with_source(error))?
            .map_err(|error| Error::io("the room on the disk is not known", error))?;
        Ok(DiskSpace { total_bytes: space.total, free_bytes: space.free })
    }

    /// Looks at every file in the data directory.
    pub async fn disk_usage(&self) -> Result<DiskUsage> {
        let (images, kernels, vms) =
            (self.images().list().await?, self.kernels().list().await?, self.vms().list().await?);
        self.usage_of(Arc::new(images), Arc::new(kernels), Arc::new(vms)).await
    }

    /// The same of what is in a picture, for a screen that has one: the store is not read again.
    pub async fn disk_usage_in(&self, picture: &Snapshot) -> Result<DiskUsage> {
        let Snapshot { images, kernels, vms, .. } = picture.clone();
        self.usage_of(images, kernels, vms).await
    }

    async fn usage_of(
        &self,
        images: Arc<Vec<Image>>,
        kernels: Arc<Vec<Kernel>>,
        vms: Arc<Vec<Vm>>,
    ) -> Result<DiskUsage> {
        let data = self.data().clone();
        let reclaimable = self.images().cached_bytes().await?;
        let used: HashSet<_> = vms.iter().map(|vm| vm.image_id.clone()).collect();
        tokio::task::spawn_blocking(move || {
            let mut usage = DiskUsage::default();
            let needed: HashSet<_> = images
                .iter()
                .filter(|image| used.contains(&image.id) || !can_be_pulled_again(image))
                .filter_map(|image| image.content_id.as_ref())
                .collect();
            let (mut counted, mut inodes) = (HashSet::new(), Counted::new());
            for image in images.iter() {
                let Some(content) = &image.content_id else { continue };
                // Names of one content share its files: the first has them.
                let size = if counted.insert(content) {
                    measure(&data.image(content), &mut inodes)?
                } else {
                    Size::default()
                };
                let free = if needed.contains(content) { 0 } else { size.allocated };
                usage.add(DiskUsageKind::Image, &image.name, size, free);
            }
            for kernel in kernels.iter() {
                usage.add(
                    DiskUsageKind::Kernel,
                    &kernel.name,
                    measure(&data.kernel(&kernel.name), &mut inodes)?,
                    0,
                );
            }
            // Before the machines: what is frozen may still have its name for a run.
            let frozen = measure(&data.layers(), &mut inodes)?;
            for vm in vms.iter() {
                usage.add(DiskUsageKind::Vm, &vm.name, measure(&data.vm(&vm.id), &mut inodes)?, 0);
            }
            usage.add(DiskUsageKind::Snapshots, "frozen disks", frozen, 0);
            usage.add(DiskUsageKind::Cache, "layers", measure(&data.blobs(), &mut inodes)?, reclaimable);
            usage.add(DiskUsageKind::Staging, "staging", measure(&data.staging_root(), &mut inodes)?, 0);
            // Whatever else there is.
            let looked_at =
                [data.images(), data.kernels(), data.layers(), data.vms(), data.blobs(), data.staging_root()];
            let other = measure_but(data.root(), &looked_at, &mut inodes)?;
            usage.add(DiskUsageKind::Other, "store, logs, rest", other, 0);
            Ok(usage)
        })
        .await
        .map_err(|error| Error::failed("a background thread ended").with_source(error))?
    }
}

impl DiskUsage {
    fn add(&mut self, kind: DiskUsageKind, name: &str, size: Size, reclaimable: u64) {
        self.logical_bytes += size.logical;
        self.allocated_bytes += size.allocated;
        self.reclaimable_bytes += reclaimable;
        self.items.push(DiskUsageItem {
            kind,
            name: name.to_owned(),
            logical_bytes: size.logical,
            allocated_bytes: size.allocated,
            reclaimable_bytes: reclaimable,
        });
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Size {
    logical: u64,
    allocated: u64,
}

/// Device and inode of files with several names that were counted.
type Counted = HashSet<(u64, u64)>;

/// A file, or a folder with all in it; links are not followed, and what goes meanwhile is nothing. A
/// file with several names counts once: machines that run have their disks under two.
fn measure(path: &Path, counted: &mut Counted) -> Result<Size> {
    measure_but(path, &[], counted)
}

/// The same, without some of the folders in it.
fn measure_but(path: &Path, but: &[PathBuf], counted: &mut Counted) -> Result<Size> {
    let mut size = Size::default();
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        if but.contains(&path) {
            continue;
        }
        let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        let fail = |error| Error::io(format!("cannot look at `{}`", path.display()), error);
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if gone(&error) => continue,
            result => result.map_err(fail)?,
        };
        if metadata.is_file() && metadata.nlink() > 1 && !counted.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        size.allocated += metadata.blocks() * 512;
        if !metadata.is_dir() {
            size.logical += metadata.len();
            continue;
        }
        match fs::read_dir(&path) {
            Err(error) if gone(&error) => {}
            entries => {
                for entry in entries.map_err(fail)? {
                    pending.push(entry.map_err(fail)?.path());
                }
            }
        }
    }
    Ok(size)
}
