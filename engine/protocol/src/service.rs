//! What the agent does by itself, without any program of the image.
//!
//! A service runs like a command: in a process of its own, with pipes, under flow control, with an
//! exit status; what it has to say to people it writes to its standard error.

use serde::{Deserialize, Serialize};

/// A request for a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serve {
    pub service: Service,
    /// As whom: `user`, `uid`, `user:group`, `uid:gid`; root when absent.
    #[serde(default)]
    pub user: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// Write what is at `path` to standard output, as a stream of the crate `vmdeck-transfer`.
    Send { path: String },
    /// Put the stream on standard input to `path`, by the rules of `cp`: in a folder that is there,
    /// under `name`.
    Receive { path: String, name: Option<String> },
    /// Serve SFTP version 3 on standard input and output.
    Sftp,
    /// Join standard input and output with a TCP connection made from within the machine. Standard
    /// output begins with [`CONNECTED`] as soon as the connection stands.
    Connect { host: String, port: u16 },
    /// Write out what the file systems of the machine's disks hold in memory. Asked for by a message of
    /// its own, which an older agent knows how to refuse; so is the next.
    Sync,
    /// Grow the file systems to the length of their disks, which is to become this.
    Grow { bytes: u64 },
}

/// What a program is called with, before the JSON of its [`Service`], to be one.
pub const SERVICE_ARGUMENT: &str = "vmdeck-service";

/// First byte on the standard output of [`Service::Connect`], before what the peer sends.
pub const CONNECTED: u8 = 0;

/// Exit status of a service: what it was asked for is not there.
pub const STATUS_NOT_FOUND: u8 = 3;

/// Exit status of a service that did its work, but for some things that its standard error names.
pub const STATUS_PARTLY: u8 = 4;
