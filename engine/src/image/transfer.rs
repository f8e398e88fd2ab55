//! One layer on its way: from where it is stored, through the digest, into the blob cache and to the
//! flattener at once. Nothing is read twice, and nothing is lost when the network breaks.
//!
//! ```text
//! network ─▶ this task ─▶ channel ─▶ pump thread: SHA-256 · .partial · flattener's channel
//! ```

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use vmdeck_sha256::Stream;

use super::blobs::{BlobCache, CachedBlob, Claim, PartialBlob};
use super::digest::Digest;
use super::registry::Patience;
use super::source::{LayerBlob, OpenLayer, Source, SourceError};
use crate::error::{Error, Result};
use crate::operation::progress::{ProgressPart, ProgressState};
use crate::rootfs::LayerSink;

/// Bytes of pieces between the network and the unpacked stream. Each piece is what one read of the
/// network gave, 400 KiB from a fast one. All of them are still to be unpacked when the last byte is here.
const UNDER_WAY: usize = 512 << 10;
/// Pieces on their way to the pump, small ones of a slow network.
const PIECES: usize = 16;
/// Bytes of them that may wait to be hashed: no large piece, which would take room from the next.
const WAITING: usize = 64 << 10;
/// Bytes read from the disk at a time.
const PIECE: usize = 128 << 10;
/// When the flattener refuses a layer, so much more is fetched to learn whether the bytes are the
/// promised ones: then the image is at fault, and not its storage.
const WORTH_KNOWING: u64 = 64 << 20;
/// New bytes after which a download counts as going on, and failures are counted anew.
const PROGRESS: u64 = 64 << 10;
/// How long the end of a body is waited for whose bytes are all there. One of a stated length ends with
/// them, and so the wait is only that for a server which states none and neither goes on nor ends.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// What a transfer works with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) cache: &'a BlobCache,
    pub(crate) patience: &'a Patience,
    pub(crate) layer: &'a LayerBlob,
    pub(crate) part: &'a Arc<ProgressPart>,
    pub(crate) cancel: &'a CancellationToken,
    pub(crate) trust: Trust,
}

/// Whether bytes that lie in the cache go to the flattener while they are verified, or after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    WhileReading,
    AfterReading,
}

/// How a transfer failed.
#[derive(Debug)]
pub(crate) enum TransferError {
    /// Bytes of the cache were wrong, and are gone from there: worth to begin the image anew.
    StaleCache(Error),
    Failed(Error),
}

