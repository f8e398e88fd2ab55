//! The second pass: inodes, and the blocks that belong to them.

use std::collections::HashMap;

use super::table::InodeTable;
use super::{Extents, FAST_SYMLINK, LOST_AND_FOUND_BLOCKS, entries, place_attributes};
use crate::allocator::BlockSource;
use crate::checksum::Seed;
use crate::directory::EntryBlock;
use crate::error::{FormatError, InodeError};
use crate::formatter::Options;
use crate::geometry::{BLOCK, BLOCK_SIZE};
use crate::htree::IndexPlan;
use crate::inode::{self, Record};
use crate::numbering::Numbering;
use crate::stream::BlockStream;
use crate::tree::{Extent, Inode, InodeId, InodeKind, Tree};
use crate::xattr::Attributes;
use crate::{extent, journal, resize};

/// The second pass.
pub(super) struct Emitter<'a> {
    pub(super) tree: &'a Tree,
    pub(super) numbering: &'a Numbering,
    pub(super) options: &'a Options,
    pub(super) seed: Seed,
    pub(super) source: BlockSource,
    pub(super) indexes: HashMap<InodeId, IndexPlan<'a>>,
    pub(super) blocks: BlockStream<'a>,
    pub(super) table: InodeTable<'a>,
    /// Directories by group.
    pub(super) directories: Vec<u64>,
}

