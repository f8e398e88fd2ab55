//! Free blocks and inodes: bitmaps, and what descriptors count.
//!
//! Format: kernel documentation, `filesystems/ext4/bitmaps.rst` and `group_descr.rst`.

use super::Editor;
use crate::bytes::{get_u16, low_u16, put_u16};
use crate::group::{BLOCK_UNINITIALISED, INODE_UNINITIALISED, set_bits};
use crate::read::InodeNumber;
use crate::read::error::{ImageError, Result, corrupt};
use crate::read::shape::{DescriptorChecksum, descriptor_checksum};

/// Which of the two bitmaps, by where a descriptor has its block, its checksum and its free count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Block,
    Inode,
}

/// Offsets of the low and the high half of a field of a descriptor.
type Field = (usize, usize);

const UNUSED_INODES: Field = (0x1C, 0x32);
const DIRECTORIES: Field = (0x10, 0x30);
const FLAGS: usize = 0x12;

impl Kind {
    fn place(self) -> Field {
        match self {
            Self::Block => (0x00, 0x20),
            Self::Inode => (0x04, 0x24),
        }
    }

    fn free(self) -> Field {
        match self {
            Self::Block => (0x0C, 0x2C),
            Self::Inode => (0x0E, 0x2E),
        }
    }

    fn checksum(self) -> Field {
        match self {
            Self::Block => (0x18, 0x38),
            Self::Inode => (0x1A, 0x3A),
        }
    }

    fn uninitialised(self) -> u16 {
        match self {
            Self::Block => BLOCK_UNINITIALISED,
            Self::Inode => INODE_UNINITIALISED,
        }
    }
}

fn field(descriptor: &[u8], (low, high): Field) -> u32 {
    let high = if descriptor.len() >= 64 { get_u16(descriptor, high) } else { 0 };
    u32::from(get_u16(descriptor, low)) | u32::from(high) << 16
}

fn set_field(descriptor: &mut [u8], (low, high): Field, value: u32) {
    put_u16(descriptor, low, low_u16(value.into()));
    if descriptor.len() >= 64 {
        put_u16(descriptor, high, low_u16(u64::from(value >> 16)));
    }
}

/// A bitmap with the descriptor of its group, to be changed together.
struct Bitmap {
    group: u64,
    kind: Kind,
    descriptor: Vec<u8>,
    place: u64,
    bits: Vec<u8>,
}

impl Editor {
    /// Takes a free block, in the group of an inode where there is one.
    pub(super) fn allocate_block(&mut self, near: InodeNumber) -> Result<u64> {
        let first = self.group_of(near);
        for group in self.groups_from(first) {
            let descriptor = self.volume().descriptor(group)?;
            if field(&descriptor, Kind::Block.free()) == 0 {
                continue;
            }
            let mut bitmap = self.bitmap(group, Kind::Block)?;
            let limit = self.volume().shape.blocks_in_group(group) as usize;
            let Some(index) = first_clear(&bitmap.bits, limit) else {
                return corrupt(format!("group {group} has fewer free blocks than it says"));
            };
            set_bits(&mut bitmap.bits, index, 1);
            let free = field(&bitmap.descriptor, Kind::Block.free());
            set_field(&mut bitmap.descriptor, Kind::Block.free(), free - 1);
            self.put_bitmap(bitmap)?;
            return Ok(self.volume().shape.group_start(group) + index as u64);
        }
        Err(ImageError::NoSpace)
    }

    pub(super) fn free_block(&mut self, block: u64) -> Result<()> {
        let shape = &self.volume().shape;
        if block < shape.first_data_block || block >= shape.blocks {
            return corrupt(format!("it names block {block}, which it does not have"));
        }
        let group = (block - shape.first_data_block) / shape.blocks_per_group;
        let index = ((block - shape.first_data_block) % shape.blocks_per_group) as usize;
        let mut bitmap = self.bitmap(group, Kind::Block)?;
        if !clear_bit(&mut bitmap.bits, index) {
            return corrupt(format!("block {block} is in use and marked as free"));
        }
        let free = field(&bitmap.descriptor, Kind::Block.free());
        set_field(&mut bitmap.descriptor, Kind::Block.free(), free + 1);
        self.put_bitmap(bitmap)
    }

