//! Where the blocks of a file lie: its extent tree, or the block map of ext2 and ext3.
//!
//! Format: kernel documentation, `filesystems/ext4/ifork.rst`.

use super::error::{Result, corrupt};
use super::inode::RawInode;
use super::volume::Volume;
use crate::bytes::{get_u16, get_u32, join_u32};
use crate::inode::FLAG_EXTENTS;

const MAGIC: u16 = 0xF30A;
const HEADER: usize = 12;
const ENTRY: usize = 12;
const MAX_DEPTH: u16 = 5;
/// Longer extents are preallocated blocks that were never written.
const MAX_WRITTEN: u16 = 32768;
/// Most runs a map may have: a file of that many fragments is no honest one.
const MAX_RUNS: usize = 1 << 22;

/// Blocks that lie one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MappedRun {
    /// First block within the file.
    pub(crate) logical: u32,
    pub(crate) physical: u64,
    pub(crate) blocks: u32,
    /// Preallocated blocks read as zeros.
    pub(crate) written: bool,
}

/// The whole map of a file.
#[derive(Debug, Default)]
pub(crate) struct BlockMap {
    /// In the order of their place in the file, not overlapping.
    pub(crate) runs: Vec<MappedRun>,
    /// Blocks that hold the map itself.
    pub(crate) nodes: Vec<u64>,
}

impl BlockMap {
    pub(crate) fn read(volume: &Volume, inode: &RawInode) -> Result<Self> {
        let mut map = Self::default();
        if inode.flags() & FLAG_EXTENTS != 0 {
            let depth = get_u16(inode.map(), 6);
            map.extents(volume, inode, inode.map(), depth, 0..1 << 32)?;
        } else {
            map.block_map(volume, inode)?;
        }
        Ok(map)
    }

    /// The block of the image that holds a block of the file; `None` for holes.
    pub(crate) fn find(&self, logical: u32) -> Option<u64> {
        let behind = self.runs.partition_point(|run| run.logical <= logical);
        let run = self.runs[..behind].last()?;
        let offset = logical - run.logical;
        (run.written && offset < run.blocks).then_some(run.physical + u64::from(offset))
    }

    /// One node of an extent tree, whose entries must lie within `bounds`. Nodes that several places
    /// share cannot lie within the bounds of all of them, so that this ends.
    fn extents(
        &mut self,
        volume: &Volume,
        inode: &RawInode,
        node: &[u8],
        depth: u16,
        bounds: std::ops::Range<u64>,
    ) -> Result<()> {
        let count = usize::from(get_u16(node, 2));
        let capacity = (node.len() - HEADER) / ENTRY;
        if get_u16(node, 0) != MAGIC
            || get_u16(node, 6) != depth
            || depth > MAX_DEPTH
            || count > capacity
            || usize::from(get_u16(node, 4)) > capacity
        {
            return corrupt(format!("the extent tree of inode {} makes no sense", inode.number));
        }
        let entries: Vec<&[u8]> = node[HEADER..].chunks_exact(ENTRY).take(count).collect();
        let mut next = bounds.start;
        for (index, entry) in entries.iter().enumerate() {
            let logical = u64::from(get_u32(entry, 0));
            if logical < next {
                return corrupt(format!("the extents of inode {} are not in order", inode.number));
            }
            if depth == 0 {
                let length = get_u16(entry, 4);
                let written = length <= MAX_WRITTEN;
                let blocks = if written { length } else { length - MAX_WRITTEN };
                let physical = join_u32(get_u32(entry, 8), u32::from(get_u16(entry, 6)));
                next = logical + u64::from(blocks);
                if blocks == 0 || next > bounds.end {
                    return corrupt(format!("the extents of inode {} overlap", inode.number));
                }
                self.push(
                    volume,
                    inode,
                    MappedRun { logical: logical as u32, physical, blocks: u32::from(blocks), written },
                )?;
            } else {
                let block = join_u32(get_u32(entry, 4), u32::from(get_u16(entry, 8)));
                let end = entries.get(index + 1).map_or(bounds.end, |entry| u64::from(get_u32(entry, 0)));
                next = logical + 1;
                if end < next || end > bounds.end {
                    return corrupt(format!("the extents of inode {} are not in order", inode.number));
                }
                let child = volume.block(block)?;
                check_node(volume, inode, &child)?;
                if get_u16(&child, 2) == 0 {
                    return corrupt(format!("the extent tree of inode {} has empty nodes", inode.number));
                }
                self.nodes.push(block);
                self.extents(volume, inode, &child, depth - 1, logical..end)?;
                next = end;
            }
        }
        Ok(())
    }

