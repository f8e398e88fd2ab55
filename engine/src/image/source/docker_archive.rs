//! What `docker save` and `podman save` write: a tar file with `manifest.json`, a config, and the
//! layers as tar files, plain or packed (Docker image specification 1.2, "Combined Image JSON +
//! Filesystem Changeset Format"). Layers are known by the digests of their plain tar only.

use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::archive::TarIndex;
use super::{LayerBlob, OpenLayer, ResolvedImage, Source, SourceError};
use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::image::manifest::{Config, LARGEST_CONFIG, LARGEST_MANIFEST, Platform};
use crate::image::reference::ImageReference;
use crate::image::text::printable;
use crate::rootfs::Compression;

#[derive(Debug)]
pub(crate) struct DockerArchiveSource {
    index: TarIndex,
    entry: Entry,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl DockerArchiveSource {
    /// `wanted` is a tag (`NAME:TAG`), or `@` and the position in the archive. Blocking.
    pub(crate) fn new(index: TarIndex, wanted: Option<&str>) -> Result<Self> {
        let path = index.path().display().to_string();
        let bytes = index.read("manifest.json", LARGEST_MANIFEST).map_err(|error| {
            Error::failed(format!("`{path}` is no archive of `docker save`"))
                .with_source(error)
                .with_hint("for an OCI layout in a tar file the form is oci-archive:FILE")
        })?;
        let entries: Vec<Entry> = serde_json::from_slice(&bytes).map_err(|error| {
            Error::failed(format!("`manifest.json` in `{path}` is malformed")).with_source(error)
        })?;
        let entry = choose(entries, wanted, &path)?;
        Ok(Self { index, entry })
    }
}

fn choose(mut entries: Vec<Entry>, wanted: Option<&str>, path: &str) -> Result<Entry> {
    let tags = |entries: &[Entry]| {
        let tags: Vec<String> = entries
            .iter()
            .flat_map(|entry| entry.repo_tags.iter().flatten())
            .take(20)
            .map(|tag| format!("`{}`", printable(tag, 120)))
            .collect();
        if tags.is_empty() { "none has a tag".to_owned() } else { format!("there are {}", tags.join(", ")) }
    };
    let position = match wanted {
        None if entries.len() == 1 => Some(0),
        None => {
            return Err(Error::usage(format!("`{path}` holds {} images; {}", entries.len(), tags(&entries)))
                .with_hint(
                    "add the tag to the reference: docker-archive:FILE:NAME:TAG, or docker-archive:FILE:@0",
                ));
        }
        Some(wanted) => match wanted.strip_prefix('@') {
            Some(number) => number.parse().ok().filter(|position| *position < entries.len()),
            None => {
                // `debian:12` and `docker.io/library/debian:12` are the same.
                let canonical = |tag: &str| {
                    tag.parse::<ImageReference>().map_or_else(|_| tag.to_owned(), |tag| tag.to_string())
                };
                let wanted = canonical(wanted);
                entries
                    .iter()
                    .position(|entry| entry.repo_tags.iter().flatten().any(|tag| canonical(tag) == wanted))
            }
        },
    };
    position.map(|position| entries.swap_remove(position)).ok_or_else(|| {
        Error::not_found(format!(
            "`{path}` has no image `{}`; {}",
            printable(wanted.unwrap_or_default(), 120),
            tags(&entries)
        ))
    })
}

impl Source for DockerArchiveSource {
    fn describe(&self) -> String {
        format!("`{}`", self.index.path().display())
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn resolve<'a>(&'a self, platform: &'a Platform) -> BoxFuture<'a, Result<ResolvedImage>> {
        Box::pin(async move {
            let bytes = self.index.read(&self.entry.config, LARGEST_CONFIG)?;
            let config = Config::parse(&bytes)?;
            config.check_platform(platform)?;
            if config.diff_ids.len() != self.entry.layers.len() {
                return Err(Error::failed(format!(
                    "the image's manifest has {} layers and its config {}",
                    self.entry.layers.len(),
                    config.diff_ids.len()
                )));
            }
            let layers = self.entry.layers.iter().zip(&config.diff_ids).enumerate();
            let layers = layers
                .map(|(index, (name, diff_id))| {
                    Ok(LayerBlob {
                        index,
                        digest: None,
                        diff_id: *diff_id,
                        size: self.index.open(name)?.length,
                        media_type: "application/vnd.docker.image.rootfs.diff.tar".to_owned(),
                        compression: Compression::Detect,
                    })
                })
                .collect::<Result<_>>()?;
            Ok(ResolvedImage { digest: Digest::of(&bytes), config, layers })
        })
    }

    fn open_layer<'a>(
        &'a self,
        layer: &'a LayerBlob,
        offset: u64,
    ) -> BoxFuture<'a, Result<OpenLayer, SourceError>> {
        Box::pin(async move {
            let name =
                self.entry.layers.get(layer.index).ok_or_else(|| Error::failed("there is no such layer"))?;
            Ok(self.index.open(name)?.stream(offset, self.describe())?)
        })
    }
}
