//! The end: what sums up all the rest.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::checksum::Seed;
use crate::error::FormatError;
use crate::formatter::{Options, Summary};
use crate::geometry::{BLOCK, BLOCK_SIZE, BLOCKS_PER_GROUP};
use crate::group::{self, BlockBitmaps, Descriptor};
use crate::layout::Layout;
use crate::stream::BlockStream;
use crate::superblock::{self, Counts};

/// Bitmaps, descriptors and superblocks. `end` is the first inode number that is not in use.
pub(super) fn write_groups(
    file: &File,
    options: &Options,
    layout: &Layout,
    bitmaps: &mut BlockBitmaps,
    directories: &[u64],
    journal_map: &[u8; 60],
    end: u32,
) -> Result<Summary, FormatError> {
    let seed = Seed::of_uuid(&options.uuid);
    let groups = layout.groups();
    let mut descriptors = vec![0; layout.descriptor_blocks() as usize * BLOCK];
    let mut block_stream = BlockStream::new(file);
    let mut inode_stream = BlockStream::new(file);
    let mut free_blocks = 0;
    let inodes_in_use = u64::from(end - 1);
    for (group, record) in (0..groups).zip(descriptors.chunks_exact_mut(64)) {
        let index = group as usize;
        let blocks = layout.blocks_in_group(group);
        let used_inodes =
            inodes_in_use.saturating_sub(group * layout.inodes_per_group).min(layout.inodes_per_group);
        let mut descriptor = Descriptor {
            block_bitmap: layout.block_bitmaps[index],
            inode_bitmap: layout.inode_bitmaps[index],
            inode_table: layout.inode_tables[index],
            free_blocks: blocks - bitmaps.used(group),
            free_inodes: layout.inodes_per_group - used_inodes,
            directories: directories[index],
            unused_inodes: layout.inodes_per_group - used_inodes,
            flags: group::INODE_TABLE_ZEROED,
            ..Descriptor::default()
        };
        free_blocks += descriptor.free_blocks;
        // The bitmap of a last, partial group has bits set behind its end, and is always written.
        if bitmaps.is_untouched(group) && group + 1 < groups {
            descriptor.flags |= group::BLOCK_UNINITIALISED;
        } else {
            let block = block_stream.block(descriptor.block_bitmap)?;
            bitmaps.encode(group, blocks, block);
            descriptor.block_bitmap_checksum = seed.checksum(block);
        }
        if used_inodes == 0 {
            descriptor.flags |= group::INODE_UNINITIALISED;
        } else {
            let block = inode_stream.block(descriptor.inode_bitmap)?;
            let bits = layout.inodes_per_group as usize;
            group::set_bits(block, 0, used_inodes as usize);
            group::set_bits(block, bits, 8 * BLOCK - bits);
            descriptor.inode_bitmap_checksum = seed.checksum(&block[..bits / 8]);
        }
        descriptor.encode(seed, group, record);
    }
    block_stream.flush()?;
    inode_stream.flush()?;

    let counts = Counts {
        free_blocks,
        free_inodes: layout.inodes() - inodes_in_use,
        overhead: layout.fixed_blocks() + layout.journal_blocks,
    };
    let mut copy = superblock::encode(options, layout, counts, journal_map);
    for group in (0..groups).filter(|group| layout.geometry.base_blocks(*group) > 0) {
        superblock::seal(&mut copy, group);
        let start = group * BLOCKS_PER_GROUP * BLOCK_SIZE;
        let offset = if group == 0 { superblock::OFFSET as u64 } else { 0 };
        file.write_all_at(&copy, start + offset)?;
        file.write_all_at(&descriptors, start + BLOCK_SIZE)?;
    }
    Ok(Summary {
        size: layout.blocks * BLOCK_SIZE,
        used: (layout.blocks - free_blocks) * BLOCK_SIZE,
        inodes: inodes_in_use,
    })
}
