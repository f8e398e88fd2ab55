//! Streams the content of files to their final place.
//!
//! A writer owns an arena, a run of blocks that its small files fill one after the other, so that
//! many of them leave in one write. A file announced as large gets runs of its own. Blocks of zeros
//! are never written.

use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use crate::allocator::Run;
use crate::error::FormatError;
use crate::formatter::Formatter;
use crate::geometry::{BLOCK, BLOCK_SIZE, MAX_FILE_SIZE};
use crate::tree::{Extent, FileData};

/// Blocks of an arena: 4 MiB.
const ARENA: u64 = 1024;
/// Blocks from which on a file gets runs of its own: 1 MiB.
const LARGE: u64 = 256;
/// Most blocks set aside at once for a large file, 128 MiB: as much as one extent holds. Announced
/// sizes may be wrong, and files may consist of holes.
const MAX_RUN: u64 = 32_768;
/// Bytes collected before they are written: more gains nothing, and each layer has such a buffer.
const BUFFER: usize = 256 << 10;
/// Bytes from which on content is written from where it is: copying it costs more than a call.
const DIRECT: usize = 64 << 10;

/// Streams the content of files to their final place. One per thread: it owns an arena of blocks.
#[derive(Debug)]
pub struct DataWriter<'a> {
    formatter: &'a Formatter,
    arena: Run,
    /// Whole blocks that are still to be written, all of them one after the other on the image.
    buffer: Vec<u8>,
    /// Where the first of them belongs.
    buffer_start: u64,
    /// The last block of the file in hand, as far as it is filled.
    partial: Vec<u8>,
    file: Option<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    /// Blocks announced for the whole file; a hint.
    announced: u64,
    is_large: bool,
    /// What is left of the run that only this file uses.
    run: Run,
    /// Whole blocks so far, holes included.
    blocks: u64,
    /// Bytes in the partial block.
    filled: usize,
    extents: Vec<Extent>,
}

impl<'a> DataWriter<'a> {
    pub(crate) fn new(formatter: &'a Formatter) -> Self {
        Self {
            formatter,
            arena: Run::default(),
            buffer: Vec::new(),
            buffer_start: 0,
            partial: vec![0; BLOCK],
            file: None,
        }
    }

    /// Begins a file. `size` is the length announced for it, in bytes: large files get runs of blocks
    /// of their own. It is a hint, and may be wrong in both directions.
    ///
    /// A file that was begun and not ended is given up; its blocks become free.
    pub fn begin(&mut self, size: u64) -> Result<(), FormatError> {
        self.abandon();
        let announced = size.div_ceil(BLOCK_SIZE);
        let is_large = announced >= LARGE && announced > self.arena.len();
        self.file = Some(OpenFile {
            announced,
            is_large,
            run: Run::default(),
            blocks: 0,
            filled: 0,
            extents: Vec::new(),
        });
        Ok(())
    }

    /// Appends content. Runs of zeros that fill whole blocks become holes.
    pub fn write(&mut self, content: &[u8]) -> Result<(), FormatError> {
        let mut rest = content;
        let file = self.file.as_mut().ok_or(FormatError::NoFileBegun)?;
        file.check_room(rest.len() as u64)?;
        if file.filled > 0 {
            let taken = rest.len().min(BLOCK - file.filled);
            self.partial[file.filled..file.filled + taken].copy_from_slice(&rest[..taken]);
            file.filled += taken;
            rest = &rest[taken..];
            if file.filled < BLOCK {
                return Ok(());
            }
            self.end_partial()?;
        }
        let whole = rest.len() - rest.len() % BLOCK;
        self.append(&rest[..whole])?;
        let tail = &rest[whole..];
        if let Some(file) = &mut self.file {
            self.partial[..tail.len()].copy_from_slice(tail);
            file.filled = tail.len();
        }
        Ok(())
    }

    /// Appends zeros that take no blocks.
    pub fn write_hole(&mut self, length: u64) -> Result<(), FormatError> {
        let mut rest = length;
        let file = self.file.as_mut().ok_or(FormatError::NoFileBegun)?;
        file.check_room(rest)?;
        if file.filled > 0 {
            let taken = rest.min((BLOCK - file.filled) as u64);
            let end = file.filled + taken as usize;
            self.partial[file.filled..end].fill(0);
            file.filled = end;
            rest -= taken;
            if file.filled < BLOCK {
                return Ok(());
            }
            self.end_partial()?;
        }
        if let Some(file) = &mut self.file {
            file.blocks += rest / BLOCK_SIZE;
            file.filled = (rest % BLOCK_SIZE) as usize;
            self.partial[..file.filled].fill(0);
        }
        Ok(())
    }

    /// Ends the file. The last blocks may reach the image only with [`DataWriter::flush`].
    pub fn end(&mut self) -> Result<FileData, FormatError> {
        let file = self.file.as_mut().ok_or(FormatError::NoFileBegun)?;
        let size = file.blocks * BLOCK_SIZE + file.filled as u64;
        if file.filled > 0 {
            self.partial[file.filled..].fill(0);
            self.end_partial()?;
        }
        let Some(file) = self.file.take() else { return Err(FormatError::NoFileBegun) };
        self.formatter.allocator.give_back(file.run);
        Ok(FileData { size, extents: file.extents })
    }

