//! What an image is, as the store keeps it and the screens show it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::clock::Milliseconds;
use crate::error::{Error, Result};
use crate::identifier::ImageId;

/// An image: a root file system a machine can be made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub id: ImageId,
    pub name: String,
    /// Whether vmdeck owns the files (pulled, promoted) or only knows of them (registered).
    pub managed: bool,
    /// Folder under `images/` with the files of a managed image; names of one digest share one.
    pub content_id: Option<ImageId>,
    /// Digest of the image manifest, `sha256:<hex>`: of the config for a docker-archive, which has no
    /// manifest, and of a bundle's own manifest for a bundle.
    pub digest: Option<String>,
    pub created_at: Milliseconds,
    /// The reference it was pulled from, in its canonical form.
    pub reference: Option<String>,
    /// Architecture as OCI names it (`amd64`, `arm64`), where known.
    pub architecture: Option<String>,
    /// Absolute paths.
    pub files: ImageFiles,
    pub config: ImageConfig,
    /// Layers bottom first; empty when it did not come from layers.
    pub layers: Vec<ImageLayer>,
    /// Length of the root file system in bytes; what it takes on the disk is less.
    pub rootfs_bytes: u64,
    /// Bytes of the root file system in use at the time it was made.
    pub used_bytes: u64,
}

/// The files of an image, absolute paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFiles {
    /// An ext4 file system, raw.
    pub rootfs: PathBuf,
    /// Content of the work disk of new machines.
    pub work_seed: Option<PathBuf>,
    /// Set for registered images that bring a kernel of their own.
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
    pub modules: Option<PathBuf>,
}

impl ImageFiles {
    /// The files that are not there. Looks at the disk.
    pub fn missing(&self) -> Vec<PathBuf> {
        let optional = [&self.work_seed, &self.kernel, &self.initrd, &self.modules];
        std::iter::once(&self.rootfs)
            .chain(optional.into_iter().flatten())
            .filter(|path| !path.exists())
            .cloned()
            .collect()
    }
}

impl Image {
    /// Refuses an image whose files are not where they were.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`], which names the first of them.
    pub(crate) fn require_files(&self) -> Result<()> {
        let Some(path) = self.files.missing().into_iter().next() else { return Ok(()) };
        let message = format!("a file of image `{}` is missing: `{}`", self.name, path.display());
        Err(Error::not_found(message).with_hint(self.mend()))
    }

    /// The next step where files are missing.
    pub(crate) fn mend(&self) -> &'static str {
        if self.managed {
            "pull the image again under another name, and make a new machine of it"
        } else {
            "put the registered file back where it was, or delete the image and register it again"
        }
    }
}

/// How processes of the image are to be started (OCI image-spec, config.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default)]
    pub entrypoint: Vec<String>,
    #[serde(default)]
    pub command: Vec<String>,
    /// `NAME=value`.
    #[serde(default)]
    pub environment: Vec<String>,
    #[serde(default)]
    pub working_directory: Option<String>,
    /// `user`, `uid`, `user:group`, `uid:gid`.
    #[serde(default)]
    pub user: Option<String>,
    /// `80/tcp`.
    #[serde(default)]
    pub exposed_ports: Vec<String>,
    #[serde(default)]
    pub stop_signal: Option<String>,
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayer {
    /// Digest of the blob as the registry serves it.
    pub digest: String,
    pub media_type: String,
    /// Length of that blob in bytes.
    pub size: u64,
}
