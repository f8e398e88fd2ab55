//! Layers → one tree → ext4, in one pass, in this process, as an ordinary user.
//!
//! Each layer streams through threads of its own: compressed bytes in by a bounded channel → inflate
//! (and SHA-256 of what comes out, the diff_id) → tar → file data straight to its place in the
//! image. What is left of a layer is a list of entries; when all layers are there, the lists are
//! merged bottom-up in memory and the metadata is written.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

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

impl Default for RootfsLimits {
    fn default() -> Self {
        Self { entries: 5_000_000, bytes: 1 << 40, ratio: 1_100 }
    }
}

/// How a layer's tar stream is packed.
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
    /// Absolute, within the root; parents are created as root's with mode 0755.
    pub path: PathBuf,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub content: Vec<u8>,
}

/// The result.
#[derive(Clone, Copy, Debug)]
pub struct Rootfs {
    /// Length of the file system in bytes.
    pub size: u64,
    /// Bytes in use.
    pub used: u64,
    pub inodes: u64,
}

/// A rootfs under construction.
#[derive(Debug)]
pub struct RootfsBuilder {}

/// Where the compressed bytes of one layer go.
#[derive(Debug)]
pub struct LayerSink {
    /// Bounded: a slow disk slows the download. Closing it ends the layer.
    pub bytes: mpsc::Sender<Bytes>,
    result: tokio::sync::oneshot::Receiver<Result<()>>,
}

impl LayerSink {
    /// Waits until the layer is written; call it after `bytes` was dropped. Resolves early with the
    /// error when the layer is damaged or hostile.
    pub async fn finish(self) -> Result<()> {
        drop(self.bytes);
        self.result.await.map_err(|_| Error::failed("the layer's thread ended"))?
    }
}

impl RootfsBuilder {
    /// Creates the image file. Blocking, brief.
    pub fn create(_options: RootfsOptions, _cancel: CancellationToken) -> Result<Self> {
        Err(Error::failed("rootfs is being written"))
    }

    /// Begins a layer (0 is the bottom one); any order, several at once. `diff_id` is the expected
    /// `sha256:<hex>` of the uncompressed tar.
    pub fn layer(
        &self,
        _index: usize,
        _compression: Compression,
        _diff_id: Option<String>,
    ) -> Result<LayerSink> {
        Err(Error::failed("rootfs is being written"))
    }

    /// Merges the layers, adds the injections, writes the metadata and syncs the file. When
    /// `work_seed` is given, also writes the content of `/root` as an ext4 image of its own there.
    /// Blocking.
    pub fn finish(self, _injections: &[Injection], _work_seed: Option<&Path>) -> Result<Rootfs> {
        Err(Error::failed("rootfs is being written"))
    }
}
