//! Changes images without mounting them: small files, directories, owners and modes.
//!
//! Changes are collected in memory and written by [`Editor::commit`]. That is not atomic: who must
//! not lose the image edits a copy of it. A journal that is not empty is replayed first. The image
//! stays what e2fsck finds clean.

mod directory;
mod index;
mod inodes;
mod space;

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::bytes::{get_u16, get_u32, high_u32, low_u16, low_u32, put_u16, put_u32};
use crate::checksum::crc;
use crate::inode;
use crate::read::error::{Result, corrupt, display};
use crate::read::volume::Volume;
use crate::read::{FileKind, ImageError, InodeNumber, Reader, replay};
use crate::superblock::LENGTH;
use crate::time;
use crate::tree::{Extent, Metadata, Timestamp};

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
            let incompatible = get_u32(sb, 0x60) & !crate::read::shape::incompatible::RECOVER;
            put_u32(sb, 0x60, incompatible);
            if has_checksums {
                let checksum = crc(!0, &sb[..LENGTH - 4]);
                put_u32(sb, LENGTH - 4, checksum);
            }
        })
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
