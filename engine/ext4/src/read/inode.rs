//! Inode records as they are on disk.
//!
//! Format: kernel documentation, `filesystems/ext4/inodes.rst`.

use super::error::{Result, corrupt};
use super::volume::Volume;
use crate::bytes::{get_u16, get_u32, join_u32, put_u16};
use crate::checksum::Seed;
use crate::inode;
use crate::time;
use crate::tree::Timestamp;

/// The kind of an inode, with what is special to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Directory,
    File,
    Symlink,
    CharacterDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// What an inode says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub kind: FileKind,
    /// Permission bits, set-id bits and sticky bit (`0o7777`).
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Entries that name it; 1 for a directory with more subdirectories than can be counted.
    pub links: u16,
    /// Bytes it takes in the file system.
    pub allocated: u64,
    pub modified: Timestamp,
    pub changed: Timestamp,
    pub accessed: Timestamp,
}

/// A record, checked.
#[derive(Clone, Debug)]
pub(crate) struct RawInode {
    pub(crate) number: u32,
    pub(crate) record: Vec<u8>,
}

impl RawInode {
    pub(crate) fn read(volume: &Volume, number: u32) -> Result<Self> {
        let (block, offset) = volume.inode_place(number)?;
        let record = volume.block(block)?[offset..offset + volume.shape.inode_size].to_vec();
        let inode = Self { number, record };
        let mut sealed = inode.clone();
        sealed.seal(volume.shape.seed);
        if sealed.record != inode.record {
            return corrupt(format!("inode {number} does not match its checksum"));
        }
        if inode.record.len() > 128 && 128 + inode.extra_size() > inode.record.len() {
            return corrupt(format!("inode {number} has more extra fields than room"));
        }
        Ok(inode)
    }

    /// Brings the checksum up to date.
    pub(crate) fn seal(&mut self, seed: Option<Seed>) {
        let Some(seed) = seed else { return };
        let seed = self.seed(seed);
        let record = &mut self.record;
        let has_high = record.len() > 128 && get_u16(record, 0x80) >= 4;
        put_u16(record, 0x7C, 0);
        if has_high {
            put_u16(record, 0x82, 0);
        }
        let checksum = seed.checksum(record);
        put_u16(record, 0x7C, checksum as u16);
        if has_high {
            put_u16(record, 0x82, (checksum >> 16) as u16);
        }
    }

    /// The seed for checksums of what belongs to this inode.
    pub(crate) fn seed(&self, seed: Seed) -> Seed {
        seed.of_inode(self.number, get_u32(&self.record, 0x64))
    }

    /// Bytes of fields behind the first 128.
    pub(crate) fn extra_size(&self) -> usize {
        if self.record.len() > 128 { usize::from(get_u16(&self.record, 0x80)) } else { 0 }
    }

    fn has_extra(&self, end: usize) -> bool {
        128 + self.extra_size() >= end
    }

    pub(crate) fn mode(&self) -> u16 {
        get_u16(&self.record, 0x00)
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.mode() & 0xF000 == inode::TYPE_DIRECTORY
    }

    pub(crate) fn is_file(&self) -> bool {
        self.mode() & 0xF000 == inode::TYPE_FILE
    }

    pub(crate) fn is_symlink(&self) -> bool {
        self.mode() & 0xF000 == inode::TYPE_SYMLINK
    }

    pub(crate) fn size(&self) -> u64 {
        // Other inodes may keep something else in the upper half.
        let high = if self.is_file() || self.is_directory() { get_u32(&self.record, 0x6C) } else { 0 };
        join_u32(get_u32(&self.record, 0x04), high)
    }

    pub(crate) fn links(&self) -> u16 {
        get_u16(&self.record, 0x1A)
    }

    pub(crate) fn flags(&self) -> u32 {
        get_u32(&self.record, 0x20)
    }

    /// The 60 bytes of the map.
    pub(crate) fn map(&self) -> &[u8] {
        &self.record[0x28..0x64]
    }

    /// The block with extended attributes, or 0.
    pub(crate) fn xattr_block(&self) -> u64 {
        join_u32(get_u32(&self.record, 0x68), u32::from(get_u16(&self.record, 0x76)))
    }

    /// Blocks it takes, in units of 512 bytes.
    pub(crate) fn sectors(&self, volume: &Volume) -> u64 {
        let low = get_u32(&self.record, 0x1C);
        if !volume.shape.has_huge_files() {
            return u64::from(low);
        }
        let count = join_u32(low, u32::from(get_u16(&self.record, 0x74)));
        const HUGE_FILE: u32 = 0x4_0000;
        if self.flags() & HUGE_FILE != 0 { count * (volume.shape.block_size as u64 / 512) } else { count }
    }

    pub(crate) fn stat(&self, volume: &Volume) -> Result<Stat> {
        let device = || decode_device(self.map());
        let kind = match self.mode() & 0xF000 {
            inode::TYPE_DIRECTORY => FileKind::Directory,
            inode::TYPE_FILE => FileKind::File,
            inode::TYPE_SYMLINK => FileKind::Symlink,
            inode::TYPE_CHARACTER_DEVICE => {
                let (major, minor) = device();
                FileKind::CharacterDevice { major, minor }
            }
            inode::TYPE_BLOCK_DEVICE => {
                let (major, minor) = device();
                FileKind::BlockDevice { major, minor }
            }
            inode::TYPE_FIFO => FileKind::Fifo,
            inode::TYPE_SOCKET => FileKind::Socket,
            _ => return corrupt(format!("inode {} has no known type", self.number)),
        };
        let half = |low: usize, high: usize| {
            u32::from(get_u16(&self.record, low)) | u32::from(get_u16(&self.record, high)) << 16
        };
        let time = |seconds: usize, extra: usize| {
            let extra = if self.has_extra(extra + 4) { get_u32(&self.record, extra) } else { 0 };
            time::decode(get_u32(&self.record, seconds), extra)
        };
        Ok(Stat {
            kind,
            mode: self.mode() & 0o7777,
            uid: half(0x02, 0x78),
            gid: half(0x18, 0x7A),
            size: self.size(),
            links: self.links(),
            allocated: self.sectors(volume).saturating_mul(512),
            modified: time(0x10, 0x88),
            changed: time(0x0C, 0x84),
            accessed: time(0x08, 0x8C),
        })
    }
}

/// Major and minor number, in the old form or the new.
fn decode_device(map: &[u8]) -> (u32, u32) {
    let old = get_u32(map, 0);
    if old != 0 {
        return (old >> 8 & 0xff, old & 0xff);
    }
    let new = get_u32(map, 4);
    (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00)
}