impl From<Error> for TransferError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Transfer<'_> {
    /// Feeds the layer to `sink` and returns when it is verified and written.
    pub(crate) async fn run(self, sink: LayerSink) -> Result<(), TransferError> {
        let result = match (self.source.is_remote(), &self.layer.digest) {
            (true, Some(digest)) => match self.cache.claim(digest, Some(self.layer.size), self.cancel).await?
            {
                Claim::Cached(blob) => self.feed_from_cache(blob, sink).await,
                Claim::Partial(blob) => self.feed_from_network(blob, sink).await,
            },
            _ => self.feed_from_place(sink).await.map_err(TransferError::Failed),
        };
        self.part.set_state(if result.is_ok() { ProgressState::Done } else { ProgressState::Failed });
        result
    }

    /// A local layer: read where it lies.
    async fn feed_from_place(self, sink: LayerSink) -> Result<()> {
        self.part.set_state(ProgressState::Active);
        let (sender, receiver) = mpsc::channel(PIECES);
        let pump = self.start(Pump::new(None, &sink, self.part, self.cancel), receiver);
        let fetched = self.fetch(0, &sink, sender).await;
        let pumped = pump.await.map_err(ended)?;
        if let Err(error) = fetched {
            return Err(self.refusal(sink, error).await);
        }
        let pumped = pumped?;
        if let Some(expected) = &self.layer.digest {
            self.check(expected, pumped)?;
        }
        self.finish(sink).await
    }

    /// A layer that is in the cache as a whole.
    async fn feed_from_cache(self, blob: CachedBlob, sink: LayerSink) -> Result<(), TransferError> {
        self.part.set_state(ProgressState::Active);
        let length = blob.length;
        if self.trust == Trust::AfterReading && !self.intact(&blob.file, length).await? {
            return Err(self.stale(blob.discard()));
        }
        let (_, receiver) = mpsc::channel(1);
        let file = blob.file.try_clone().map_err(|error| self.disk(error))?;
        let pump = Pump::new(None, &sink, self.part, self.cancel).replaying(file, length);
        let found = self.start(pump, receiver).await.map_err(ended)??;
        if Some(found) != self.layer.digest {
            return Err(self.stale(blob.discard()));
        }
        Ok(self.finish(sink).await?)
    }

    /// A layer of which the network has all and the cache perhaps a part.
    async fn feed_from_network(self, mut blob: PartialBlob, sink: LayerSink) -> Result<(), TransferError> {
        self.part.set_state(ProgressState::Active);
        if self.trust == Trust::AfterReading && blob.length > 0 {
            // There is no digest of a part: it is as good as wrong.
            blob.file.set_len(0).map_err(|error| self.disk(error))?;
            blob.length = 0;
        }
        let replayed = blob.length;
        let (sender, receiver) = mpsc::channel(PIECES);
        let file = blob.file.try_clone().map_err(|error| self.disk(error))?;
        let mut pump = Pump::new(Some(file), &sink, self.part, self.cancel);
        if replayed > 0 {
            let file = blob.file.try_clone().map_err(|error| self.disk(error))?;
            pump = pump.replaying(file, replayed);
        }
        let pump = self.start(pump, receiver);
        let fetched = self.fetch(replayed, &sink, sender).await;
        let pumped = pump.await.map_err(ended)?;
        match fetched {
            Ok(()) => {}
            Err(error) if error.is_cancelled() => return Err(error.into()),
            // The flattener gave up, and what it read came from the disk in part.
            Err(error) if sink.bytes.is_closed() => {
                blob.discard()?;
                let error = self.refusal(sink, error).await;
                return Err(if replayed > 0 { TransferError::StaleCache(error) } else { error.into() });
            }
            Err(error) => {
                // All of it came, and more than that: the next pull shall not take it for what was asked.
                let length = blob.file.metadata().map_err(|error| self.disk(error))?.len();
                if length >= self.layer.size {
                    blob.discard()?;
                }
                return Err(error.into());
            }
        }
        let found = pumped?;
        let expected = self.layer.digest.expect("only layers with a digest are in the cache");
        match self.check(&expected, found) {
            Ok(()) => blob.complete()?,
            Err(_) if replayed > 0 => return Err(self.stale(blob.discard())),
            Err(error) => {
                blob.discard()?;
                return Err(error.into());
            }
        }
        Ok(self.finish(sink).await?)
    }

    fn start(self, pump: Pump, pieces: mpsc::Receiver<Bytes>) -> tokio::task::JoinHandle<Result<Digest>> {
        let label = self.layer.label();
        tokio::task::spawn_blocking(move || {
            pump.run(pieces).map_err(|error| match error.kind() {
                io::ErrorKind::Interrupted => Error::cancelled(),
                _ => Error::io(format!("cannot keep layer {label} in the blob cache"), error),
            })
        })
    }

    /// Gets the layer's bytes from `position` on and hands them to the pump, with retries.
    async fn fetch(self, mut position: u64, sink: &LayerSink, pump: mpsc::Sender<Bytes>) -> Result<()> {
        let size = self.layer.size;
        let room = Arc::new(Semaphore::new(UNDER_WAY));
        let (mut failures, mut counted_at) = (0, position);
        while position < size {
            let opened = self.until_cancelled(self.source.open_layer(self.layer, position)).await?;
            let failed = match opened {
                Ok(open) => match self.read(open, &mut position, sink, &room, &pump).await? {
                    None => return Ok(()),
                    Some(failed) => failed,
                },
                Err(failed) => failed,
            };
            let (error, retry_after) = match failed {
                SourceError::Permanent(error) => return Err(error),
                SourceError::Transient { error, retry_after } => (error, retry_after),
            };
            if position >= counted_at.saturating_add(PROGRESS) {
                (failures, counted_at) = (0, position);
            }
            failures += 1;
            let Some(pause) = self.patience.pause(failures, retry_after) else { return Err(error) };
            tracing::info!(
                layer = self.layer.label(),
                position,
                ?pause,
                error = error.full_message(),
                "trying again"
            );
            self.part.add_retry();
            self.until_cancelled(tokio::time::sleep(pause)).await?;
        }
        Ok(())
    }

    /// Reads one answer. `None`: the layer is complete.
    async fn read(
        self,
        open: OpenLayer,
        position: &mut u64,
        sink: &LayerSink,
        room: &Arc<Semaphore>,
        pump: &mpsc::Sender<Bytes>,
    ) -> Result<Option<SourceError>> {
        let size = self.layer.size;
        // A server that ignores ranges sends what is here already once more.
        let mut skip = position.saturating_sub(open.offset);
        let mut pieces = open.bytes;
        while *position < size {
            let mut piece = match self.until_cancelled(pieces.next()).await? {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => return Ok(Some(error)),
                None => {
                    return Ok(Some(SourceError::transient(Error::failed(format!(
                        "layer {} ended after {} of {size} bytes",
                        self.layer.label(),
                        *position
                    )))));
                }
            };
            if skip > 0 {
                let known = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
                piece = piece.split_off(known);
                skip -= known as u64;
            }
            if piece.is_empty() {
                continue;
            }
            let length = piece.len() as u64;
            if length > size - *position {
                return Err(self.too_long());
            }
            if sink.bytes.is_closed() && size - *position > WORTH_KNOWING {
                return Err(Error::failed(format!("layer {} was refused", self.layer.label())));
            }
            let piece = self.until_cancelled(admitted(piece, room)).await?;
            if self.until_cancelled(pump.send(piece)).await?.is_err() {
                // The pump ended; its own result says why.
                return Ok(None);
            }
            *position += length;
        }
        // A body without a stated length may have more; and one that is read to its end leaves a
        // connection that can be used again.
        let rest = tokio::time::timeout(LAST_LOOK, pieces.next()).await;
        match rest {
            Ok(Some(Ok(piece))) if !piece.is_empty() => Err(self.too_long()),
            _ => Ok(None),
        }
    }

    /// What to say when a layer was not fetched to its end: why the flattener gave up, if it did.
    async fn refusal(self, sink: LayerSink, error: Error) -> Error {
        if sink.bytes.is_closed() && !error.is_cancelled() {
            return self.finish(sink).await.err().unwrap_or(error);
        }
        error
    }

    /// Waits for the flattener; its refusal is this layer's failure.
    async fn finish(self, sink: LayerSink) -> Result<()> {
        self.until_cancelled(sink.finish()).await?
    }

    async fn until_cancelled<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        self.cancel.run_until_cancelled(future).await.ok_or_else(Error::cancelled)
    }

    fn check(&self, expected: &Digest, found: Digest) -> Result<()> {
        if *expected == found {
            return Ok(());
        }
        Err(Error::failed(format!(
            "layer {} from {} does not have the promised digest: {expected} expected, {found} found",
            self.layer.label(),
            self.source.describe()
        ))
        .with_hint(
            "the image is damaged where it is stored, or somebody tampers with it; nothing of it was kept",
        ))
    }

    fn too_long(&self) -> Error {
        Error::failed(format!(
            "layer {} from {} has more than the {} bytes that its manifest says",
            self.layer.label(),
            self.source.describe(),
            self.layer.size
        ))
        .with_hint("the image is damaged where it is stored, or somebody tampers with it")
    }

    fn disk(&self, error: io::Error) -> Error {
        Error::io(format!("cannot use layer {} in the blob cache", self.layer.label()), error)
    }

    fn stale(&self, discarded: Result<()>) -> TransferError {
        match discarded {
            Ok(()) => TransferError::StaleCache(Error::failed(format!(
                "layer {} was damaged in the blob cache",
                self.layer.label()
            ))),
            Err(error) => error.into(),
        }
    }

    async fn intact(&self, file: &File, length: u64) -> Result<bool> {
        let (file, cancel) = (file.try_clone().map_err(|error| self.disk(error))?, self.cancel.clone());
        let found = tokio::task::spawn_blocking(move || -> io::Result<Digest> {
            let mut hash = Stream::new(WAITING);
            each_piece(file, length, |piece| {
                hash.update(piece);
                if cancel.is_cancelled() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
            })?;
            Ok(Digest::of_stream(hash))
        });
        let found = found.await.map_err(ended)?;
        if self.cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        Ok(Some(found.map_err(|error| self.disk(error))?) == self.layer.digest)
    }
}

