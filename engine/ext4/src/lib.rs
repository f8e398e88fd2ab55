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

mod acl;
mod allocator;
mod assemble;
mod bytes;
mod checksum;
mod directory;
mod edit;
mod error;
mod extent;
mod formatter;
mod geometry;
mod group;
mod hash;
mod htree;
mod inode;
mod journal;
mod layout;
mod numbering;
mod read;
mod resize;
mod stream;
mod superblock;
mod time;
mod tree;
mod writer;
mod xattr;

pub use edit::Editor;
pub use error::{FormatError, InodeError};
pub use formatter::{Formatter, Options, Summary};
pub use read::{FileKind, ImageError, InodeNumber, Reader, Stat};
pub use tree::{
    Directory, Extent, FileData, Inode, InodeId, InodeKind, Metadata, Timestamp, Tree, TreeError,
};
pub use writer::DataWriter;
pub use xattr::{XattrError, xattr_name_is_supported};
