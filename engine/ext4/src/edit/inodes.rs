//! Inodes: made with their content and attributes, linked, unlinked and freed.

use super::Editor;
use crate::bytes::{get_u32, high_u32, low_u16, low_u32, put_u16, put_u32};
use crate::extent;
use crate::inode::{self, Record};
use crate::read::error::{Result, corrupt};
use crate::read::inode::RawInode;
use crate::read::map::BlockMap;
use crate::read::{ImageError, InodeNumber, is_fast_symlink, xattrs};
use crate::time;
use crate::tree::{Extent, Metadata};
use crate::xattr::{Attributes, block_checksum};

impl Editor {
    pub(super) fn record(&self, metadata: &Metadata, kind: u16) -> Record {
        Record {
            mode: kind | metadata.mode & 0o7777,
            uid: metadata.uid,
            gid: metadata.gid,
            accessed: metadata.modified,
            modified: metadata.modified,
            ..Record::new(self.now)
        }
    }

    /// Writes content to new blocks.
    pub(super) fn write_blocks(&mut self, content: &[u8], near: InodeNumber) -> Result<Vec<Extent>> {
        let size = self.volume().shape.block_size;
        let mut runs: Vec<Extent> = Vec::new();
        for chunk in content.chunks(size) {
            let block = self.allocate_block(near)?;
            let mut padded = chunk.to_vec();
            padded.resize(size, 0);
            self.put_block(block, padded)?;
            append_block(&mut runs, block);
        }
        Ok(runs)
    }

    /// Writes the record of a new inode with its map and extended attributes.
    pub(super) fn create_inode(
        &mut self,
        number: InodeNumber,
        mut record: Record,
        runs: Option<&[Extent]>,
        metadata: &Metadata,
    ) -> Result<()> {
        let shape = &self.volume().shape;
        let (inode_size, block_size, seed) = (shape.inode_size, shape.block_size, shape.seed);
        let inode_room = inode_size.saturating_sub(inode::XATTR_ROOM);
        let attributes = Attributes::place_in(&metadata.xattrs, inode_room, block_size)?;
        if attributes.needs_block() {
            let block = self.allocate_block(number)?;
            let mut content = vec![0; block_size];
            attributes.encode_block(seed, block, &mut content);
            self.put_block(block, content)?;
            record.xattr_block = block;
            record.blocks += 1;
        }
        if let Some(runs) = runs {
            let runs = extent::normalise(runs);
            record.flags |= inode::FLAG_EXTENTS;
            record.blocks += runs.iter().map(|run| u64::from(run.blocks)).sum::<u64>();
            let (block, nodes) = self.encode_map(number, 0, &runs)?;
            record.block = block;
            record.blocks += nodes;
        }
        // The record counts in blocks of 4 KiB, the image has others.
        let sectors = record.blocks * (block_size as u64 / 512);
        let mut bytes = vec![0; inode_size.max(crate::geometry::INODE_SIZE)];
        record.encode(&mut bytes);
        put_u32(&mut bytes, 0x1C, low_u32(sectors));
        put_u16(&mut bytes, 0x74, low_u16(high_u32(sectors).into()));
        bytes.truncate(inode_size);
        if inode_room > 0 {
            attributes.encode_in_inode(&mut bytes[inode::XATTR_ROOM..]);
        }
        self.put_inode(RawInode { number: number.0, record: bytes })
    }

    /// The 60 bytes of an inode's map, and how many blocks the tree below them took.
    pub(super) fn encode_map(
        &mut self,
        number: InodeNumber,
        generation: u32,
        runs: &[Extent],
    ) -> Result<([u8; 60], u64)> {
        let block_size = self.volume().shape.block_size;
        let seed = self.volume().shape.seed.map(|seed| seed.of_inode(number.0, generation));
        let mut nodes = 0;
        let map = extent::encode(runs, block_size, seed, |node| {
            let block = self.allocate_block(number)?;
            self.put_block(block, node.to_vec())?;
            nodes += 1;
            Ok::<_, ImageError>(block)
        })?;
        Ok((map, nodes))
    }

    /// Writes a record with its checksum.
    pub(super) fn put_inode(&mut self, mut raw: RawInode) -> Result<()> {
        raw.seal(self.volume().shape.seed);
        let (block, offset) = self.volume().inode_place(raw.number)?;
        self.change_block(block, |content| {
            content[offset..offset + raw.record.len()].copy_from_slice(&raw.record);
        })
    }

