//! Reads images, ours and others', without mounting them.
//!
//! Images are untrusted: every number is checked before it is used, checksums are verified where
//! there are any, and nothing loops or grows without bound. A journal that is not empty is replayed
//! in memory; the image is not written to.

pub(crate) mod entries;
pub(crate) mod error;
pub(crate) mod inode;
pub(crate) mod map;
pub(crate) mod replay;
pub(crate) mod shape;
pub(crate) mod volume;
pub(crate) mod xattrs;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::ControlFlow;

use crate::bytes::{get_u32, join_u32};
use crate::inode::ROOT;
pub use error::ImageError;
use error::{Result, corrupt, display};
use inode::RawInode;
pub use inode::{FileKind, Stat};
use map::BlockMap;
use volume::Volume;

/// Most symbolic links on one path, as in Linux.
const MAX_SYMLINKS: usize = 40;
/// Most entries that [`Reader::entries`] collects.
const MAX_ENTRIES: usize = 2_000_000;
/// Longest target of a symbolic link.
const MAX_TARGET: u64 = 4096;

/// Names an inode of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeNumber(pub(crate) u32);

impl InodeNumber {
    /// The number as ext4 counts, from 1.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// An ext4 image, opened for reading.
#[derive(Debug)]
pub struct Reader {
    pub(crate) volume: Volume,
}

impl Reader {
    /// Opens an image. `file` needs to be open for reading only.
    pub fn open(file: File) -> Result<Self> {
        let mut volume = Volume::open(file)?;
        volume.replayed = replay::replay(&volume)?;
        if !volume.replayed.is_empty() {
            volume.reload()?;
        }
        Ok(Self { volume })
    }

    /// Whether the journal holds changes that are not in their place yet, as after a crash.
    pub fn was_dirty(&self) -> bool {
        !self.volume.replayed.is_empty()
    }

    pub fn uuid(&self) -> [u8; 16] {
        self.volume.shape.uuid
    }

    /// The volume label, without the zeros behind it.
    pub fn label(&self) -> Result<Vec<u8>> {
        let superblock = self.volume.superblock()?;
        let label = &superblock[0x78..0x88];
        Ok(label.split(|byte| *byte == 0).next().unwrap_or_default().to_vec())
    }

    /// Length of the file system in bytes. The file may be longer.
    pub fn size(&self) -> u64 {
        self.volume.shape.blocks * self.volume.shape.block_size as u64
    }

    /// Free bytes, as the superblock counts them.
    pub fn free(&self) -> Result<u64> {
        let superblock = self.volume.superblock()?;
        let high = if self.volume.shape.is_64bit() { get_u32(&superblock, 0x158) } else { 0 };
        let blocks = join_u32(get_u32(&superblock, 0x0C), high);
        if blocks > self.volume.shape.blocks {
            return corrupt("it has more free blocks than blocks");
        }
        Ok(blocks * self.volume.shape.block_size as u64)
    }

    pub fn root(&self) -> InodeNumber {
        InodeNumber(ROOT)
    }

    pub fn stat(&self, inode: InodeNumber) -> Result<Stat> {
        self.raw(inode)?.stat(&self.volume)
    }

    /// Extended attributes with their full names; access control lists in the form of system calls.
    pub fn xattrs(&self, inode: InodeNumber) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        xattrs::read(&self.volume, &self.raw(inode)?)
    }

