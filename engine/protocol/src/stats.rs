//! What a machine is doing, as its kernel counts it (proc(5)).
//!
//! Counters only grow; a rate is the difference of two readings over that of their
//! [`Stats::uptime_nanoseconds`].

use serde::{Deserialize, Serialize};

/// One reading. Names in it are a guest's: show them escaped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Time since the kernel started.
    pub uptime_nanoseconds: u64,
    /// Processes that ran or waited for a disk, on average over 1, 5 and 15 minutes; in thousandths.
    pub load_thousandths: [u64; 3],
    pub threads: u32,
    pub processor: Processor,
    pub memory: Memory,
    pub file_systems: Vec<FileSystem>,
    pub disks: Vec<Disk>,
    pub interfaces: Vec<Interface>,
}

/// Time that all processors together have spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Processor {
    pub count: u32,
    /// In programs, those of low priority included.
    pub user_milliseconds: u64,
    /// In the kernel, interrupts included.
    pub system_milliseconds: u64,
    pub idle_milliseconds: u64,
    /// Idle while a disk was waited for.
    pub waiting_milliseconds: u64,
    /// Taken by the host.
    pub stolen_milliseconds: u64,
}

/// In bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    pub total: u64,
    /// What programs could still get without swapping.
    pub available: u64,
    pub swap_total: u64,
    pub swap_free: u64,
}

/// A mounted file system on a disk, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileSystem {
    pub mount_point: String,
    pub total: u64,
    /// What an ordinary user could still write.
    pub available: u64,
}

/// Bytes moved since the kernel started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disk {
    pub name: String,
    pub read: u64,
    pub written: u64,
}

/// Bytes moved since the interface appeared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    pub name: String,
    pub received: u64,
    pub sent: u64,
}