    /// Writes what is still buffered. Must be called before the writer is dropped.
    pub fn flush(&mut self) -> Result<(), FormatError> {
        if !self.buffer.is_empty() {
            self.formatter.file.write_all_at(&self.buffer, self.buffer_start * BLOCK_SIZE)?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Appends the partial block, which is full now.
    fn end_partial(&mut self) -> Result<(), FormatError> {
        let block = std::mem::take(&mut self.partial);
        let appended = self.append(&block);
        self.partial = block;
        if let Some(file) = &mut self.file {
            file.filled = 0;
        }
        appended
    }

    /// Appends whole blocks.
    fn append(&mut self, content: &[u8]) -> Result<(), FormatError> {
        let mut rest = content;
        while !rest.is_empty() {
            let zeros = rest.chunks_exact(BLOCK).take_while(|block| is_zero(block)).count();
            if let Some(file) = &mut self.file {
                file.blocks += zeros as u64;
            }
            rest = &rest[zeros * BLOCK..];
            let data = rest.chunks_exact(BLOCK).take_while(|block| !is_zero(block)).count();
            self.append_data(&rest[..data * BLOCK])?;
            rest = &rest[data * BLOCK..];
        }
        Ok(())
    }

    /// Appends whole blocks that are not zeros.
    fn append_data(&mut self, content: &[u8]) -> Result<(), FormatError> {
        let mut rest = content;
        while !rest.is_empty() {
            let mut run = self.take_blocks((rest.len() / BLOCK) as u64)?;
            let buffer_end = self.buffer_start + (self.buffer.len() / BLOCK) as u64;
            let bytes = run.len() as usize * BLOCK;
            if run.start != buffer_end || bytes >= DIRECT {
                self.flush()?;
            }
            if bytes >= DIRECT {
                self.formatter.file.write_all_at(&rest[..bytes], run.start * BLOCK_SIZE)?;
                rest = &rest[bytes..];
                continue;
            }
            while !run.is_empty() {
                if self.buffer.len() >= BUFFER {
                    self.flush()?;
                }
                if self.buffer.is_empty() {
                    self.buffer_start = run.start;
                    self.buffer.reserve_exact(BUFFER);
                }
                let room = ((BUFFER - self.buffer.len()) / BLOCK) as u64;
                let bytes = run.take(room).len() as usize * BLOCK;
                self.buffer.extend_from_slice(&rest[..bytes]);
                rest = &rest[bytes..];
            }
        }
        Ok(())
    }

    /// Takes up to `wanted` blocks that lie one after the other and puts them behind the file.
    fn take_blocks(&mut self, wanted: u64) -> Result<Run, FormatError> {
        let file = self.file.as_mut().ok_or(FormatError::NoFileBegun)?;
        let allocator = &self.formatter.allocator;
        let run = if file.is_large {
            if file.run.is_empty() {
                let announced = file.announced.saturating_sub(file.blocks);
                file.run = allocator.take(announced.clamp(wanted.min(ARENA), MAX_RUN))?;
            }
            file.run.take(wanted)
        } else {
            if self.arena.is_empty() {
                self.arena = allocator.take(ARENA)?;
            }
            self.arena.take(wanted)
        };
        file.place(run);
        Ok(run)
    }

    fn abandon(&mut self) {
        if let Some(file) = self.file.take() {
            self.formatter.allocator.give_back(file.run);
        }
    }
}

impl Drop for DataWriter<'_> {
    fn drop(&mut self) {
        self.abandon();
        self.formatter.allocator.give_back(self.arena);
        if !self.buffer.is_empty() {
            self.formatter.lost_data.store(true, Ordering::Relaxed);
        }
    }
}

impl OpenFile {
    /// Whether the file may become that much longer.
    fn check_room(&self, length: u64) -> Result<(), FormatError> {
        let size = self.blocks * BLOCK_SIZE + self.filled as u64;
        if length > MAX_FILE_SIZE - size {
            return Err(FormatError::FileTooLarge { limit: MAX_FILE_SIZE });
        }
        Ok(())
    }

    fn place(&mut self, run: Run) {
        // `check_room` has seen to it that block numbers within the file fit.
        let (logical, blocks) = (self.blocks as u32, run.len() as u32);
        self.blocks += run.len();
        if let Some(last) = self.extents.last_mut()
            && last.logical + last.blocks == logical
            && last.physical + u64::from(last.blocks) == run.start
        {
            last.blocks += blocks;
        } else {
            self.extents.push(Extent { logical, physical: run.start, blocks });
        }
    }
}

fn is_zero(block: &[u8]) -> bool {
    // Most blocks that are not zeros show it at once; the rest is compared in long words.
    block[..16] == [0; 16]
        && block.chunks_exact(64).all(|chunk| chunk.iter().fold(0, |bits, byte| bits | byte) == 0)
}
