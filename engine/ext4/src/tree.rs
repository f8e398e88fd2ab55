//! The tree of a file system in memory: inodes, and directories that name them.
//!
//! It is what a caller builds up while data streams, and what [`crate::Formatter::finish`] writes.
//! Names are bytes, not strings; a directory's entries are kept in the order of their names.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// A point in time: seconds since 1970-01-01T00:00:00Z and nanoseconds after them.
///
/// ext4 stores 34 bits of seconds (1901-12-13 … 2446-05-10); what lies outside is clamped when it
/// is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since the epoch, negative before it.
    pub seconds: i64,
    /// Nanoseconds, 0 … 999,999,999, counted forward from `seconds`.
    pub nanoseconds: u32,
}

/// What every inode has, whatever its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits, set-id bits and sticky bit (`0o7777`); never the file type.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub modified: Timestamp,
    /// Extended attributes with their full names (`security.capability`), sorted by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A run of blocks of a file that lie one after the other on the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block of the run within the file, in units of 4 KiB.
    pub logical: u32,
    /// First block of the run on the image, in units of 4 KiB.
    pub physical: u64,
    /// Blocks in the run. Not limited to what one on-disk extent can hold.
    pub blocks: u32,
}

/// Where the content of a regular file lies. Blocks that no extent covers read as zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileData {
    /// Length of the file in bytes.
    pub size: u64,
    /// Sorted by `logical`, not overlapping.
    pub extents: Vec<Extent>,
}

/// Names an inode of one [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(u32);

impl InodeId {
    /// Position of the inode in its tree, from 0.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The entries of a directory, without `.` and `..`.
pub type Directory = BTreeMap<Box<[u8]>, InodeId>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InodeKind {
    Directory(Directory),
    File(FileData),
    /// The target, 1 … 4,095 bytes.
    Symlink(Box<[u8]>),
    CharacterDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    pub metadata: Metadata,
    pub kind: InodeKind,
    /// Directory entries that name this inode; 0 when it was unlinked and is not to be written.
    links: u32,
}

impl Inode {
    /// Directory entries that name this inode (without `.` and `..`).
    pub fn links(&self) -> u32 {
        self.links
    }

    pub fn is_directory(&self) -> bool {
        matches!(self.kind, InodeKind::Directory(_))
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TreeError {
    #[error("not a directory")]
    NotADirectory,
    #[error("the name is already taken")]
    Exists,
    #[error("a directory cannot be linked a second time")]
    DirectoryLink,
    #[error("the name is empty, `.`, `..`, longer than 255 bytes, or holds `/` or a zero byte")]
    InvalidName,
    #[error("more inodes than a file system can number")]
    TooManyInodes,
}

/// The tree: a root directory and everything below it.
#[derive(Clone, Debug)]
pub struct Tree {
    inodes: Vec<Inode>,
}

impl Tree {
    /// A tree with nothing but its root directory.
    pub fn new(root: Metadata) -> Self {
        Self {
            inodes: vec![Inode { metadata: root, kind: InodeKind::Directory(Directory::new()), links: 1 }],
        }
    }

    pub fn root(&self) -> InodeId {
        InodeId(0)
    }

    /// How many inodes were ever created, unlinked ones included.
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    pub fn metadata_mut(&mut self, id: InodeId) -> &mut Metadata {
        &mut self.inodes[id.index()].metadata
    }

    /// The content of a regular file, to replace it. `None` for everything else.
    pub fn file_mut(&mut self, id: InodeId) -> Option<&mut FileData> {
        match &mut self.inodes[id.index()].kind {
            InodeKind::File(data) => Some(data),
            _ => None,
        }
    }

    /// The entries of a directory; `None` when `id` is something else.
    pub fn directory(&self, id: InodeId) -> Option<&Directory> {
        match &self.inode(id).kind {
            InodeKind::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    pub fn lookup(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        self.directory(directory)?.get(name).copied()
    }

    /// Creates an inode under a new name.
    pub fn create(
        &mut self,
        directory: InodeId,
        name: &[u8],
        metadata: Metadata,
        kind: InodeKind,
    ) -> Result<InodeId, TreeError> {
        let id = InodeId(u32::try_from(self.inodes.len()).map_err(|_| TreeError::TooManyInodes)?);
        self.insert(directory, name, id)?;
        self.inodes.push(Inode { metadata, kind, links: 1 });
        Ok(id)
    }

    /// A hard link: a further name for an inode that is no directory.
    pub fn link(&mut self, directory: InodeId, name: &[u8], target: InodeId) -> Result<(), TreeError> {
        if self.inode(target).is_directory() {
            return Err(TreeError::DirectoryLink);
        }
        self.insert(directory, name, target)?;
        self.inodes[target.index()].links += 1;
        Ok(())
    }

    /// Takes a name away, and everything below it when it names a directory.
    ///
    /// Returns whether there was such a name. Inodes left without a name stay in the tree's
    /// numbering but are not written.
    pub fn remove(&mut self, directory: InodeId, name: &[u8]) -> bool {
        let InodeKind::Directory(entries) = &mut self.inodes[directory.index()].kind else { return false };
        let Some(first) = entries.remove(name) else { return false };
        let mut pending = vec![first];
        while let Some(id) = pending.pop() {
            let inode = &mut self.inodes[id.index()];
            inode.links -= 1;
            if let InodeKind::Directory(entries) = &mut inode.kind {
                pending.extend(std::mem::take(entries).into_values());
            }
        }
        true
    }

    fn insert(&mut self, directory: InodeId, name: &[u8], id: InodeId) -> Result<(), TreeError> {
        if name.is_empty()
            || name.len() > 255
            || name == b"."
            || name == b".."
            || name.iter().any(|byte| matches!(byte, 0 | b'/'))
        {
            return Err(TreeError::InvalidName);
        }
        let InodeKind::Directory(entries) = &mut self.inodes[directory.index()].kind else {
            return Err(TreeError::NotADirectory);
        };
        match entries.entry(name.into()) {
            Entry::Occupied(_) => Err(TreeError::Exists),
            Entry::Vacant(place) => {
                place.insert(id);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removing_a_directory_unlinks_everything_below_it() {
        let mut tree = Tree::new(Metadata::default());
        let root = tree.root();
        let meta = Metadata::default;
        let dir = tree.create(root, b"d", meta(), InodeKind::Directory(Directory::new())).unwrap();
        let file = tree.create(dir, b"f", meta(), InodeKind::Fifo).unwrap();
        tree.link(root, b"kept", file).unwrap();
        assert!(tree.remove(root, b"d"));
        assert_eq!(tree.inode(file).links(), 1);
        assert_eq!(tree.inode(dir).links(), 0);
        assert!(!tree.remove(root, b"d"));
    }

    #[test]
    fn bad_names_and_second_links_of_directories_are_refused() {
        let mut tree = Tree::new(Metadata::default());
        let root = tree.root();
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
            assert_eq!(
                tree.create(root, name, Metadata::default(), InodeKind::Fifo),
                Err(TreeError::InvalidName)
            );
        }
        let dir =
            tree.create(root, b"d", Metadata::default(), InodeKind::Directory(Directory::new())).unwrap();
        assert_eq!(tree.link(root, b"e", dir), Err(TreeError::DirectoryLink));
    }
}
