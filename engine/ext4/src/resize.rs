//! The resize inode: it keeps blocks behind the descriptors, so that the file system can grow while
//! it is mounted.
//!
//! Format: as `ext2fs_create_resize_inode` of e2fsprogs (`lib/ext2fs/res_gdt.c`) writes it and
//! `fs/ext4/resize.c` checks it. Its doubly indirect block names the reserved blocks behind the
//! first superblock, and each of those names its counterparts behind the copies.

use std::io;

use crate::bytes::{low_u32, put_u32};
use crate::geometry::{ADDRESSES_PER_BLOCK, BLOCK_SIZE, BLOCKS_PER_GROUP, has_superblock};
use crate::inode::{self, Record};
use crate::layout::Layout;
use crate::stream::BlockStream;
use crate::tree::Timestamp;

/// Blocks that an inode names itself.
const DIRECT: u64 = 12;
/// Index of the doubly indirect block in `i_block`.
const DOUBLY_INDIRECT: usize = 13;

/// Writes the blocks of the resize inode and returns its record.
pub(crate) fn write(layout: &Layout, created: Timestamp, blocks: &mut BlockStream<'_>) -> io::Result<Record> {
    let copies: Vec<u64> = (1..layout.groups()).filter(|group| has_superblock(*group)).collect();
    let in_use = layout.descriptor_blocks();
    let reserved = layout.reserved_descriptor_blocks();
    for index in in_use..in_use + reserved {
        if copies.is_empty() {
            break;
        }
        let block = blocks.block(1 + index)?;
        for (slot, group) in copies.iter().enumerate() {
            put_u32(block, 4 * slot, low_u32(group * BLOCKS_PER_GROUP + 1 + index));
        }
    }
    let map = blocks.block(layout.resize_map)?;
    for index in in_use..in_use + reserved {
        put_u32(map, 4 * (index % ADDRESSES_PER_BLOCK) as usize, low_u32(1 + index));
    }
    let mut record = Record {
        mode: inode::TYPE_FILE | 0o600,
        size: (ADDRESSES_PER_BLOCK * ADDRESSES_PER_BLOCK + ADDRESSES_PER_BLOCK + DIRECT) * BLOCK_SIZE,
        blocks: 1 + reserved * (1 + copies.len() as u64),
        ..Record::new(created)
    };
    put_u32(&mut record.block, 4 * DOUBLY_INDIRECT, low_u32(layout.resize_map));
    Ok(record)
}
