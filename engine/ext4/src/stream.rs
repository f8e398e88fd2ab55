//! Metadata on its way to the image: blocks that follow each other leave in one large write.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::geometry::{BLOCK, BLOCK_SIZE};

/// Bytes collected before they are written.
const CAPACITY: usize = 1 << 20;

/// Collects blocks and writes those that lie one after the other at once.
#[derive(Debug)]
pub(crate) struct BlockStream<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// Block that the first byte of the buffer belongs to.
    start: u64,
}

impl<'a> BlockStream<'a> {
    pub(crate) fn new(file: &'a File) -> Self {
        Self { file, buffer: Vec::new(), start: 0 }
    }

    /// A zeroed block to fill that will be written at `block`.
    pub(crate) fn block(&mut self, block: u64) -> io::Result<&mut [u8]> {
        let next = self.start + (self.buffer.len() / BLOCK) as u64;
        if block != next || self.buffer.len() >= CAPACITY {
            self.flush()?;
        }
        if self.buffer.is_empty() {
            self.start = block;
        }
        let position = self.buffer.len();
        self.buffer.resize(position + BLOCK, 0);
        Ok(&mut self.buffer[position..])
    }

    /// Writes what was collected.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.file.write_all_at(&self.buffer, self.start * BLOCK_SIZE)?;
            self.buffer.clear();
        }
        Ok(())
    }
}