impl Emitter<'_> {
    /// Returns the block map of the journal, of which the superblock keeps a copy.
    pub(super) fn run(&mut self) -> Result<[u8; 60], FormatError> {
        let mut journal_map = [0; 60];
        for id in &self.numbering.order {
            self.inode(*id)?;
            if *id == self.tree.root() {
                let layout = self.table.layout;
                if layout.reserved_descriptor_blocks() > 0 {
                    let record = resize::write(layout, self.options.created, &mut self.blocks)?;
                    self.table.put(inode::RESIZE, &record, &Attributes::default())?;
                }
                if layout.journal_blocks > 0 {
                    journal_map = self.journal()?;
                }
                if !self.numbering.has_lost_and_found {
                    self.lost_and_found()?;
                }
            }
        }
        self.blocks.flush()?;
        self.table.flush()?;
        Ok(journal_map)
    }

    fn inode(&mut self, id: InodeId) -> Result<(), FormatError> {
        let tree = self.tree;
        let inode = tree.inode(id);
        let number = self.numbering.number(id);
        let seed = self.seed.of_inode(number, 0);
        let attributes = place_attributes(tree, id)?;
        let mut record = self.record(inode);
        record.links = self.numbering.link_count(id, inode).map_err(|error| error.at(tree, id))?;
        if attributes.needs_block() {
            let block = self.source.next();
            attributes.encode_block(Some(self.seed), block, self.blocks.block(block)?);
            record.xattr_block = block;
            record.blocks = 1;
        }
        match &inode.kind {
            InodeKind::Directory(_) => {
                let extents = self.directory(id, seed)?;
                let blocks: u64 = extents.iter().map(|extent| u64::from(extent.blocks)).sum();
                record.size = blocks * BLOCK_SIZE;
                if blocks > 1 {
                    record.flags |= inode::FLAG_INDEX;
                }
                self.map(&mut record, &extents, seed)?;
                self.count_directory(number);
            }
            InodeKind::File(data) => {
                record.size = data.size;
                self.map(&mut record, &data.extents, seed)?;
            }
            InodeKind::Symlink(target) => {
                record.size = target.len() as u64;
                if target.len() > FAST_SYMLINK {
                    let block = self.source.next();
                    self.blocks.block(block)?[..target.len()].copy_from_slice(target);
                    self.map(&mut record, &[Extent { logical: 0, physical: block, blocks: 1 }], seed)?;
                } else {
                    record.block[..target.len()].copy_from_slice(target);
                }
            }
            InodeKind::CharacterDevice { major, minor } | InodeKind::BlockDevice { major, minor } => {
                record.block = inode::encode_device(*major, *minor)
                    .ok_or_else(|| InodeError::DeviceNumber { major: *major, minor: *minor }.at(tree, id))?;
            }
            InodeKind::Fifo | InodeKind::Socket => {}
        }
        self.table.put(number, &record, &attributes)?;
        Ok(())
    }

    /// A record with what the tree says of an inode.
    fn record(&self, inode: &Inode) -> Record {
        let metadata = &inode.metadata;
        Record {
            mode: inode::type_bits(&inode.kind) | metadata.mode & 0o7777,
            uid: metadata.uid,
            gid: metadata.gid,
            accessed: metadata.modified,
            modified: metadata.modified,
            ..Record::new(self.options.created)
        }
    }

    /// Maps the content of an inode, with as many blocks of extent tree as it takes.
    fn map(&mut self, record: &mut Record, extents: &[Extent], seed: Seed) -> Result<(), FormatError> {
        let extents = extent::normalise(extents);
        let source = &mut self.source;
        let blocks = &mut self.blocks;
        record.flags |= inode::FLAG_EXTENTS;
        record.block = extent::encode(&extents, BLOCK, Some(seed), |node| {
            let block = source.next();
            blocks.block(block)?.copy_from_slice(node);
            Ok::<_, FormatError>(block)
        })?;
        record.blocks += extent::tree_blocks(extents.len());
        record.blocks += extents.iter().map(|extent| u64::from(extent.blocks)).sum::<u64>();
        Ok(())
    }

    fn directory(&mut self, id: InodeId, seed: Seed) -> Result<Vec<Extent>, FormatError> {
        let number = self.numbering.number(id);
        let parent = self.numbering.parent(id);
        let mut extents = Extents::default();
        let Some(plan) = self.indexes.remove(&id) else {
            let block = self.source.next();
            extents.push(block);
            let mut writer = EntryBlock::new(self.blocks.block(block)?);
            writer.add_dots(number, parent);
            for entry in entries(self.tree, self.numbering, id) {
                writer.add(entry);
            }
            writer.finish(seed);
            return Ok(extents.0);
        };
        let mut next = |blocks: &mut BlockStream<'_>, fill: &mut dyn FnMut(&mut [u8])| {
            let block = self.source.next();
            extents.push(block);
            blocks.block(block).map(fill)
        };
        next(&mut self.blocks, &mut |block| plan.encode_root(block, number, parent, seed))?;
        for node in 0..plan.nodes() {
            next(&mut self.blocks, &mut |block| plan.encode_node(node, block, seed))?;
        }
        for mut leaf in plan.leaves() {
            next(&mut self.blocks, &mut |block| {
                let mut writer = EntryBlock::new(block);
                for entry in leaf.by_ref() {
                    writer.add(entry);
                }
                writer.finish(seed);
            })?;
        }
        Ok(extents.0)
    }

    fn lost_and_found(&mut self) -> Result<(), FormatError> {
        let seed = self.seed.of_inode(inode::FIRST, 0);
        let mut extents = Extents::default();
        for index in 0..LOST_AND_FOUND_BLOCKS {
            let block = self.source.next();
            extents.push(block);
            let mut writer = EntryBlock::new(self.blocks.block(block)?);
            if index == 0 {
                writer.add_dots(inode::FIRST, inode::ROOT);
            }
            writer.finish(seed);
        }
        let mut record = Record {
            mode: inode::TYPE_DIRECTORY | 0o700,
            links: 2,
            size: LOST_AND_FOUND_BLOCKS as u64 * BLOCK_SIZE,
            ..Record::new(self.options.created)
        };
        self.map(&mut record, &extents.0, seed)?;
        self.count_directory(inode::FIRST);
        self.table.put(inode::FIRST, &record, &Attributes::default())?;
        Ok(())
    }

    /// The journal's inode and first block; the rest of the journal is holes.
    fn journal(&mut self) -> Result<[u8; 60], FormatError> {
        let layout = self.table.layout;
        let mut tree_blocks = layout.journal_tree.iter().copied();
        let blocks = &mut self.blocks;
        let seed = self.seed.of_inode(inode::JOURNAL, 0);
        let map = extent::encode(&layout.journal, BLOCK, Some(seed), |node| {
            let block = tree_blocks.next().unwrap_or_default();
            blocks.block(block)?.copy_from_slice(node);
            Ok::<_, FormatError>(block)
        })?;
        if let Some(first) = layout.journal.first() {
            let block = blocks.block(first.physical)?;
            journal::encode_superblock(block, layout.journal_blocks as u32, &self.options.uuid);
        }
        let record = Record {
            mode: inode::TYPE_FILE | 0o600,
            size: layout.journal_blocks * BLOCK_SIZE,
            blocks: layout.journal_blocks + layout.journal_tree.len() as u64,
            flags: inode::FLAG_EXTENTS,
            block: map,
            ..Record::new(self.options.created)
        };
        self.table.put(inode::JOURNAL, &record, &Attributes::default())?;
        Ok(map)
    }

    fn count_directory(&mut self, number: u32) {
        let group = u64::from(number - 1) / self.table.layout.inodes_per_group;
        self.directories[group as usize] += 1;
    }
}