    /// Twelve direct blocks, then blocks of block numbers, one to three levels deep.
    fn block_map(&mut self, volume: &Volume, inode: &RawInode) -> Result<()> {
        const DIRECT: usize = 12;
        let blocks = inode.size().div_ceil(volume.shape.block_size as u64);
        let mut logical = 0;
        for slot in 0..DIRECT {
            self.mapped(volume, inode, get_u32(inode.map(), 4 * slot), 0, &mut logical, blocks)?;
        }
        for level in 1..=3 {
            let root = get_u32(inode.map(), 4 * (DIRECT + level - 1));
            self.mapped(volume, inode, root, level, &mut logical, blocks)?;
        }
        Ok(())
    }

    fn mapped(
        &mut self,
        volume: &Volume,
        inode: &RawInode,
        block: u32,
        level: usize,
        logical: &mut u64,
        end: u64,
    ) -> Result<()> {
        let per_block = (volume.shape.block_size / 4) as u64;
        if block == 0 || *logical >= end {
            *logical += per_block.pow(level as u32);
            return Ok(());
        }
        if level == 0 {
            let run = MappedRun {
                logical: u32::try_from(*logical).or_else(|_| corrupt("a file is too long"))?,
                physical: u64::from(block),
                blocks: 1,
                written: true,
            };
            *logical += 1;
            return self.push(volume, inode, run);
        }
        self.nodes.push(u64::from(block));
        if self.nodes.len() > MAX_RUNS {
            return corrupt(format!("the block map of inode {} is too large", inode.number));
        }
        let content = volume.block(u64::from(block))?;
        for entry in content.chunks_exact(4) {
            self.mapped(volume, inode, get_u32(entry, 0), level - 1, logical, end)?;
        }
        Ok(())
    }

    fn push(&mut self, volume: &Volume, inode: &RawInode, run: MappedRun) -> Result<()> {
        let end = run.physical.checked_add(u64::from(run.blocks));
        if run.physical == 0 || end.is_none_or(|end| end > volume.shape.blocks) {
            return corrupt(format!("inode {} names blocks the file system does not have", inode.number));
        }
        if let Some(last) = self.runs.last_mut()
            && last.written == run.written
            && last.logical + last.blocks == run.logical
            && last.physical + u64::from(last.blocks) == run.physical
            && last.blocks.checked_add(run.blocks).is_some()
        {
            last.blocks += run.blocks;
            return Ok(());
        }
        if self.runs.len() >= MAX_RUNS {
            return corrupt(format!("inode {} has too many fragments", inode.number));
        }
        self.runs.push(run);
        Ok(())
    }
}

/// The checksum behind the last possible entry of a node.
fn check_node(volume: &Volume, inode: &RawInode, node: &[u8]) -> Result<()> {
    let Some(seed) = volume.shape.seed else { return Ok(()) };
    let tail = HEADER + ENTRY * usize::from(get_u16(node, 4));
    if tail + 4 > node.len() || inode.seed(seed).checksum(&node[..tail]) != get_u32(node, tail) {
        return corrupt(format!("the extent tree of inode {} does not match its checksum", inode.number));
    }
    Ok(())
}
