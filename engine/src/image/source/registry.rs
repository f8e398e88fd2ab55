//! An image in a registry.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE};

use super::{
    DocumentKind, Documents, LayerBlob, OpenLayer, ResolvedImage, Source, SourceError, resolve_documents,
};
use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::image::manifest::{Descriptor, LARGEST_MANIFEST, Platform};
use crate::image::registry::client::RegistryClient;
use crate::image::text::printable;

const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

const DAMAGED: &str = "the image is damaged where it is stored: tell who runs the registry";

/// Tries of one small request; the first connection is given up sooner than a download that ran.
const DOCUMENT_ATTEMPTS: u32 = 3;

#[derive(Clone, Debug)]
pub(crate) struct RegistrySource {
    client: Arc<RegistryClient>,
}

impl RegistrySource {
    pub(crate) fn new(client: RegistryClient) -> Self {
        Self { client: Arc::new(client) }
    }

    /// One small document and its media type, tried a few times.
    async fn small(
        &self,
        path: &str,
        accept: Option<&'static str>,
        limit: u64,
    ) -> Result<(Vec<u8>, Option<String>)> {
        let mut failures = 0;
        loop {
            let attempt = async {
                let response = self.client.get(path, accept, None).await?;
                let media_type = response
                    .headers()
                    .get(CONTENT_TYPE)
                    .and_then(|value| value.to_str().ok())
                    .map(|value| value.split(';').next().unwrap_or_default().trim().to_owned());
                Ok((self.client.read(response, limit).await?, media_type))
            };
            let (error, retry_after) = match attempt.await {
                Ok(found) => return Ok(found),
                Err(SourceError::Permanent(error)) => return Err(error),
                Err(SourceError::Transient { error, retry_after }) => (error, retry_after),
            };
            failures += 1;
            match self.client.patience().pause(failures, retry_after) {
                Some(pause) if failures < DOCUMENT_ATTEMPTS || retry_after.is_some() => {
                    tracing::info!(path, %error, ?pause, "trying again");
                    tokio::time::sleep(pause).await;
                }
                _ => return Err(error),
            }
        }
    }
}

impl Documents for RegistrySource {
    fn document<'a>(
        &'a self,
        kind: DocumentKind,
        descriptor: &'a Descriptor,
        limit: u64,
    ) -> BoxFuture<'a, Result<Vec<u8>>> {
        Box::pin(async move {
            let (path, accept) = match kind {
                DocumentKind::Manifest => {
                    (format!("manifests/{}", descriptor.digest), Some(ACCEPT_MANIFESTS))
                }
                DocumentKind::Config => (format!("blobs/{}", descriptor.digest), None),
            };
            Ok(self.small(&path, accept, limit).await?.0)
        })
    }
}

impl Source for RegistrySource {
    fn describe(&self) -> String {
        format!("the registry {}", self.client.reference().registry)
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn resolve<'a>(&'a self, platform: &'a Platform) -> BoxFuture<'a, Result<ResolvedImage>> {
        Box::pin(async move {
            let reference = self.client.reference();
            let path = format!("manifests/{}", reference.manifest_name());
            let (bytes, media_type) = self.small(&path, Some(ACCEPT_MANIFESTS), LARGEST_MANIFEST).await?;
            if let Some(wanted) = reference.digest {
                let found = Digest::of(&bytes);
                if found != wanted {
                    return Err(Error::failed(format!(
                        "the registry {} answers with another manifest than the one asked for: {wanted} expected, {found} found",
                        reference.registry
                    )));
                }
            }
            resolve_documents(self, bytes, media_type.as_deref(), platform).await
        })
    }

    fn open_layer<'a>(
        &'a self,
        layer: &'a LayerBlob,
        offset: u64,
    ) -> BoxFuture<'a, Result<OpenLayer, SourceError>> {
        Box::pin(async move {
            let digest = layer.digest.ok_or_else(|| Error::failed("a registry's layers have digests"))?;
            let from = (offset > 0).then_some(offset);
            let response = self.client.get(&format!("blobs/{digest}"), None, from).await?;
            let offset = match response.status() {
                StatusCode::PARTIAL_CONTENT => {
                    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                    let range = range.unwrap_or_default();
                    match content_range(range) {
                        Some((start, total))
                            if start == offset && total.is_none_or(|total| total == layer.size) =>
                        {
                            offset
                        }
                        _ => {
                            return Err(Error::failed(format!(
                                "{} answers the request for bytes {offset} and up of layer {} with `{}`",
                                self.describe(),
                                layer.label(),
                                printable(range, 100)
                            ))
                            .with_hint(DAMAGED)
                            .into());
                        }
                    }
                }
                // The whole blob, whatever was asked for.
                StatusCode::OK => {
                    if let Some(length) = response.content_length()
                        && length != layer.size
                    {
                        return Err(Error::failed(format!(
                            "layer {} has {} bytes by the manifest, and {length} by {}",
                            layer.label(),
                            layer.size,
                            self.describe()
                        ))
                        .with_hint(DAMAGED)
                        .into());
                    }
                    0
                }
                // What is here cannot be a beginning of what is there: take it from the start.
                _ => {
                    return Err(SourceError::Permanent(
                        Error::failed(format!(
                            "{} has no bytes of layer {} from {offset} on",
                            self.describe(),
                            layer.label()
                        ))
                        .with_hint(DAMAGED),
                    ));
                }
            };
            let client = Arc::clone(&self.client);
            let bytes = stream::unfold(Some((client, response)), |state| async {
                let (client, mut response) = state?;
                match client.chunk(&mut response).await {
                    Ok(Some(chunk)) => Some((Ok(chunk), Some((client, response)))),
                    Ok(None) => None,
                    Err(error) => Some((Err(error), None)),
                }
            });
            Ok(OpenLayer { offset, bytes: bytes.boxed() })
        })
    }
}

/// Start and whole length of `bytes START-END/LENGTH` (RFC 9110, section 14.4).
pub(crate) fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _end) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((start.trim().parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_says_where_it_begins() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for bad in ["", "bytes */10", "bytes 5-9", "items 5-9/10", "bytes x-9/10"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
