//! What a kernel is, as the store keeps it and the screens show it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::clock::Milliseconds;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    pub name: String,
    /// What `uname -r` will say.
    pub release: String,
    /// Architecture as OCI names it.
    pub architecture: String,
    /// Where it came from: `apt:linux-image-…`, `deb:FILE`, `host`, ….
    pub source: String,
    /// What was asked for, where that was something else: a meta package, a name of the catalog.
    #[serde(default)]
    pub requested: Option<String>,
    pub created_at: Milliseconds,
    /// Uncompressed ELF image with a PVH entry, or the bzImage where none could be extracted.
    pub vmlinux: PathBuf,
    /// Our init and the modules needed to reach the root disk.
    pub initrd: PathBuf,
    /// ext4 image of `/lib/modules/<release>`; none for a kernel without modules.
    pub modules: Option<PathBuf>,
    /// Digest of the guest binary in the initrd: a newer vmdeck rebuilds a stale initrd.
    pub guest_digest: String,
    /// Modules in the initrd, in the order they are loaded.
    pub initrd_modules: Vec<String>,
    /// What will not work with this kernel, one sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
}
