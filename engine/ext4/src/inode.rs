//! Inode records.
//!
//! Format: kernel documentation, `filesystems/ext4/inodes.rst` and `special_inodes.rst`.

use crate::bytes::{high_u32, low_u16, low_u32, put_u16, put_u32};
use crate::checksum::Seed;
use crate::geometry::{BLOCK_SIZE, INODE_SIZE};
use crate::time;
use crate::tree::{InodeKind, Timestamp};

pub(crate) const ROOT: u32 = 2;
pub(crate) const RESIZE: u32 = 7;
pub(crate) const JOURNAL: u32 = 8;
/// The first inode that is not reserved.
pub(crate) const FIRST: u32 = 11;

/// `i_flags`: a directory with an index.
pub(crate) const FLAG_INDEX: u32 = 0x1000;
/// `i_flags`: `i_block` holds an extent tree.
pub(crate) const FLAG_EXTENTS: u32 = 0x8_0000;

pub(crate) const TYPE_FIFO: u16 = 0x1000;
pub(crate) const TYPE_CHARACTER_DEVICE: u16 = 0x2000;
pub(crate) const TYPE_DIRECTORY: u16 = 0x4000;
pub(crate) const TYPE_BLOCK_DEVICE: u16 = 0x6000;
pub(crate) const TYPE_FILE: u16 = 0x8000;
pub(crate) const TYPE_SYMLINK: u16 = 0xA000;
pub(crate) const TYPE_SOCKET: u16 = 0xC000;

/// Most links an inode can count (`EXT4_LINK_MAX`).
pub(crate) const MAX_LINKS: u32 = 65_000;
/// Bytes of extra fields behind the first 128.
pub(crate) const EXTRA_SIZE: u16 = 32;
/// Where the room for extended attributes begins.
pub(crate) const XATTR_ROOM: usize = 128 + EXTRA_SIZE as usize;

pub(crate) fn type_bits(kind: &InodeKind) -> u16 {
    match kind {
        InodeKind::Directory(_) => TYPE_DIRECTORY,
        InodeKind::File(_) => TYPE_FILE,
        InodeKind::Symlink(_) => TYPE_SYMLINK,
        InodeKind::CharacterDevice { .. } => TYPE_CHARACTER_DEVICE,
        InodeKind::BlockDevice { .. } => TYPE_BLOCK_DEVICE,
        InodeKind::Fifo => TYPE_FIFO,
        InodeKind::Socket => TYPE_SOCKET,
    }
}

/// The fields of an inode, extended attributes inside it excepted.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Type and permission bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    /// Link count; 1 for a directory with more subdirectories than can be counted.
    pub(crate) links: u16,
    /// 4 KiB blocks in use, those of the extent tree and of attributes included.
    pub(crate) blocks: u64,
    pub(crate) flags: u32,
    /// Extent tree, device number, target of a short symbolic link, or block map.
    pub(crate) block: [u8; 60],
    /// Block with extended attributes, or 0.
    pub(crate) xattr_block: u64,
    pub(crate) accessed: Timestamp,
    pub(crate) modified: Timestamp,
    pub(crate) changed: Timestamp,
    pub(crate) created: Timestamp,
}

impl Record {
    /// An empty inode of root with one link, all of whose times are `time`.
    pub(crate) fn new(time: Timestamp) -> Self {
        Self {
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            links: 1,
            blocks: 0,
            flags: 0,
            block: [0; 60],
            xattr_block: 0,
            accessed: time,
            modified: time,
            changed: time,
            created: time,
        }
    }

    /// Everything but the checksum, which must cover attributes that are yet to be written.
    pub(crate) fn encode(&self, record: &mut [u8]) {
        put_u16(record, 0x00, self.mode);
        put_u16(record, 0x02, low_u16(u64::from(self.uid)));
        put_u32(record, 0x04, low_u32(self.size));
        put_u16(record, 0x18, low_u16(u64::from(self.gid)));
        put_u16(record, 0x1A, self.links);
        let sectors = self.blocks * (BLOCK_SIZE / 512);
        put_u32(record, 0x1C, low_u32(sectors));
        put_u32(record, 0x20, self.flags);
        record[0x28..0x64].copy_from_slice(&self.block);
        put_u32(record, 0x68, low_u32(self.xattr_block));
        put_u32(record, 0x6C, high_u32(self.size));
        put_u16(record, 0x74, low_u16(sectors >> 32));
        put_u16(record, 0x76, low_u16(self.xattr_block >> 32));
        put_u16(record, 0x78, low_u16(u64::from(self.uid) >> 16));
        put_u16(record, 0x7A, low_u16(u64::from(self.gid) >> 16));
        put_u16(record, 0x80, EXTRA_SIZE);
        for (time, seconds, extra) in [
            (self.accessed, 0x08, 0x8C),
            (self.changed, 0x0C, 0x84),
            (self.modified, 0x10, 0x88),
            (self.created, 0x90, 0x94),
        ] {
            let words = time::encode(time);
            put_u32(record, seconds, words.0);
            put_u32(record, extra, words.1);
        }
    }
}

/// Computes the checksum of a finished record. `seed` is that of the inode.
pub(crate) fn seal(record: &mut [u8], seed: Seed) {
    debug_assert_eq!(record.len(), INODE_SIZE);
    put_u16(record, 0x7C, 0);
    put_u16(record, 0x82, 0);
    let checksum = seed.checksum(record);
    put_u16(record, 0x7C, low_u16(u64::from(checksum)));
    put_u16(record, 0x82, low_u16(u64::from(checksum >> 16)));
}

/// A device number as `i_block` holds it: the old form in the first word where it fits, else the
/// new one in the second. `None` when the kernel has no such number.
pub(crate) fn encode_device(major: u32, minor: u32) -> Option<[u8; 60]> {
    let mut block = [0; 60];
    if major < 256 && minor < 256 {
        put_u32(&mut block, 0, major << 8 | minor);
    } else if major < 1 << 12 && minor < 1 << 20 {
        put_u32(&mut block, 4, minor & 0xff | major << 8 | (minor & !0xff) << 12);
    } else {
        return None;
    }
    Some(block)
}
