//! Changes images without mounting them: small files, directories, owners and modes.
//!
//! Changes are collected in memory and written by [`Editor::commit`]. That is not atomic: who must
//! not lose the image edits a copy of it. A journal that is not empty is replayed first. The image
//! stays what e2fsck finds clean.

mod directory;
mod index;
mod space;

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::bytes::{get_u16, get_u32, high_u32, low_u16, low_u32, put_u16, put_u32};
use crate::checksum::crc;
use crate::extent;
use crate::inode::{self, Record};
use crate::read::error::{Result, corrupt, display};
use crate::read::inode::RawInode;
use crate::read::map::BlockMap;
use crate::read::volume::Volume;
use crate::read::{FileKind, ImageError, InodeNumber, Reader, is_fast_symlink, replay, xattrs};
use crate::superblock::LENGTH;
use crate::time;
use crate::tree::{Extent, Metadata, Timestamp};
use crate::xattr::{Attributes, block_checksum};

/// An ext4 image, opened to be changed.
#[derive(Debug)]
pub struct Editor {
    reader: Reader,
    now: Timestamp,
    /// What the change in hand has overwritten, to be put back when it fails.
    undo: Vec<(u64, Option<Vec<u8>>)>,
}

impl Editor {
    /// Opens an image. `file` must be open for reading and writing; `now` is the time that changed
    /// directories and inodes get.
    pub fn open(file: File, now: Timestamp) -> Result<Self> {
        let reader = Reader::open(file)?;
        reader.volume.shape.check_editable()?;
        Ok(Self { reader, now, undo: Vec::new() })
    }

    /// The image as it is with the changes so far.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Writes a file under a name, as if it was written aside and renamed: what had the name before,
    /// other than a directory, loses it.
    pub fn write_file(
        &mut self,
        directory: InodeNumber,
        name: &[u8],
        metadata: &Metadata,
        content: &[u8],
    ) -> Result<InodeNumber> {
        self.whole(|this| {
            let before = this.replaceable(directory, name)?;
            let number = this.allocate_inode(false, directory)?;
            let mut record = this.record(metadata, inode::TYPE_FILE);
            record.size = content.len() as u64;
            let runs = this.write_blocks(content, directory)?;
            this.create_inode(number, record, Some(&runs), metadata)?;
            this.name(directory, name, number, before, FileKind::File)?;
            Ok(number)
        })
    }

    /// Makes a symbolic link, or replaces what had the name, other than a directory.
    pub fn write_symlink(
        &mut self,
        directory: InodeNumber,
        name: &[u8],
        metadata: &Metadata,
        target: &[u8],
    ) -> Result<InodeNumber> {
        self.whole(|this| {
            let block_size = this.volume().shape.block_size;
            if target.is_empty() || target.len() >= block_size.min(4096) {
                return Err(ImageError::TooLarge { limit: block_size.min(4096) as u64 - 1 });
            }
            let before = this.replaceable(directory, name)?;
            let number = this.allocate_inode(false, directory)?;
            let mut record = this.record(metadata, inode::TYPE_SYMLINK);
            record.size = target.len() as u64;
            if target.len() < record.block.len() {
                record.block[..target.len()].copy_from_slice(target);
                this.create_inode(number, record, None, metadata)?;
            } else {
                let runs = this.write_blocks(target, directory)?;
                this.create_inode(number, record, Some(&runs), metadata)?;
            }
            this.name(directory, name, number, before, FileKind::Symlink)?;
            Ok(number)
        })
    }

    /// Makes an empty directory.
    pub fn create_directory(
        &mut self,
        directory: InodeNumber,
        name: &[u8],
        metadata: &Metadata,
    ) -> Result<InodeNumber> {
        self.whole(|this| {
            check_name(name)?;
            if this.reader.lookup(directory, name)?.is_some() {
                return Err(ImageError::Exists { name: display(name) });
            }
            let number = this.allocate_inode(true, directory)?;
            let mut record = this.record(metadata, inode::TYPE_DIRECTORY);
            record.links = 2;
            record.size = this.volume().shape.block_size as u64;
            let block = this.new_directory_block(number, Some(directory))?;
            let runs = [Extent { logical: 0, physical: block, blocks: 1 }];
            this.create_inode(number, record, Some(&runs), metadata)?;
            this.add_entry(directory, name, number, FileKind::Directory)?;
            this.add_links(directory, 1)?;
            Ok(number)
        })
    }

