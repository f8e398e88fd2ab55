//! Layers → one tree → ext4, in one pass, in this process, as an ordinary user.
//!
//! ```text
//! RootfsBuilder::create
//!    ├─ layer(i) ─▶ LayerSink ─ packed bytes ─▶ unpack ─▶ tar ─▶ content to its place in the image
//!    │                (any number, any order)                 └▶ list of entries
//!    │                                        └▶ merged bottom-up, as soon as those below are
//!    └─ finish ─▶ injections ─▶ metadata ─▶ fdatasync
//! ```
//!
//! File content goes to the image the moment it is known and is never read again; nothing passes
//! through a folder of this host, so that owners, modes, devices, links and attributes are what the
//! layers say, whoever runs this. Content that an upper layer hides is cut out of the image again.
//!
//! What one layer costs while it streams: two threads, 1.1 MiB of buffers, four packed pieces as
//! large as the sender makes them, the ext4 writer's arena, and for zstd its window (8 MiB below
//! level 20). Its list of entries, about 150 bytes each, stays until the layers below it are complete. How
//! many layers stream at the same time is the caller's choice.
//!
//! Layers are untrusted: see [`RootfsLimits`] and [`RootfsError`].

mod contents;
mod entries;
mod error;
mod inflate;
mod jail;
mod layer;
mod merge;
mod path;
mod pipeline;
mod seed;
mod stack;
mod tar;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[allow(unreachable_pub, reason = "other tests take it in by its path")]
mod torture;

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use vmdeck_ext4::{Directory, Formatter, InodeKind, Metadata, Options, Timestamp};

use crate::error::{Error, Result};

pub use contents::{Contents, InitSystem};
pub use error::{EntryError, LayerError, LayerName, RootfsError};
pub(crate) use inflate::{Magic, magic};
use jail::Jail;
use layer::Budget;
use pipeline::LayerJob;
use stack::Stack;
pub use tar::TarError;

/// Pieces of packed bytes that wait for a layer's thread.
const PACKED_PIECES: usize = 4;
/// Bytes that are free in a new image at least, besides a quarter of the content. They cost
/// nothing: the file is sparse.
const FREE: u64 = 256 << 20;
/// Bytes of the journal, as mke2fs has it for file systems of some GiB.
const JOURNAL: u64 = 64 << 20;

/// What a rootfs is to be like.
#[derive(Clone, Debug)]
pub struct RootfsOptions {
    /// The image file to create.
    pub path: PathBuf,
    /// Number of layers, bottom first.
    pub layers: usize,
    /// Length of the file system in bytes, unless the content needs more.
    pub size: u64,
    /// UUID of the file system; derived from the manifest's digest, so that equal input gives equal
    /// output.
    pub uuid: [u8; 16],
    pub limits: RootfsLimits,
}

/// Bounds on what an untrusted archive may make us do.
#[derive(Clone, Copy, Debug)]
pub struct RootfsLimits {
    /// Entries of all layers together.
    pub entries: u64,
    /// Bytes of file content of all layers together, holes included.
    pub bytes: u64,
    /// Inflated bytes per compressed byte, counted after the first 64 MiB.
    pub ratio: u64,
}

/// Whether so many bytes from so few packed ones are a bomb: more than `ratio` for each. That is looked at
/// only when they are many.
pub(crate) fn is_bomb(packed: u64, unpacked: u64, ratio: u64) -> bool {
    const FREE: u64 = 64 << 20;
    unpacked > FREE && unpacked / ratio.max(1) > packed
}

impl Default for RootfsLimits {
    fn default() -> Self {
        Self { entries: 5_000_000, bytes: 1 << 40, ratio: 1_100 }
    }
}

/// How a layer's tar stream is packed. Its first bytes have the last word, as with the container
/// engines; this says what it is an error not to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
    /// Told by its first bytes (docker-archive does not say).
    Detect,
}

/// A file or folder added on top of all layers.
#[derive(Clone, Debug)]
pub struct Injection {
    /// Absolute, within the root; parents are created as root's with mode 0755. Symbolic links on
    /// the way are followed within the root; one of that very name is replaced.
    pub path: PathBuf,
    /// Permission bits; with `0o040000` (`S_IFDIR`) a folder is meant, and `content` is empty.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub content: Vec<u8>,
}

