//! The formatter: an image from its creation to its last metadata block.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::allocator::{Allocator, Run};
use crate::assemble;
use crate::error::FormatError;
use crate::geometry::{BLOCK_SIZE, Geometry};
use crate::tree::{FileData, Timestamp, Tree};
use crate::writer::DataWriter;

/// What a new file system is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Length of the file system in bytes; it becomes larger when the content does not fit.
    /// Rounded up to whole 4 KiB blocks. The image is sparse: free space costs nothing.
    pub size: u64,
    /// Least free bytes to leave for the one who mounts it.
    pub free: u64,
    /// Length of the journal in bytes; 0 for none (a file system that is only ever read).
    /// At least 4 MiB are taken.
    pub journal: u64,
    pub uuid: [u8; 16],
    /// Volume label, at most 16 bytes.
    pub label: String,
    /// Time of creation, for the superblock and for inodes that have no time of their own.
    pub created: Timestamp,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Length of the file system in bytes.
    pub size: u64,
    /// Bytes in use, metadata included.
    pub used: u64,
    /// Inodes in use, the eleven that every file system has included.
    pub inodes: u64,
}

/// One image under construction. Shared by the threads that stream data into it.
#[derive(Debug)]
pub struct Formatter {
    pub(crate) file: File,
    options: Options,
    geometry: Geometry,
    pub(crate) allocator: Allocator,
    /// Least free bytes; begins as `options.free`.
    free: AtomicU64,
    /// Whether a data writer was dropped with content in its buffer.
    pub(crate) lost_data: AtomicBool,
}

impl Formatter {
    /// Begins an image in a file that is open for reading and writing. What it held is lost: free
    /// space of an image reads as zeros.
    pub fn create(file: File, options: Options) -> Result<Self, FormatError> {
        if options.label.len() > 16 {
            return Err(FormatError::LabelTooLong { label: options.label });
        }
        file.set_len(0)?;
        let geometry = Geometry::for_size(options.size.max(options.free));
        Ok(Self {
            file,
            geometry,
            allocator: Allocator::new(geometry),
            free: AtomicU64::new(options.free),
            lost_data: AtomicBool::new(false),
            options,
        })
    }

    pub fn data_writer(&self) -> DataWriter<'_> {
        DataWriter::new(self)
    }

    /// Changes the least free bytes to leave, for who knows only later how large the content is.
    pub fn set_free(&self, bytes: u64) {
        self.free.store(bytes, Ordering::Relaxed);
    }

    /// Gives back the blocks of contents that the finished tree will not name, so that the image
    /// neither holds nor shows them. Their writers must have been flushed.
    pub fn release<'a>(&self, contents: impl IntoIterator<Item = &'a FileData>) -> Result<(), FormatError> {
        let extents = contents.into_iter().flat_map(|data| &data.extents);
        let mut runs: Vec<Run> = extents
            .map(|extent| Run { start: extent.physical, end: extent.physical + u64::from(extent.blocks) })
            .collect();
        // Files that were written one after the other go in one call.
        runs.sort_unstable();
        runs.dedup_by(|next, run| {
            let adjacent = next.start == run.end;
            if adjacent {
                run.end = next.end;
            }
            adjacent
        });
        runs.into_iter().try_for_each(|run| self.punch(run.start * BLOCK_SIZE, run.len() * BLOCK_SIZE))
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), FormatError> {
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.file, mode, offset as i64, length as i64) {
            Ok(()) => Ok(()),
            // No holes there: what must not be seen is overwritten.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                let zeros = vec![0; (1 << 20).min(length as usize)];
                let mut done = 0;
                while done < length {
                    let part = zeros.len().min((length - done) as usize);
                    self.file.write_all_at(&zeros[..part], offset + done)?;
                    done += part as u64;
                }
                Ok(())
            }
            Err(error) => Err(std::io::Error::from(error).into()),
        }
    }

    /// Reads content written before; bytes of holes are zeros. Its writer must have been flushed.
    ///
    /// Returns how many bytes were read: fewer than asked for at the end of the content only.
    pub fn read_at(&self, data: &FileData, offset: u64, buffer: &mut [u8]) -> Result<usize, FormatError> {
        let length =
            buffer.len().min(usize::try_from(data.size.saturating_sub(offset)).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..length];
        buffer.fill(0);
        let end = offset + length as u64;
        let behind = |at: u64| {
            data.extents.partition_point(|e| (u64::from(e.logical) + u64::from(e.blocks)) * BLOCK_SIZE <= at)
        };
        for extent in &data.extents[behind(offset)..] {
            let extent_start = u64::from(extent.logical) * BLOCK_SIZE;
            let extent_end = extent_start + u64::from(extent.blocks) * BLOCK_SIZE;
            if extent_start >= end {
                break;
            }
            let from = extent_start.max(offset);
            let to = extent_end.min(end);
            let place = extent.physical * BLOCK_SIZE + (from - extent_start);
            self.file.read_exact_at(&mut buffer[(from - offset) as usize..(to - offset) as usize], place)?;
        }
        Ok(length)
    }

    /// Writes all metadata. The image is complete when this returns; it is not synced.
    pub fn finish(self, tree: &Tree) -> Result<(File, Summary), FormatError> {
        if self.lost_data.into_inner() {
            return Err(FormatError::NotFlushed);
        }
        let options = Options { free: self.free.into_inner(), ..self.options };
        let summary = assemble::assemble(&self.file, &options, self.geometry, self.allocator, tree)?;
        Ok((self.file, summary))
    }
}
