//! Checksums of metadata: crc32c, seeded with the UUID of the file system.
//!
//! Format: kernel documentation, `filesystems/ext4/checksums.rst`. ext4 works with the raw register
//! of the CRC: it starts from a seed and is not inverted at the end.

/// The raw crc32c register after `bytes`, started from `state`.
pub(crate) fn crc(state: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!state, bytes)
}

/// What every checksum of one file system begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seed(u32);

impl Seed {
    pub(crate) fn of_uuid(uuid: &[u8; 16]) -> Self {
        Self(crc(!0, uuid))
    }

    /// A seed stored in the superblock (feature `metadata_csum_seed`).
    pub(crate) fn stored(value: u32) -> Self {
        Self(value)
    }

    pub(crate) fn checksum(self, bytes: &[u8]) -> u32 {
        crc(self.0, bytes)
    }

    /// The seed for everything that belongs to one inode: its record, directory blocks, extents.
    pub(crate) fn of_inode(self, number: u32, generation: u32) -> Self {
        Self(crc(crc(self.0, &number.to_le_bytes()), &generation.to_le_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_the_raw_register() {
        // The check value of CRC-32C ("123456789" → 0xE3069283) is inverted at the end.
        assert_eq!(crc(!0, b"123456789"), !0xE306_9283);
        assert_eq!(crc(crc(!0, b"1234"), b"56789"), crc(!0, b"123456789"));
    }
}
