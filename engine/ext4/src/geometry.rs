//! The fixed geometry: 4 KiB blocks, groups of 128 MiB, and where copies of the superblock lie.
//!
//! Format: kernel documentation, `filesystems/ext4/blockgroup.rst` and `group_descr.rst`.

/// Bytes in a block. Always 4 KiB: the page size of every guest, and what makes blocks cheap to map.
pub(crate) const BLOCK_SIZE: u64 = 4096;
/// The same, as the length of a buffer.
pub(crate) const BLOCK: usize = 4096;
/// Blocks in a group: as many as one bitmap block has bits.
pub(crate) const BLOCKS_PER_GROUP: u64 = 8 * BLOCK_SIZE;
/// Bytes in an inode record.
pub(crate) const INODE_SIZE: usize = 256;
pub(crate) const INODES_PER_BLOCK: u64 = BLOCK_SIZE / INODE_SIZE as u64;
/// One inode bitmap block has no more bits.
pub(crate) const MAX_INODES_PER_GROUP: u64 = 8 * BLOCK_SIZE;
/// Bytes in a group descriptor (feature `64bit`).
pub(crate) const DESCRIPTOR_SIZE: u64 = 64;
pub(crate) const DESCRIPTORS_PER_BLOCK: u64 = BLOCK_SIZE / DESCRIPTOR_SIZE;
/// Blocks that one indirect block can name, and with it the most reserved descriptor blocks.
pub(crate) const ADDRESSES_PER_BLOCK: u64 = BLOCK_SIZE / 4;
/// Longest file: block numbers within a file have 32 bits, and the last one is not used.
pub(crate) const MAX_FILE_SIZE: u64 = (u32::MAX as u64) * BLOCK_SIZE;
/// From here on block numbers need more than 32 bits, which the resize inode cannot hold.
pub(crate) const MAX_RESIZE_BLOCKS: u64 = 1 << 32;

/// What is decided before the first byte of data: how much room the descriptors get.
///
/// Descriptors lie right behind each copy of the superblock, so that their room must be set aside
/// before the size of the file system is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Blocks set aside for descriptors behind each superblock: those in use and those for growth.
    pub(crate) descriptor_blocks: u64,
}

impl Geometry {
    /// Room for a file system expected to have about `expected` bytes to grow 1,024-fold, as mke2fs
    /// leaves it, with a floor: 256 GiB for tiny images, 2 TiB for all others.
    pub(crate) fn for_size(expected: u64) -> Self {
        const SMALL: u64 = 64 << 20;
        let floor = if expected < SMALL { 32 } else { 256 };
        let blocks = expected.div_ceil(BLOCK_SIZE);
        let now = blocks.div_ceil(BLOCKS_PER_GROUP).div_ceil(DESCRIPTORS_PER_BLOCK);
        let grown = blocks.saturating_mul(1024).min(MAX_RESIZE_BLOCKS);
        let grown = grown.div_ceil(BLOCKS_PER_GROUP).div_ceil(DESCRIPTORS_PER_BLOCK);
        // The resize inode can hold no more than one indirect block's worth of reserved blocks.
        let wanted = grown.max(floor).min(now + ADDRESSES_PER_BLOCK);
        Self { descriptor_blocks: wanted.max(now) }
    }

    /// Blocks at the start of a group that belong to a copy of the superblock and its descriptors.
    pub(crate) fn base_blocks(&self, group: u64) -> u64 {
        if has_superblock(group) { 1 + self.descriptor_blocks } else { 0 }
    }

    /// The largest file system whose descriptors fit, in blocks.
    pub(crate) fn max_blocks(&self) -> u64 {
        self.descriptor_blocks * DESCRIPTORS_PER_BLOCK * BLOCKS_PER_GROUP
    }
}

/// Whether a group holds a copy of the superblock and the descriptors (feature `sparse_super`):
/// groups 0, 1, and the powers of 3, 5 and 7.
pub(crate) fn has_superblock(group: u64) -> bool {
    if group <= 1 {
        return true;
    }
    [3, 5, 7].into_iter().any(|base| {
        let mut power: u64 = base;
        while power < group {
            power *= base;
        }
        power == group
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblock_copies_lie_in_powers_of_3_5_and_7() {
        let groups: Vec<u64> = (0..130).filter(|group| has_superblock(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn descriptors_get_room_to_grow() {
        let limit = |size: u64| Geometry::for_size(size).max_blocks() * BLOCK_SIZE;
        assert_eq!(limit(0), 256 << 30);
        assert_eq!(limit(1 << 30), 2 << 40);
        assert_eq!(limit(8 << 30), 8 << 40);
        assert_eq!(limit(16 << 40), 16 << 40);
        assert!(limit(40 << 40) >= 40 << 40);
    }
}
