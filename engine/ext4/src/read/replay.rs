//! The journal: which blocks have a newer content in it that was committed and never written back.
//!
//! Format: kernel documentation, `filesystems/ext4/journal.rst`; the three passes are those of
//! `fs/jbd2/recovery.c`. Nothing is written: the blocks are only found.

use std::collections::HashMap;

use super::error::{ImageError, Result, corrupt};
use super::inode::RawInode;
use super::map::BlockMap;
use super::volume::{Replayed, Volume};
use crate::checksum::crc;

pub(super) const MAGIC: u32 = 0xC03B_3998;

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

const FEATURE_64BIT: u32 = 0x2;
const FEATURE_CHECKSUM_V2: u32 = 0x8;
const FEATURE_CHECKSUM_V3: u32 = 0x10;
/// Revoked blocks, 64-bit numbers, asynchronous commits, both kinds of checksums.
const KNOWN_FEATURES: u32 = 0x1 | FEATURE_64BIT | 0x4 | FEATURE_CHECKSUM_V2 | FEATURE_CHECKSUM_V3;
const FEATURE_FAST_COMMIT: u32 = 0x20;

const FLAG_ESCAPED: u32 = 0x1;
const FLAG_SAME_UUID: u32 = 0x2;
const FLAG_LAST: u32 = 0x8;
const HEADER: usize = 12;
const UUID: usize = 16;
const SUPERBLOCK_LENGTH: usize = 1024;

/// Gets a descriptor or revoke block: its place in the journal, its transaction, its content.
type Visit<'a> = dyn FnMut(u32, u32, &[u8]) -> Result<()> + 'a;

/// The journal of a volume.
struct Journal<'a> {
    volume: &'a Volume,
    map: BlockMap,
    blocks: u32,
    first: u32,
    start: u32,
    sequence: u32,
    features: u32,
    seed: u32,
}

/// Finds the blocks to take from the journal. Empty when it is empty or there is none.
pub(super) fn replay(volume: &Volume) -> Result<HashMap<u64, Replayed>> {
    if volume.shape.journal_inode == 0 || !volume.shape.needs_recovery() {
        return Ok(HashMap::new());
    }
    let journal = Journal::open(volume)?;
    if journal.start == 0 {
        return Ok(HashMap::new());
    }
    if volume.shape.has_fast_commits() || journal.features & FEATURE_FAST_COMMIT != 0 {
        return Err(ImageError::Unsupported {
            feature: "fast commits in a journal that is not empty; mount and unmount it once",
        });
    }
    journal.find()
}

/// Where the superblock of the journal lies, for who empties it.
pub(crate) fn superblock_place(volume: &Volume) -> Result<u64> {
    Journal::open(volume)?.place(0)
}

