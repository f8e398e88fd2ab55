//! What can go wrong while an image is written.

use crate::allocator::OutOfBlocks;
use crate::geometry::BLOCK_SIZE;
use crate::numbering::path_of;
use crate::tree::{InodeId, Tree};
use crate::xattr::XattrError;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    #[error("cannot write the image")]
    Io(#[from] std::io::Error),
    #[error("the label `{label}` is longer than 16 bytes")]
    LabelTooLong { label: String },
    #[error(
        "the content needs more than the {limit} bytes this file system can have; announce its size when it is created"
    )]
    ImageTooLarge { limit: u64 },
    #[error("the file is longer than the {limit} bytes ext4 can hold")]
    FileTooLarge { limit: u64 },
    #[error("more inodes than an ext4 file system can number")]
    TooManyInodes,
    #[error("content was written while no file was begun")]
    NoFileBegun,
    #[error("a data writer was dropped before its last blocks were flushed")]
    NotFlushed,
    #[error("`{path}`: {source}")]
    Xattr { path: String, source: XattrError },
    #[error("`{path}`: {reason}")]
    Inode { path: String, reason: InodeError },
}

impl From<OutOfBlocks> for FormatError {
    fn from(error: OutOfBlocks) -> Self {
        Self::ImageTooLarge { limit: error.limit * BLOCK_SIZE }
    }
}

/// Why one inode of the tree cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InodeError {
    #[error("its extents are not in order, overlap, or reach beyond its end")]
    DisorderedExtents,
    #[error("its content shares blocks with other content, or lies outside the written area")]
    ForeignBlocks,
    #[error("has {links} hard links; ext4 allows 65000")]
    TooManyLinks { links: u32 },
    #[error("has device number {major}:{minor}; Linux allows 12 bits of major and 20 of minor")]
    DeviceNumber { major: u32, minor: u32 },
    #[error("its target has {length} bytes; a symbolic link has 1 to 4095")]
    SymlinkLength { length: usize },
    #[error("has a directory below it that has another name already")]
    DirectoryLinkedTwice,
    #[error("names an inode that is not of this tree")]
    ForeignInode,
    #[error("holds more entries than an indexed directory of two levels")]
    DirectoryTooLarge,
}

impl InodeError {
    /// The error with the path of the inode it is about.
    pub(crate) fn at(self, tree: &Tree, inode: InodeId) -> FormatError {
        FormatError::Inode { path: path_of(tree, inode), reason: self }
    }
}
