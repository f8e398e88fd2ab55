//! What a machine's init is told: a JSON document at [`PATH`] in the initramfs.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Where the settings of one boot lie in the initramfs, without the leading `/`.
pub const PATH: &str = "vmdeck/settings.json";

/// List of kernel modules to load, one path per line, in order; in the initramfs.
pub const MODULES_PATH: &str = "vmdeck/modules";

/// Serials by which the guest knows its disks (virtio-blk, at most 20 bytes).
pub const ROOT_SERIAL: &str = "vmdeck-root";
pub const WORK_SERIAL: &str = "vmdeck-work";
pub const MODULES_SERIAL: &str = "vmdeck-modules";

/// Settings of one boot of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    pub hostname: String,
    pub network: Option<Network>,
    /// A second interface.
    pub lan: Option<Lan>,
    /// Lines for `authorized_keys` of root.
    pub authorized_keys: Vec<String>,
    /// Whether there is a disk with [`WORK_SERIAL`], to be mounted at root's home.
    pub work_disk: bool,
    /// Whether there is a disk with [`MODULES_SERIAL`], to be mounted at `/lib/modules/<release>`.
    pub modules_disk: bool,
    /// What to run when the image has no init.
    pub entrypoint: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    pub working_directory: Option<String>,
    pub user: Option<String>,
    /// Name (`SIGQUIT`, `QUIT`) or number.
    pub stop_signal: Option<String>,
    /// The host's clock when the machine was started, nanoseconds since 1970.
    pub time: u64,
}

/// The guest's network, set before the image's init starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// `52:54:00:…`, any case.
    pub mac: String,
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub resolvers: Vec<Ipv4Addr>,
}

/// The network that the guest shares with other machines, and that leads nowhere else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lan {
    pub mac: String,
    pub address: Ipv4Addr,
    pub prefix: u8,
    /// Knows the other machines' names, and refuses all others; it is to be asked first.
    pub resolver: Ipv4Addr,
    /// What their names end in.
    pub domain: String,
}
