//! The superblock.
//!
//! Format: kernel documentation, `filesystems/ext4/super.rst`.

use crate::bytes::{high_u32, low_u16, low_u32, put_u16, put_u32, put_u64};
use crate::checksum::crc;
use crate::formatter::Options;
use crate::geometry::{BLOCK_SIZE, BLOCKS_PER_GROUP, DESCRIPTOR_SIZE, INODE_SIZE, MAX_RESIZE_BLOCKS};
use crate::inode;
use crate::layout::Layout;
use crate::time;

pub(crate) const LENGTH: usize = 1024;
/// Where the first copy begins; further ones begin with their block.
pub(crate) const OFFSET: usize = 1024;
pub(crate) const MAGIC: u16 = 0xEF53;

pub(crate) const COMPATIBLE_HAS_JOURNAL: u32 = 0x4;
const COMPATIBLE_EXT_ATTR: u32 = 0x8;
const COMPATIBLE_RESIZE_INODE: u32 = 0x10;
const COMPATIBLE_DIR_INDEX: u32 = 0x20;

const INCOMPATIBLE_FILETYPE: u32 = 0x2;
const INCOMPATIBLE_EXTENTS: u32 = 0x40;
const INCOMPATIBLE_64BIT: u32 = 0x80;
const INCOMPATIBLE_FLEX_BG: u32 = 0x200;

const READ_ONLY_SPARSE_SUPER: u32 = 0x1;
const READ_ONLY_LARGE_FILE: u32 = 0x2;
const READ_ONLY_HUGE_FILE: u32 = 0x8;
const READ_ONLY_DIR_NLINK: u32 = 0x20;
const READ_ONLY_EXTRA_ISIZE: u32 = 0x40;
const READ_ONLY_METADATA_CSUM: u32 = 0x400;

/// `s_flags`: names are hashed as signed bytes.
const FLAG_SIGNED_HASH: u32 = 0x1;
/// `s_default_mount_opts`: user_xattr and acl.
const DEFAULT_MOUNT_OPTIONS: u32 = 0x4 | 0x8;
const HALF_MD4: u8 = 1;
/// Groups per flexible group, as a power of two; as mke2fs has it.
const LOG_GROUPS_PER_FLEX: u8 = 4;
const CRC32C: u8 = 1;

/// What the superblock counts beside the layout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) free_blocks: u64,
    pub(crate) free_inodes: u64,
    /// Blocks that can never hold data.
    pub(crate) overhead: u64,
}

