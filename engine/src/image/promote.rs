//! Promote: copies of files that lie elsewhere become a managed image.

use std::path::{Path, PathBuf};

use super::copy::copy_sparse;
use super::flatten::{INITRD, KERNEL, MODULES, ROOTFS, WORK_SEED, blocking};
use super::publish::{Replaced, Replacing, managed_files, publish};
use super::record::Image;
use super::remove::remove_folder;
use super::text::bytes;
use super::{ImageService, inspect, seed};
use crate::clock;
use crate::error::{Error, Result};
use crate::identifier::{ImageId, check_name, list_names};
use crate::keys::installation_key;
use crate::operation::progress::ProgressUnit;
use crate::operation::record::OperationKind;
use crate::operation::{Operation, Task};
use crate::space;
use crate::staging::Staging;
use crate::store;

/// What to promote.
#[derive(Clone, Debug, Default)]
pub struct PromoteImage {
    /// A registered image.
    pub name: String,
    /// Name of the managed image. When it is not given, or the same, the managed image takes the
    /// registered one's place.
    pub new_name: Option<String>,
}

impl ImageService {
    /// Copies the files of a registered image into the data directory and publishes them as a managed
    /// image.
    pub fn promote(&self, request: PromoteImage, parent: Option<&Operation>) -> Task<Image> {
        let (this, target) = (self.clone(), request.name.clone());
        self.shared.operations.spawn(OperationKind::ImagePromote, target, parent, |operation| {
            this.run_promote(request, operation)
        })
    }

    async fn run_promote(self, request: PromoteImage, operation: Operation) -> Result<Image> {
        let source = self.find(&request.name).await?;
        if source.managed {
            return Err(Error::conflict(format!("the image `{}` is managed already", source.name))
                .with_hint("only registered images are promoted"));
        }
        source.require_files()?;
        let name = request.new_name.unwrap_or_else(|| source.name.clone());
        check_name("an image", &name)?;
        let cancel = operation.cancelled().clone();
        let _name = self.shared.names.acquire(&name, &cancel).await?;
        let replacing = if name == source.name {
            self.check_unused(&source).await?;
            Replacing::Unmanaged(source.id.clone())
        } else {
            if self.by_name(&name).await?.is_some() {
                return Err(store::images::name_taken(&name));
            }
            Replacing::Nothing
        };

        let staging = Staging::create(&self.shared.data, operation.id()).await?;
        let folder = staging.path().join("image");
        operation.phase("copy").await;
        let (rootfs_bytes, used_bytes) = self.copy(&source, &folder, &operation).await?;
        self.seed_and_publish(
            Image {
                id: ImageId::random(),
                name,
                managed: true,
                created_at: clock::now(),
                rootfs_bytes,
                used_bytes,
                ..source
            },
            folder,
            replacing,
            &operation,
        )
        .await
    }

    async fn check_unused(&self, image: &Image) -> Result<()> {
        let id = image.id.clone();
        let machines =
            self.shared.store.read(move |connection| store::images::used_by(connection, &id)).await?;
        if machines.is_empty() { Ok(()) } else { Err(store::images::in_use(&image.name, &machines)) }
    }

    /// Copies all files; returns length and use of the root file system.
    async fn copy(&self, source: &Image, folder: &Path, operation: &Operation) -> Result<(u64, u64)> {
        let files = &source.files;
        let named: Vec<(&'static str, PathBuf)> = [
            (ROOTFS, Some(&files.rootfs)),
            (WORK_SEED, files.work_seed.as_ref()),
            (KERNEL, files.kernel.as_ref()),
            (INITRD, files.initrd.as_ref()),
            (MODULES, files.modules.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, path)| path.map(|path| (name, path.clone())))
        .collect();
        let progress = operation.progress();
        let parts: Vec<_> =
            named.iter().map(|(name, _)| progress.add(*name, ProgressUnit::Bytes, 0)).collect();
        let (folder, cancel) = (folder.to_owned(), operation.cancelled().clone());
        blocking(move || {
            use std::os::unix::fs::MetadataExt;
            // What lies there now, which may be other than what was registered.
            let system = inspect::ext4(&named[0].1, "root file system")?;
            let needed: u64 = named
                .iter()
                .filter_map(|(_, path)| std::fs::metadata(path).ok())
                .map(|metadata| metadata.len().min(metadata.blocks() * 512))
                .sum();
            std::fs::create_dir(&folder)
                .map_err(|error| Error::io(format!("cannot create `{}`", folder.display()), error))?;
            let free = space::free(&folder)?;
            // A file system that shares blocks needs none; whether it does is known when it is tried.
            let tight = (needed > free).then(|| {
                Error::failed(format!(
                    "the copy needs about {} in `{}`, where {} are free",
                    bytes(needed),
                    folder.display(),
                    bytes(free)
                ))
                .with_hint("free some space (`vmdeck df` shows what vmdeck holds)")
            });
            if let Some(error) = tight
                && !super::copy::shares_blocks(&named[0].1, &folder)
            {
                return Err(error);
            }
            for ((name, path), part) in named.iter().zip(&parts) {
                copy_sparse(path, &folder.join(name), part, &cancel)?;
            }
            Ok((system.length, system.used))
        })
        .await
    }

    /// The second half of everything that makes an image of file systems that are there: work seed,
    /// key, publication. `folder` is within the operation's staging folder.
    pub(super) async fn seed_and_publish(
        &self,
        mut image: Image,
        folder: PathBuf,
        replacing: Replacing,
        operation: &Operation,
    ) -> Result<Image> {
        operation.phase("seed").await;
        let (data, place, cancel) = (self.shared.data.clone(), folder.clone(), operation.cancelled().clone());
        blocking(move || {
            let seed = place.join(WORK_SEED);
            if !seed.exists() {
                seed::derive(&place.join(ROOTFS), &seed, &cancel)?;
            }
            seed::flatten_nested_work_home(&seed)?;
            seed::authorize(&seed, &installation_key(&data)?.public_line).map(|_| ())
        })
        .await?;
        let content = ImageId::random();
        image.files = managed_files(&self.shared.data, &content, &folder);
        image.content_id = Some(content);
        operation.phase("publish").await;
        (self.shared.settings.seams.finalize_pulled_rootfs)(folder.clone(), image.clone()).await?;
        if operation.cancelled().is_cancelled() {
            return Err(Error::cancelled());
        }
        let (image, replaced) =
            publish(&self.shared.store, &self.shared.data, folder, image, replacing).await?;
        self.settle_replaced(replaced, operation).await;
        Ok(image)
    }

    /// What is left to do of the image whose name another one took.
    pub(super) async fn settle_replaced(&self, replaced: Replaced, operation: &Operation) {
        match replaced {
            Replaced::Nothing | Replaced::Deleted { content: None } => {}
            Replaced::Deleted { content: Some(content) } => {
                let folder = self.shared.data.image(&content);
                // The new image is there all the same, and what is left goes when vmdeck starts next.
                if let Err(error) = blocking(move || remove_folder(folder)).await {
                    tracing::warn!(error = error.full_message(), "a replaced image's files are left");
                }
            }
            Replaced::SetAside { name, machines } => {
                let machines = list_names(&machines);
                operation
                    .log(format!("the image before is `{name}` now, which {machines} are made of"))
                    .await;
            }
        }
    }
}
