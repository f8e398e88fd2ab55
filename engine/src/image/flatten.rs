//! From a resolved image to a root file system in a folder: all layers at once, in one pass.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::Semaphore;

use super::blobs::BlobCache;
use super::digest::Digest;
use super::registry::Patience;
use super::source::{ResolvedImage, Source};
use super::transfer::{Transfer, TransferError, Trust};
use crate::error::{Error, Result};
use crate::operation::Operation;
use crate::operation::progress::{ProgressPart, ProgressState, ProgressUnit};
use crate::rootfs::{Injection, Rootfs, RootfsBuilder, RootfsLimits, RootfsOptions};

/// Names of the files of an image's folder.
pub const ROOTFS: &str = "rootfs.ext4";
pub const WORK_SEED: &str = "work-seed.ext4";
/// For images that bring a kernel of their own.
pub const KERNEL: &str = "kernel";
pub const INITRD: &str = "initrd";
pub const MODULES: &str = "modules.ext4";
/// What the image is, for whoever finds the folder.
pub const RECORD: &str = "image.json";

/// Layers of one image under way at once. Each holds buffers and threads of its own, which is what
/// bounds memory; registries give a client three connections' worth of speed, rarely more.
const LAYERS_AT_ONCE: usize = 3;
/// Layers of all images under way at once in this process, beside one of each image, which never waits:
/// more streams than the processors and the network can serve only take memory.
const MORE_LAYERS: usize = 4;

/// Room for layers beyond the first of each image, shared by the pulls of a process.
#[derive(Clone, Debug)]
pub struct LayerRoom(Arc<Semaphore>);

impl Default for LayerRoom {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MORE_LAYERS)))
    }
}

/// What is to be flattened, and where.
#[derive(Clone, Debug)]
pub struct Flatten {
    pub source: Arc<dyn Source>,
    pub image: ResolvedImage,
    /// Folder that gets [`ROOTFS`] and [`WORK_SEED`].
    pub folder: PathBuf,
    pub cache: BlobCache,
    pub patience: Patience,
    pub room: LayerRoom,
    /// Added on top of all layers.
    pub injections: Vec<Injection>,
    /// Its progress and its cancellation.
    pub operation: Operation,
}

/// Fetches and flattens.
pub(crate) async fn pull_and_flatten(request: Flatten) -> Result<Rootfs> {
    let progress = request.operation.progress();
    let layers = request.image.layers.iter();
    let parts: Vec<_> =
        layers.map(|layer| progress.add(layer.label(), ProgressUnit::Bytes, layer.size)).collect();
    let first = attempt(&request, &parts, Trust::WhileReading).await;
    let error = match first {
        Err(TransferError::StaleCache(error)) => error,
        Err(TransferError::Failed(error)) => return Err(error),
        Ok(rootfs) => return Ok(rootfs),
    };
    // The flattener has taken in bytes that were wrong: begin anew, and look twice.
    request.operation.log(format!("{}; beginning again", error.full_message())).await;
    for part in &parts {
        part.set_done(0);
        part.set_state(ProgressState::Waiting);
    }
    attempt(&request, &parts, Trust::AfterReading).await.map_err(|error| match error {
        TransferError::StaleCache(error) | TransferError::Failed(error) => error,
    })
}

async fn attempt(
    request: &Flatten,
    parts: &[Arc<ProgressPart>],
    trust: Trust,
) -> Result<Rootfs, TransferError> {
    // Cancelled with the operation, and by the first layer that fails.
    let cancel = request.operation.cancelled().child_token();
    let options = RootfsOptions {
        path: request.folder.join(ROOTFS),
        layers: request.image.layers.len(),
        size: 0,
        uuid: uuid(&request.image.digest),
        limits: RootfsLimits::default(),
    };
    let token = cancel.clone();
    let builder = blocking(move || {
        match std::fs::remove_file(&options.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("cannot remove `{}`", options.path.display()), error));
            }
            _ => {}
        }
        RootfsBuilder::create(options, token)
    })
    .await?;

    request.operation.phase("download").await;
    // The largest is the one that everything else waits for.
    let layers = &request.image.layers;
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(layers[index].size));
    let (own, more) = (Semaphore::new(1), &request.room.0);
    let transfers = order.into_iter().map(|index| {
        let (builder, cancel, layer, own) = (&builder, &cancel, &layers[index], &own);
        async move {
            // Whoever waits for another's download of the same blob waits for one that has its room.
            let _room = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(Error::cancelled().into()),
                room = own.acquire() => room,
                room = more.acquire() => room,
            };
            let sink = builder.layer(layer.index, layer.compression, Some(layer.diff_id.to_string()))?;
            let transfer = Transfer {
                source: request.source.as_ref(),
                cache: &request.cache,
                patience: &request.patience,
                layer,
                part: &parts[layer.index],
                cancel,
                trust,
            };
            transfer.run(sink).await
        }
    });
    let mut failure: Option<TransferError> = None;
    let mut running = stream::iter(transfers).buffer_unordered(LAYERS_AT_ONCE);
    while let Some(result) = running.next().await {
        let Err(error) = result else { continue };
        // What the others say from here on is only that they were cancelled.
        cancel.cancel();
        failure.get_or_insert(error);
    }
    drop(running);
    if let Some(failure) = failure {
        // Waits for the builder's threads: the folder may go when this returns.
        let dropped = blocking(move || {
            drop(builder);
            Ok(())
        });
        dropped.await?;
        return Err(failure);
    }

    request.operation.phase("write").await;
    let (injections, seed) = (request.injections.clone(), request.folder.join(WORK_SEED));
    Ok(blocking(move || builder.finish(&injections, Some(&seed))).await?)
}

/// Runs on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::failed("a background thread ended").with_source(error))?
}

/// UUID of the root file system (RFC 9562, section 5.8: version 8, made by one's own rule): the first
/// bytes of the image's digest, so that the same image gives the same file system.
fn uuid(digest: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest.bytes()[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
