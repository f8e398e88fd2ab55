//! The two threads of a layer.
//!
//! ```text
//! packed bytes ──▶ unpack ──▶ buffers ──▶ diff_id · tar · write ──▶ list of entries
//!   (bounded)     (thread)   (recycled)         (thread)
//! ```
//!
//! SHA-256 is done where the buffers are read (unpacking is the slower half), together with that of
//! another stream where there is one: the packed bytes, or another layer. When one thread ends, the other
//! one notices by its channels and ends too; a cancel wakes the one that waits for the network.

use std::cell::Cell;
use std::fmt::Write;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vmdeck_ext4::Formatter;
use vmdeck_sha256::Stream;

use super::entries::LayerEntries;
use super::error::LayerError;
use super::inflate::{self, Input, Output};
use super::jail::Jail;
use super::layer::{self, Budget};
use super::tar::Source;
use super::{Compression, is_bomb};

/// Buffers of one layer that wait to be hashed: what its thread reads in one turn.
const WAITING: usize = 2;
/// Buffers of one layer: one being filled, one that it goes on from, one being read, two between, and those.
const BUFFERS: usize = 5 + WAITING;

/// One layer to be read.
#[derive(Debug)]
pub(super) struct LayerJob {
    pub(super) packed: mpsc::Receiver<Bytes>,
    pub(super) compression: Compression,
    /// What the unpacked stream's SHA-256 must be, as `sha256:<hex>`.
    pub(super) diff_id: Option<String>,
    /// Most unpacked bytes for each packed one.
    pub(super) ratio: u64,
    pub(super) cancel: CancellationToken,
}

impl LayerJob {
    /// Runs the layer to its end, on this thread and one more, which has ended when this returns.
    /// Entries go to `bottom` where there is one; see [`layer::read_layer`].
    pub(super) fn run(
        self,
        formatter: &Formatter,
        budget: &Budget,
        bottom: Option<&mut Jail>,
    ) -> Result<LayerEntries, LayerError> {
        let Self { packed, compression, diff_id, ratio, cancel } = self;
        let (full, chunks) = sync_channel(BUFFERS);
        let (free, recycled) = sync_channel(BUFFERS);
        let unpack_cancel = cancel.clone();
        let unpack = move || {
            let taken = Cell::new(0);
            let mut input = PackedBytes { packed, taken: &taken, cancel: &unpack_cancel };
            let mut output = Chunks {
                full,
                free,
                recycled,
                buffers: 0,
                taken: &taken,
                made: 0,
                ratio,
                cancel: &unpack_cancel,
            };
            inflate::inflate(compression, &mut input, &mut output)?;
            output.full.send(None).map_err(|_| LayerError::Stopped)
        };
        thread::scope(|scope| {
            let unpack = thread::Builder::new()
                .name("layer-unpack".into())
                .spawn_scoped(scope, unpack)
                .map_err(LayerError::Thread)?;
            let hash = diff_id.is_some().then(|| Stream::new(WAITING * vmdeck_inflate::BUFFER));
            let source = ChunkSource { chunks, rest: Some(Bytes::new()), hash };
            let read = read(source, diff_id, formatter, budget, bottom, &cancel);
            // Its channels are closed now, so that the other thread cannot wait for ever.
            let unpacked = unpack.join().unwrap_or(Err(LayerError::Stopped));
            match (read, unpacked) {
                // The reader was only left alone: the other thread knows why.
                (Err(LayerError::Stopped), Err(error)) => Err(error),
                (read, _) => read,
            }
        })
    }
}

/// Reads the unpacked stream: the archive, and what is behind it.
fn read(
    source: ChunkSource,
    diff_id: Option<String>,
    formatter: &Formatter,
    budget: &Budget,
    bottom: Option<&mut Jail>,
    cancel: &CancellationToken,
) -> Result<LayerEntries, LayerError> {
    let mut writer = formatter.data_writer();
    let (entries, mut source) = layer::read_layer(source, &mut writer, budget, bottom, cancel)?;
    writer.flush().map_err(LayerError::Write)?;
    loop {
        let length = source.fill()?.len();
        if length == 0 {
            break;
        }
        source.consume(length);
    }
    if let (Some(expected), Some(hash)) = (diff_id, source.hash) {
        let mut found = String::from("sha256:");
        for byte in hash.finish() {
            let _ = write!(found, "{byte:02x}");
        }
        if found != expected {
            return Err(LayerError::DiffId { expected, found });
        }
    }
    Ok(entries)
}

