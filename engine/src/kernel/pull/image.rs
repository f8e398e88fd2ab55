//! A kernel out of an OCI image: one that `kernel export` wrote, or any other that holds
//! `boot/vmlinuz-*` or `lib/modules/*/vmlinuz`, as images of whole systems do.
//!
//! Layers are read from the bottom up as they arrive; a file of an upper layer replaces one below.
//! They are verified by their digests and kept in the blob cache, as those of other images are.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::{Claim, Request, claim};
use crate::error::{Error, Result};
use crate::image::ImageReference;
use crate::image::blobs::BlobCache;
use crate::image::flatten::blocking;
use crate::image::pull::open_source;
use crate::image::source::archive::Scratch;
use crate::image::source::{ResolvedImage, Source as ImageSource};
use crate::image::transfer::{Transfer, TransferError, Trust};
use crate::kernel::Shared;
use crate::kernel::assemble::Assembled;
use crate::kernel::create::{finish, run_assemble};
use crate::kernel::record::Kernel;
use crate::kernel::source::{Source, TarStream};
use crate::operation::Operation;
use crate::operation::progress::{ProgressPart, ProgressUnit};
use crate::staging::Staging;

pub(super) async fn pull(
    shared: &Shared,
    request: &Request,
    reference: &ImageReference,
    staging: &Staging,
    operation: &Operation,
) -> Result<Kernel> {
    let scratch = Scratch {
        folder: staging.path().to_owned(),
        progress: Arc::clone(operation.progress()),
        cancel: operation.cancelled().clone(),
    };
    let settings = shared.settings.clone();
    let place = open_source(reference.clone(), request.plain_http, settings, scratch).await?;
    let resolving = place.resolve(&shared.settings.platform);
    let image = operation.cancelled().run_until_cancelled(resolving).await.ok_or_else(Error::cancelled)??;
    let source = format!("{}@{}", undigested(&request.source_text), image.digest);
    let _one_at_a_time = match claim(shared, request, &source, operation).await? {
        Claim::Here(kernel) => return Ok(*kernel),
        Claim::Ours(guard) => guard,
    };

    operation.phase("download").await;
    let parts: Vec<Arc<ProgressPart>> = image
        .layers
        .iter()
        .map(|layer| operation.progress().add(layer.label(), ProgressUnit::Bytes, layer.size))
        .collect();
    let work = Work { place, image, parts, cache: BlobCache::new(shared.data.blobs()), shared, operation };
    let folder = staging.path().join("kernel");
    let assembled = match work.attempt(&folder, Trust::WhileReading).await {
        Err(TransferError::StaleCache(error)) => {
            operation.log(format!("{error}; reading it again")).await;
            let stale = folder.clone();
            blocking(move || match std::fs::remove_dir_all(&stale) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(Error::io(format!("cannot remove `{}`", stale.display()), error))
                }
                _ => Ok(()),
            })
            .await?;
            work.parts.iter().for_each(|part| part.set_done(0));
            work.attempt(&folder, Trust::AfterReading).await
        }
        other => other,
    };
    let assembled = assembled.map_err(|error| match error {
        TransferError::StaleCache(error) | TransferError::Failed(error) => error,
    })?;
    finish(shared, assembled, folder, request.wanted(source), staging, operation).await
}

/// A reference as it was written, without the digest it may end in.
fn undigested(text: &str) -> &str {
    text.split_once("@sha256:").map_or(text, |(rest, _)| rest)
}

struct Work<'a> {
    place: Arc<dyn ImageSource>,
    image: ResolvedImage,
    parts: Vec<Arc<ProgressPart>>,
    cache: BlobCache,
    shared: &'a Shared,
    operation: &'a Operation,
}

impl Work<'_> {
    /// Fetches the layers in their order and assembles the kernel from them meanwhile.
    async fn attempt(&self, folder: &Path, trust: Trust) -> Result<Assembled, TransferError> {
        let (sinks, streams): (Vec<_>, Vec<_>) = self.image.layers.iter().map(|_| TarStream::new()).unzip();
        let assembling = run_assemble(Source::Streams(streams), folder.to_owned(), self.operation);
        let transferring = async {
            for ((layer, part), sink) in self.image.layers.iter().zip(&self.parts).zip(sinks) {
                let transfer = Transfer {
                    source: self.place.as_ref(),
                    cache: &self.cache,
                    patience: &self.shared.settings.patience,
                    layer,
                    part,
                    cancel: self.operation.cancelled(),
                    trust,
                };
                transfer.run(sink).await?;
            }
            Ok(())
        };
        let (transferred, assembled): (Result<(), TransferError>, _) = tokio::join!(transferring, assembling);
        // What the reader of the layers has to say is in the first as well; a network that broke is
        // only there.
        transferred?;
        Ok(assembled?)
    }
}
