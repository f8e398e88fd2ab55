//! How large the file system becomes, and where its bitmaps, inode tables and journal lie.
//!
//! They follow the data: with flexible groups (feature `flex_bg`) they may lie anywhere, and only at
//! the end is it known how many inodes there are.

use crate::allocator::Cursor;
use crate::error::FormatError;
use crate::formatter::Options;
use crate::geometry::{
    ADDRESSES_PER_BLOCK, BLOCK_SIZE, BLOCKS_PER_GROUP, DESCRIPTORS_PER_BLOCK, Geometry, INODES_PER_BLOCK,
    MAX_INODES_PER_GROUP, MAX_RESIZE_BLOCKS,
};
use crate::tree::Extent;
use crate::{extent, journal};

/// Blocks that a last, partial group has at least behind its superblock copy; mke2fs has the same.
const MIN_LAST_GROUP: u64 = 50;
/// Blocks per inode, where nothing else asks for more: 16 KiB, as mke2fs has it.
const BLOCKS_PER_INODE: u64 = 4;
/// Free inodes to aim at, however few bytes are free.
const FREE_INODES: u64 = 65_536;

/// What the layout must hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    /// Inodes in use, reserved ones included.
    pub(crate) inodes: u64,
    /// Blocks in use by content, directories and the like: all but what the layout adds.
    pub(crate) blocks: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) geometry: Geometry,
    /// Blocks of the file system.
    pub(crate) blocks: u64,
    pub(crate) inodes_per_group: u64,
    pub(crate) journal_blocks: u64,
    /// By group.
    pub(crate) block_bitmaps: Vec<u64>,
    pub(crate) inode_bitmaps: Vec<u64>,
    pub(crate) inode_tables: Vec<u64>,
    pub(crate) journal: Vec<Extent>,
    /// Blocks for the journal's extent tree.
    pub(crate) journal_tree: Vec<u64>,
    /// The doubly indirect block of the resize inode.
    pub(crate) resize_map: u64,
}

impl Layout {
    /// Finds the smallest file system that holds the demand and what the options ask for.
    pub(crate) fn new(
        options: &Options,
        geometry: Geometry,
        cursor: Cursor,
        demand: Demand,
    ) -> Result<Self, FormatError> {
        let free = options.free.div_ceil(BLOCK_SIZE);
        let mut blocks = options.size.div_ceil(BLOCK_SIZE).max(cursor.position()).max(1);
        loop {
            if blocks > geometry.max_blocks() {
                return Err(FormatError::ImageTooLarge { limit: geometry.max_blocks() * BLOCK_SIZE });
            }
            blocks = round_last_group(geometry, blocks);
            let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
            let Some(inodes_per_group) = inodes_per_group(blocks, groups, demand) else {
                blocks = groups * BLOCKS_PER_GROUP + 1;
                continue;
            };
            let (layout, end) = Self::place(options, geometry, cursor, blocks, inodes_per_group)?;
            let needed = end.max(demand.blocks + layout.own_blocks() + free);
            if needed <= blocks {
                return Ok(layout);
            }
            blocks = needed;
        }
    }

    /// Puts everything behind the cursor; also returns the first block behind it all.
    fn place(
        options: &Options,
        geometry: Geometry,
        mut cursor: Cursor,
        blocks: u64,
        inodes_per_group: u64,
    ) -> Result<(Self, u64), FormatError> {
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        let count = usize::try_from(groups).map_err(|_| FormatError::TooManyInodes)?;
        let mut each =
            |blocks: u64| -> Vec<u64> { (0..count).map(|_| cursor.take_contiguous(blocks).start).collect() };
        let block_bitmaps = each(1);
        let inode_bitmaps = each(1);
        let inode_tables = each(inodes_per_group / INODES_PER_BLOCK);
        let resize_map = cursor.take_contiguous(1).start;
        let journal_blocks = match options.journal {
            0 => 0,
            bytes => bytes.div_ceil(BLOCK_SIZE).clamp(journal::MIN_BLOCKS, u64::from(u32::MAX)),
        };
        let mut journal = Vec::new();
        let mut logical = 0;
        while logical < journal_blocks {
            let run = cursor.take((journal_blocks - logical).min(BLOCKS_PER_GROUP));
            journal.push(Extent { logical: logical as u32, physical: run.start, blocks: run.len() as u32 });
            logical += run.len();
        }
        let journal = extent::normalise(&journal);
        let tree_blocks = extent::tree_blocks(journal.len());
        let journal_tree = (0..tree_blocks).map(|_| cursor.take(1).start).collect();
        let layout = Self {
            geometry,
            blocks,
            inodes_per_group,
            journal_blocks,
            block_bitmaps,
            inode_bitmaps,
            inode_tables,
            journal,
            journal_tree,
            resize_map,
        };
        Ok((layout, cursor.position()))
    }

    pub(crate) fn groups(&self) -> u64 {
        self.inode_tables.len() as u64
    }

    pub(crate) fn inodes(&self) -> u64 {
        self.groups() * self.inodes_per_group
    }

