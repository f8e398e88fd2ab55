//! A writer of ext4 images made for streaming: file data goes to its final place the moment it is
//! known, metadata is written once, at the end, from the finished tree. And a reader and an editor of
//! images, for those that exist already.
//!
//! Nothing is mounted, no tool is run, no privilege is needed. This crate knows nothing of container
//! images, layers or machines.
//!
//! ```text
//! Formatter::create(file, options)
//!    ├─ data_writer() ─ begin / write / end ─▶ FileData      (any number of threads, any order)
//!    └─ finish(tree) ─▶ superblock, groups, inode tables, directories, journal
//! Reader::open(file) ─▶ look up, list, read, attributes       (a dirty journal is replayed in memory)
//! Editor::open(file) ─▶ write, remove, rename, own ─ commit
//! copy_tree(reader, writer) ─▶ Tree                           (to pack an image anew)
//! ```
//!
//! Images have 4 KiB blocks, checksums of all metadata, indexed directories, times to the nanosecond,
//! and grow while they are mounted. Equal input, streamed in equal order, gives equal bytes.
//!
//! ```
//! use vmdeck_ext4::{Formatter, InodeKind, Metadata, Options, Reader, Timestamp, Tree};
//!
//! let file = tempfile::tempfile()?;
//! let options = Options {
//!     size: 0,              // as large as it must be,
//!     free: 16 << 20,       // with so many bytes free,
//!     journal: 4 << 20,
//!     uuid: *b"an image's uuid.",
//!     label: "example".into(),
//!     created: Timestamp { seconds: 1_700_000_000, nanoseconds: 0 },
//! };
//! let formatter = Formatter::create(file, options)?;
//! let mut writer = formatter.data_writer();
//! writer.begin(6)?;
//! writer.write(b"hello\n")?;
//! let content = writer.end()?;
//! writer.flush()?;
//! drop(writer);
//!
//! let mut tree = Tree::new(Metadata { mode: 0o755, ..Metadata::default() });
//! let metadata = Metadata { mode: 0o644, uid: 1000, ..Metadata::default() };
//! tree.create(tree.root(), b"greeting", metadata, InodeKind::File(content))?;
//! let (file, summary) = formatter.finish(&tree)?;
//!
//! let reader = Reader::open(file)?;
//! let greeting = reader.find(b"/greeting")?;
//! assert_eq!(reader.read(greeting, 1024)?, b"hello\n");
//! assert_eq!(reader.size(), summary.size);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod acl;
mod allocator;
mod assemble;
mod bytes;
mod checksum;
mod copy;
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

pub use copy::{CopyError, copy_tree};
pub use edit::Editor;
pub use error::{FormatError, InodeError};
pub use formatter::{Formatter, Options, Summary};
pub use read::{FileKind, ImageError, InodeNumber, Reader, Stat};
pub use tree::{
    Directory, Extent, FileData, Inode, InodeId, InodeKind, Metadata, Timestamp, Tree, TreeError,
};
pub use writer::DataWriter;
pub use xattr::{XattrError, xattr_name_is_supported};