/// A buffer with bytes in it. Goes back to who fills buffers when nobody has the bytes any more.
struct Filled {
    buffer: Vec<u8>,
    content: Range<usize>,
    free: SyncSender<Vec<u8>>,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.content.clone()]
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        // Fails only when the other thread has ended and needs none.
        let _ = self.free.try_send(std::mem::take(&mut self.buffer));
    }
}

/// The packed side: waits for the network, until the cancel.
struct PackedBytes<'a> {
    packed: mpsc::Receiver<Bytes>,
    taken: &'a Cell<u64>,
    cancel: &'a CancellationToken,
}

impl Input for PackedBytes<'_> {
    fn next(&mut self) -> Result<Option<Bytes>, LayerError> {
        loop {
            let bytes = match self.packed.try_recv() {
                Ok(bytes) => Some(bytes),
                Err(mpsc::error::TryRecvError::Disconnected) => None,
                Err(mpsc::error::TryRecvError::Empty) => {
                    let wait = self.cancel.run_until_cancelled(self.packed.recv());
                    block_on(wait).ok_or(LayerError::Cancelled)?
                }
            };
            // Who cancels drops its senders, too: that is no end of the stream.
            if self.cancel.is_cancelled() {
                return Err(LayerError::Cancelled);
            }
            match bytes {
                None => return Ok(None),
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => {
                    self.taken.set(self.taken.get() + bytes.len() as u64);
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

/// The unpacked side.
struct Chunks<'a> {
    /// `None` when the stream is complete. Without it, its end means that unpacking failed.
    full: SyncSender<Option<Bytes>>,
    free: SyncSender<Vec<u8>>,
    recycled: Receiver<Vec<u8>>,
    /// Buffers there are so far.
    buffers: usize,
    taken: &'a Cell<u64>,
    made: u64,
    ratio: u64,
    cancel: &'a CancellationToken,
}

impl Chunks<'_> {
    fn hand_over(&mut self, chunk: Bytes) -> Result<(), LayerError> {
        if self.cancel.is_cancelled() {
            return Err(LayerError::Cancelled);
        }
        self.made += chunk.len() as u64;
        let packed = self.taken.get();
        if is_bomb(packed, self.made, self.ratio) {
            return Err(LayerError::Ratio { packed, inflated: self.made, limit: self.ratio });
        }
        self.full.send(Some(chunk)).map_err(|_| LayerError::Stopped)
    }
}

impl Output for Chunks<'_> {
    fn buffer(&mut self) -> Result<Vec<u8>, LayerError> {
        match self.recycled.try_recv() {
            Ok(buffer) => Ok(buffer),
            Err(TryRecvError::Empty) if self.buffers < BUFFERS => {
                self.buffers += 1;
                Ok(vec![0; vmdeck_inflate::BUFFER])
            }
            Err(TryRecvError::Empty) => self.recycled.recv().map_err(|_| LayerError::Stopped),
            Err(TryRecvError::Disconnected) => Err(LayerError::Stopped),
        }
    }

    fn send(&mut self, buffer: Vec<u8>, content: Range<usize>) -> Result<(), LayerError> {
        let filled = Filled { buffer, content, free: self.free.clone() };
        self.hand_over(Bytes::from_owner(filled))
    }

    fn pass(&mut self, bytes: Bytes) -> Result<(), LayerError> {
        self.hand_over(bytes)
    }
}

/// The unpacked stream as the archive's reader sees it.
struct ChunkSource {
    chunks: Receiver<Option<Bytes>>,
    /// What is left of the current chunk; `None` at the end of the stream.
    rest: Option<Bytes>,
    hash: Option<Stream>,
}

impl Source for ChunkSource {
    fn fill(&mut self) -> Result<&[u8], LayerError> {
        while self.rest.as_ref().is_some_and(Bytes::is_empty) {
            // Its buffer may be needed for the next.
            self.rest = Some(Bytes::new());
            self.rest = self.chunks.recv().map_err(|_| LayerError::Stopped)?;
            if let (Some(chunk), Some(hash)) = (&self.rest, &mut self.hash) {
                hash.update(chunk.clone());
            }
        }
        Ok(self.rest.as_deref().unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        if let Some(rest) = &mut self.rest {
            rest.advance(count);
        }
    }
}

/// Waits for a future on this thread, which belongs to no runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