    /// Blocks of one inode table.
    pub(crate) fn table_blocks(&self) -> u64 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    /// Blocks of descriptors in use.
    pub(crate) fn descriptor_blocks(&self) -> u64 {
        self.groups().div_ceil(DESCRIPTORS_PER_BLOCK)
    }

    /// Blocks of descriptors kept for growth, and named by the resize inode.
    pub(crate) fn reserved_descriptor_blocks(&self) -> u64 {
        if self.blocks >= MAX_RESIZE_BLOCKS {
            return 0;
        }
        (self.geometry.descriptor_blocks - self.descriptor_blocks()).min(ADDRESSES_PER_BLOCK)
    }

    /// Blocks of superblocks, descriptors, bitmaps and inode tables, over all groups.
    pub(crate) fn fixed_blocks(&self) -> u64 {
        let base: u64 = (0..self.groups()).map(|group| self.geometry.base_blocks(group)).sum();
        base + self.groups() * (2 + self.table_blocks())
    }

    /// All blocks the layout adds to the demand.
    fn own_blocks(&self) -> u64 {
        self.fixed_blocks() + self.journal_blocks + self.journal_tree.len() as u64 + 1
    }

    /// Blocks in one group: fewer in the last.
    pub(crate) fn blocks_in_group(&self, group: u64) -> u64 {
        (self.blocks - group * BLOCKS_PER_GROUP).min(BLOCKS_PER_GROUP)
    }
}

/// A last group must at least hold its copy of the superblock and then some.
fn round_last_group(geometry: Geometry, blocks: u64) -> u64 {
    let last = (blocks - 1) / BLOCKS_PER_GROUP;
    let start = last * BLOCKS_PER_GROUP;
    if last == 0 { blocks } else { blocks.max(start + geometry.base_blocks(last) + MIN_LAST_GROUP) }
}

/// `None` when so few groups cannot have so many inodes.
fn inodes_per_group(blocks: u64, groups: u64, demand: Demand) -> Option<u64> {
    let free = blocks.saturating_sub(demand.blocks);
    let spread = (free / BLOCKS_PER_INODE).max((free / 2).min(FREE_INODES));
    // A file system that has no room to spare still gets a few inodes to work with.
    let wanted = (demand.inodes + spread.max(16)).max(blocks / BLOCKS_PER_INODE);
    let wanted = wanted.min(u64::from(u32::MAX) - MAX_INODES_PER_GROUP);
    let needed = demand.inodes.div_ceil(groups);
    if needed > MAX_INODES_PER_GROUP {
        return None;
    }
    let per_group = wanted.div_ceil(groups).max(needed).next_multiple_of(INODES_PER_BLOCK);
    Some(per_group.min(MAX_INODES_PER_GROUP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Timestamp;

    fn layout(size: u64, free: u64, journal: u64, demand: Demand) -> Layout {
        let options = Options {
            size,
            free,
            journal,
            uuid: [1; 16],
            label: String::new(),
            created: Timestamp::default(),
        };
        let geometry = Geometry::for_size(size.max(free));
        let mut cursor = Cursor::new(geometry);
        let mut missing = demand.blocks;
        while missing > 0 {
            missing -= cursor.take(missing).len();
        }
        Layout::new(&options, geometry, cursor, demand).unwrap()
    }

    #[test]
    fn a_tiny_image_has_the_size_asked_for() {
        let layout = layout(1 << 20, 0, 0, Demand { inodes: 14, blocks: 20 });
        assert_eq!(layout.blocks, 256);
        assert_eq!(layout.groups(), 1);
    }

    #[test]
    fn room_is_left_for_free_bytes_beside_a_journal() {
        let layout = layout(0, 512 << 20, 64 << 20, Demand { inodes: 7_000, blocks: 30_000 });
        assert_eq!(layout.journal_blocks, 16_384);
        let free = layout.blocks - 30_000 - layout.own_blocks();
        assert!(free >= 131_072, "{free}");
        assert!(free < 131_072 + 400, "{free}");
        assert!(layout.inodes() >= 7_000 + 65_536);
    }

    #[test]
    fn inodes_get_more_groups_when_one_cannot_hold_them() {
        let layout = layout(0, 0, 0, Demand { inodes: 1_000_000, blocks: 100 });
        assert!(layout.inodes() >= 1_000_000);
        assert!(layout.inodes_per_group <= MAX_INODES_PER_GROUP);
    }

    #[test]
    fn a_last_group_holds_more_than_its_superblock_copy() {
        let layout = layout((128 << 20) + 4096, 0, 0, Demand { inodes: 20, blocks: 10 });
        assert_eq!(layout.groups(), 2);
        assert!(layout.blocks_in_group(1) >= 1 + layout.geometry.descriptor_blocks + MIN_LAST_GROUP);
    }

    #[test]
    fn a_sixteen_tebibyte_image_has_descriptors_for_all_of_it() {
        let layout = layout(16 << 40, 0, 1 << 30, Demand { inodes: 20, blocks: 10 });
        assert_eq!(layout.blocks, 1 << 32);
        assert_eq!(layout.groups(), 131_072);
    }
}
