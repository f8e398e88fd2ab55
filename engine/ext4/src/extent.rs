//! Extents: up to four in the inode, more in a tree of blocks.
//!
//! Format: kernel documentation, `filesystems/ext4/ifork.rst` (extent tree).

use crate::bytes::{low_u16, low_u32, put_u16, put_u32};
use crate::checksum::Seed;
use crate::geometry::BLOCK;
use crate::tree::Extent;

const MAGIC: u16 = 0xF30A;
const HEADER: usize = 12;
const ENTRY: usize = 12;
/// Extents or index entries in the inode.
const IN_INODE: usize = 4;
/// Blocks in one extent. Longer ones would be taken for preallocated blocks.
const MAX_BLOCKS: u32 = 32768;

/// Joins runs that follow each other and cuts them to what one extent on disk holds.
pub(crate) fn normalise(extents: &[Extent]) -> Vec<Extent> {
    let mut result: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        let mut rest = *extent;
        while rest.blocks > 0 {
            if let Some(last) = result.last_mut()
                && last.blocks < MAX_BLOCKS
                && last.logical + last.blocks == rest.logical
                && last.physical + u64::from(last.blocks) == rest.physical
            {
                let joined = rest.blocks.min(MAX_BLOCKS - last.blocks);
                last.blocks += joined;
                rest = cut(rest, joined);
            } else {
                let blocks = rest.blocks.min(MAX_BLOCKS);
                result.push(Extent { blocks, ..rest });
                rest = cut(rest, blocks);
            }
        }
    }
    result
}

/// What is left of a run without its first blocks.
fn cut(extent: Extent, blocks: u32) -> Extent {
    Extent {
        logical: extent.logical.wrapping_add(blocks),
        physical: extent.physical + u64::from(blocks),
        blocks: extent.blocks - blocks,
    }
}

/// The same in a block; four bytes are left for its checksum.
const fn per_block(block_size: usize) -> usize {
    (block_size - HEADER - 4) / ENTRY
}

/// Blocks of 4 KiB that the tree needs outside of the inode for that many normalised extents.
pub(crate) fn tree_blocks(extents: usize) -> u64 {
    let mut total = 0;
    let mut level = extents;
    while level > IN_INODE {
        level = level.div_ceil(per_block(BLOCK));
        total += level as u64;
    }
    total
}

/// The root of the tree for the inode's 60 bytes of `i_block`.
///
/// Blocks of the tree are handed to `emit`, which places them and says where: children before their
/// parents. `seed` is that of the inode, where there are checksums.
pub(crate) fn encode<E>(
    extents: &[Extent],
    block_size: usize,
    seed: Option<Seed>,
    mut emit: impl FnMut(&[u8]) -> Result<u64, E>,
) -> Result<[u8; 60], E> {
    let mut depth = 0;
    // Entries of the level in hand: first logical block, and the twelve bytes.
    let mut level: Vec<(u32, [u8; ENTRY])> = extents.iter().map(|e| (e.logical, leaf_entry(e))).collect();
    let capacity = per_block(block_size);
    let mut block = vec![0; block_size];
    while level.len() > IN_INODE {
        let mut parents = Vec::with_capacity(level.len().div_ceil(capacity));
        for entries in level.chunks(capacity) {
            block.fill(0);
            encode_node(&mut block, entries, capacity, depth);
            if let Some(seed) = seed {
                let tail = HEADER + capacity * ENTRY;
                let checksum = seed.checksum(&block[..tail]);
                put_u32(&mut block, tail, checksum);
            }
            let physical = emit(&block)?;
            parents.push((entries[0].0, index_entry(entries[0].0, physical)));
        }
        level = parents;
        depth += 1;
    }
    let mut root = [0; 60];
    encode_node(&mut root, &level, IN_INODE, depth);
    Ok(root)
}

fn encode_node(node: &mut [u8], entries: &[(u32, [u8; ENTRY])], capacity: usize, depth: u16) {
    put_u16(node, 0, MAGIC);
    put_u16(node, 2, entries.len() as u16);
    put_u16(node, 4, capacity as u16);
    put_u16(node, 6, depth);
    for (slot, (_, entry)) in node[HEADER..].chunks_exact_mut(ENTRY).zip(entries) {
        slot.copy_from_slice(entry);
    }
}

fn leaf_entry(extent: &Extent) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    put_u32(&mut entry, 0, extent.logical);
    put_u16(&mut entry, 4, extent.blocks as u16);
    put_u16(&mut entry, 6, low_u16(extent.physical >> 32));
    put_u32(&mut entry, 8, low_u32(extent.physical));
    entry
}

fn index_entry(logical: u32, physical: u64) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    put_u32(&mut entry, 0, logical);
    put_u32(&mut entry, 4, low_u32(physical));
    put_u16(&mut entry, 8, low_u16(physical >> 32));
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(logical: u32, physical: u64, blocks: u32) -> Extent {
        Extent { logical, physical, blocks }
    }

    #[test]
    fn runs_are_joined_and_cut() {
        assert_eq!(
            normalise(&[extent(0, 100, 2), extent(2, 102, 3), extent(9, 105, 1), extent(10, 200, 70_000)]),
            [
                extent(0, 100, 5),
                extent(9, 105, 1),
                extent(10, 200, 32_768),
                extent(32_778, 32_968, 32_768),
                extent(65_546, 65_736, 4_464)
            ]
        );
    }

    #[test]
    fn trees_have_as_many_blocks_as_planned() {
        for count in [0, 1, 4, 5, 340, 341, 1360, 1361, 120_000] {
            let extents: Vec<_> = (0..count).map(|i| extent(i * 2, u64::from(i) * 3 + 9, 1)).collect();
            let mut emitted = 0;
            let root = encode(&extents, BLOCK, Some(Seed::of_uuid(&[7; 16])), |_| {
                emitted += 1;
                Ok::<_, ()>(1 << 33 | emitted)
            });
            assert_eq!(emitted, tree_blocks(extents.len()), "{count} extents");
            let depth = root.unwrap()[6];
            assert_eq!(u64::from(depth == 0), u64::from(count <= 4));
        }
    }
}