    /// The directory of a name, made with `metadata` where there is nothing yet. Symbolic links are not
    /// followed.
    pub fn ensure_directory(
        &mut self,
        directory: InodeNumber,
        name: &[u8],
        metadata: &Metadata,
    ) -> Result<InodeNumber> {
        match self.reader.lookup(directory, name)? {
            Some(present) if self.reader.raw(present)?.is_directory() => Ok(present),
            Some(_) => Err(ImageError::NotADirectory),
            None => self.create_directory(directory, name, metadata),
        }
    }

    /// Sets permission bits and owner.
    pub fn set_owner(&mut self, inode: InodeNumber, mode: u16, uid: u32, gid: u32) -> Result<()> {
        self.whole(|this| {
            let mut raw = this.reader.raw(inode)?;
            let record = &mut raw.record;
            let kind = get_u16(record, 0x00) & 0xF000;
            put_u16(record, 0x00, kind | mode & 0o7777);
            for (value, low, high) in [(uid, 0x02, 0x78), (gid, 0x18, 0x7A)] {
                put_u16(record, low, low_u16(u64::from(value)));
                put_u16(record, high, low_u16(u64::from(value >> 16)));
            }
            this.put_changed_inode(raw, false)
        })
    }

    /// Gives something another name, in the same directory or in another. The name must be free.
    pub fn rename(
        &mut self,
        directory: InodeNumber,
        name: &[u8],
        to_directory: InodeNumber,
        to_name: &[u8],
    ) -> Result<()> {
        self.whole(|this| {
            check_name(to_name)?;
            let Some(moved) = this.reader.lookup(directory, name)? else {
                return Err(ImageError::NotFound { name: display(name) });
            };
            if this.reader.lookup(to_directory, to_name)?.is_some() {
                return Err(ImageError::Exists { name: display(to_name) });
            }
            let kind = this.reader.stat(moved)?.kind;
            if kind == FileKind::Directory && directory != to_directory {
                this.check_not_below(to_directory, moved)?;
            }
            this.add_entry(to_directory, to_name, moved, kind)?;
            this.remove_entry(directory, name)?;
            if kind == FileKind::Directory && directory != to_directory {
                this.set_parent(moved, to_directory)?;
                this.add_links(to_directory, 1)?;
                this.add_links(directory, -1)?;
            }
            let raw = this.reader.raw(moved)?;
            this.put_changed_inode(raw, false)
        })
    }

    /// Takes a name away: that of an empty directory, or of anything else.
    pub fn remove(&mut self, directory: InodeNumber, name: &[u8]) -> Result<()> {
        self.whole(|this| {
            check_name(name)?;
            let Some(number) = this.reader.lookup(directory, name)? else {
                return Err(ImageError::NotFound { name: display(name) });
            };
            if number.0 < this.volume().shape.first_inode {
                return corrupt("a directory names a reserved inode");
            }
            let is_directory = this.reader.raw(number)?.is_directory();
            if is_directory && !this.reader.entries(number)?.is_empty() {
                return Err(ImageError::NotEmpty);
            }
            this.remove_entry(directory, name)?;
            if is_directory {
                this.add_links(directory, -1)?;
                this.free_inode(number)
            } else {
                this.drop_link(number)
            }
        })
    }

    /// Writes the changes. Returns the file, not synced.
    pub fn commit(mut self) -> Result<File> {
        self.update_superblock()?;
        let journal = if self.volume().replayed.is_empty() {
            None
        } else {
            let place = replay::superblock_place(self.volume())?;
            let mut content = vec![0; self.volume().shape.block_size];
            self.volume().read_raw(place, &mut content)?;
            replay::empty(&mut content);
            Some((place, content))
        };
        let volume = self.reader.volume;
        let size = volume.shape.block_size as u64;
        let mut content = vec![0; volume.shape.block_size];
        for block in volume.replayed.keys().filter(|block| !volume.changed.contains_key(block)) {
            volume.read_unchanged(*block, &mut content)?;
            volume.file.write_all_at(&content, block * size)?;
        }
        for (block, content) in &volume.changed {
            volume.file.write_all_at(content, block * size)?;
        }
        if let Some((block, content)) = journal {
            // Only what has reached the disk may leave the journal.
            volume.file.sync_data()?;
            volume.file.write_all_at(&content, block * size)?;
        }
        Ok(volume.file)
    }

    fn volume(&self) -> &Volume {
        &self.reader.volume
    }

    /// Makes a change wholly or not at all.
    fn whole<T>(&mut self, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.undo.clear();
        let result = change(self);
        if result.is_err() {
            for (block, content) in std::mem::take(&mut self.undo).into_iter().rev() {
                match content {
                    Some(content) => self.reader.volume.changed.insert(block, content),
                    None => self.reader.volume.changed.remove(&block),
                };
            }
        }
        result
    }