/// The result.
#[derive(Clone, Debug)]
pub struct Rootfs {
    /// Length of the file system in bytes.
    pub size: u64,
    /// Bytes in use.
    pub used: u64,
    pub inodes: u64,
    /// What the image says of itself.
    pub contents: Contents,
}

/// A rootfs under construction. Dropping it ends its threads; the file stays.
#[derive(Debug)]
pub struct RootfsBuilder {
    shared: Arc<Shared>,
    /// They hold clones of `shared`.
    threads: Threads,
    options: RootfsOptions,
    created: Timestamp,
}

#[derive(Debug)]
struct Shared {
    formatter: Formatter,
    budget: Budget,
    stack: Stack,
}

/// The threads of a builder; dropping them cancels and waits for them.
#[derive(Debug)]
struct Threads {
    cancel: CancellationToken,
    /// Guards nothing but itself.
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    fn join(&self) {
        let handles = std::mem::take(&mut *self.handles.lock().unwrap_or_else(PoisonError::into_inner));
        for handle in handles {
            // A panic has been turned into the layer's error by its channel's closing.
            let _ = handle.join();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.join();
    }
}

/// Where the compressed bytes of one layer go.
#[derive(Debug)]
pub struct LayerSink {
    /// Bounded: a slow disk slows the download. Closing it ends the layer. Sending fails when the
    /// layer has failed: [`LayerSink::finish`] says why.
    pub bytes: mpsc::Sender<Bytes>,
    result: oneshot::Receiver<Result<()>>,
}

impl LayerSink {
    /// A sink of another kind: whoever receives `bytes` tells by `result` how it went.
    pub(crate) fn new(bytes: mpsc::Sender<Bytes>, result: oneshot::Receiver<Result<()>>) -> Self {
        Self { bytes, result }
    }

