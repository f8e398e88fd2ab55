//! The superblock of an empty journal.
//!
//! Format: kernel documentation, `filesystems/ext4/journal.rst`. Everything is big-endian.

use crate::checksum::crc;

/// Fewer blocks the kernel refuses (`JBD2_MIN_JOURNAL_BLOCKS`).
pub(crate) const MIN_BLOCKS: u64 = 1024;

const MAGIC: u32 = 0xC03B_3998;
const SUPERBLOCK_V2: u32 = 4;
const INCOMPATIBLE_64BIT: u32 = 0x2;
const INCOMPATIBLE_CHECKSUM_V3: u32 = 0x10;
const CRC32C: u8 = 4;
const LENGTH: usize = 1024;

/// Writes the first block of a journal of `blocks` blocks. `block` is zeroed.
pub(crate) fn encode_superblock(block: &mut [u8], blocks: u32, uuid: &[u8; 16]) {
    let mut put = |offset: usize, value: u32| {
        block[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
    };
    put(0x00, MAGIC);
    put(0x04, SUPERBLOCK_V2);
    put(0x0C, 4096); // block size
    put(0x10, blocks);
    put(0x14, 1); // first block of the log
    put(0x18, 1); // first sequence number; a start (0x1C) of 0 says that the log is empty
    put(0x28, INCOMPATIBLE_64BIT | INCOMPATIBLE_CHECKSUM_V3);
    put(0x40, 1); // file systems that use it
    block[0x30..0x40].copy_from_slice(uuid);
    block[0x50] = CRC32C;
    let checksum = crc(!0, &block[..LENGTH]);
    block[0xFC..0x100].copy_from_slice(&checksum.to_be_bytes());
}
