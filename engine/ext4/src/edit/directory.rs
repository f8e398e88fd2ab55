//! Names in directories: added, replaced, taken away.
//!
//! Format: kernel documentation, `filesystems/ext4/directory.rst`.

use std::ops::ControlFlow;

use super::inodes::append_block;
use super::{Editor, index};
use crate::bytes::{get_u16, get_u32, put_u16, put_u32};
use crate::inode::FLAG_INDEX;
use crate::read::entries::{HEADER, RawEntry, TAIL, block_entries, for_each_block, has_tail};
use crate::read::error::{ImageError, Result, corrupt, display};
use crate::read::inode::RawInode;
use crate::read::map::BlockMap;
use crate::read::{FileKind, InodeNumber};
use crate::tree::Extent;

/// Where an entry lies.
struct Found {
    block: u64,
    offset: usize,
    length: usize,
    /// The entry before it in its block: where it lies, and its length.
    before: Option<(usize, usize)>,
}

impl Editor {
    /// Adds a name that is known to be free.
    pub(super) fn add_entry(
        &mut self,
        directory: InodeNumber,
        name: &[u8],
        inode: InodeNumber,
        kind: FileKind,
    ) -> Result<()> {
        let mut raw = self.reader.raw(directory)?;
        if raw.flags() & FLAG_INDEX != 0 {
            // In an indexed directory a name has its place; without room there, the index is given up.
            if let Some(block) = index::leaf(self.volume(), &raw, name)?
                && self.add_to_block(&raw, block, name, inode, kind)?
            {
                return self.put_changed_inode(raw, true);
            }
            self.drop_index(&mut raw)?;
        }
        let mut blocks = Vec::new();
        for_each_block(self.volume(), &raw, |_, physical, _| {
            blocks.push(physical);
            Ok(ControlFlow::Continue(()))
        })?;
        for block in blocks {
            if self.add_to_block(&raw, block, name, inode, kind)? {
                return self.put_changed_inode(raw, true);
            }
        }
        let block = self.append_directory_block(&mut raw)?;
        if !self.add_to_block(&raw, block, name, inode, kind)? {
            return corrupt(format!("directory {} has no room in an empty block", directory.0));
        }
        self.put_changed_inode(raw, true)
    }

    /// Lets a name stand for another inode.
    pub(super) fn replace_entry(
        &mut self,
        directory: InodeNumber,
        name: &[u8],
        inode: InodeNumber,
        kind: FileKind,
    ) -> Result<()> {
        let raw = self.reader.raw(directory)?;
        let found = self.find_entry(&raw, name)?;
        let file_type = self.file_type(kind);
        self.change_directory_block(&raw, found.block, |content| {
            put_u32(content, found.offset, inode.0);
            content[found.offset + 7] = file_type;
        })?;
        self.put_changed_inode(raw, true)
    }

    pub(super) fn remove_entry(&mut self, directory: InodeNumber, name: &[u8]) -> Result<()> {
        let raw = self.reader.raw(directory)?;
        let found = self.find_entry(&raw, name)?;
        self.change_directory_block(&raw, found.block, |content| {
            content[found.offset + HEADER..found.offset + found.length].fill(0);
            content[found.offset..found.offset + 4].fill(0);
            if let Some((before, length)) = found.before {
                put_length(content, before, length + found.length);
                content[found.offset..found.offset + HEADER].fill(0);
            }
        })?;
        self.put_changed_inode(raw, true)
    }

    /// Lets the `..` of a directory stand for another one.
    pub(super) fn set_parent(&mut self, directory: InodeNumber, parent: InodeNumber) -> Result<()> {
        let raw = self.reader.raw(directory)?;
        let found = self.find_entry(&raw, b"..")?;
        self.change_directory_block(&raw, found.block, |content| put_u32(content, found.offset, parent.0))
    }

    /// Fails when `directory` is `above` or lies below it.
    pub(super) fn check_not_below(&self, directory: InodeNumber, above: InodeNumber) -> Result<()> {
        let mut at = directory;
        // No sound path is longer than there are inodes.
        for _ in 0..self.volume().shape.inodes {
            if at == above {
                return Err(ImageError::IntoItself);
            }
            if at == self.reader.root() {
                return Ok(());
            }
            at = match self.reader.lookup(at, b"..")? {
                Some(parent) => parent,
                None => return corrupt(format!("directory {} has no `..`", at.0)),
            };
        }
        corrupt("directories lie within each other")
    }