    /// Writes a record that was changed now; `content` says whether its content was, too.
    pub(super) fn put_changed_inode(&mut self, mut raw: RawInode, content: bool) -> Result<()> {
        let (seconds, extra) = time::encode(self.now);
        let extra_size = 128 + raw.extra_size();
        for (low, high, changes) in [(0x0C, 0x84, true), (0x10, 0x88, content)] {
            if changes {
                put_u32(&mut raw.record, low, seconds);
                if high + 4 <= extra_size {
                    put_u32(&mut raw.record, high, extra);
                }
            }
        }
        self.put_inode(raw)
    }

    /// Changes how many blocks an inode says it takes.
    pub(super) fn add_blocks(&self, raw: &mut RawInode, blocks: i64) -> Result<()> {
        let sectors = blocks * (self.volume().shape.block_size as i64 / 512);
        let Some(count) = raw.sectors(self.volume()).checked_add_signed(sectors) else {
            return corrupt(format!("inode {} counts fewer blocks than it has", raw.number));
        };
        const HUGE_FILE: u32 = 0x4_0000;
        if raw.flags() & HUGE_FILE != 0 {
            return Err(ImageError::Unsupported { feature: "a directory of more than 128 PiB" });
        }
        put_u32(&mut raw.record, 0x1C, low_u32(count));
        if self.volume().shape.has_huge_files() {
            put_u16(&mut raw.record, 0x74, low_u16(count >> 32));
        }
        Ok(())
    }

    /// Changes the link count of a directory, for subdirectories that come or go.
    pub(super) fn add_links(&mut self, directory: InodeNumber, change: i32) -> Result<()> {
        let mut raw = self.reader.raw(directory)?;
        let links = i32::from(raw.links());
        // 1 stands for "more than can be counted" and stays.
        if links != 1 {
            let links = (links + change).max(2);
            let links = if links > inode::MAX_LINKS as i32 { 1 } else { links };
            put_u16(&mut raw.record, 0x1A, links as u16);
        }
        self.put_changed_inode(raw, true)
    }

    /// Takes one link from something that is no directory; frees it with the last.
    pub(super) fn drop_link(&mut self, number: InodeNumber) -> Result<()> {
        let mut raw = self.reader.raw(number)?;
        match raw.links() {
            0 => corrupt(format!("inode {} has a name but no links", number.0)),
            1 => self.free_inode(number),
            links => {
                put_u16(&mut raw.record, 0x1A, links - 1);
                self.put_changed_inode(raw, false)
            }
        }
    }

    /// Frees an inode and all its blocks.
    pub(super) fn free_inode(&mut self, number: InodeNumber) -> Result<()> {
        if number.0 < self.volume().shape.first_inode {
            return corrupt("a directory names a reserved inode");
        }
        let raw = self.reader.raw(number)?;
        let has_map =
            raw.is_file() || raw.is_directory() || raw.is_symlink() && !is_fast_symlink(self.volume(), &raw);
        if has_map {
            let map = BlockMap::read(self.volume(), &raw)?;
            for run in &map.runs {
                for index in 0..run.blocks {
                    self.free_block(run.physical + u64::from(index))?;
                }
            }
            for node in &map.nodes {
                self.free_block(*node)?;
            }
        }
        if raw.xattr_block() != 0 {
            self.drop_xattr_block(raw.xattr_block())?;
        }
        self.release_inode(number, raw.is_directory())?;
        let (block, offset) = self.volume().inode_place(number.0)?;
        let length = raw.record.len();
        self.change_block(block, |content| content[offset..offset + length].fill(0))
    }

    /// Attribute blocks may be shared by several inodes.
    pub(super) fn drop_xattr_block(&mut self, block: u64) -> Result<()> {
        let content = self.volume().block(block)?;
        let seed = self.volume().shape.seed;
        xattrs::check_block(seed, block, &content)?;
        match get_u32(&content, 4) {
            0 => corrupt("a block of extended attributes is used by nobody"),
            1 => self.free_block(block),
            references => self.change_block(block, |content| {
                put_u32(content, 4, references - 1);
                if let Some(seed) = seed {
                    let checksum = block_checksum(seed, block, content);
                    put_u32(content, 16, checksum);
                }
            }),
        }
    }
}

/// Adds a block behind the blocks of a file.
pub(super) fn append_block(runs: &mut Vec<Extent>, block: u64) {
    match runs.last_mut() {
        Some(last) if last.physical + u64::from(last.blocks) == block => last.blocks += 1,
        last => {
            let logical = last.map_or(0, |last| last.logical + last.blocks);
            runs.push(Extent { logical, physical: block, blocks: 1 });
        }
    }
}
