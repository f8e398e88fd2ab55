//! Little-endian fields at fixed offsets of a block or record.
//!
//! Offsets are constants of the format and the slices are whole records, so that these never go out
//! of bounds; what reads untrusted offsets checks them first.

pub(crate) fn put_u16(record: &mut [u8], offset: usize, value: u16) {
    record[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u32(record: &mut [u8], offset: usize, value: u32) {
    record[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(record: &mut [u8], offset: usize, value: u64) {
    record[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

/// The low halves of a value that ext4 keeps in two places.
pub(crate) fn low_u16(value: u64) -> u16 {
    (value & 0xffff) as u16
}

pub(crate) fn low_u32(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// Bits 32 … 63.
pub(crate) fn high_u32(value: u64) -> u32 {
    (value >> 32) as u32
}

pub(crate) fn get_u16(record: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([record[offset], record[offset + 1]])
}

pub(crate) fn get_u32(record: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes([record[offset], record[offset + 1], record[offset + 2], record[offset + 3]])
}

/// A value whose halves lie in two places.
pub(crate) fn join_u32(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}
