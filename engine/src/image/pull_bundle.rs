//! Pulling a bundle: ready file systems, which have no manifest in another place to look at first.
//!
//! Where the digest of its file is given, what it holds is known as soon as any image was pulled of it;
//! else by the head of a file of this host, and of a URL only once all of it is here.

use super::bundle::{self, FetchBundle};
use super::digest::Digest;
use super::flatten::{ROOTFS, blocking};
use super::publish::{Place, share};
use super::pull::create_folder;
use super::record::{Image, ImageFiles};
use super::reference::{BundleLocation, ImageReference};
use super::text::printable;
use super::{ImageService, inspect, pulled_from, was_pulled_from};
use crate::clock;
use crate::error::{Error, Result};
use crate::identifier::ImageId;
use crate::operation::Operation;
use crate::staging::Staging;
use crate::store;

/// What is asked for. The caller holds the name's lock.
pub(super) struct PullBundle<'a> {
    pub(super) name: String,
    pub(super) reference: &'a ImageReference,
    pub(super) location: &'a BundleLocation,
    /// Digest of the packed file, where it is known.
    pub(super) digest: Option<Digest>,
    pub(super) plain_http: bool,
    pub(super) replace: bool,
    /// What has the name now.
    pub(super) there: Option<Image>,
}

impl PullBundle<'_> {
    /// What there is under the name, by the digest of the bundle's manifest.
    fn place(&self, digest: &str) -> Result<Place> {
        Place::of(self.there.clone(), digest, &self.reference.to_string(), self.replace)
    }
}

impl ImageService {
    pub(super) async fn run_pull_bundle(
        &self,
        bundle: PullBundle<'_>,
        operation: &Operation,
    ) -> Result<Image> {
        if let Some(image) = bundle.there.as_ref().filter(|_| !bundle.replace) {
            match &bundle.digest {
                Some(pinned) if came_from(image, pinned) => return Ok(image.clone()),
                // The same bundle, perhaps, pulled without its digest.
                Some(_) if matches!(pulled_from(image), Some(ImageReference::Bundle(..))) => {}
                None if was_pulled_from(image, bundle.reference) => {
                    return self.again(&bundle, image, operation).await;
                }
                _ => return Err(store::images::other_content(image, &bundle.reference.to_string(), None)),
            }
        }
        let Some(pinned) = bundle.digest else { return self.fetch_bundle(bundle, operation).await };
        let waiting = "another operation pulls the same bundle: waiting for it";
        let _content = self.acquire(&self.shared.contents, &pinned.hex(), waiting, operation).await?;
        match self.share_bundle(&bundle, &pinned, operation).await? {
            Some(image) => Ok(image),
            None => self.fetch_bundle(bundle, operation).await,
        }
    }

    /// The image that an earlier pull of this reference gave, if it is still what the bundle holds, as far
    /// as that tells without being read as a whole.
    async fn again(&self, bundle: &PullBundle<'_>, there: &Image, operation: &Operation) -> Result<Image> {
        let announced = match bundle.location {
            BundleLocation::File(path) => {
                let path = path.clone();
                blocking(move || bundle::announced(&path)).await?
            }
            BundleLocation::Url(_) => None,
        };
        match announced {
            // Nothing is to be replaced: it is this very content, or a conflict.
            Some(announced) => drop(bundle.place(&announced.to_string())?),
            None => {
                let name = &bundle.name;
                operation.log(format!("`{name}` is as it was pulled before; --replace gets it anew")).await;
            }
        }
        Ok(there.clone())
    }

    /// Another name for what an earlier pull of the very same bundle gave, if there is that.
    async fn share_bundle(
        &self,
        bundle: &PullBundle<'_>,
        pinned: &Digest,
        operation: &Operation,
    ) -> Result<Option<Image>> {
        // Its reference is on record of an image once its digest was verified.
        let Some(other) = self.list().await?.into_iter().find(|image| came_from(image, pinned)) else {
            return Ok(None);
        };
        let replacing = match bundle.place(other.digest.as_deref().unwrap_or_default())? {
            Place::Same(image) => return Ok(Some(*image)),
            Place::Free(replacing) => replacing,
        };
        let image = Image {
            id: ImageId::random(),
            name: bundle.name.clone(),
            created_at: clock::now(),
            reference: Some(bundle.reference.to_string()),
            ..other
        };
        let shared = share(&self.shared.store, &self.shared.data, image, replacing).await?;
        let Some((image, replaced)) = shared else { return Ok(None) };
        operation.log("the same bundle is here already").await;
        self.settle_replaced(replaced, operation).await;
        Ok(Some(image))
    }

    async fn fetch_bundle(&self, bundle: PullBundle<'_>, operation: &Operation) -> Result<Image> {
        let shared = &self.shared;
        let staging = Staging::create(&shared.data, operation.id()).await?;
        let folder = staging.path().join("image");
        let created = folder.clone();
        blocking(move || create_folder(&created)).await?;
        let fetched = (shared.settings.seams.bundle_fetch)(FetchBundle {
            location: bundle.location.clone(),
            digest: bundle.digest,
            plain_http: bundle.plain_http,
            folder: folder.clone(),
            cache: shared.cache.clone(),
            patience: shared.settings.patience.clone(),
            operation: operation.clone(),
        })
        .await?;
        // What stands for the whole content, and what nobody can claim who has other content.
        let digest = fetched.content.to_string();
        let replacing = match bundle.place(&digest)? {
            Place::Same(image) => return Ok(*image),
            Place::Free(replacing) => replacing,
        };
        let manifest = fetched.manifest;
        let platform = &shared.settings.platform;
        if let Some(architecture) = &manifest.architecture
            && *architecture != platform.architecture
        {
            return Err(Error::failed(format!(
                "the bundle is for {}; this host runs {}",
                printable(architecture, 40),
                platform.architecture
            )));
        }
        let rootfs = folder.join(ROOTFS);
        let system = blocking(move || inspect::ext4(&rootfs, "root file system")).await?;
        let image = Image {
            id: ImageId::random(),
            name: bundle.name,
            managed: true,
            content_id: None,
            digest: Some(digest),
            created_at: clock::now(),
            reference: Some(bundle.reference.to_string()),
            architecture: manifest.architecture,
            files: ImageFiles::default(),
            config: manifest.config,
            layers: manifest.layers,
            rootfs_bytes: system.length,
            used_bytes: system.used,
        };
        self.seed_and_publish(image, folder, replacing, operation).await
    }
}

/// Whether an image was pulled from the bundle with this digest, wherever that lay.
fn came_from(image: &Image, pinned: &Digest) -> bool {
    matches!(pulled_from(image), Some(ImageReference::Bundle(_, Some(digest))) if digest == *pinned)
}
