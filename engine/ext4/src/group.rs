//! Group descriptors and bitmaps.
//!
//! Format: kernel documentation, `filesystems/ext4/group_descr.rst` and `bitmaps.rst`.

use crate::allocator::Run;
use crate::bytes::{high_u32, low_u16, low_u32, put_u16, put_u32};
use crate::checksum::Seed;
use crate::geometry::{BLOCK, BLOCKS_PER_GROUP, Geometry};

pub(crate) const INODE_UNINITIALISED: u16 = 0x1;
pub(crate) const BLOCK_UNINITIALISED: u16 = 0x2;
/// The inode table holds zeros where no inode is: nothing is left for the kernel to clear.
pub(crate) const INODE_TABLE_ZEROED: u16 = 0x4;

/// Which blocks are in use, group by group. Groups with nothing but their superblock copy take no
/// memory.
#[derive(Debug)]
pub(crate) struct BlockBitmaps {
    geometry: Geometry,
    groups: Vec<Option<Group>>,
}

#[derive(Debug)]
struct Group {
    bits: Box<[u8; BLOCK]>,
    used: u64,
}

/// Blocks that were in use already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AlreadyUsed;

impl BlockBitmaps {
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self { geometry, groups: Vec::new() }
    }

    /// Marks a run as in use.
    pub(crate) fn mark(&mut self, run: Run) -> Result<(), AlreadyUsed> {
        let mut rest = run;
        while !rest.is_empty() {
            let group = rest.start / BLOCKS_PER_GROUP;
            let start = rest.start % BLOCKS_PER_GROUP;
            let taken = rest.take(BLOCKS_PER_GROUP - start).len();
            let bitmap = self.group(group);
            if set_bits(bitmap.bits.as_mut_slice(), start as usize, taken as usize) {
                return Err(AlreadyUsed);
            }
            bitmap.used += taken;
        }
        Ok(())
    }

    fn group(&mut self, group: u64) -> &mut Group {
        let index = group as usize;
        if self.groups.len() <= index {
            self.groups.resize_with(index + 1, || None);
        }
        let base = self.geometry.base_blocks(group);
        self.groups[index].get_or_insert_with(|| {
            let mut bits = Box::new([0; BLOCK]);
            set_bits(bits.as_mut_slice(), 0, base as usize);
            Group { bits, used: base }
        })
    }

    /// Blocks in use in one group.
    pub(crate) fn used(&self, group: u64) -> u64 {
        match self.groups.get(group as usize) {
            Some(Some(bitmap)) => bitmap.used,
            _ => self.geometry.base_blocks(group),
        }
    }

    /// Whether a group holds nothing but its superblock copy, so that its bitmap need not be written.
    pub(crate) fn is_untouched(&self, group: u64) -> bool {
        !matches!(self.groups.get(group as usize), Some(Some(_)))
    }

    /// The bitmap of a group that has `blocks` blocks; bits behind them are set. `block` is zeroed.
    pub(crate) fn encode(&mut self, group: u64, blocks: u64, block: &mut [u8]) {
        block.copy_from_slice(self.group(group).bits.as_slice());
        set_bits(block, blocks as usize, (BLOCKS_PER_GROUP - blocks) as usize);
    }
}

/// Sets bits and says whether any of them was set before.
pub(crate) fn set_bits(bits: &mut [u8], start: usize, count: usize) -> bool {
    let end = start + count;
    let mut before = false;
    let mut position = start;
    while position < end {
        let byte = &mut bits[position / 8];
        if position.is_multiple_of(8) && end - position >= 8 {
            before |= *byte != 0;
            *byte = 0xff;
            position += 8;
        } else {
            let bit = 1 << (position % 8);
            before |= *byte & bit != 0;
            *byte |= bit;
            position += 1;
        }
    }
    before
}

/// What a descriptor says of its group.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Descriptor {
    pub(crate) block_bitmap: u64,
    pub(crate) inode_bitmap: u64,
    pub(crate) inode_table: u64,
    pub(crate) free_blocks: u64,
    pub(crate) free_inodes: u64,
    pub(crate) directories: u64,
    /// Inodes at the end of the table that were never in use.
    pub(crate) unused_inodes: u64,
    pub(crate) flags: u16,
    pub(crate) block_bitmap_checksum: u32,
    pub(crate) inode_bitmap_checksum: u32,
}

impl Descriptor {
    /// Writes the 64 bytes of a descriptor. `record` is zeroed.
    pub(crate) fn encode(&self, seed: Seed, group: u64, record: &mut [u8]) {
        for (value, low, high) in
            [(self.block_bitmap, 0x00, 0x20), (self.inode_bitmap, 0x04, 0x24), (self.inode_table, 0x08, 0x28)]
        {
            put_u32(record, low, low_u32(value));
            put_u32(record, high, high_u32(value));
        }
        for (value, low, high) in [
            (self.free_blocks, 0x0C, 0x2C),
            (self.free_inodes, 0x0E, 0x2E),
            (self.directories, 0x10, 0x30),
            (self.unused_inodes, 0x1C, 0x32),
            (u64::from(self.block_bitmap_checksum), 0x18, 0x38),
            (u64::from(self.inode_bitmap_checksum), 0x1A, 0x3A),
        ] {
            put_u16(record, low, low_u16(value));
            put_u16(record, high, low_u16(value >> 16));
        }
        put_u16(record, 0x12, self.flags);
        seal(record, seed, group);
    }
}

/// Computes the checksum of a descriptor.
pub(crate) fn seal(record: &mut [u8], seed: Seed, group: u64) {
    put_u16(record, 0x1E, 0);
    let mut checked = low_u32(group).to_le_bytes().to_vec();
    checked.extend_from_slice(record);
    put_u16(record, 0x1E, low_u16(u64::from(seed.checksum(&checked))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_once() {
        let mut bits = vec![0; BLOCK];
        assert!(!set_bits(&mut bits, 5, 100));
        assert_eq!(bits[..14], [0xe0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]);
        assert!(set_bits(&mut bits, 104, 1));
        assert!(!set_bits(&mut bits, 105, 7));
        assert!(set_bits(&mut bits, 0, 6));
    }

    #[test]
    fn blocks_cannot_be_taken_twice_nor_from_the_superblock() {
        let mut bitmaps = BlockBitmaps::new(Geometry { descriptor_blocks: 31 });
        let run = Run { start: BLOCKS_PER_GROUP - 10, end: BLOCKS_PER_GROUP };
        bitmaps.mark(run).unwrap();
        assert_eq!(bitmaps.mark(Run { start: run.end - 1, end: run.end }), Err(AlreadyUsed));
        let base = BLOCKS_PER_GROUP + 31;
        assert_eq!(bitmaps.mark(Run { start: base, end: base + 2 }), Err(AlreadyUsed));
        assert_eq!(bitmaps.used(0), 42);
        assert!(bitmaps.is_untouched(2));
        assert_eq!(bitmaps.used(3), 32);
    }
}
