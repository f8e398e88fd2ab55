//! Inode tables as one stream: whole blocks, in the order of inode numbers.

use std::fs::File;

use crate::checksum::Seed;
use crate::geometry::{BLOCK, INODE_SIZE, INODES_PER_BLOCK};
use crate::inode::{self, Record};
use crate::layout::Layout;
use crate::stream::BlockStream;
use crate::xattr::Attributes;

/// The inode tables, filled in the order of inode numbers.
pub(super) struct InodeTable<'a> {
    pub(super) layout: &'a Layout,
    seed: Seed,
    stream: BlockStream<'a>,
    block: Box<[u8; BLOCK]>,
    /// Where the block in hand belongs; 0 for none.
    position: u64,
}

impl<'a> InodeTable<'a> {
    pub(super) fn new(file: &'a File, layout: &'a Layout, seed: Seed) -> Self {
        Self { layout, seed, stream: BlockStream::new(file), block: Box::new([0; BLOCK]), position: 0 }
    }

    pub(super) fn put(
        &mut self,
        number: u32,
        record: &Record,
        attributes: &Attributes<'_>,
    ) -> std::io::Result<()> {
        let index = u64::from(number - 1);
        let table = self.layout.inode_tables[(index / self.layout.inodes_per_group) as usize];
        let index = index % self.layout.inodes_per_group;
        let position = table + index / INODES_PER_BLOCK;
        if position != self.position {
            self.flush_block()?;
            self.position = position;
        }
        let start = (index % INODES_PER_BLOCK) as usize * INODE_SIZE;
        let bytes = &mut self.block[start..start + INODE_SIZE];
        record.encode(bytes);
        attributes.encode_in_inode(&mut bytes[inode::XATTR_ROOM..]);
        inode::seal(bytes, self.seed.of_inode(number, 0));
        Ok(())
    }

    fn flush_block(&mut self) -> std::io::Result<()> {
        if self.position != 0 {
            self.stream.block(self.position)?.copy_from_slice(self.block.as_slice());
            self.block.fill(0);
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> std::io::Result<()> {
        self.flush_block()?;
        self.position = 0;
        self.stream.flush()
    }
}
