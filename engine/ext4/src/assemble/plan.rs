//! The first pass: which blocks the metadata of each inode takes.

use std::collections::HashMap;

use super::{Extents, FAST_SYMLINK, LOST_AND_FOUND_BLOCKS, entries, place_attributes};
use crate::allocator::{BlockSource, Run};
use crate::directory::fit_one_block;
use crate::error::{FormatError, InodeError};
use crate::extent;
use crate::geometry::{BLOCK, BLOCK_SIZE};
use crate::group::BlockBitmaps;
use crate::htree::IndexPlan;
use crate::numbering::Numbering;
use crate::tree::{FileData, InodeId, InodeKind, Tree};

/// The first pass.
pub(super) struct Plan<'a> {
    pub(super) tree: &'a Tree,
    pub(super) numbering: &'a Numbering,
    pub(super) hash_seed: [u32; 4],
    pub(super) source: BlockSource,
    pub(super) bitmaps: BlockBitmaps,
    /// Blocks in use so far.
    pub(super) blocks: u64,
    /// Directories of more than one block.
    pub(super) indexes: HashMap<InodeId, IndexPlan<'a>>,
}

impl Plan<'_> {
    pub(super) fn run(&mut self) -> Result<(), FormatError> {
        let tree = self.tree;
        for id in &self.numbering.order {
            let id = *id;
            let inode = tree.inode(id);
            let attributes = place_attributes(tree, id)?;
            if attributes.needs_block() {
                self.take();
            }
            match &inode.kind {
                InodeKind::Directory(_) => self.directory(id)?,
                InodeKind::File(data) => self.file(data).map_err(|error| error.at(tree, id))?,
                InodeKind::Symlink(target) => {
                    if target.is_empty() || target.len() >= BLOCK {
                        let length = target.len();
                        return Err(InodeError::SymlinkLength { length }.at(tree, id));
                    }
                    if target.len() > FAST_SYMLINK {
                        self.take();
                    }
                }
                _ => {}
            }
            if id == tree.root() && !self.numbering.has_lost_and_found {
                for _ in 0..LOST_AND_FOUND_BLOCKS {
                    self.take();
                }
            }
        }
        Ok(())
    }

    fn directory(&mut self, id: InodeId) -> Result<(), FormatError> {
        if fit_one_block(entries(self.tree, self.numbering, id)) {
            self.take();
            return Ok(());
        }
        let plan = IndexPlan::new(entries(self.tree, self.numbering, id), &self.hash_seed)
            .ok_or_else(|| InodeError::DirectoryTooLarge.at(self.tree, id))?;
        let mut extents = Extents::default();
        for _ in 0..plan.blocks() {
            extents.push(self.take());
        }
        self.indexes.insert(id, plan);
        for _ in 0..extent::tree_blocks(extent::normalise(&extents.0).len()) {
            self.take();
        }
        Ok(())
    }

    fn file(&mut self, data: &FileData) -> Result<(), InodeError> {
        let limit = data.size.div_ceil(BLOCK_SIZE);
        let mut next = 0;
        for extent in &data.extents {
            let end = u64::from(extent.logical) + u64::from(extent.blocks);
            if extent.blocks == 0 || u64::from(extent.logical) < next || end > limit {
                return Err(InodeError::DisorderedExtents);
            }
            next = end;
            let run =
                Run { start: extent.physical, end: extent.physical.saturating_add(u64::from(extent.blocks)) };
            // Content lies below the cursor, and where nobody else has anything.
            if run.end > self.source.cursor().position() {
                return Err(InodeError::ForeignBlocks);
            }
            self.bitmaps.mark(run).map_err(|_| InodeError::ForeignBlocks)?;
            self.blocks += run.len();
        }
        if data.extents.len() > 1 || data.extents.iter().any(|extent| extent.blocks > 4 * 32_768) {
            for _ in 0..extent::tree_blocks(extent::normalise(&data.extents).len()) {
                self.take();
            }
        }
        Ok(())
    }

    /// Takes one block for metadata.
    fn take(&mut self) -> u64 {
        let start = self.source.next();
        let marked = self.bitmaps.mark(Run { start, end: start + 1 });
        debug_assert!(marked.is_ok(), "block {start} was handed out twice");
        self.blocks += 1;
        start
    }
}