    /// A block for a directory: with `.` and `..`, when `parent` is given, else without entries.
    pub(super) fn new_directory_block(
        &mut self,
        directory: InodeNumber,
        parent: Option<InodeNumber>,
    ) -> Result<u64> {
        let block = self.allocate_block(directory)?;
        let file_type = self.file_type(FileKind::Directory);
        let mut content = self.empty_directory_block();
        if let Some(parent) = parent {
            let rest = block_length(&content, 0) - 12;
            put_u32(&mut content, 0, directory.0);
            put_length(&mut content, 0, 12);
            content[6..9].copy_from_slice(&[1, file_type, b'.']);
            put_u32(&mut content, 12, parent.0);
            put_length(&mut content, 12, rest);
            content[18..22].copy_from_slice(&[2, file_type, b'.', b'.']);
        }
        if let Some(seed) = self.volume().shape.seed {
            seal(&mut content, seed.of_inode(directory.0, 0));
        }
        self.put_block(block, content)?;
        Ok(block)
    }

    /// One empty entry, and the one for the checksum where there are checksums.
    fn empty_directory_block(&self) -> Vec<u8> {
        let shape = &self.volume().shape;
        let mut content = vec![0; shape.block_size];
        let tail = if shape.seed.is_some() { TAIL } else { 0 };
        put_length(&mut content, 0, shape.block_size - tail);
        if tail > 0 {
            let at = shape.block_size - TAIL;
            put_u16(&mut content, at + 4, TAIL as u16);
            content[at + 7] = 0xDE;
        }
        content
    }

    fn append_directory_block(&mut self, raw: &mut RawInode) -> Result<u64> {
        let number = InodeNumber(raw.number);
        let map = BlockMap::read(self.volume(), raw)?;
        if map.runs.iter().any(|run| !run.written) {
            return corrupt(format!("directory {} has blocks that were never written", raw.number));
        }
        let size = raw.size();
        let block_size = self.volume().shape.block_size as u64;
        let mut runs: Vec<Extent> = map
            .runs
            .iter()
            .map(|run| Extent { logical: run.logical, physical: run.physical, blocks: run.blocks })
            .collect();
        let blocks: u64 = runs.iter().map(|run| u64::from(run.blocks)).sum();
        if blocks * block_size != size {
            return corrupt(format!("directory {} has holes", raw.number));
        }
        let block = self.new_directory_block(number, None)?;
        append_block(&mut runs, block);
        // The map is made anew, as extents even where it was a block map.
        for node in &map.nodes {
            self.free_block(*node)?;
        }
        let generation = get_u32(&raw.record, 0x64);
        let (encoded, nodes) = self.encode_map(number, generation, &crate::extent::normalise(&runs))?;
        raw.record[0x28..0x64].copy_from_slice(&encoded);
        let flags = raw.flags() | crate::inode::FLAG_EXTENTS;
        put_u32(&mut raw.record, 0x20, flags);
        put_u32(&mut raw.record, 0x04, (size + block_size) as u32);
        put_u32(&mut raw.record, 0x6C, ((size + block_size) >> 32) as u32);
        self.add_blocks(raw, 1 + nodes as i64 - map.nodes.len() as i64)?;
        Ok(block)
    }

    /// Adds an entry to a block, if there is room.
    fn add_to_block(
        &mut self,
        raw: &RawInode,
        block: u64,
        name: &[u8],
        inode: InodeNumber,
        kind: FileKind,
    ) -> Result<bool> {
        let content = self.volume().block(block)?;
        let needed = (HEADER + name.len()).next_multiple_of(4);
        let usable = content.len() - if has_tail(&content) { TAIL } else { 0 };
        let room = block_entries(&content, raw.number)?.into_iter().find_map(|entry| {
            let used = used_length(&entry);
            (entry.offset < usable && entry.length >= used + needed).then_some((
                entry.offset,
                used,
                entry.length,
            ))
        });
        let Some((offset, used, length)) = room else { return Ok(false) };
        let file_type = self.file_type(kind);
        self.change_directory_block(raw, block, |content| {
            if used > 0 {
                put_length(content, offset, used);
            }
            let at = offset + used;
            put_u32(content, at, inode.0);
            put_length(content, at, length - used);
            content[at + 6] = name.len() as u8;
            content[at + 7] = file_type;
            content[at + HEADER..at + HEADER + name.len()].copy_from_slice(name);
        })?;
        Ok(true)
    }

