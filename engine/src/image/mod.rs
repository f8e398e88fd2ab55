//! The image service: pull, register, promote, delete.
//!
//! ```text
//! reference ─▶ source (registry, layout, archive) ─▶ layers ─▶ flattener ─▶ staging ─▶ publish
//!                                        └ blob cache ┘          rootfs.ext4     images/<content>/ + row
//! ```
//!
//! It owns the folder `images/`, the blob cache and the rows of `images`. An image is either there as
//! a whole, files and row, or not at all: see [`publish`] and [`remove`]. How a tree becomes a file
//! system is the business of [`crate::rootfs`].

pub(crate) mod blobs;
pub mod bundle;
mod catalog;
mod copy;
mod digest;
mod export;
pub(crate) mod flatten;
mod inspect;
mod manifest;
mod oci_archive;
pub(crate) mod output;
mod promote;
mod promote_disk;
mod prune;
mod publish;
pub(crate) mod pull;
mod pull_bundle;
pub mod record;
mod reference;
mod register;
pub(crate) mod registry;
mod remove;
pub mod seed;
mod settings;
pub(crate) mod source;
pub(crate) mod text;
pub(crate) mod transfer;

use std::sync::Arc;

use crate::data_directory::DataDirectory;
use crate::error::Result;
use crate::lock::KeyedLocks;
use crate::operation::record::OperationKind;
use crate::operation::{Operation, Operations, Task};
use crate::store::{self, Store};
use blobs::BlobCache;
pub use catalog::{CatalogEntry, user_catalog};
pub use digest::{Digest, DigestError};
pub use export::{ExportFormat, ExportImage, ExportedImage};
pub use flatten::{Flatten, INITRD, KERNEL, LayerRoom, MODULES, RECORD, ROOTFS, WORK_SEED};
pub use manifest::Platform;
pub use promote::PromoteImage;
pub(crate) use promote_disk::PromoteDisks;
pub(crate) use prune::can_be_pulled_again;
pub use prune::{PruneImages, PruneReport, PrunedItem, PrunedKind};
use record::Image;
pub use reference::{BundleLocation, FORMS, ImageReference, RegistryReference};
pub use register::RegisterImage;
pub use registry::Patience;
pub use registry::credentials::CredentialFiles;
pub use settings::{BundleFetch, FinalizePulledRootfs, PullAndFlatten, Seams, Settings};

/// The service: a cheap handle.
#[derive(Clone, Debug)]
pub struct ImageService {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    data: DataDirectory,
    store: Store,
    operations: Operations,
    settings: Settings,
    cache: BlobCache,
    /// One per image name: two pulls under one name, in whichever processes, come one after the other.
    names: KeyedLocks,
    /// One per manifest digest: content that two names share is made once.
    contents: KeyedLocks,
    room: LayerRoom,
}

/// What to pull.
#[derive(Clone, Debug, Default)]
pub struct PullImage {
    /// A name of the catalog, or any reference form: `[docker://]NAME[:TAG][@DIGEST]`,
    /// `oci:DIR[:TAG|@DIGEST]`, `oci-archive:FILE[:TAG|@DIGEST]`, `docker-archive:FILE[:TAG]`,
    /// `bundle:FILE|URL[@DIGEST]`.
    pub reference: String,
    /// Name of the new image; by default the last part of the repository's name.
    pub name: Option<String>,
    /// Take the place of an image of that name that has other content: it is deleted, or where machines use it,
    /// named after its digest.
    pub replace: bool,
    /// Allow plain HTTP for a registry that is not on the loopback interface.
    pub plain_http: bool,
}

impl ImageService {
    /// The service with its real parts.
    pub fn new(data: DataDirectory, store: Store, operations: Operations) -> Self {
        Self::with_settings(data, store, operations, Settings::default())
    }

    pub fn with_settings(
        data: DataDirectory,
        store: Store,
        operations: Operations,
        settings: Settings,
    ) -> Self {
        let cache = BlobCache::new(data.blobs());
        let names = KeyedLocks::new(data.locks(), "image");
        let contents = KeyedLocks::new(data.locks(), "content");
        let room = LayerRoom::default();
        Self { shared: Arc::new(Shared { data, store, operations, settings, cache, names, contents, room }) }
    }

    pub async fn list(&self) -> Result<Vec<Image>> {
        let root = self.shared.data.root().to_owned();
        self.shared.store.read(move |connection| store::images::list(connection, &root)).await
    }