    /// Changes a block.
    fn change_block(&mut self, block: u64, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let mut content = self.volume().block(block)?;
        change(&mut content);
        self.put_block(block, content)
    }

    /// Replaces a block.
    fn put_block(&mut self, block: u64, content: Vec<u8>) -> Result<()> {
        if block >= self.volume().shape.blocks || content.len() != self.volume().shape.block_size {
            return corrupt("a block lies outside of the file system");
        }
        let before = self.reader.volume.changed.insert(block, content);
        self.undo.push((block, before));
        Ok(())
    }

    /// What has a name now, if it may be replaced.
    fn replaceable(&self, directory: InodeNumber, name: &[u8]) -> Result<Option<InodeNumber>> {
        check_name(name)?;
        let before = self.reader.lookup(directory, name)?;
        if let Some(before) = before
            && self.reader.raw(before)?.is_directory()
        {
            return Err(ImageError::IsADirectory);
        }
        Ok(before)
    }

    /// Names a new inode, in place of what had the name before.
    fn name(
        &mut self,
        directory: InodeNumber,
        name: &[u8],
        number: InodeNumber,
        before: Option<InodeNumber>,
        kind: FileKind,
    ) -> Result<()> {
        match before {
            None => self.add_entry(directory, name, number, kind),
            Some(before) => {
                self.replace_entry(directory, name, number, kind)?;
                self.drop_link(before)
            }
        }
    }

    fn record(&self, metadata: &Metadata, kind: u16) -> Record {
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
    fn write_blocks(&mut self, content: &[u8], near: InodeNumber) -> Result<Vec<Extent>> {
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
    fn create_inode(
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
    fn encode_map(
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
    fn put_inode(&mut self, mut raw: RawInode) -> Result<()> {
        raw.seal(self.volume().shape.seed);
        let (block, offset) = self.volume().inode_place(raw.number)?;
        self.change_block(block, |content| {
            content[offset..offset + raw.record.len()].copy_from_slice(&raw.record);
        })
    }

    /// Writes a record that was changed now; `content` says whether its content was, too.
    fn put_changed_inode(&mut self, mut raw: RawInode, content: bool) -> Result<()> {
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
    fn add_blocks(&self, raw: &mut RawInode, blocks: i64) -> Result<()> {
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
    fn add_links(&mut self, directory: InodeNumber, change: i32) -> Result<()> {
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
    fn drop_link(&mut self, number: InodeNumber) -> Result<()> {
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
    fn free_inode(&mut self, number: InodeNumber) -> Result<()> {
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
    fn drop_xattr_block(&mut self, block: u64) -> Result<()> {
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

    /// Free counts, time of the last write, and an empty journal.
    fn update_superblock(&mut self) -> Result<()> {
        let (free_blocks, free_inodes) = self.count_free()?;
        let (seconds, high) = time::superblock(self.now);
        let is_64bit = self.volume().shape.is_64bit();
        let has_checksums = self.volume().shape.seed.is_some();
        let (block, offset) = self.volume().superblock_place();
        self.change_block(block, |content| {
            let sb = &mut content[offset..offset + LENGTH];
            put_u32(sb, 0x0C, low_u32(free_blocks));
            if is_64bit {
                put_u32(sb, 0x158, high_u32(free_blocks));
            }
            put_u32(sb, 0x10, free_inodes);
            put_u32(sb, 0x30, seconds);
            sb[0x274] = high;
            let incompatible = get_u32(sb, 0x60) & !crate::read::volume::incompatible::RECOVER;
            put_u32(sb, 0x60, incompatible);
            if has_checksums {
                let checksum = crc(!0, &sb[..LENGTH - 4]);
                put_u32(sb, LENGTH - 4, checksum);
            }
        })
    }
}

/// Adds a block behind the blocks of a file.
fn append_block(runs: &mut Vec<Extent>, block: u64) {
    match runs.last_mut() {
        Some(last) if last.physical + u64::from(last.blocks) == block => last.blocks += 1,
        last => {
            let logical = last.map_or(0, |last| last.logical + last.blocks);
            runs.push(Extent { logical, physical: block, blocks: 1 });
        }
    }
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty()
        || name.len() > 255
        || name == b"."
        || name == b".."
        || name.iter().any(|byte| matches!(byte, 0 | b'/'))
    {
        return Err(ImageError::InvalidName);
    }
    Ok(())
}