    fn find_entry(&self, raw: &RawInode, name: &[u8]) -> Result<Found> {
        let mut found = None;
        for_each_block(self.volume(), raw, |_, block, content| {
            let mut before = None;
            for entry in block_entries(content, raw.number)? {
                if entry.inode != 0 && entry.name == name {
                    found = Some(Found { block, offset: entry.offset, length: entry.length, before });
                    return Ok(ControlFlow::Break(()));
                }
                before = Some((entry.offset, entry.length));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        found.ok_or_else(|| ImageError::NotFound { name: display(name) })
    }

    /// Changes entries of a block and brings its checksum up to date.
    fn change_directory_block(
        &mut self,
        raw: &RawInode,
        block: u64,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        let seed = self.volume().shape.seed.map(|seed| raw.seed(seed));
        let mut content = self.volume().block(block)?;
        change(&mut content);
        if let Some(seed) = seed {
            // Names lie in blocks of entries; only `.` and `..` lie in block 0 of an indexed directory.
            if raw.flags() & FLAG_INDEX != 0 && content[6..9] == [1, content[7], b'.'] {
                index::seal(&mut content, seed)?;
            } else {
                seal(&mut content, seed);
            }
        }
        self.put_block(block, content)
    }

    /// Turns an indexed directory into a linear one: the blocks of its index become empty.
    fn drop_index(&mut self, raw: &mut RawInode) -> Result<()> {
        let seed = self.volume().shape.seed.map(|seed| raw.seed(seed));
        let nodes = index::nodes(self.volume(), raw)?;
        let mut root = self.volume().block(nodes.root)?;
        let dots = block_entries(&root, raw.number)?;
        let [dot, dot_dot] = dots[..] else {
            return corrupt(format!("directory {} has no index", raw.number));
        };
        if dot.name != b"." || dot_dot.name != b".." || dot_dot.offset != 12 {
            return corrupt(format!("directory {} does not begin with `.` and `..`", raw.number));
        }
        let empty = self.empty_directory_block();
        root[24..].copy_from_slice(&empty[24..]);
        put_length(&mut root, 12, block_length(&empty, 0) - 12);
        for (block, mut content) in
            nodes.nodes.into_iter().map(|block| (block, empty.clone())).chain([(nodes.root, root)])
        {
            if let Some(seed) = seed {
                seal(&mut content, seed);
            }
            self.put_block(block, content)?;
        }
        let flags = raw.flags() & !FLAG_INDEX;
        put_u32(&mut raw.record, 0x20, flags);
        self.put_inode(raw.clone())
    }

    fn file_type(&self, kind: FileKind) -> u8 {
        if !self.volume().shape.has_file_types() {
            return 0;
        }
        match kind {
            FileKind::File => 1,
            FileKind::Directory => 2,
            FileKind::CharacterDevice { .. } => 3,
            FileKind::BlockDevice { .. } => 4,
            FileKind::Fifo => 5,
            FileKind::Socket => 6,
            FileKind::Symlink => 7,
        }
    }
}

/// Bytes an entry needs; the rest of its length is free.
fn used_length(entry: &RawEntry<'_>) -> usize {
    if entry.inode == 0 { 0 } else { (HEADER + entry.name.len()).next_multiple_of(4) }
}

fn put_length(block: &mut [u8], offset: usize, length: usize) {
    // 64 KiB do not fit into the field, and zero stands for them.
    put_u16(block, offset + 4, (length & 0xffff) as u16);
}

fn block_length(block: &[u8], offset: usize) -> usize {
    match get_u16(block, offset + 4) {
        0 => 1 << 16,
        length => usize::from(length),
    }
}

/// Writes the checksum into the entry that is there for it.
fn seal(block: &mut [u8], seed: crate::checksum::Seed) {
    let tail = block.len() - TAIL;
    let checksum = seed.checksum(&block[..tail]);
    put_u32(block, tail + 8, checksum);
}