    /// The image with this name, else the only one whose id begins so.
    pub async fn find(&self, name: &str) -> Result<Image> {
        let (root, name) = (self.shared.data.root().to_owned(), name.to_owned());
        self.shared.store.read(move |connection| store::images::find(connection, &root, &name)).await
    }

    /// Short names for images: those of the user's own file, then those that are built in.
    pub async fn catalog(&self) -> Result<Vec<CatalogEntry>> {
        let user = self.shared.settings.catalog.clone();
        flatten::blocking(move || catalog::load(user.as_deref())).await
    }

    /// What a text means: a name of the catalog, else a reference.
    async fn resolve_reference(&self, text: &str) -> Result<ImageReference> {
        if crate::identifier::check_name("an image", text).is_ok()
            && let Some(entry) = self.catalog().await?.into_iter().find(|entry| entry.name == text)
        {
            return entry.reference.parse();
        }
        text.parse()
    }

    async fn by_name(&self, name: &str) -> Result<Option<Image>> {
        let (root, name) = (self.shared.data.root().to_owned(), name.to_owned());
        self.shared.store.read(move |connection| store::images::by_name(connection, &root, &name)).await
    }

    /// Pulls an image. `parent` is the operation it is a part of.
    ///
    /// A name that is there already is no error when it holds the very same image.
    pub fn pull(&self, request: PullImage, parent: Option<&Operation>) -> Task<Image> {
        let (this, target) = (self.clone(), request.reference.clone());
        self.shared
            .operations
            .spawn(OperationKind::ImagePull, target, parent, |operation| this.run_pull(request, operation))
    }

    /// The image a machine is to be made of: an existing name, else a reference that is pulled.
    pub async fn ensure(&self, name_or_reference: &str, parent: &Operation) -> Result<Image> {
        let request = PullImage { reference: name_or_reference.to_owned(), ..PullImage::default() };
        self.ensure_pulled(request, parent).await
    }

    /// The same with everything that can be said about a pull.
    ///
    /// An image that was pulled from the same reference before is taken without a look at the
    /// registry, whatever its name is.
    pub async fn ensure_pulled(&self, mut request: PullImage, parent: &Operation) -> Result<Image> {
        let not_found = match self.find(&request.reference).await {
            Ok(image) => return Ok(image),
            Err(error) if error.kind() == crate::ErrorKind::NotFound => error,
            Err(error) => return Err(error),
        };
        let reference = match self.resolve_reference(&request.reference).await {
            Ok(reference) => reference,
            Err(error) if error.kind() == crate::ErrorKind::Usage => return Err(not_found),
            Err(error) => return Err(error),
        };
        let images = self.list().await?;
        if let Some(image) = images.iter().find(|image| was_pulled_from(image, &reference)) {
            return Ok(image.clone());
        }
        if request.name.is_none() {
            // `debian:12` beside a `debian` that is something else becomes `debian-12`.
            let taken = |name: &str| images.iter().any(|image| image.name == name);
            let name = pull::default_name(&request.reference, &reference);
            request.name = Some(if taken(&name) { reference.longer_name() } else { name });
        }
        self.pull(request, Some(parent)).wait().await
    }

    /// Deletes an image that no machine uses.
    pub async fn delete(&self, name: &str) -> Result<Image> {
        let (this, target) = (self.clone(), name.to_owned());
        self.shared.data.use_reserve();
        let mut task = self.shared.operations.spawn(OperationKind::ImageDelete, name, None, |_| async move {
            remove::delete(&this.shared.store, &this.shared.data, &target).await.map(|(image, _)| image)
        });
        task.wait().await
    }

    /// Removes image folders that belong to no image, and images whose files are gone.
    pub async fn reconcile(&self) -> Result<()> {
        remove::reconcile(&self.shared.store, &self.shared.data).await
    }
}

/// Reads bytes as a manifest or index and as a config, as a pull does: for `fuzz/`, which has no other
/// way in.
#[doc(hidden)]
pub fn read_documents(bytes: &[u8]) {
    let _ = manifest::Document::parse(bytes, None);
    let _ = manifest::Config::parse(bytes);
}

/// Whether an image came from this very reference.
fn was_pulled_from(image: &Image, reference: &ImageReference) -> bool {
    pulled_from(image).as_ref() == Some(reference)
}

/// What an image was pulled from.
fn pulled_from(image: &Image) -> Option<ImageReference> {
    image.reference.as_deref()?.parse().ok()
}
