//! Register: an image whose files stay where they are on this host. vmdeck knows of them, and never
//! writes to them.

use std::path::{Path, PathBuf};

use super::flatten::blocking;
use super::record::{Image, ImageConfig, ImageFiles};
use super::{ImageService, inspect};
use crate::clock;
use crate::error::{Error, Result};
use crate::identifier::{ImageId, check_name};
use crate::operation::record::OperationKind;
use crate::operation::{Operation, Task};
use crate::store;

/// What to register. All files must exist; relative paths are relative to the current folder.
#[derive(Clone, Debug, Default)]
pub struct RegisterImage {
    pub name: String,
    /// A raw ext4 file system.
    pub rootfs: PathBuf,
    /// A raw ext4 file system: the content of new machines' work disks.
    pub work_seed: Option<PathBuf>,
    /// A kernel that machines of this image boot, instead of one of vmdeck's own.
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
    /// A raw ext4 file system: `/lib/modules/<release>`.
    pub modules: Option<PathBuf>,
    /// How processes are started, where it is known.
    pub config: ImageConfig,
}

impl ImageService {
    /// Records files that exist on this host as an unmanaged image.
    pub fn register(&self, request: RegisterImage, parent: Option<&Operation>) -> Task<Image> {
        let (this, target) = (self.clone(), request.name.clone());
        self.shared.operations.spawn(OperationKind::ImageRegister, target, parent, |_operation| async move {
            this.run_register(request).await
        })
    }

    async fn run_register(self, request: RegisterImage) -> Result<Image> {
        check_name("an image", &request.name)?;
        let (platform, images) = (self.shared.settings.platform.clone(), self.shared.data.images());
        // Everything that reads files is done before the store is asked: no lock waits for a slow disk.
        let image = blocking(move || {
            let rootfs = place(&request.rootfs, "root file system", &images)?;
            let system = inspect::ext4(&rootfs, "root file system")?;
            inspect::is_readable(&rootfs, "root file system")?;
            let optional =
                |path: Option<PathBuf>, what: &str| path.map(|path| place(&path, what, &images)).transpose();
            let files = ImageFiles {
                rootfs,
                work_seed: optional(request.work_seed, "work seed")?,
                kernel: optional(request.kernel, "kernel")?,
                initrd: optional(request.initrd, "initrd")?,
                modules: optional(request.modules, "modules")?,
            };
            if let Some(seed) = &files.work_seed {
                inspect::ext4(seed, "work seed")?;
                inspect::is_readable(seed, "work seed")?;
            }
            if let Some(modules) = &files.modules {
                inspect::ext4(modules, "modules")?;
            }
            if let Some(initrd) = &files.initrd {
                inspect::readable(initrd, "initrd")?;
            }
            let architecture = match &files.kernel {
                Some(kernel) => {
                    inspect::kernel(kernel, &platform)?;
                    Some(platform.architecture)
                }
                None => None,
            };
            Ok(Image {
                id: ImageId::random(),
                name: request.name,
                managed: false,
                content_id: None,
                digest: None,
                created_at: clock::now(),
                reference: None,
                architecture,
                files,
                config: request.config,
                layers: Vec::new(),
                rootfs_bytes: system.length,
                used_bytes: system.used,
            })
        })
        .await?;
        let root = self.shared.data.root().to_owned();
        self.shared
            .store
            .transaction(move |transaction| {
                store::images::insert(transaction, &root, &image)?;
                Ok(image)
            })
            .await
    }
}

/// The real path of a file, which must not be one of a managed image: that one may be deleted.
fn place(path: &Path, what: &str, images: &Path) -> Result<PathBuf> {
    let real = std::fs::canonicalize(path).map_err(|error| super::inspect::unopened(path, what, error))?;
    if std::fs::canonicalize(images).is_ok_and(|images| real.starts_with(images)) {
        return Err(Error::usage(format!("the {what} `{}` belongs to an image of vmdeck", path.display()))
            .with_hint("use that image, or copy the file first"));
    }
    Ok(real)
}
