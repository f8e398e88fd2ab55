//! The shape of a file system, as its superblock tells it, and whether it can be true.
//!
//! Format: kernel documentation, `filesystems/ext4/super.rst` and `group_descr.rst`.

use super::error::{ImageError, Result, corrupt};
use crate::bytes::{get_u16, get_u32, join_u32};
use crate::checksum::{Seed, crc};
use crate::geometry::has_superblock;
use crate::superblock::{LENGTH, MAGIC};

mod compatible {
    pub(super) const SPARSE_SUPER2: u32 = 0x200;
    pub(super) const FAST_COMMIT: u32 = 0x400;
}

pub(crate) mod incompatible {
    pub(crate) const RECOVER: u32 = 0x4;
    pub(crate) const EXTENTS: u32 = 0x40;
    pub(super) const FILETYPE: u32 = 0x2;
    pub(super) const META_BG: u32 = 0x10;
    pub(super) const SIXTY_FOUR_BIT: u32 = 0x80;
    pub(super) const CSUM_SEED: u32 = 0x2000;
}

mod read_only {
    pub(super) const SPARSE_SUPER: u32 = 0x1;
    pub(super) const HUGE_FILE: u32 = 0x8;
    pub(super) const GDT_CSUM: u32 = 0x10;
    pub(super) const METADATA_CSUM: u32 = 0x400;
}

/// Features without which nothing can be read rightly, by bit of `s_feature_incompat`. `None`: known.
const INCOMPATIBLE: [(u32, Option<&str>); 17] = [
    (0x1, Some("compression")),
    (incompatible::FILETYPE, None),
    (incompatible::RECOVER, None),
    (0x8, Some("a separate journal device (it is one)")),
    (incompatible::META_BG, None),
    (incompatible::EXTENTS, None),
    (incompatible::SIXTY_FOUR_BIT, None),
    (0x100, Some("multiple mount protection")),
    (0x200, None), // flex_bg
    (0x400, Some("extended attributes in inodes of their own (ea_inode)")),
    (0x1000, Some("data in directory entries (dirdata)")),
    (incompatible::CSUM_SEED, None),
    (0x4000, None), // largedir
    (0x8000, Some("data inside inodes (inline_data)")),
    (0x1_0000, Some("encryption")),
    (0x2_0000, Some("case-insensitive directories")),
    (0, None),
];

/// Features that stand in the way of a change, by bit of `s_feature_ro_compat`.
const READ_ONLY: [(u32, &str); 6] = [
    (0x100, "quotas"),
    (0x200, "clusters of blocks (bigalloc)"),
    (0x800, "replicas"),
    (0x1000, "the read-only mark"),
    (0x4000, "shared blocks"),
    (0x2000, "project quotas"),
];

/// The features of `s_feature_ro_compat` an editor knows, besides those it names above.
const READ_ONLY_KNOWN: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x400 | 0x8000 | 0x1_0000;

/// Checksums of group descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DescriptorChecksum {
    None,
    Crc16,
    Crc32c,
}

/// What the superblock says of the shape of the file system.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) block_size: usize,
    pub(crate) blocks: u64,
    pub(crate) first_data_block: u64,
    pub(crate) blocks_per_group: u64,
    pub(crate) groups: u64,
    pub(crate) inodes: u32,
    pub(crate) inodes_per_group: u32,
    pub(crate) inode_size: usize,
    pub(crate) descriptor_size: usize,
    pub(crate) reserved_descriptor_blocks: u64,
    first_meta_group: u64,
    pub(crate) first_inode: u32,
    pub(crate) journal_inode: u32,
    pub(crate) compatible: u32,
    pub(crate) incompatible: u32,
    pub(crate) read_only: u32,
    pub(crate) uuid: [u8; 16],
    /// Set when metadata has checksums.
    pub(crate) seed: Option<Seed>,
    pub(crate) hash_seed: [u32; 4],
    /// Whether names are hashed as unsigned bytes.
    pub(crate) unsigned_hash: bool,
}