    /// Takes a free inode, in the group of another where there is one.
    pub(super) fn allocate_inode(&mut self, is_directory: bool, near: InodeNumber) -> Result<InodeNumber> {
        let first = self.group_of(near);
        for group in self.groups_from(first) {
            let descriptor = self.volume().descriptor(group)?;
            if field(&descriptor, Kind::Inode.free()) == 0 {
                continue;
            }
            let per_group = self.volume().shape.inodes_per_group;
            let mut bitmap = self.bitmap(group, Kind::Inode)?;
            let Some(index) = first_clear(&bitmap.bits, per_group as usize) else {
                return corrupt(format!("group {group} has fewer free inodes than it says"));
            };
            let number = group as u32 * per_group + index as u32 + 1;
            if number < self.volume().shape.first_inode {
                return corrupt("a reserved inode is marked as free");
            }
            set_bits(&mut bitmap.bits, index, 1);
            let free = field(&bitmap.descriptor, Kind::Inode.free());
            set_field(&mut bitmap.descriptor, Kind::Inode.free(), free - 1);
            if self.volume().shape.descriptor_checksum() != DescriptorChecksum::None {
                let unused = field(&bitmap.descriptor, UNUSED_INODES).min(per_group - index as u32 - 1);
                set_field(&mut bitmap.descriptor, UNUSED_INODES, unused);
            }
            if is_directory {
                let count = field(&bitmap.descriptor, DIRECTORIES);
                set_field(&mut bitmap.descriptor, DIRECTORIES, count + 1);
            }
            self.put_bitmap(bitmap)?;
            return Ok(InodeNumber(number));
        }
        Err(ImageError::NoInodes)
    }

    /// Marks an inode as free.
    pub(super) fn release_inode(&mut self, inode: InodeNumber, was_directory: bool) -> Result<()> {
        let per_group = self.volume().shape.inodes_per_group;
        let group = self.group_of(inode);
        let mut bitmap = self.bitmap(group, Kind::Inode)?;
        if !clear_bit(&mut bitmap.bits, ((inode.0 - 1) % per_group) as usize) {
            return corrupt(format!("inode {} is in use and marked as free", inode.0));
        }
        let free = field(&bitmap.descriptor, Kind::Inode.free());
        set_field(&mut bitmap.descriptor, Kind::Inode.free(), free + 1);
        if was_directory {
            let count = field(&bitmap.descriptor, DIRECTORIES);
            set_field(&mut bitmap.descriptor, DIRECTORIES, count.saturating_sub(1));
        }
        self.put_bitmap(bitmap)
    }

    /// Free blocks and inodes over all groups. The superblock may be behind after a crash.
    pub(super) fn count_free(&self) -> Result<(u64, u32)> {
        let (mut blocks, mut inodes) = (0, 0u32);
        for group in 0..self.volume().shape.groups {
            let descriptor = self.volume().descriptor(group)?;
            blocks += u64::from(field(&descriptor, Kind::Block.free()));
            inodes = inodes.saturating_add(field(&descriptor, Kind::Inode.free()));
        }
        Ok((blocks, inodes))
    }

    fn group_of(&self, inode: InodeNumber) -> u64 {
        u64::from((inode.0.max(1) - 1) / self.volume().shape.inodes_per_group)
    }

    /// All groups, beginning with one.
    fn groups_from(&self, first: u64) -> impl Iterator<Item = u64> + use<> {
        let groups = self.volume().shape.groups;
        (first.min(groups)..groups).chain(0..first.min(groups))
    }