/// Marks a journal as empty. `sequence` numbers the transactions that are to come.
pub(crate) fn empty(superblock: &mut [u8]) {
    let features = be_u32(superblock, 0x28);
    superblock[0x1C..0x20].fill(0);
    // What was replayed must never be taken for newer than what comes.
    let sequence = be_u32(superblock, 0x18).wrapping_add(superblock_blocks(superblock));
    superblock[0x18..0x1C].copy_from_slice(&sequence.to_be_bytes());
    if features & (FEATURE_CHECKSUM_V2 | FEATURE_CHECKSUM_V3) != 0 {
        superblock[0xFC..0x100].fill(0);
        let checksum = crc(!0, &superblock[..SUPERBLOCK_LENGTH]);
        superblock[0xFC..0x100].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Blocks of the journal: no more transactions fit into it.
fn superblock_blocks(superblock: &[u8]) -> u32 {
    be_u32(superblock, 0x10)
}

impl<'a> Journal<'a> {
    fn open(volume: &'a Volume) -> Result<Self> {
        let inode = RawInode::read(volume, volume.shape.journal_inode)?;
        let map = BlockMap::read(volume, &inode)?;
        let mut journal =
            Self { volume, map, blocks: 1, first: 0, start: 0, sequence: 0, features: 0, seed: 0 };
        let superblock = journal.block(0)?;
        let kind = be_u32(&superblock, 4);
        if be_u32(&superblock, 0) != MAGIC || !matches!(kind, SUPERBLOCK_V1 | SUPERBLOCK_V2) {
            return corrupt("the journal has no superblock");
        }
        journal.blocks = superblock_blocks(&superblock);
        journal.first = be_u32(&superblock, 0x14);
        journal.sequence = be_u32(&superblock, 0x18);
        journal.start = be_u32(&superblock, 0x1C);
        if kind == SUPERBLOCK_V2 {
            journal.features = be_u32(&superblock, 0x28);
        }
        if journal.features & !(KNOWN_FEATURES | FEATURE_FAST_COMMIT) != 0 {
            return Err(ImageError::Unsupported { feature: "a journal that is newer than this program" });
        }
        if journal.has_checksums() {
            journal.seed = crc(!0, &superblock[0x30..0x40]);
            let mut checked = superblock[..SUPERBLOCK_LENGTH].to_vec();
            checked[0xFC..0x100].fill(0);
            if crc(!0, &checked) != be_u32(&superblock, 0xFC) {
                return corrupt("the superblock of the journal does not match its checksum");
            }
        }
        if be_u32(&superblock, 0x0C) as usize != volume.shape.block_size
            || journal.first == 0
            || journal.first >= journal.blocks
            || u64::from(journal.blocks) > inode.size() / volume.shape.block_size as u64
            || journal.start >= journal.blocks
            || journal.start != 0 && journal.start < journal.first
        {
            return corrupt("the superblock of the journal makes no sense");
        }
        Ok(journal)
    }

    fn has_checksums(&self) -> bool {
        self.features & (FEATURE_CHECKSUM_V2 | FEATURE_CHECKSUM_V3) != 0
    }

    /// Where a block of the journal lies in the image.
    fn place(&self, index: u32) -> Result<u64> {
        match self.map.find(index) {
            Some(block) => Ok(block),
            None => corrupt("the journal has holes"),
        }
    }

    fn block(&self, index: u32) -> Result<Vec<u8>> {
        let mut content = vec![0; self.volume.shape.block_size];
        self.volume.read_raw(self.place(index)?, &mut content)?;
        Ok(content)
    }

    /// The block behind `index`, from the end back to the first.
    fn after(&self, index: u32, blocks: u32) -> u32 {
        let next = u64::from(index) + u64::from(blocks);
        let wrapped = if next >= u64::from(self.blocks) {
            next - u64::from(self.blocks) + u64::from(self.first)
        } else {
            next
        };
        wrapped as u32
    }

    fn find(&self) -> Result<HashMap<u64, Replayed>> {
        let end = self.walk(None, &mut |_, _, _| Ok(()))?;
        let mut revoked: HashMap<u64, u32> = HashMap::new();
        self.walk(Some(end), &mut |_, sequence, content| {
            if be_u32(content, 4) == REVOKE {
                for block in self.revoked_blocks(content)? {
                    let newest = revoked.entry(block).or_insert(sequence);
                    if is_before(*newest, sequence) {
                        *newest = sequence;
                    }
                }
            }
            Ok(())
        })?;
        let mut replayed = HashMap::new();
        self.walk(Some(end), &mut |index, sequence, content| {
            if be_u32(content, 4) != DESCRIPTOR {
                return Ok(());
            }
            for (tag, position) in self.tags(content)?.into_iter().zip(1..) {
                let data = self.after(index, position);
                if revoked.get(&tag.block).is_some_and(|newest| !is_before(*newest, sequence)) {
                    continue;
                }
                if tag.block >= self.volume.shape.blocks {
                    return corrupt("the journal holds blocks that the file system does not have");
                }
                self.check_data(&tag, sequence, data)?;
                let escaped = tag.flags & FLAG_ESCAPED != 0;
                replayed.insert(tag.block, Replayed { block: self.place(data)?, escaped });
            }
            Ok(())
        })?;
        Ok(replayed)
    }

    /// Visits the descriptor and revoke blocks of all transactions before `end`, or of as many as
    /// are whole; returns the first that is not.
    fn walk(&self, end: Option<u32>, visit: &mut Visit<'_>) -> Result<u32> {
        let mut index = self.start;
        let mut sequence = self.sequence;
        let mut steps = 0;
        // A log that goes round further than it is long is none.
        while end != Some(sequence) && steps < self.blocks {
            let content = self.block(index)?;
            if be_u32(&content, 0) != MAGIC || be_u32(&content, 8) != sequence {
                break;
            }
            let length = match be_u32(&content, 4) {
                DESCRIPTOR => {
                    if !self.tail_matches(&content) {
                        break;
                    }
                    visit(index, sequence, &content)?;
                    1 + self.tags(&content)?.len() as u32
                }
                REVOKE => {
                    if !self.tail_matches(&content) {
                        break;
                    }
                    visit(index, sequence, &content)?;
                    1
                }
                COMMIT => {
                    if !self.commit_matches(&content) {
                        break;
                    }
                    sequence = sequence.wrapping_add(1);
                    1
                }
                _ => break,
            };
            index = self.after(index, length);
            steps += length;
        }
        Ok(sequence)
    }

    /// The blocks that follow a descriptor, as it lists them.
    fn tags(&self, content: &[u8]) -> Result<Vec<Tag>> {
        let is_v3 = self.features & FEATURE_CHECKSUM_V3 != 0;
        let is_64bit = self.features & FEATURE_64BIT != 0;
        let size = match (is_v3, self.features & FEATURE_CHECKSUM_V2 != 0) {
            (true, _) => 16,
            (false, true) => 10 + 4 * usize::from(is_64bit),
            (false, false) => 8 + 4 * usize::from(is_64bit),
        };
        let end = content.len() - if self.has_checksums() { 4 } else { 0 };
        let mut tags = Vec::new();
        let mut position = HEADER;
        while position + size <= end {
            let tag = &content[position..position + size];
            let (flags, high, checksum) = if is_v3 {
                (be_u32(tag, 4), be_u32(tag, 8), be_u32(tag, 12))
            } else {
                let flags = u32::from(u16::from_be_bytes([tag[6], tag[7]]));
                let high = if is_64bit { be_u32(tag, 8) } else { 0 };
                (flags, high, u32::from(u16::from_be_bytes([tag[4], tag[5]])))
            };
            let high = if is_64bit { u64::from(high) << 32 } else { 0 };
            tags.push(Tag { block: high | u64::from(be_u32(tag, 0)), flags, checksum });
            position += size;
            if flags & FLAG_SAME_UUID == 0 {
                position += UUID;
            }
            if flags & FLAG_LAST != 0 {
                break;
            }
        }
        Ok(tags)
    }

    fn revoked_blocks(&self, content: &[u8]) -> Result<Vec<u64>> {
        let used = be_u32(content, HEADER) as usize;
        let end = content.len() - if self.has_checksums() { 4 } else { 0 };
        if used < HEADER + 4 || used > end {
            return corrupt("a list of revoked blocks in the journal is too long");
        }
        let list = &content[HEADER + 4..used];
        Ok(if self.features & FEATURE_64BIT != 0 {
            list.chunks_exact(8).map(|c| u64::from(be_u32(c, 0)) << 32 | u64::from(be_u32(c, 4))).collect()
        } else {
            list.chunks_exact(4).map(|c| u64::from(be_u32(c, 0))).collect()
        })
    }

    /// The checksum in the last four bytes of descriptor and revoke blocks.
    fn tail_matches(&self, content: &[u8]) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let tail = content.len() - 4;
        let state = crc(self.seed, &content[..tail]);
        crc(state, &[0; 4]) == be_u32(content, tail)
    }

    fn commit_matches(&self, content: &[u8]) -> bool {
        const CHECKSUM: usize = 16;
        if !self.has_checksums() {
            return true;
        }
        let mut checked = content.to_vec();
        checked[CHECKSUM..CHECKSUM + 4].fill(0);
        crc(self.seed, &checked) == be_u32(content, CHECKSUM)
    }

    fn check_data(&self, tag: &Tag, sequence: u32, index: u32) -> Result<()> {
        if !self.has_checksums() {
            return Ok(());
        }
        let checksum = crc(crc(self.seed, &sequence.to_be_bytes()), &self.block(index)?);
        let matches = if self.features & FEATURE_CHECKSUM_V3 != 0 {
            checksum == tag.checksum
        } else {
            checksum & 0xffff == tag.checksum
        };
        if matches { Ok(()) } else { corrupt("a block in the journal does not match its checksum") }
    }
}

#[derive(Clone, Copy, Debug)]
struct Tag {
    block: u64,
    flags: u32,
    checksum: u32,
}

/// Whether transaction `a` is older than `b`; their numbers wrap around.
fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

pub(super) fn be_u32(record: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes([record[offset], record[offset + 1], record[offset + 2], record[offset + 3]])
}
