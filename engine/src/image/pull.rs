//! Pull: a reference becomes a published image.
//!
//! ```text
//! name's lock ─▶ resolve ─▶ content's lock ─▶ download ─▶ write ─▶ publish
//!      │            └ name is there: same digest → done, another → conflict, or to be replaced
//!      └ waited for the same reference: its result is ours
//!                                   └ same digest is there: shared, done
//! ```
//!
//! Bundles have no manifest to look at first: [`super::pull_bundle`].
//!
//! Both locks are per key: pulls of different things never wait for each other. A lock's holder that
//! is cancelled or dies lets the next waiter go on by itself.

use std::path::Path;
use std::sync::Arc;

use super::flatten::Flatten;
use super::publish::{Place, Replacing, share};
use super::pull_bundle::PullBundle;
use super::record::{Image, ImageLayer};
use super::reference::ImageReference;
use super::registry::client::RegistryClient;
use super::settings::Settings;
use super::source::archive::{Scratch, TarIndex};
use super::source::docker_archive::DockerArchiveSource;
use super::source::layout::{Files, LayoutSource};
use super::source::registry::RegistrySource;
use super::source::{ResolvedImage, Source};
use super::text::bytes;
use super::{ImageService, PullImage, was_pulled_from};
use crate::clock;
use crate::error::{Error, Result};
use crate::identifier::{ImageId, check_name};
use crate::image::flatten::blocking;
use crate::lock::{KeyedGuard, KeyedLocks};
use crate::operation::Operation;
use crate::space;
use crate::staging::Staging;

impl ImageService {
    pub(super) async fn run_pull(self, request: PullImage, operation: Operation) -> Result<Image> {
        let reference = self.resolve_reference(&request.reference).await?;
        let name = request.name.clone().unwrap_or_else(|| default_name(&request.reference, &reference));
        check_name("an image", &name)?;
        let cancel = operation.cancelled().clone();

        operation.phase("resolve").await;
        let asked_at = clock::now();
        let waiting = format!("another operation makes the image `{name}`: waiting for it");
        let _name = self.acquire(&self.shared.names, &name, &waiting, &operation).await?;
        let there = self.by_name(&name).await?;
        if let Some(image) = &there
            && image.created_at >= asked_at
            && was_pulled_from(image, &reference)
        {
            operation.log(format!("`{name}` was pulled meanwhile")).await;
            return Ok(image.clone());
        }
        if let ImageReference::Bundle(location, digest) = &reference {
            let bundle = PullBundle {
                name,
                reference: &reference,
                location,
                digest: *digest,
                plain_http: request.plain_http,
                replace: request.replace,
                there,
            };
            return self.run_pull_bundle(bundle, &operation).await;
        }

        let staging = Staging::create(&self.shared.data, operation.id()).await?;
        let scratch = Scratch {
            folder: staging.path().to_owned(),
            progress: Arc::clone(operation.progress()),
            cancel: cancel.clone(),
        };
        let settings = self.shared.settings.clone();
        let source = open_source(reference.clone(), request.plain_http, settings, scratch).await?;
        let resolving = source.resolve(&self.shared.settings.platform);
        let resolved = cancel.run_until_cancelled(resolving).await.ok_or_else(Error::cancelled)??;
        operation.log(format!("{} is {}", request.reference, resolved.digest)).await;
        let digest = resolved.digest.to_string();
        let replacing = match Place::of(there, &digest, &request.reference, request.replace)? {
            Place::Same(image) => return Ok(*image),
            Place::Free(replacing) => replacing,
        };

        let image = self.record(&name, &reference, &resolved);
        let content = resolved.digest.hex();
        let waiting = "another operation makes the same content: waiting for it";
        let _content = self.acquire(&self.shared.contents, &content, waiting, &operation).await?;
        let shared = share(&self.shared.store, &self.shared.data, image.clone(), replacing.clone()).await?;
        if let Some((image, replaced)) = shared {
            operation.log("the same content is here already").await;
            self.settle_replaced(replaced, &operation).await;
            return Ok(image);
        }
        self.check_space(&resolved, source.is_remote())?;
        self.build(image, resolved, source, &staging, replacing, &operation).await
    }

    /// Waits for a key, and says so where it has to wait.
    pub(super) async fn acquire(
        &self,
        locks: &KeyedLocks,
        key: &str,
        waiting: &str,
        operation: &Operation,
    ) -> Result<KeyedGuard> {
        if let Some(guard) = locks.try_acquire(key)? {
            return Ok(guard);
        }
        let before = operation.current_phase();
        operation.phase("wait").await;
        operation.log(waiting).await;
        let guard = locks.acquire(key, operation.cancelled()).await?;
        if let Some(phase) = before {
            operation.phase(&phase).await;
        }
        Ok(guard)
    }