    /// A bitmap as it is, or as it is meant to be where it was never written.
    fn bitmap(&self, group: u64, kind: Kind) -> Result<Bitmap> {
        let volume = self.volume();
        let descriptor = volume.descriptor(group)?;
        let (low, high) = kind.place();
        let place = volume.descriptor_block(&descriptor, low, high);
        let bits = if volume.shape.descriptor_checksum() != DescriptorChecksum::None
            && get_u16(&descriptor, FLAGS) & kind.uninitialised() != 0
        {
            self.fresh_bits(group, kind, &descriptor)?
        } else {
            let bits = volume.block(place)?;
            if let Some(seed) = volume.shape.seed {
                let checksum = seed.checksum(&bits[..self.checked_bytes(kind)]);
                let (low, high) = kind.checksum();
                let mut matches = get_u16(&descriptor, low) == low_u16(checksum.into());
                if descriptor.len() >= 64 {
                    matches &= get_u16(&descriptor, high) == low_u16(u64::from(checksum >> 16));
                }
                if !matches {
                    return corrupt(format!("a bitmap of group {group} does not match its checksum"));
                }
            }
            bits
        };
        Ok(Bitmap { group, kind, descriptor, place, bits })
    }

    /// Bytes of a bitmap that its checksum covers.
    fn checked_bytes(&self, kind: Kind) -> usize {
        let shape = &self.volume().shape;
        match kind {
            Kind::Block => shape.blocks_per_group as usize / 8,
            Kind::Inode => shape.inodes_per_group as usize / 8,
        }
    }

    /// The bitmap of a group that nothing was ever taken from.
    fn fresh_bits(&self, group: u64, kind: Kind, descriptor: &[u8]) -> Result<Vec<u8>> {
        let volume = self.volume();
        let shape = &volume.shape;
        let mut bits = vec![0; shape.block_size];
        let limit = match kind {
            Kind::Inode => shape.inodes_per_group as usize,
            Kind::Block => {
                let blocks = shape.blocks_in_group(group);
                set_bits(&mut bits, 0, shape.base_blocks(group).min(blocks) as usize);
                let start = shape.group_start(group);
                let table = u64::from(shape.inodes_per_group) * shape.inode_size as u64;
                let table = table.div_ceil(shape.block_size as u64);
                for (low, high, length) in [(0x00, 0x20, 1), (0x04, 0x24, 1), (0x08, 0x28, table)] {
                    let first = volume.descriptor_block(descriptor, low, high);
                    if first.checked_add(length).is_none_or(|end| end > shape.blocks) {
                        return corrupt(format!("the tables of group {group} lie outside of it"));
                    }
                    for block in first.max(start)..(first + length).min(start + blocks) {
                        set_bits(&mut bits, (block - start) as usize, 1);
                    }
                }
                blocks as usize
            }
        };
        set_bits(&mut bits, limit, 8 * shape.block_size - limit);
        Ok(bits)
    }

    /// Writes a bitmap and its descriptor with their checksums.
    fn put_bitmap(&mut self, bitmap: Bitmap) -> Result<()> {
        let Bitmap { group, kind, mut descriptor, place, bits } = bitmap;
        let shape = &self.volume().shape;
        if shape.descriptor_checksum() != DescriptorChecksum::None {
            let flags = get_u16(&descriptor, FLAGS) & !kind.uninitialised();
            put_u16(&mut descriptor, FLAGS, flags);
        }
        if let Some(seed) = shape.seed {
            let checksum = seed.checksum(&bits[..self.checked_bytes(kind)]);
            set_field(&mut descriptor, kind.checksum(), checksum);
        }
        if let Some(checksum) = descriptor_checksum(shape, group, &descriptor) {
            put_u16(&mut descriptor, 0x1E, checksum);
        }
        let (block, offset) = shape.descriptor_place(group);
        self.put_block(place, bits)?;
        self.change_block(block, |content| {
            content[offset..offset + descriptor.len()].copy_from_slice(&descriptor);
        })
    }
}

fn first_clear(bits: &[u8], limit: usize) -> Option<usize> {
    let byte = bits.iter().position(|byte| *byte != 0xff)?;
    let index = 8 * byte + bits[byte].trailing_ones() as usize;
    (index < limit).then_some(index)
}

/// Clears a bit and says whether it was set.
fn clear_bit(bits: &mut [u8], index: usize) -> bool {
    let mask = 1 << (index % 8);
    let was_set = bits[index / 8] & mask != 0;
    bits[index / 8] &= !mask;
    was_set
}
