//! Indexed directories: blocks of entries ordered by the hash of their names, and an index of them.
//!
//! Format: kernel documentation, `filesystems/ext4/directory.rst` (hash tree directories). The index
//! lies in entries that linear readers skip: block 0 behind `..`, further blocks behind one empty
//! entry.

use std::ops::Range;

use crate::bytes::{put_u16, put_u32};
use crate::checksum::Seed;
use crate::directory::{CAPACITY, DIRECTORY, ENTRY_HEADER, Entry, entry_size};
use crate::geometry::BLOCK;
use crate::hash::{Bytes, NameHash, half_md4};

const HALF_MD4: u8 = 1;
const INDEX_ENTRY: usize = 8;
/// Where the entries of the index begin in block 0: behind `.`, `..` and eight bytes of information.
const ROOT_ENTRIES: usize = 32;
/// The same in further index blocks: behind one empty entry.
const NODE_ENTRIES: usize = 8;
/// Reserved word and checksum behind the entries of the index.
const TAIL: usize = 8;
const ROOT_LIMIT: usize = (BLOCK - ROOT_ENTRIES - TAIL) / INDEX_ENTRY;
const NODE_LIMIT: usize = (BLOCK - NODE_ENTRIES - TAIL) / INDEX_ENTRY;
/// Bytes to fill of a block of entries; the rest lets names be added before blocks must split.
const FILL: usize = CAPACITY - CAPACITY / 8;

/// How the entries of a directory are spread over blocks.
#[derive(Debug)]
pub(crate) struct IndexPlan<'a> {
    entries: Vec<(NameHash, Entry<'a>)>,
    /// For each block of entries: which ones, and the hash it stands for in the index.
    leaves: Vec<(Range<usize>, u32)>,
}

impl<'a> IndexPlan<'a> {
    /// `None` when two levels of index are not enough (about ten million names).
    pub(crate) fn new(entries: impl Iterator<Item = Entry<'a>>, seed: &[u32; 4]) -> Option<Self> {
        let mut entries: Vec<_> =
            entries.map(|entry| (half_md4(seed, entry.name, Bytes::Signed), entry)).collect();
        entries.sort_unstable_by(|(hash, entry), (other_hash, other)| {
            (hash, entry.name).cmp(&(other_hash, other.name))
        });
        let mut leaves = Vec::new();
        let mut start = 0;
        let mut used = 0;
        let mut first_hash = 0;
        for (index, (hash, entry)) in entries.iter().enumerate() {
            let size = entry_size(entry.name);
            if used + size > FILL {
                leaves.push((start..index, first_hash));
                // The lowest bit says that the last hash of the block before goes on in this one.
                let goes_on = entries[index - 1].0.major == hash.major;
                first_hash = hash.major | u32::from(goes_on);
                start = index;
                used = 0;
            }
            used += size;
        }
        leaves.push((start..entries.len(), first_hash));
        (leaves.len() <= ROOT_LIMIT * NODE_LIMIT).then_some(Self { entries, leaves })
    }

    /// Index blocks beside block 0.
    pub(crate) fn nodes(&self) -> usize {
        if self.leaves.len() <= ROOT_LIMIT { 0 } else { self.leaves.len().div_ceil(NODE_LIMIT) }
    }

    /// Blocks of the directory.
    pub(crate) fn blocks(&self) -> u64 {
        (1 + self.nodes() + self.leaves.len()) as u64
    }

    /// The entries, block by block.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = impl Iterator<Item = Entry<'a>>> {
        self.leaves.iter().map(|(range, _)| self.entries[range.clone()].iter().map(|(_, entry)| *entry))
    }

    /// Writes block 0: `.`, `..` and the upper level of the index. `block` is zeroed.
    pub(crate) fn encode_root(&self, block: &mut [u8], inode: u32, parent: u32, seed: Seed) {
        put_u32(block, 0, inode);
        put_u16(block, 4, 12);
        block[6..9].copy_from_slice(&[1, DIRECTORY, b'.']);
        put_u32(block, 12, parent);
        put_u16(block, 16, (BLOCK - 12) as u16);
        block[18..22].copy_from_slice(&[2, DIRECTORY, b'.', b'.']);
        block[28] = HALF_MD4;
        block[29] = 8; // length of this information
        let nodes = self.nodes();
        block[30] = u8::from(nodes > 0); // levels of index below this one
        let first_leaf = 1 + nodes as u32;
        if nodes == 0 {
            let entries = self.leaves.iter().zip(first_leaf..).map(|((_, hash), block)| (*hash, block));
            encode_index(block, ROOT_ENTRIES, ROOT_LIMIT, entries, seed);
        } else {
            let entries = self.leaves.chunks(NODE_LIMIT).zip(1..).map(|(leaves, block)| (leaves[0].1, block));
            encode_index(block, ROOT_ENTRIES, ROOT_LIMIT, entries, seed);
        }
    }

    /// Writes one block of the lower level of the index. `block` is zeroed.
    pub(crate) fn encode_node(&self, node: usize, block: &mut [u8], seed: Seed) {
        put_u16(block, 4, BLOCK as u16);
        let first = node * NODE_LIMIT;
        let leaves = self.leaves.iter().skip(first).take(NODE_LIMIT);
        let blocks = (1 + self.nodes() + first) as u32..;
        let entries = leaves.zip(blocks).map(|((_, hash), block)| (*hash, block));
        encode_index(block, NODE_ENTRIES, NODE_LIMIT, entries, seed);
    }
}

/// Writes an index: limit and count in place of the first hash (which counts as zero), then hashes
/// and blocks, then the checksum behind the last possible entry.
fn encode_index(
    block: &mut [u8],
    first: usize,
    limit: usize,
    entries: impl Iterator<Item = (u32, u32)>,
    seed: Seed,
) {
    let mut count = 0;
    for (hash, target) in entries {
        let position = first + count * INDEX_ENTRY;
        put_u32(block, position, hash);
        put_u32(block, position + 4, target);
        count += 1;
    }
    put_u16(block, first, limit as u16);
    put_u16(block, first + 2, count as u16);
    let tail = first + limit * INDEX_ENTRY;
    let mut checked = block[..first + count * INDEX_ENTRY].to_vec();
    // The reserved word of the tail and, in place of the checksum, zeros.
    checked.extend_from_slice(&[0; TAIL]);
    put_u32(block, tail + 4, seed.checksum(&checked));
}

const _: () = assert!(ENTRY_HEADER == NODE_ENTRIES);