    /// Flattens into the staging folder and publishes.
    async fn build(
        &self,
        mut image: Image,
        resolved: ResolvedImage,
        source: Arc<dyn Source>,
        staging: &Staging,
        replacing: Replacing,
        operation: &Operation,
    ) -> Result<Image> {
        let shared = &self.shared;
        let folder = staging.path().join("image");
        let created = folder.clone();
        blocking(move || create_folder(&created)).await?;
        let rootfs = (shared.settings.seams.pull_and_flatten)(Flatten {
            source,
            image: resolved,
            folder: folder.clone(),
            cache: shared.cache.clone(),
            patience: shared.settings.patience.clone(),
            room: shared.room.clone(),
            injections: Vec::new(),
            operation: operation.clone(),
        })
        .await?;
        image.rootfs_bytes = rootfs.size;
        image.used_bytes = rootfs.used;
        self.seed_and_publish(image, folder, replacing, operation).await
    }

    fn record(&self, name: &str, reference: &ImageReference, resolved: &ResolvedImage) -> Image {
        let layers = resolved.layers.iter().map(|layer| ImageLayer {
            digest: layer.digest.unwrap_or(layer.diff_id).to_string(),
            media_type: layer.media_type.clone(),
            size: layer.size,
        });
        let platform = &resolved.config.platform;
        Image {
            id: ImageId::random(),
            name: name.to_owned(),
            managed: true,
            content_id: None,
            digest: Some(resolved.digest.to_string()),
            created_at: clock::now(),
            reference: Some(reference.to_string()),
            architecture: Some(if platform.architecture.is_empty() {
                self.shared.settings.platform.architecture.clone()
            } else {
                platform.architecture.clone()
            }),
            files: super::record::ImageFiles::default(),
            config: resolved.config.run.clone(),
            layers: layers.collect(),
            rootfs_bytes: 0,
            used_bytes: 0,
        }
    }

    /// Refuses before bytes land what cannot fit.
    ///
    /// How large layers are when unpacked is not known before; what is demanded is what they are packed,
    /// which files that are packed already, and nothing else, are unpacked, too.
    fn check_space(&self, image: &ResolvedImage, is_remote: bool) -> Result<()> {
        let missing = |layer: &super::source::LayerBlob| {
            layer.digest.map_or(0, |digest| layer.size.saturating_sub(self.shared.cache.present(&digest)))
        };
        let needed: u64 = image
            .layers
            .iter()
            .map(|layer| layer.size.saturating_add(if is_remote { missing(layer) } else { 0 }))
            .fold(0, u64::saturating_add);
        let root = self.shared.data.root();
        let free = space::free(root)?;
        if free >= needed {
            return Ok(());
        }
        Err(Error::failed(format!(
            "the image needs at least {} below `{}`, where {} are free",
            bytes(needed),
            root.display(),
            bytes(free)
        ))
        .with_hint(
            "free some space (`vmdeck df` shows what vmdeck holds, `vmdeck image prune` clears the cache), \
             or set VMDECK_DATA_DIR to a larger disk",
        ))
    }
}

/// What an image is called when nobody says: its name in the catalog, else what the reference says.
pub(super) fn default_name(text: &str, reference: &ImageReference) -> String {
    // A text that is a name and still not the reference's own comes from the catalog.
    let from_catalog = check_name("an image", text).is_ok()
        && text.parse::<ImageReference>().ok().as_ref() != Some(reference);
    if from_catalog { text.to_owned() } else { reference.default_name() }
}

pub(super) fn create_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir(folder)
        .map_err(|error| Error::io(format!("cannot create `{}`", folder.display()), error))
}

/// Opens what a reference points at. `scratch` takes what has to be unpacked to be read.
pub(crate) async fn open_source(
    reference: ImageReference,
    plain_http: bool,
    settings: Settings,
    scratch: Scratch,
) -> Result<Arc<dyn Source>> {
    blocking(move || {
        Ok(match reference {
            ImageReference::Registry(reference) => Arc::new(RegistrySource::new(RegistryClient::new(
                reference,
                plain_http,
                settings.credentials,
                settings.patience,
            )?)) as Arc<dyn Source>,
            ImageReference::Layout { directory, tag } => {
                Arc::new(LayoutSource::new(Files::Folder(directory), tag))
            }
            ImageReference::OciArchive { file, tag } => {
                Arc::new(LayoutSource::new(Files::Archive(TarIndex::open_file(&file, &scratch)?), tag))
            }
            ImageReference::DockerArchive { file, tag } => {
                Arc::new(DockerArchiveSource::new(TarIndex::open_file(&file, &scratch)?, tag.as_deref())?)
            }
            ImageReference::Bundle(..) => {
                return Err(Error::usage("a bundle has no layers"));
            }
        })
    })
    .await
}
