//! Blocks of directory entries.
//!
//! Format: kernel documentation, `filesystems/ext4/directory.rst` (linear directories).

use crate::bytes::{put_u16, put_u32};
use crate::checksum::Seed;
use crate::geometry::BLOCK;
use crate::tree::InodeKind;

/// Bytes of an entry before its name.
pub(crate) const ENTRY_HEADER: usize = 8;
/// Bytes at the end of each block that look like an entry without a name and hold the checksum.
pub(crate) const TAIL: usize = 12;
/// Bytes for entries in a block.
pub(crate) const CAPACITY: usize = BLOCK - TAIL;
/// Bytes of `.` and `..` together.
const DOTS: usize = 24;

/// Bytes an entry takes.
pub(crate) fn entry_size(name: &[u8]) -> usize {
    (ENTRY_HEADER + name.len()).next_multiple_of(4)
}

/// The type of an inode as entries repeat it (feature `filetype`).
pub(crate) fn file_type(kind: &InodeKind) -> u8 {
    match kind {
        InodeKind::File(_) => 1,
        InodeKind::Directory(_) => DIRECTORY,
        InodeKind::CharacterDevice { .. } => 3,
        InodeKind::BlockDevice { .. } => 4,
        InodeKind::Fifo => 5,
        InodeKind::Socket => 6,
        InodeKind::Symlink(_) => 7,
    }
}

pub(crate) const DIRECTORY: u8 = 2;

/// An entry with the number its inode got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) inode: u32,
    pub(crate) file_type: u8,
}

/// Whether all entries fit into one block beside `.` and `..`.
pub(crate) fn fit_one_block<'a>(mut entries: impl Iterator<Item = Entry<'a>>) -> bool {
    let mut used = DOTS;
    entries.all(|entry| {
        used += entry_size(entry.name);
        used <= CAPACITY
    })
}

/// Fills one block with entries, in the order they are added.
#[derive(Debug)]
pub(crate) struct EntryBlock<'a> {
    block: &'a mut [u8],
    position: usize,
    last: usize,
}

impl<'a> EntryBlock<'a> {
    /// `block` is zeroed.
    pub(crate) fn new(block: &'a mut [u8]) -> Self {
        Self { block, position: 0, last: 0 }
    }

    /// Adds an entry; the caller has seen to it that it fits.
    pub(crate) fn add(&mut self, added: Entry<'_>) {
        let name = added.name;
        let size = entry_size(name);
        let entry = &mut self.block[self.position..self.position + size];
        put_u32(entry, 0, added.inode);
        put_u16(entry, 4, size as u16);
        entry[6] = name.len() as u8;
        entry[7] = added.file_type;
        entry[ENTRY_HEADER..ENTRY_HEADER + name.len()].copy_from_slice(name);
        self.last = self.position;
        self.position += size;
    }

    /// Adds `.` and `..`.
    pub(crate) fn add_dots(&mut self, inode: u32, parent: u32) {
        self.add(Entry { name: b".", inode, file_type: DIRECTORY });
        self.add(Entry { name: b"..", inode: parent, file_type: DIRECTORY });
    }

    /// Stretches the last entry over the rest of the block and seals it with the checksum.
    pub(crate) fn finish(self, seed: Seed) {
        put_u16(self.block, self.last + 4, (CAPACITY - self.last) as u16);
        seal(self.block, seed);
    }
}

/// Writes the tail of a block of entries with its checksum.
pub(crate) fn seal(block: &mut [u8], seed: Seed) {
    put_u32(block, CAPACITY, 0);
    put_u16(block, CAPACITY + 4, TAIL as u16);
    block[CAPACITY + 6] = 0;
    block[CAPACITY + 7] = 0xDE;
    let checksum = seed.checksum(&block[..CAPACITY]);
    put_u32(block, CAPACITY + 8, checksum);
}
