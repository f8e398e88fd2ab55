//! Bundles: an image as ready file systems in one file, for hosts that share no registry.
//!
//! A bundle is a tar archive packed by zstd. Its members are regular files with the names of
//! [`MEMBERS`], and `manifest.json` ([`BundleManifest`]), which has length and SHA-256 of each. What
//! vmdeck writes has the manifest first; any order is read. Nothing in a bundle is trusted before it
//! is verified, and nothing but the named members is taken.

mod fetch;
mod read;
mod write;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::flatten::{INITRD, KERNEL, MODULES, ROOTFS, WORK_SEED};
use super::record::{ImageConfig, ImageLayer};

pub use fetch::{FetchBundle, FetchedBundle};
pub(crate) use fetch::{announced, fetch};
pub(crate) use write::write;

/// Name of the member that describes the others.
pub const MANIFEST: &str = "manifest.json";
/// Names of all other members; only the first must be there.
pub const MEMBERS: [&str; 5] = [ROOTFS, WORK_SEED, KERNEL, INITRD, MODULES];
/// Value of [`BundleManifest::format`].
pub const FORMAT: &str = "vmdeck-bundle";
/// The newest version of the format, and the only one.
pub const VERSION: u32 = 1;

/// What a bundle says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleManifest {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// What the image was called where it was made.
    pub name: String,
    /// Architecture as OCI names it.
    #[serde(default)]
    pub architecture: Option<String>,
    /// Digest of the container image it was made from; for information, nobody can verify it.
    #[serde(default)]
    pub origin: Option<String>,
    #[serde(default)]
    pub config: ImageConfig,
    #[serde(default)]
    pub layers: Vec<ImageLayer>,
    /// Bytes in use in the root file system.
    #[serde(default)]
    pub used_bytes: u64,
    /// By the name of the member.
    pub files: BTreeMap<String, BundleFile>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleFile {
    /// Bytes, holes included.
    pub size: u64,
    pub sha256: Digest,
}
