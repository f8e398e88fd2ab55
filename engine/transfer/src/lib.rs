//! Trees of files as a byte stream, between a host and a machine that do not trust each other.
//!
//! ```text
//!   pack: a file or a folder ──▶ records ──▶ unpack: into a folder, and nowhere else
//! ```
//!
//! Both ends use this crate: the engine on the host, and the agent in the machine, which so needs
//! neither `tar` nor a shell. It is no tar: a reader of tar has to take in names of any length, and
//! to believe the size of a file before its content is read; here every record has a bound, and a
//! file that grows or shrinks while it is read is what was read of it ([`wire`]).
//!
//! What is kept: content, permissions, times to the nanosecond, symbolic links as links, hard links
//! among what is copied (`links`), extended attributes (`extended`). Owners are those of who unpacks.
//! Devices, sockets and pipes are left out, with a warning.

#![forbid(unsafe_code)]

mod extended;
mod links;
mod pack;
mod target;
mod unpack;
pub mod wire;

pub use pack::pack;
pub use target::Target;
pub use unpack::{Policy, Summary, unpack};

use std::path::Path;

/// Why a transfer ended before it was whole.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("`{}`: {source}", path.escape_debug())]
    File { path: String, source: std::io::Error },
    /// The carrier of the stream.
    #[error("the stream broke")]
    Stream(#[source] std::io::Error),
    #[error("the stream ended before it was whole")]
    Cut,
    #[error("the stream makes no sense: {0}")]
    Malformed(&'static str),
    /// Where it is to go is no place for it.
    #[error("{0}")]
    Target(String),
    /// The folder that it is to go into is not there.
    #[error("there is no folder `{0}`")]
    NoFolder(String),
}

impl TransferError {
    fn file(path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::File { path: path.to_string_lossy().into_owned(), source: source.into() }
    }
}
