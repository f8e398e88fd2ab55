//! Where an image comes from: a registry, a layout in a folder, an archive. One trait, so that what
//! follows (verify, flatten, publish) is the same code for all of them.

pub(crate) mod archive;
pub(crate) mod docker_archive;
pub(crate) mod layout;
pub(crate) mod registry;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use super::digest::Digest;
use super::manifest::{self, Config, Descriptor, Document, LARGEST_MANIFEST, Manifest, Platform};
use crate::error::{Error, Result};
use crate::rootfs::Compression;

/// An index may point to an index (image-index.md), though not for ever.
const DEEPEST_INDEX: usize = 4;

/// A place that holds one image. Dropping one of its futures cancels what it does.
pub trait Source: fmt::Debug + Send + Sync {
    /// The place, for a message: a registry's host, a path.
    fn describe(&self) -> String;

    /// Whether blobs come over a network, so that they are worth keeping in the cache.
    fn is_remote(&self) -> bool;

    /// Reads manifest and config, verified; chooses what is for `platform`.
    fn resolve<'a>(&'a self, platform: &'a Platform) -> BoxFuture<'a, Result<ResolvedImage>>;

    /// Opens a layer at `offset`, or before it where the place cannot do that.
    fn open_layer<'a>(
        &'a self,
        layer: &'a LayerBlob,
        offset: u64,
    ) -> BoxFuture<'a, Result<OpenLayer, SourceError>>;
}

/// What a reference turned out to name.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// Digest of the manifest; of the config in a docker-archive, which has no manifest.
    pub digest: Digest,
    pub config: Config,
    /// Bottom first.
    pub layers: Vec<LayerBlob>,
}

/// One layer as it is stored.
#[derive(Clone, Debug)]
pub struct LayerBlob {
    /// 0 is the bottom one.
    pub index: usize,
    /// Digest of the stored bytes. Unknown in a docker-archive, where the diff_id alone vouches for
    /// the content.
    pub digest: Option<Digest>,
    /// Digest of the plain tar.
    pub diff_id: Digest,
    /// Stored bytes.
    pub size: u64,
    pub media_type: String,
    pub compression: Compression,
}

impl LayerBlob {
    /// A short name for a message or a progress bar.
    pub fn label(&self) -> String {
        self.digest.as_ref().unwrap_or(&self.diff_id).short()
    }
}

/// A layer being read.
pub struct OpenLayer {
    /// Where the bytes begin; at most what was asked for.
    pub offset: u64,
    pub bytes: BoxStream<'static, Result<Bytes, SourceError>>,
}

/// Why a place did not give what was asked for.
#[derive(Debug)]
pub enum SourceError {
    /// Trying again may help, after `retry_after` where the place said so.
    Transient {
        error: Error,
        retry_after: Option<Duration>,
    },
    Permanent(Error),
}

impl SourceError {
    pub fn transient(error: Error) -> Self {
        Self::Transient { error, retry_after: None }
    }

    pub fn into_error(self) -> Error {
        match self {
            Self::Transient { error, .. } | Self::Permanent(error) => error,
        }
    }
}

impl From<Error> for SourceError {
    fn from(error: Error) -> Self {
        Self::Permanent(error)
    }
}

/// How a place that speaks OCI hands out its small documents.
pub(crate) trait Documents: Send + Sync {
    /// The document a descriptor points to, of at most `limit` bytes; its digest need not be verified
    /// yet.
    fn document<'a>(
        &'a self,
        kind: DocumentKind,
        descriptor: &'a Descriptor,
        limit: u64,
    ) -> BoxFuture<'a, Result<Vec<u8>>>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DocumentKind {
    Manifest,
    Config,
}

/// Follows a manifest or index down to an image for `platform`.
pub(crate) async fn resolve_documents(
    documents: &dyn Documents,
    top: Vec<u8>,
    media_type: Option<&str>,
    platform: &Platform,
) -> Result<ResolvedImage> {
    let (image, others) = walk(documents, top, media_type, platform, 0).await?;
    image.ok_or_else(|| manifest::not_for(platform, &others))
}

/// The image that a document leads to, if it is for `platform`; and for what those are that are not.
fn walk<'a>(
    documents: &'a dyn Documents,
    bytes: Vec<u8>,
    media_type: Option<&'a str>,
    platform: &'a Platform,
    depth: usize,
) -> BoxFuture<'a, Result<(Option<ResolvedImage>, Vec<Platform>)>> {
    Box::pin(async move {
        let entries = match Document::parse(&bytes, media_type)? {
            Document::Manifest(manifest) => {
                let image = resolve_manifest(documents, Digest::of(&bytes), manifest).await?;
                return Ok(if image.config.is_for(platform) {
                    (Some(image), Vec::new())
                } else {
                    (None, vec![image.config.platform])
                });
            }
            Document::Index(entries) => entries,
        };
        if depth == DEEPEST_INDEX {
            return Err(Error::failed(format!(
                "the image's indexes are nested more than {DEEPEST_INDEX} deep"
            )));
        }
        let mut others = Vec::new();
        for entry in manifest::candidates(&entries, platform)? {
            let bytes = verified(documents, DocumentKind::Manifest, entry, LARGEST_MANIFEST).await?;
            let (image, for_others) =
                walk(documents, bytes, Some(&entry.media_type), platform, depth + 1).await?;
            if image.is_some() {
                return Ok((image, others));
            }
            others.extend(for_others);
        }
        Ok((None, others))
    })
}

async fn resolve_manifest(
    documents: &dyn Documents,
    digest: Digest,
    manifest: Manifest,
) -> Result<ResolvedImage> {
    let limit = manifest::LARGEST_CONFIG;
    let config = Config::parse(&verified(documents, DocumentKind::Config, &manifest.config, limit).await?)?;
    if config.diff_ids.len() != manifest.layers.len() {
        return Err(Error::failed(format!(
            "the image's manifest has {} layers and its config {}",
            manifest.layers.len(),
            config.diff_ids.len()
        )));
    }
    let layers = manifest.layers.into_iter().zip(&config.diff_ids).enumerate();
    let layers = layers
        .map(|(index, (layer, diff_id))| {
            Ok(LayerBlob {
                index,
                digest: Some(layer.digest),
                diff_id: *diff_id,
                size: layer.size,
                compression: layer.compression()?,
                media_type: layer.media_type,
            })
        })
        .collect::<Result<_>>()?;
    Ok(ResolvedImage { digest, config, layers })
}

async fn verified(
    documents: &dyn Documents,
    kind: DocumentKind,
    descriptor: &Descriptor,
    limit: u64,
) -> Result<Vec<u8>> {
    let what = match kind {
        DocumentKind::Manifest => "manifest",
        DocumentKind::Config => "config",
    };
    let name = format!("the image's {what} {}", descriptor.digest.short());
    if descriptor.size > limit {
        return Err(Error::failed(format!(
            "{name} is said to be {} bytes long; at most {limit} are taken",
            descriptor.size
        )));
    }
    let bytes = documents.document(kind, descriptor, limit).await?;
    let found = Digest::of(&bytes);
    if found != descriptor.digest {
        return Err(Error::failed(format!(
            "{name} does not have the promised digest: {} expected, {found} found",
            descriptor.digest
        ))
        .with_hint("the image is damaged where it is stored, or somebody tampers with it"));
    }
    Ok(bytes)
}
