//! Copies what is in one file system into another that is being formatted: smaller where blocks were
//! free, in one piece where files were fragmented, and without the remains of deleted files.

use std::collections::HashMap;

use crate::error::FormatError;
use crate::inode::ROOT;
use crate::numbering::LOST_AND_FOUND;
use crate::read::map::BlockMap;
use crate::read::{FileKind, ImageError, InodeNumber, Reader, Stat};
use crate::tree::{Directory, FileData, InodeId, InodeKind, Metadata, Tree, TreeError};
use crate::writer::DataWriter;

/// Bytes read and written at once.
const STEP: usize = 1 << 20;

/// Why a copy did not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    #[error("cannot read the file system that is copied")]
    Read(#[from] ImageError),
    #[error("cannot write the copy")]
    Write(#[from] FormatError),
    #[error("the file system that is copied has a directory that makes no sense")]
    Tree(#[from] TreeError),
    #[error("cancelled")]
    Cancelled,
}

/// Streams the content of all files and returns the tree that names it. The writer is flushed.
///
/// `proceed` is told how many bytes were copied since it was asked last, and stops the copy by
/// saying `false`.
pub fn copy_tree(
    reader: &Reader,
    writer: &mut DataWriter<'_>,
    proceed: impl FnMut(u64) -> bool,
) -> Result<Tree, CopyError> {
    let root = reader.root();
    let mut tree = Tree::new(metadata(reader, root, &reader.stat(root)?)?);
    let top = tree.root();
    let mut copy = Copy { reader, writer, proceed, buffer: vec![0; STEP], left: reader.size() };
    let mut known = HashMap::from([(root, top)]);
    let mut pending = vec![(root, top)];
    while let Some((from, to)) = pending.pop() {
        let mut entries = reader.entries(from)?;
        // An order that does not depend on hashes, so that equal content gives equal images.
        entries.sort();
        for (name, number) in entries {
            copy.ask(0)?;
            let is_directory = reader.stat(number)?.kind == FileKind::Directory;
            if let Some(present) = known.get(&number) {
                tree.link(to, &name, *present)?;
            } else if from.get() == ROOT && name == LOST_AND_FOUND && is_empty(reader, number)? {
                // The copy gets one of its own.
            } else {
                let id = copy.inode(&mut tree, to, &name, number)?;
                known.insert(number, id);
                if is_directory {
                    pending.push((number, id));
                }
            }
        }
    }
    copy.writer.flush()?;
    Ok(tree)
}

fn is_empty(reader: &Reader, number: InodeNumber) -> Result<bool, ImageError> {
    Ok(reader.stat(number)?.kind == FileKind::Directory && reader.entries(number)?.is_empty())
}

fn metadata(reader: &Reader, number: InodeNumber, stat: &Stat) -> Result<Metadata, ImageError> {
    Ok(Metadata {
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        modified: stat.modified,
        xattrs: reader.xattrs(number)?,
    })
}

struct Copy<'a, 'w, P> {
    reader: &'a Reader,
    writer: &'a mut DataWriter<'w>,
    proceed: P,
    buffer: Vec<u8>,
    /// Bytes that may still come: in a sound file system no two files share blocks.
    left: u64,
}

impl<P: FnMut(u64) -> bool> Copy<'_, '_, P> {
    fn ask(&mut self, bytes: u64) -> Result<(), CopyError> {
        if (self.proceed)(bytes) { Ok(()) } else { Err(CopyError::Cancelled) }
    }

    fn inode(
        &mut self,
        tree: &mut Tree,
        directory: InodeId,
        name: &[u8],
        number: InodeNumber,
    ) -> Result<InodeId, CopyError> {
        let stat = self.reader.stat(number)?;
        let kind = match stat.kind {
            FileKind::Directory => InodeKind::Directory(Directory::new()),
            FileKind::File => InodeKind::File(self.content(number, stat.size)?),
            FileKind::Symlink => InodeKind::Symlink(self.reader.read_link(number)?.into()),
            FileKind::CharacterDevice { major, minor } => InodeKind::CharacterDevice { major, minor },
            FileKind::BlockDevice { major, minor } => InodeKind::BlockDevice { major, minor },
            FileKind::Fifo => InodeKind::Fifo,
            FileKind::Socket => InodeKind::Socket,
        };
        let metadata = metadata(self.reader, number, &stat)?;
        Ok(tree.create(directory, name, metadata, kind)?)
    }

    /// Copies what is stored of a file; holes stay holes.
    fn content(&mut self, number: InodeNumber, size: u64) -> Result<FileData, CopyError> {
        let volume = &self.reader.volume;
        let block_size = volume.shape.block_size as u64;
        let map = BlockMap::read(volume, &self.reader.raw(number)?)?;
        let stored = map.runs.iter().map(|run| u64::from(run.blocks) * block_size).sum::<u64>();
        self.writer.begin(stored.min(size))?;
        let mut position = 0;
        for run in map.runs.iter().filter(|run| run.written) {
            let start = u64::from(run.logical) * block_size;
            let end = (start + u64::from(run.blocks) * block_size).min(size);
            if start >= end {
                break;
            }
            self.writer.write_hole(start - position)?;
            position = start;
            while position < end {
                let step = ((end - position) as usize).min(STEP);
                let Some(left) = self.left.checked_sub(step as u64) else {
                    let what = "its files hold more than it has blocks".to_owned();
                    return Err(ImageError::Corrupt { what }.into());
                };
                self.left = left;
                let block = run.physical + (position - start) / block_size;
                let whole = step.next_multiple_of(block_size as usize);
                self.reader.volume.read_blocks(block, &mut self.buffer[..whole])?;
                self.writer.write(&self.buffer[..step])?;
                position += step as u64;
                self.ask(step as u64)?;
            }
        }
        self.writer.write_hole(size - position)?;
        Ok(self.writer.end()?)
    }
}
