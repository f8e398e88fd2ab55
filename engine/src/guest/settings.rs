//! What a machine's init is told, as a second cpio appended to the kernel's initrd.

use std::net::Ipv4Addr;

use crate::error::{Error, Result};

/// Serials by which the guest knows its disks (virtio-blk, at most 20 bytes).
pub const ROOT_SERIAL: &str = "vmdeck-root";
pub const WORK_SERIAL: &str = "vmdeck-work";
pub const MODULES_SERIAL: &str = "vmdeck-modules";

/// Settings of one boot of one machine.
#[derive(Clone, Debug, Default)]
pub struct GuestSettings {
    pub hostname: String,
    pub network: Option<GuestNetwork>,
    /// Lines for `authorized_keys` of root.
    pub authorized_keys: Vec<String>,
    /// Whether there is a disk with [`WORK_SERIAL`], to be mounted at root's home.
    pub work_disk: bool,
    /// Whether there is a disk with [`MODULES_SERIAL`], to be mounted at `/lib/modules/<release>`.
    pub modules_disk: bool,
    /// What to run when the image has no init: entrypoint and command, environment, directory, user.
    pub entrypoint: Vec<String>,
    pub environment: Vec<String>,
    pub working_directory: Option<String>,
    pub user: Option<String>,
    pub stop_signal: Option<String>,
    /// The host's clock, nanoseconds since 1970, for a guest without one.
    pub time: u64,
}

/// The guest's network, set before the image's init starts.
#[derive(Clone, Debug)]
pub struct GuestNetwork {
    pub mac: String,
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub resolvers: Vec<Ipv4Addr>,
}

/// The settings as a cpio archive (newc), to be appended to an initrd at a multiple of 4 bytes.
pub fn archive(_settings: &GuestSettings) -> Result<Vec<u8>> {
    Err(Error::failed("the guest channel is being written"))
}
