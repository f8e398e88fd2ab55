//! The index of a directory, as far as an editor needs it: to find where a name belongs, and to take
//! the index away.
//!
//! Format: kernel documentation, `filesystems/ext4/directory.rst` (hash tree directories).

use crate::bytes::{get_u16, get_u32, put_u32};
use crate::checksum::Seed;
use crate::hash::{Bytes, half_md4};
use crate::read::entries::{
    INDEX_ENTRY as ENTRY, INDEX_NODE_ENTRIES as NODE_ENTRIES, INDEX_ROOT_ENTRIES as ROOT_ENTRIES,
    index_checksum,
};
use crate::read::error::{Result, corrupt};
use crate::read::inode::RawInode;
use crate::read::map::BlockMap;
use crate::read::volume::Volume;

const HALF_MD4: u8 = 1;
/// Levels below the first, with the feature largedir.
const MAX_LEVELS: u8 = 3;

/// The blocks of an index.
#[derive(Debug)]
pub(super) struct Index {
    /// Block 0 of the directory.
    pub(super) root: u64,
    pub(super) nodes: Vec<u64>,
}

/// Hashes and blocks of one block of the index.
fn index_entries(block: &[u8], first: usize) -> Result<Vec<(u32, u32)>> {
    let (limit, count) = (usize::from(get_u16(block, first)), usize::from(get_u16(block, first + 2)));
    if count == 0 || count > limit || first + limit * ENTRY > block.len() {
        return corrupt("the index of a directory makes no sense");
    }
    Ok((0..count)
        .map(|index| {
            let at = first + index * ENTRY;
            // Limit and count lie in place of the first hash.
            let hash = if index == 0 { 0 } else { get_u32(block, at) };
            (hash, get_u32(block, at + 4))
        })
        .collect())
}

fn levels(root: &[u8]) -> Result<u8> {
    let levels = root[30];
    if levels > MAX_LEVELS || root[29] != 8 {
        return corrupt("the index of a directory makes no sense");
    }
    Ok(levels)
}

fn place(map: &BlockMap, logical: u32) -> Result<u64> {
    // The upper four bits are not part of the number.
    match map.find(logical & 0x0fff_ffff) {
        Some(block) => Ok(block),
        None => corrupt("the index of a directory names blocks it does not have"),
    }
}

/// The block that a name belongs into; `None` when the kind of hash is not known here.
pub(super) fn leaf(volume: &Volume, directory: &RawInode, name: &[u8]) -> Result<Option<u64>> {
    let map = BlockMap::read(volume, directory)?;
    let root = volume.block(place(&map, 0)?)?;
    if root[28] != HALF_MD4 {
        return Ok(None);
    }
    let bytes = if volume.shape.unsigned_hash { Bytes::Unsigned } else { Bytes::Signed };
    let hash = half_md4(&volume.shape.hash_seed, name, bytes).major;
    let mut block = root;
    let mut first = ROOT_ENTRIES;
    for level in (0..=levels(&block)?).rev() {
        let entries = index_entries(&block, first)?;
        let behind = entries.partition_point(|(start, _)| start & !1 <= hash);
        let (_, logical) = entries[behind.max(1) - 1];
        let physical = place(&map, logical)?;
        if level == 0 {
            return Ok(Some(physical));
        }
        block = volume.block(physical)?;
        first = NODE_ENTRIES;
    }
    Ok(None)
}

/// All blocks of the index.
pub(super) fn nodes(volume: &Volume, directory: &RawInode) -> Result<Index> {
    let map = BlockMap::read(volume, directory)?;
    let root_place = place(&map, 0)?;
    let root = volume.block(root_place)?;
    let limit = directory.size() / volume.shape.block_size as u64;
    let mut nodes = Vec::new();
    let mut level = vec![(root_place, ROOT_ENTRIES)];
    for _ in 0..levels(&root)? {
        let mut below = Vec::new();
        for (block, first) in level {
            for (_, logical) in index_entries(&volume.block(block)?, first)? {
                below.push((place(&map, logical)?, NODE_ENTRIES));
            }
            if (nodes.len() + below.len()) as u64 > limit {
                return corrupt("the index of a directory is larger than the directory");
            }
        }
        nodes.extend(below.iter().map(|(block, _)| *block));
        level = below;
    }
    Ok(Index { root: root_place, nodes })
}

/// Brings the checksum of block 0 of an indexed directory up to date.
pub(super) fn seal(block: &mut [u8], seed: Seed) -> Result<()> {
    match index_checksum(block, ROOT_ENTRIES, seed) {
        Some((place, checksum)) => {
            put_u32(block, place, checksum);
            Ok(())
        }
        None => corrupt("the index of a directory makes no sense"),
    }
}