impl Shape {
    pub(super) fn parse(superblock: &[u8], file_length: u64) -> Result<Self> {
        if get_u16(superblock, 0x38) != MAGIC {
            return Err(ImageError::NotExt4);
        }
        let compatible = get_u32(superblock, 0x5C);
        let incompatible = get_u32(superblock, 0x60);
        let read_only = get_u32(superblock, 0x64);
        if get_u32(superblock, 0x4C) == 0 {
            return Err(ImageError::Unsupported { feature: "the original revision of ext2" });
        }
        let mut unknown = incompatible;
        for (bit, name) in INCOMPATIBLE {
            if incompatible & bit != 0 {
                if let Some(feature) = name {
                    return Err(ImageError::Unsupported { feature });
                }
                unknown &= !bit;
            }
        }
        if unknown != 0 {
            return Err(ImageError::Unsupported { feature: "a feature that is newer than this program" });
        }
        if read_only & 0x200 != 0 {
            return Err(ImageError::Unsupported { feature: "clusters of blocks (bigalloc)" });
        }
        let has_checksums = read_only & read_only::METADATA_CSUM != 0;
        if has_checksums && crc(!0, &superblock[..LENGTH - 4]) != get_u32(superblock, LENGTH - 4) {
            return corrupt("the superblock does not match its checksum");
        }
        let log_block_size = get_u32(superblock, 0x18);
        if log_block_size > 6 {
            return corrupt("the block size is out of range");
        }
        let block_size = 1024usize << log_block_size;
        let is_64bit = incompatible & incompatible::SIXTY_FOUR_BIT != 0;
        let high = |offset| if is_64bit { get_u32(superblock, offset) } else { 0 };
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&superblock[0x68..0x78]);
        let seed = if !has_checksums {
            None
        } else if incompatible & incompatible::CSUM_SEED != 0 {
            Some(Seed::stored(get_u32(superblock, 0x270)))
        } else {
            Some(Seed::of_uuid(&uuid))
        };
        let shape = Self {
            block_size,
            blocks: join_u32(get_u32(superblock, 0x04), high(0x150)),
            first_data_block: u64::from(get_u32(superblock, 0x14)),
            blocks_per_group: u64::from(get_u32(superblock, 0x20)),
            groups: 0,
            inodes: get_u32(superblock, 0x00),
            inodes_per_group: get_u32(superblock, 0x28),
            inode_size: usize::from(get_u16(superblock, 0x58)),
            descriptor_size: if is_64bit { usize::from(get_u16(superblock, 0xFE)) } else { 32 },
            reserved_descriptor_blocks: u64::from(get_u16(superblock, 0xCE)),
            first_meta_group: u64::from(get_u32(superblock, 0x104)),
            first_inode: get_u32(superblock, 0x54),
            journal_inode: get_u32(superblock, 0xE0),
            compatible,
            incompatible,
            read_only,
            uuid,
            seed,
            hash_seed: [0, 4, 8, 12].map(|offset| get_u32(superblock, 0xEC + offset)),
            unsigned_hash: get_u32(superblock, 0x160) & 0x2 != 0,
        };
        shape.check(file_length)
    }

    fn check(mut self, file_length: u64) -> Result<Self> {
        let bits = 8 * self.block_size as u64;
        let expected_first = u64::from(self.block_size == 1024);
        if self.first_data_block != expected_first || self.blocks <= self.first_data_block {
            return corrupt("the number of blocks is out of range");
        }
        if self.blocks.checked_mul(self.block_size as u64).is_none_or(|length| length > file_length) {
            return corrupt("it is longer than the image file");
        }
        if self.blocks_per_group == 0
            || self.blocks_per_group > bits
            || !self.blocks_per_group.is_multiple_of(8)
        {
            return corrupt("the number of blocks per group is out of range");
        }
        if !self.inode_size.is_power_of_two() || self.inode_size < 128 || self.inode_size > self.block_size {
            return corrupt("the inode size is out of range");
        }
        if !self.descriptor_size.is_power_of_two()
            || self.descriptor_size < 32
            || self.descriptor_size > self.block_size
            || self.incompatible & incompatible::SIXTY_FOUR_BIT != 0 && self.descriptor_size < 64
        {
            return corrupt("the size of group descriptors is out of range");
        }
        self.groups = (self.blocks - self.first_data_block).div_ceil(self.blocks_per_group);
        if self.inodes_per_group == 0
            || u64::from(self.inodes_per_group) > bits
            || !self.inodes_per_group.is_multiple_of(8)
            || self.groups.checked_mul(u64::from(self.inodes_per_group)) != Some(u64::from(self.inodes))
        {
            return corrupt("the number of inodes is out of range");
        }
        Ok(self)
    }

    pub(crate) fn is_64bit(&self) -> bool {
        self.incompatible & incompatible::SIXTY_FOUR_BIT != 0
    }

    pub(crate) fn has_file_types(&self) -> bool {
        self.incompatible & incompatible::FILETYPE != 0
    }

    pub(crate) fn has_extents(&self) -> bool {
        self.incompatible & incompatible::EXTENTS != 0
    }

    pub(crate) fn has_huge_files(&self) -> bool {
        self.read_only & read_only::HUGE_FILE != 0
    }

    pub(crate) fn descriptor_checksum(&self) -> DescriptorChecksum {
        if self.seed.is_some() {
            DescriptorChecksum::Crc32c
        } else if self.read_only & read_only::GDT_CSUM != 0 {
            DescriptorChecksum::Crc16
        } else {
            DescriptorChecksum::None
        }
    }

    /// The first block of a group.
    pub(crate) fn group_start(&self, group: u64) -> u64 {
        self.first_data_block + group * self.blocks_per_group
    }

    /// Blocks in a group: fewer in the last.
    pub(crate) fn blocks_in_group(&self, group: u64) -> u64 {
        (self.blocks - self.group_start(group)).min(self.blocks_per_group)
    }

    fn has_superblock(&self, group: u64) -> bool {
        self.read_only & read_only::SPARSE_SUPER == 0 || has_superblock(group)
    }

    fn descriptors_per_block(&self) -> u64 {
        (self.block_size / self.descriptor_size) as u64
    }

    /// The block that holds the descriptor of a group, and where in it.
    pub(crate) fn descriptor_place(&self, group: u64) -> (u64, usize) {
        let per_block = self.descriptors_per_block();
        let index = group / per_block;
        let offset = (group % per_block) as usize * self.descriptor_size;
        let is_meta = self.incompatible & incompatible::META_BG != 0 && index >= self.first_meta_group;
        if is_meta {
            let first = index * per_block;
            (self.group_start(first) + u64::from(self.has_superblock(first)), offset)
        } else {
            (self.first_data_block + 1 + index, offset)
        }
    }

    /// Blocks at the start of a group that belong to copies of the superblock and the descriptors.
    pub(crate) fn base_blocks(&self, group: u64) -> u64 {
        let copy = u64::from(self.has_superblock(group));
        let per_block = self.descriptors_per_block();
        let table = self.groups.div_ceil(per_block);
        if self.incompatible & incompatible::META_BG == 0 {
            return copy * (1 + table + self.reserved_descriptor_blocks);
        }
        let meta_group = group / per_block;
        if meta_group < self.first_meta_group {
            copy * (1 + table.min(self.first_meta_group) + self.reserved_descriptor_blocks)
        } else {
            // The first two groups of a meta group and its last hold its descriptors.
            copy + u64::from(matches!(group % per_block, 0 | 1) || group % per_block == per_block - 1)
        }
    }

    /// Whether an editor knows all that a change must keep true.
    pub(crate) fn check_editable(&self) -> Result<()> {
        for (bit, feature) in READ_ONLY {
            if self.read_only & bit != 0 {
                return Err(ImageError::Unsupported { feature });
            }
        }
        if self.read_only & !READ_ONLY_KNOWN != 0 {
            return Err(ImageError::Unsupported { feature: "a feature that is newer than this program" });
        }
        if self.compatible & compatible::SPARSE_SUPER2 != 0 {
            return Err(ImageError::Unsupported { feature: "two superblock copies (sparse_super2)" });
        }
        if !self.has_extents() {
            return Err(ImageError::Unsupported { feature: "block maps instead of extents (ext2 or ext3)" });
        }
        Ok(())
    }

    pub(crate) fn needs_recovery(&self) -> bool {
        self.incompatible & incompatible::RECOVER != 0
    }

    pub(crate) fn has_fast_commits(&self) -> bool {
        self.compatible & compatible::FAST_COMMIT != 0
    }
}

/// The checksum that belongs into a descriptor; `None` when it has none.
pub(crate) fn descriptor_checksum(shape: &Shape, group: u64, descriptor: &[u8]) -> Option<u16> {
    let number = (group as u32).to_le_bytes();
    match (shape.descriptor_checksum(), shape.seed) {
        (DescriptorChecksum::Crc32c, Some(seed)) => {
            let mut checked = number.to_vec();
            checked.extend_from_slice(descriptor);
            checked[4 + 0x1E..4 + 0x20].fill(0);
            Some(seed.checksum(&checked) as u16)
        }
        (DescriptorChecksum::Crc16, _) => {
            let state = crc16(!0, &shape.uuid);
            let state = crc16(state, &number);
            let state = crc16(state, &descriptor[..0x1E]);
            // The checksum itself is left out, not taken as zeros.
            Some(crc16(state, &descriptor[0x20..]))
        }
        _ => None,
    }
}

/// CRC-16 with the reversed polynomial 0xA001 (`lib/crc16.c` of Linux).
fn crc16(state: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(state, |state, byte| {
        (0..8)
            .fold(state ^ u16::from(*byte), |state, _| (state >> 1) ^ if state & 1 == 1 { 0xA001 } else { 0 })
    })
}