fn ended(error: tokio::task::JoinError) -> Error {
    Error::failed("a layer's thread ended").with_source(error)
}

/// The piece, once there is room for it; the room is free again when nobody holds the piece any more.
async fn admitted(piece: Bytes, room: &Arc<Semaphore>) -> Bytes {
    struct Admitted {
        piece: Bytes,
        _room: OwnedSemaphorePermit,
    }
    impl AsRef<[u8]> for Admitted {
        fn as_ref(&self) -> &[u8] {
            &self.piece
        }
    }
    // Never more than half: whoever reads may hold one piece while it waits for the next.
    let wanted = piece.len().min(UNDER_WAY / 2) as u32;
    match Arc::clone(room).acquire_many_owned(wanted).await {
        Ok(permit) => Bytes::from_owner(Admitted { piece, _room: permit }),
        // It is never closed.
        Err(_) => piece,
    }
}

/// The thread of one layer: hashes, keeps and passes on.
struct Pump {
    hash: Stream,
    /// The `.partial`, for new bytes.
    keep: Option<File>,
    /// Bytes that are here already.
    replay: Option<(File, u64)>,
    /// `None` once the flattener has given up.
    sink: Option<mpsc::Sender<Bytes>>,
    part: Arc<ProgressPart>,
    cancel: CancellationToken,
}

