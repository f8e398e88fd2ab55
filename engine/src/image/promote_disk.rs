//! The disks of a stopped machine become an image of its own.

use std::path::PathBuf;

use super::flatten::{ROOTFS, WORK_SEED, blocking};
use super::publish::Replacing;
use super::record::{Image, ImageFiles};
use super::{ImageService, inspect};
use crate::clock;
use crate::error::{Error, Result};
use crate::identifier::{ImageId, check_name};
use crate::operation::Operation;
use crate::operation::progress::{ProgressState, ProgressUnit};
use crate::staging::Staging;
use crate::store;
use crate::vmm::{DiskFormat, qcow2};

/// Disks nobody writes to while they are read: the caller holds their machine's lock.
#[derive(Clone, Debug)]
pub(crate) struct PromoteDisks {
    /// Name of the new image.
    pub(crate) name: String,
    /// What the machine was made of; how to start it is taken over.
    pub(crate) base: Image,
    pub(crate) root: (PathBuf, DiskFormat),
    pub(crate) work: Option<(PathBuf, DiskFormat)>,
}

impl ImageService {
    /// Reads disks through all their layers into the files of a new image.
    pub(crate) async fn promote_disks(&self, request: PromoteDisks, operation: &Operation) -> Result<Image> {
        check_name("an image", &request.name)?;
        let cancel = operation.cancelled().clone();
        let _name = self.shared.names.acquire(&request.name, &cancel).await?;
        if self.by_name(&request.name).await?.is_some() {
            return Err(store::images::name_taken(&request.name));
        }
        let staging = Staging::create(&self.shared.data, operation.id()).await?;
        let folder = staging.path().join("image");
        operation.phase("copy").await;
        let disks: Vec<_> = [(ROOTFS, Some(request.root)), (WORK_SEED, request.work)]
            .into_iter()
            .filter_map(|(name, disk)| disk.map(|disk| (name, disk)))
            .collect();
        let parts: Vec<_> =
            disks.iter().map(|(name, _)| operation.progress().add(*name, ProgressUnit::Bytes, 0)).collect();
        let place = folder.clone();
        let system = blocking(move || {
            std::fs::create_dir(&place)
                .map_err(|error| Error::io(format!("cannot create `{}`", place.display()), error))?;
            for ((name, (disk, format)), part) in disks.iter().zip(&parts) {
                part.set_total(qcow2::virtual_size(disk, *format)?);
                part.set_state(ProgressState::Active);
                qcow2::flatten(disk, *format, &place.join(name), |done| part.set_done(done), &cancel)?;
                part.set_done(part.total());
                part.set_state(ProgressState::Done);
            }
            inspect::ext4(&place.join(ROOTFS), "machine's root disk")
        })
        .await?;
        let image = Image {
            id: ImageId::random(),
            name: request.name,
            managed: true,
            content_id: None,
            digest: None,
            created_at: clock::now(),
            reference: None,
            files: ImageFiles::default(),
            // The layers of the base are no longer all there is in it.
            layers: Vec::new(),
            rootfs_bytes: system.length,
            used_bytes: system.used,
            ..request.base
        };
        self.seed_and_publish(image, folder, Replacing::Nothing, operation).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_directory::DataDirectory;
    use crate::operation::Operations;
    use crate::operation::record::OperationKind;
    use crate::store::Store;

    #[tokio::test]
    async fn an_overlay_becomes_an_image_that_needs_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        let made = std::process::Command::new("/usr/sbin/mke2fs")
            .args(["-q", "-t", "ext4"])
            .arg(&base)
            .arg("16M")
            .output();
        match made {
            Ok(output) => assert!(output.status.success()),
            Err(error) => return eprintln!("skipped: mke2fs cannot be run: {error}"),
        }
        let disk = folder.path().join("root.qcow2");
        qcow2::create_overlay(&disk, &base, DiskFormat::Raw, 64 << 20).unwrap();
        let data = DataDirectory::open(folder.path().join("data")).unwrap();
        let store = Store::open(&data.database()).unwrap();
        let operations = Operations::new(store.clone()).unwrap();
        let images = ImageService::new(data.clone(), store, operations.clone());
        let register =
            crate::image::RegisterImage { name: "base".into(), rootfs: base.clone(), ..Default::default() };
        let base_image = images.register(register, None).wait().await.unwrap();
        let promote = |name: &str, root: PathBuf| {
            let request = PromoteDisks {
                name: name.into(),
                base: base_image.clone(),
                root: (root, DiskFormat::Qcow2),
                work: None,
            };
            let images = images.clone();
            operations.spawn(OperationKind::ImagePromote, name, None, |operation| async move {
                images.promote_disks(request, &operation).await
            })
        };
        let error = promote("base", disk.clone()).wait().await.unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Conflict);
        let image = promote("new", disk.clone()).wait().await.unwrap();
        std::fs::remove_file(&base).unwrap();
        std::fs::remove_file(&disk).unwrap();
        assert!(image.managed && image.id != base_image.id && image.digest.is_none());
        // As long as the disk, so that what the guest made larger fits.
        assert_eq!(std::fs::metadata(&image.files.rootfs).unwrap().len(), 64 << 20);
        assert_eq!(image.rootfs_bytes, 16 << 20);
        let checked =
            std::process::Command::new("/usr/sbin/e2fsck").arg("-fn").arg(&image.files.rootfs).output();
        assert!(checked.unwrap().status.success());
        assert!(image.files.work_seed.is_some());
        assert!(promote("gone", disk).wait().await.is_err());
        assert_eq!(std::fs::read_dir(data.staging_root()).unwrap().count(), 0);
    }
}