    /// Waits until the layer is written; call it after `bytes` was dropped. Resolves early with the
    /// error when the layer is damaged or hostile.
    pub async fn finish(self) -> Result<()> {
        drop(self.bytes);
        self.result.await.map_err(|_| Error::failed("the layer's thread ended"))?
    }
}

impl RootfsBuilder {
    /// Creates the image file. Blocking, brief.
    pub fn create(options: RootfsOptions, cancel: CancellationToken) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&options.path)
            .map_err(RootfsError::io(format!("create `{}`", options.path.display())))?;
        let created = now();
        let formatter = Formatter::create(
            file,
            Options {
                size: options.size,
                free: FREE,
                journal: JOURNAL,
                uuid: options.uuid,
                label: "vmdeck-root".into(),
                created,
            },
        )
        .map_err(|source| RootfsError::Format { doing: "create the image", source })?;
        let stack = Stack::new(options.layers);
        let budget = Budget::new(options.limits);
        Ok(Self {
            shared: Arc::new(Shared { formatter, budget, stack }),
            threads: Threads { cancel: cancel.child_token(), handles: Mutex::new(Vec::new()) },
            options,
            created,
        })
    }

    /// Begins a layer (0 is the bottom one); any order, several at once. `diff_id` is the expected
    /// `sha256:<hex>` of the uncompressed tar.
    pub fn layer(
        &self,
        index: usize,
        compression: Compression,
        diff_id: Option<String>,
    ) -> Result<LayerSink> {
        self.shared.stack.begin(index)?;
        let (bytes, packed) = mpsc::channel(PACKED_PIECES);
        let (finished, result) = oneshot::channel();
        let name = LayerName { index, diff_id: diff_id.clone() };
        let job = LayerJob {
            packed,
            compression,
            diff_id,
            ratio: self.options.limits.ratio,
            cancel: self.threads.cancel.clone(),
        };
        let shared = Arc::clone(&self.shared);
        let cancel = self.threads.cancel.clone();
        let handle = thread::Builder::new()
            .name("layer-write".into())
            .spawn(move || {
                let Shared { formatter, budget, stack } = &*shared;
                let outcome = stack
                    .read(index, name.clone(), budget, &cancel, |bottom| job.run(formatter, budget, bottom));
                let outcome =
                    outcome.map_err(|source| Error::from(RootfsError::Layer { layer: name, source }));
                // Nobody waits for it when the pull was given up.
                let _ = finished.send(outcome);
                stack.merge_ready(budget, &cancel);
            })
            .map_err(RootfsError::io("start a layer's thread"))?;
        self.threads.handles.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        Ok(LayerSink { bytes, result })
    }

    /// Merges the layers, adds the injections, writes the metadata and syncs the file. When
    /// `work_seed` is given, also writes the content of `/root` as an ext4 image of its own there.
    /// Blocking.
    pub fn finish(self, injections: &[Injection], work_seed: Option<&Path>) -> Result<Rootfs> {
        Ok(self.build(injections, work_seed)?)
    }

    fn build(self, injections: &[Injection], work_seed: Option<&Path>) -> Result<Rootfs, RootfsError> {
        let Merged { jail, formatter, threads, options, created } = self.merge(injections)?;
        let format = |doing| move |source| RootfsError::Format { doing, source };
        formatter.release(merge::nameless(&jail)).map_err(format("free what upper layers hide"))?;
        let contents = Contents::of(&jail, &formatter);
        if let Some(path) = work_seed {
            seed::write(&jail, &formatter, path, options.uuid, created, &threads.cancel)?;
        }
        if threads.cancel.is_cancelled() {
            return Err(RootfsError::Cancelled);
        }
        formatter.set_free(FREE + jail.stored() / 4);
        let (file, summary) = formatter.finish(&jail.tree).map_err(format("write the image's metadata"))?;
        file.sync_data().map_err(RootfsError::io(format!("write `{}`", options.path.display())))?;
        Ok(Rootfs { size: summary.size, used: summary.used, inodes: summary.inodes, contents })
    }

    /// Makes one tree of all layers and the injections.
    fn merge(self, injections: &[Injection]) -> Result<Merged, RootfsError> {
        let Self { shared, threads, options, created } = self;
        if threads.cancel.is_cancelled() {
            return Err(RootfsError::Cancelled);
        }
        if let Some(index) = shared.stack.missing() {
            return Err(RootfsError::Missing { index });
        }
        threads.join();
        let Some(Shared { formatter, budget, stack }) = Arc::into_inner(shared) else {
            // Every clone lived on one of the threads that have ended.
            return Err(RootfsError::Cancelled);
        };
        let mut jail = stack.finish(&budget, &threads.cancel)?;
        inject(&mut jail, &formatter, injections, created)?;
        Ok(Merged { jail, formatter, threads, options, created })
    }
}

/// All layers as one tree; its content is in the image.
struct Merged {
    jail: Jail,
    formatter: Formatter,
    threads: Threads,
    options: RootfsOptions,
    created: Timestamp,
}

/// Adds the injections as a layer on top of the others would.
fn inject(
    jail: &mut Jail,
    formatter: &Formatter,
    injections: &[Injection],
    created: Timestamp,
) -> Result<(), RootfsError> {
    const FOLDER: u16 = 0o040_000;
    let format = |source| RootfsError::Format { doing: "add a file to the image", source };
    let mut writer = formatter.data_writer();
    for injection in injections {
        let name = injection.path.as_os_str().as_encoded_bytes();
        let problem = |source| RootfsError::Injection { path: error::escape(name), source };
        let mut path = Vec::new();
        path::clean_link(name, &mut path).map_err(problem)?;
        if path.is_empty() {
            return Err(problem(EntryError::RootReplaced));
        }
        let kind = if injection.mode & FOLDER != 0 {
            InodeKind::Directory(Directory::new())
        } else {
            writer.begin(injection.content.len() as u64).map_err(format)?;
            writer.write(&injection.content).map_err(format)?;
            InodeKind::File(writer.end().map_err(format)?)
        };
        let metadata = Metadata {
            mode: injection.mode & 0o7777,
            uid: injection.uid,
            gid: injection.gid,
            modified: created,
            ..Metadata::default()
        };
        let (parents, name) = jail::split(&path);
        let folder = jail.make_folder(parents, created, || Ok::<_, EntryError>(())).map_err(problem)?;
        jail.place(folder, name, metadata, kind).map_err(problem)?;
    }
    writer.flush().map_err(format)
}

fn now() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(elapsed.as_secs()).unwrap_or_default(),
        nanoseconds: elapsed.subsec_nanos(),
    }
}
