//! Directory entries.
//!
//! Format: kernel documentation, `filesystems/ext4/directory.rst`. Indexed directories are read like
//! all others: their index lies in entries without an inode.

use std::ops::ControlFlow;

use super::error::{ImageError, Result, corrupt};
use super::inode::RawInode;
use super::map::BlockMap;
use super::volume::Volume;
use crate::bytes::{get_u16, get_u32};
use crate::checksum::Seed;
use crate::inode::FLAG_INDEX;

pub(crate) const HEADER: usize = 8;
/// Bytes of the entry without a name that holds the checksum of a block.
pub(crate) const TAIL: usize = 12;
/// Where the entries of an index begin in block 0, and in its further blocks.
pub(crate) const INDEX_ROOT_ENTRIES: usize = 32;
pub(crate) const INDEX_NODE_ENTRIES: usize = 8;
pub(crate) const INDEX_ENTRY: usize = 8;
/// Reserved word and checksum behind the last possible entry.
const INDEX_TAIL: usize = 8;
/// Longest directory that is read: 1 GiB.
const MAX_BLOCKS_BYTES: u64 = 1 << 30;

/// An entry as it lies in a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawEntry<'a> {
    /// Where in the block.
    pub(crate) offset: usize,
    /// Bytes up to the next entry.
    pub(crate) length: usize,
    /// 0 for free room.
    pub(crate) inode: u32,
    pub(crate) name: &'a [u8],
}

/// The entries of one block, free room included.
pub(crate) fn block_entries<'a>(block: &'a [u8], number: u32) -> Result<Vec<RawEntry<'a>>> {
    let mut entries = Vec::new();
    let mut offset = 0;
    while offset < block.len() {
        let damaged = || corrupt(format!("an entry of directory {number} makes no sense"));
        if offset + HEADER > block.len() {
            return damaged();
        }
        // 64 KiB do not fit into the field.
        let length = match get_u16(block, offset + 4) {
            0 | 0xffff if block.len() == 1 << 16 => block.len() - offset,
            length => usize::from(length),
        };
        let name_length = usize::from(block[offset + 6]);
        let inode = get_u32(block, offset);
        let used = if inode == 0 { HEADER } else { HEADER + name_length };
        if length < used || length % 4 != 0 || offset + length > block.len() {
            return damaged();
        }
        let name = if inode == 0 { &[][..] } else { &block[offset + HEADER..offset + used] };
        entries.push(RawEntry { offset, length, inode, name });
        offset += length;
    }
    Ok(entries)
}

/// The blocks of a directory: each block's place within it and in the image, and its content.
pub(crate) fn for_each_block(
    volume: &Volume,
    directory: &RawInode,
    mut visit: impl FnMut(u32, u64, &[u8]) -> Result<ControlFlow<()>>,
) -> Result<()> {
    if !directory.is_directory() {
        return Err(ImageError::NotADirectory);
    }
    if directory.size() > MAX_BLOCKS_BYTES {
        return corrupt(format!("directory {} is longer than any can be", directory.number));
    }
    let blocks = (directory.size() / volume.shape.block_size as u64) as u32;
    let map = BlockMap::read(volume, directory)?;
    for run in map.runs.iter().filter(|run| run.written) {
        for index in 0..run.blocks {
            let logical = run.logical + index;
            if logical >= blocks {
                return Ok(());
            }
            let physical = run.physical + u64::from(index);
            let content = volume.block(physical)?;
            check_block(volume, directory, logical, &content)?;
            if visit(logical, physical, &content)?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Visits all entries, `.` and `..` included.
pub(crate) fn for_each(
    volume: &Volume,
    directory: &RawInode,
    mut visit: impl FnMut(&[u8], u32) -> Result<ControlFlow<()>>,
) -> Result<()> {
    for_each_block(volume, directory, |_, _, content| {
        for entry in block_entries(content, directory.number)? {
            if entry.inode != 0 && visit(entry.name, entry.inode)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Whether a block ends in an entry for its checksum.
pub(crate) fn has_tail(block: &[u8]) -> bool {
    let tail = &block[block.len() - TAIL..];
    get_u32(tail, 0) == 0 && get_u16(tail, 4) == TAIL as u16 && tail[6] == 0 && tail[7] == 0xDE
}

/// Whether a block holds part of the index instead of entries: block 0 of an indexed directory, and
/// blocks of which one entry without an inode takes all, the place of the checksum included.
pub(crate) fn is_index(directory: &RawInode, logical: u32, block: &[u8]) -> bool {
    let takes_all = matches!(usize::from(get_u16(block, 4)), 0 | 0xffff) && block.len() == 1 << 16
        || usize::from(get_u16(block, 4)) == block.len();
    directory.flags() & FLAG_INDEX != 0 && (logical == 0 || get_u32(block, 0) == 0 && takes_all)
}

fn check_block(volume: &Volume, directory: &RawInode, logical: u32, block: &[u8]) -> Result<()> {
    let Some(seed) = volume.shape.seed else { return Ok(()) };
    let seed = directory.seed(seed);
    let matches = if is_index(directory, logical, block) {
        let first = if logical == 0 { INDEX_ROOT_ENTRIES } else { INDEX_NODE_ENTRIES };
        index_checksum(block, first, seed).is_some_and(|(place, checksum)| get_u32(block, place) == checksum)
    } else {
        let tail = block.len() - TAIL;
        has_tail(block) && seed.checksum(&block[..tail]) == get_u32(block, tail + 8)
    };
    if !matches {
        return corrupt(format!("a block of directory {} does not match its checksum", directory.number));
    }
    Ok(())
}

/// Where the checksum of a block of the index belongs, and what it must be; `None` when the index
/// makes no sense. `first` is where its entries begin.
pub(crate) fn index_checksum(block: &[u8], first: usize, seed: Seed) -> Option<(usize, u32)> {
    let limit = usize::from(get_u16(block, first));
    let count = usize::from(get_u16(block, first + 2));
    let tail = first + limit * INDEX_ENTRY;
    if count > limit || tail + INDEX_TAIL > block.len() {
        return None;
    }
    let mut checked = block[..first + count * INDEX_ENTRY].to_vec();
    // The reserved word of the tail and, in place of the checksum, zeros.
    checked.extend_from_slice(&block[tail..tail + 4]);
    checked.extend_from_slice(&[0; 4]);
    Some((tail + 4, seed.checksum(&checked)))
}