impl Pump {
    fn new(
        keep: Option<File>,
        sink: &LayerSink,
        part: &Arc<ProgressPart>,
        cancel: &CancellationToken,
    ) -> Self {
        Self {
            hash: Stream::new(WAITING),
            keep,
            replay: None,
            sink: Some(sink.bytes.clone()),
            part: Arc::clone(part),
            cancel: cancel.clone(),
        }
    }

    fn replaying(self, file: File, length: u64) -> Self {
        Self { replay: Some((file, length)), ..self }
    }

    /// Runs until no more pieces come. [`io::ErrorKind::Interrupted`] means cancelled.
    fn run(mut self, mut pieces: mpsc::Receiver<Bytes>) -> io::Result<Digest> {
        if let Some((file, length)) = self.replay.take() {
            each_piece(file, length, |piece| self.pass_on(piece))?;
        }
        if let Some(keep) = &mut self.keep {
            keep.seek(SeekFrom::End(0))?;
        }
        while let Some(piece) = pieces.blocking_recv() {
            if let Some(keep) = &mut self.keep {
                keep.write_all(&piece)?;
            }
            self.pass_on(piece)?;
        }
        Ok(Digest::of_stream(self.hash))
    }

    fn pass_on(&mut self, piece: Bytes) -> io::Result<()> {
        if self.cancel.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.hash.update(piece.clone());
        self.part.advance(piece.len() as u64);
        if self.sink.as_ref().is_some_and(|sink| sink.blocking_send(piece).is_err()) {
            self.sink = None;
        }
        Ok(())
    }
}

fn each_piece(mut file: File, length: u64, mut work: impl FnMut(Bytes) -> io::Result<()>) -> io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    let mut left = length;
    while left > 0 {
        let mut buffer = BytesMut::zeroed(usize::try_from(left).unwrap_or(PIECE).min(PIECE));
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.truncate(read);
        left -= read as u64;
        work(buffer.freeze())?;
    }
    Ok(())
}
