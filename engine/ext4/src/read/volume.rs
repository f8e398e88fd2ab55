//! An image as blocks: its shape, read from a checked superblock, and its blocks as they are once the
//! journal is replayed and what an editor changed is put over them.
//!
//! Format: kernel documentation, `filesystems/ext4/super.rst` and `group_descr.rst`.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use super::error::{ImageError, Result, corrupt};
use super::shape::{DescriptorChecksum, Shape, descriptor_checksum};
use crate::bytes::{get_u16, get_u32, join_u32};
use crate::superblock::{LENGTH, OFFSET};

/// A block whose newest content lies in the journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replayed {
    /// Where in the image.
    pub(crate) block: u64,
    /// Whether its first four bytes were blanked, as they looked like a block of the journal.
    pub(crate) escaped: bool,
}

/// An opened image.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) file: File,
    file_length: u64,
    pub(crate) shape: Shape,
    /// Blocks to take from the journal.
    pub(crate) replayed: HashMap<u64, Replayed>,
    /// Blocks that an editor changed.
    pub(crate) changed: BTreeMap<u64, Vec<u8>>,
}

impl Volume {
    /// Reads the superblock; the journal is still to be replayed.
    pub(super) fn open(mut file: File) -> Result<Self> {
        let file_length = file.seek(SeekFrom::End(0))?;
        let mut superblock = vec![0; LENGTH];
        if file_length < (OFFSET + LENGTH) as u64 {
            return Err(ImageError::NotExt4);
        }
        file.read_exact_at(&mut superblock, OFFSET as u64)?;
        let shape = Shape::parse(&superblock, file_length)?;
        Ok(Self { file, file_length, shape, replayed: HashMap::new(), changed: BTreeMap::new() })
    }

    /// The block that holds the superblock, and where in it.
    pub(crate) fn superblock_place(&self) -> (u64, usize) {
        let size = self.shape.block_size;
        ((OFFSET / size) as u64, OFFSET % size)
    }

    /// The superblock as it is with the journal replayed.
    pub(crate) fn superblock(&self) -> Result<Vec<u8>> {
        let (block, offset) = self.superblock_place();
        Ok(self.block(block)?[offset..offset + LENGTH].to_vec())
    }

    /// Reads the shape again, after blocks were replayed.
    pub(super) fn reload(&mut self) -> Result<()> {
        let shape = Shape::parse(&self.superblock()?, self.file_length)?;
        if shape.block_size != self.shape.block_size {
            return corrupt("the journal changes the block size");
        }
        self.shape = shape;
        Ok(())
    }

    /// The content of a block.
    pub(crate) fn block(&self, block: u64) -> Result<Vec<u8>> {
        if let Some(content) = self.changed.get(&block) {
            return Ok(content.clone());
        }
        let mut content = vec![0; self.shape.block_size];
        self.read_unchanged(block, &mut content)?;
        Ok(content)
    }

    /// Reads blocks that lie one after the other.
    pub(crate) fn read_blocks(&self, first: u64, content: &mut [u8]) -> Result<()> {
        let size = self.shape.block_size;
        let end = first.checked_add((content.len() / size) as u64);
        if self.replayed.is_empty()
            && self.changed.is_empty()
            && end.is_some_and(|end| end <= self.shape.blocks)
        {
            self.file.read_exact_at(content, first * size as u64)?;
            return Ok(());
        }
        for (block, part) in (first..).zip(content.chunks_mut(size)) {
            part.copy_from_slice(&self.block(block)?);
        }
        Ok(())
    }

    /// Reads a block as it is with the journal replayed, but without changes.
    pub(crate) fn read_unchanged(&self, block: u64, content: &mut [u8]) -> Result<()> {
        match self.replayed.get(&block) {
            Some(replayed) => {
                self.read_raw(replayed.block, content)?;
                if replayed.escaped {
                    content[..4].copy_from_slice(&super::replay::MAGIC.to_be_bytes());
                }
                Ok(())
            }
            None => self.read_raw(block, content),
        }
    }

    /// Reads a block as it lies in the image.
    pub(crate) fn read_raw(&self, block: u64, content: &mut [u8]) -> Result<()> {
        if block >= self.shape.blocks {
            return corrupt(format!("it names block {block}, which it does not have"));
        }
        self.file.read_exact_at(content, block * self.shape.block_size as u64)?;
        Ok(())
    }

    /// The descriptor of a group, checked.
    pub(crate) fn descriptor(&self, group: u64) -> Result<Vec<u8>> {
        if group >= self.shape.groups {
            return corrupt(format!("it names group {group}, which it does not have"));
        }
        let (block, offset) = self.shape.descriptor_place(group);
        let descriptor = self.block(block)?[offset..offset + self.shape.descriptor_size].to_vec();
        if descriptor_checksum(&self.shape, group, &descriptor) != Some(get_u16(&descriptor, 0x1E))
            && self.shape.descriptor_checksum() != DescriptorChecksum::None
        {
            return corrupt(format!("the descriptor of group {group} does not match its checksum"));
        }
        Ok(descriptor)
    }

    /// A block number from a descriptor: bitmap or table.
    pub(crate) fn descriptor_block(&self, descriptor: &[u8], low: usize, high: usize) -> u64 {
        let high = if self.shape.is_64bit() { get_u32(descriptor, high) } else { 0 };
        join_u32(get_u32(descriptor, low), high)
    }

    /// The block that holds the record of an inode, and where in it.
    pub(crate) fn inode_place(&self, number: u32) -> Result<(u64, usize)> {
        if number == 0 || number > self.shape.inodes {
            return corrupt(format!("it names inode {number}, which it does not have"));
        }
        let index = number - 1;
        let descriptor = self.descriptor(u64::from(index / self.shape.inodes_per_group))?;
        let table = self.descriptor_block(&descriptor, 0x08, 0x28);
        let offset = u64::from(index % self.shape.inodes_per_group) * self.shape.inode_size as u64;
        let size = self.shape.block_size as u64;
        let Some(block) = table.checked_add(offset / size) else {
            return corrupt("an inode table lies outside of it");
        };
        Ok((block, (offset % size) as usize))
    }
}