    /// The entries of a directory without `.` and `..`, in no particular order.
    pub fn entries(&self, directory: InodeNumber) -> Result<Vec<(Vec<u8>, InodeNumber)>> {
        let mut found = Vec::new();
        self.for_each_entry(directory, |name, inode| {
            if found.len() >= MAX_ENTRIES {
                return Err(ImageError::TooManyEntries { limit: MAX_ENTRIES });
            }
            found.push((name.to_vec(), inode));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// Visits the entries of a directory without `.` and `..`, in no particular order.
    pub fn for_each_entry(
        &self,
        directory: InodeNumber,
        mut visit: impl FnMut(&[u8], InodeNumber) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        entries::for_each(&self.volume, &self.raw(directory)?, |name, inode| match name {
            b"." | b".." => Ok(ControlFlow::Continue(())),
            _ => visit(name, InodeNumber(inode)),
        })
    }

    /// The inode that a name in a directory stands for.
    pub fn lookup(&self, directory: InodeNumber, name: &[u8]) -> Result<Option<InodeNumber>> {
        let mut found = None;
        entries::for_each(&self.volume, &self.raw(directory)?, |entry, inode| {
            if entry == name {
                found = Some(InodeNumber(inode));
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// The inode at a path below the root. Symbolic links are followed, all of them inside of this
    /// image; `..` does not lead out of it. `None` when there is nothing.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<InodeNumber>> {
        Ok(self.walk(path)?.map(|way| way.last().map_or(self.root(), |(_, inode)| *inode)))
    }

    /// The path of what [`Self::resolve`] finds, without symbolic links, `.` and `..`, and without a slash in
    /// front.
    pub fn canonical(&self, path: &[u8]) -> Result<Option<Vec<u8>>> {
        let names = |way: Way| way.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        Ok(self.walk(path)?.map(|way| names(way).join(&b'/')))
    }

    /// The names that lead from the root to what is at a path, and their inodes.
    fn walk(&self, path: &[u8]) -> Result<Option<Way>> {
        let mut way = Way::new();
        // What is still to go, the next name last.
        let mut names: Vec<Vec<u8>> = components(path);
        let mut symlinks = 0;
        while let Some(name) = names.pop() {
            let directory = way.last().map_or(self.root(), |(_, inode)| *inode);
            if self.stat(directory)?.kind != FileKind::Directory {
                return Ok(None);
            }
            if name == b".." {
                way.pop();
                continue;
            }
            let Some(inode) = self.lookup(directory, &name)? else { return Ok(None) };
            if self.raw(inode)?.is_symlink() {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(ImageError::TooManySymlinks);
                }
                let target = self.read_link(inode)?;
                if target.starts_with(b"/") {
                    way.clear();
                }
                names.extend(components(&target));
            } else {
                way.push((name, inode));
            }
        }
        Ok(Some(way))
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, inode: InodeNumber) -> Result<Vec<u8>> {
        let raw = self.raw(inode)?;
        if !raw.is_symlink() {
            return Err(ImageError::NotASymlink);
        }
        let size = raw.size();
        if size >= MAX_TARGET {
            return corrupt(format!("the target of symbolic link {} is too long", inode.0));
        }
        if is_fast_symlink(&self.volume, &raw) {
            return Ok(raw.map()[..size as usize].to_vec());
        }
        let mut target = vec![0; size as usize];
        self.read_mapped(&raw, 0, &mut target)?;
        Ok(target)
    }

    /// Reads from a regular file. Returns how many bytes were read: fewer than asked for at the end
    /// of the file only.
    pub fn read_at(&self, inode: InodeNumber, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let raw = self.raw(inode)?;
        if !raw.is_file() {
            return Err(ImageError::NotAFile);
        }
        let left = raw.size().saturating_sub(offset);
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.read_mapped(&raw, offset, &mut buffer[..length])?;
        Ok(length)
    }

    /// The whole content of a regular file of at most `limit` bytes.
    pub fn read(&self, inode: InodeNumber, limit: u64) -> Result<Vec<u8>> {
        let size = self.raw(inode)?.size();
        if size > limit {
            return Err(ImageError::TooLarge { limit });
        }
        let mut content = vec![0; usize::try_from(size).map_err(|_| ImageError::TooLarge { limit })?];
        self.read_at(inode, 0, &mut content)?;
        Ok(content)
    }

    /// The inode at a path, or an error that names it.
    pub fn find(&self, path: &[u8]) -> Result<InodeNumber> {
        self.resolve(path)?.ok_or_else(|| ImageError::NotFound { name: display(path) })
    }

    pub(crate) fn raw(&self, inode: InodeNumber) -> Result<RawInode> {
        RawInode::read(&self.volume, inode.0)
    }

    /// Reads content that is known to lie before the end of the file.
    fn read_mapped(&self, raw: &RawInode, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let map = BlockMap::read(&self.volume, raw)?;
        let size = self.volume.shape.block_size;
        let mut done = 0;
        while done < buffer.len() {
            let position = offset + done as u64;
            let within = (position % size as u64) as usize;
            let part = (size - within).min(buffer.len() - done);
            let target = &mut buffer[done..done + part];
            let logical = u32::try_from(position / size as u64).ok();
            match logical.and_then(|logical| map.find(logical)) {
                Some(block) => target.copy_from_slice(&self.volume.block(block)?[within..within + part]),
                None => target.fill(0),
            }
            done += part;
        }
        Ok(())
    }
}

/// Names and what they stand for, each in the directory before it, the first in the root.
type Way = Vec<(Vec<u8>, InodeNumber)>;

/// Whether the target of a symbolic link lies in its inode: when it has no blocks of its own.
pub(crate) fn is_fast_symlink(volume: &Volume, inode: &RawInode) -> bool {
    let xattr_sectors = if inode.xattr_block() == 0 { 0 } else { volume.shape.block_size as u64 / 512 };
    inode.size() < 60 && inode.sectors(volume) == xattr_sectors
}

/// The names on a path, the first one last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.rev().map(<[u8]>::to_vec).collect()
}
