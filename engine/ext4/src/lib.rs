//! A writer of ext4 images made for streaming: file data goes to its final place the moment it is
//! known, metadata is written once, at the end, from the finished tree.
//!
//! This crate knows nothing of container images, layers or machines.
//!
//! ```text
//! Formatter::create(file, options)
//!    ├─ data_writer() ─ begin / write / end ─▶ FileData      (any number of threads, any order)
//!    └─ finish(tree) ─▶ superblock, groups, inode tables, directories, journal
//! ```

#![forbid(unsafe_code)]

mod formatter;
mod tree;

pub use formatter::{DataWriter, FormatError, Formatter, Options, Summary};
pub use tree::{
    Directory, Extent, FileData, Inode, InodeId, InodeKind, Metadata, Timestamp, Tree, TreeError,
};