/// The superblock of group 0; the copies differ in their group and checksum only.
pub(crate) fn encode(options: &Options, layout: &Layout, counts: Counts, journal_map: &[u8; 60]) -> Vec<u8> {
    let mut block = vec![0; LENGTH];
    let sb = block.as_mut_slice();
    let (created, created_high) = time::superblock(options.created);
    let used = layout.blocks - counts.free_blocks;

    put_u32(sb, 0x00, low_u32(layout.inodes()));
    put_u32(sb, 0x04, low_u32(layout.blocks));
    put_u32(sb, 0x0C, low_u32(counts.free_blocks));
    put_u32(sb, 0x10, low_u32(counts.free_inodes));
    put_u32(sb, 0x18, 2); // block size: 1024 << 2
    put_u32(sb, 0x1C, 2); // cluster size
    put_u32(sb, 0x20, low_u32(BLOCKS_PER_GROUP));
    put_u32(sb, 0x24, low_u32(BLOCKS_PER_GROUP)); // clusters per group
    put_u32(sb, 0x28, low_u32(layout.inodes_per_group));
    put_u32(sb, 0x30, created); // last write
    put_u16(sb, 0x36, 0xffff); // mounts before a check: never
    put_u16(sb, 0x38, MAGIC);
    put_u16(sb, 0x3A, 1); // state: cleanly unmounted
    put_u16(sb, 0x3C, 1); // on errors: continue
    put_u32(sb, 0x40, created); // last check
    put_u32(sb, 0x4C, 1); // revision: dynamic
    put_u32(sb, 0x54, inode::FIRST);
    put_u16(sb, 0x58, INODE_SIZE as u16);
    let mut compatible = COMPATIBLE_EXT_ATTR | COMPATIBLE_DIR_INDEX;
    if layout.reserved_descriptor_blocks() > 0 && layout.blocks < MAX_RESIZE_BLOCKS {
        compatible |= COMPATIBLE_RESIZE_INODE;
        put_u16(sb, 0xCE, low_u16(layout.reserved_descriptor_blocks()));
    }
    if layout.journal_blocks > 0 {
        compatible |= COMPATIBLE_HAS_JOURNAL;
        put_u32(sb, 0xE0, inode::JOURNAL);
        // A copy of the journal's place, should its inode be lost.
        sb[0xFD] = 1;
        sb[0x10C..0x148].copy_from_slice(journal_map);
        put_u32(sb, 0x148, high_u32(layout.journal_blocks * BLOCK_SIZE));
        put_u32(sb, 0x14C, low_u32(layout.journal_blocks * BLOCK_SIZE));
    }
    put_u32(sb, 0x5C, compatible);
    put_u32(
        sb,
        0x60,
        INCOMPATIBLE_FILETYPE | INCOMPATIBLE_EXTENTS | INCOMPATIBLE_64BIT | INCOMPATIBLE_FLEX_BG,
    );
    put_u32(
        sb,
        0x64,
        READ_ONLY_SPARSE_SUPER
            | READ_ONLY_LARGE_FILE
            | READ_ONLY_HUGE_FILE
            | READ_ONLY_DIR_NLINK
            | READ_ONLY_EXTRA_ISIZE
            | READ_ONLY_METADATA_CSUM,
    );
    sb[0x68..0x78].copy_from_slice(&options.uuid);
    sb[0x78..0x78 + options.label.len()].copy_from_slice(options.label.as_bytes());
    for (index, word) in hash_seed(&options.uuid).into_iter().enumerate() {
        put_u32(sb, 0xEC + 4 * index, word);
    }
    sb[0xFC] = HALF_MD4;
    put_u16(sb, 0xFE, DESCRIPTOR_SIZE as u16);
    put_u32(sb, 0x100, DEFAULT_MOUNT_OPTIONS);
    put_u32(sb, 0x108, created); // creation
    put_u32(sb, 0x150, high_u32(layout.blocks));
    put_u32(sb, 0x158, high_u32(counts.free_blocks));
    put_u16(sb, 0x15C, inode::EXTRA_SIZE);
    put_u16(sb, 0x15E, inode::EXTRA_SIZE);
    put_u32(sb, 0x160, FLAG_SIGNED_HASH);
    sb[0x174] = LOG_GROUPS_PER_FLEX;
    sb[0x175] = CRC32C;
    put_u64(sb, 0x178, used * (BLOCK_SIZE / 1024)); // KiB ever written
    put_u32(sb, 0x248, low_u32(counts.overhead));
    for high in [0x274, 0x276, 0x277] {
        sb[high] = created_high; // of last write, creation, last check
    }
    seal(sb, 0);
    block
}

/// Makes it the copy of one group.
pub(crate) fn seal(superblock: &mut [u8], group: u64) {
    put_u16(superblock, 0x5A, low_u16(group));
    let checksum = crc(!0, &superblock[..LENGTH - 4]);
    put_u32(superblock, LENGTH - 4, checksum);
}

/// The seed of the name hashes. It keeps nobody out, and equal input must give equal images.
pub(crate) fn hash_seed(uuid: &[u8; 16]) -> [u32; 4] {
    let word = |at: usize| u32::from_le_bytes([uuid[at], uuid[at + 1], uuid[at + 2], uuid[at + 3]]);
    [word(0), word(4), word(8), word(12)]
}
