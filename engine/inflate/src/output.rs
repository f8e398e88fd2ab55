//! The buffer in hand, and how one follows the other.

use std::ops::Range;

use crc32fast::Hasher;

use crate::Output;
use crate::error::{Damage, Error};

/// Bytes a match may reach back.
pub const HISTORY: usize = 32 << 10;
/// Bytes to fill behind the history: large enough that handing over costs nothing, small enough to
/// stay in the cache of a core.
const FILL: usize = 128 << 10;
/// Room behind them, so that decoding need not look at the end of the buffer for every byte: three
/// matches, the symbols between them, and what a copy may write too much.
const SLACK: usize = 1024;
/// Bytes of a buffer.
pub const BUFFER: usize = HISTORY + FILL + SLACK;

/// Where `end` must be below when a symbol is decoded.
pub(crate) const LIMIT: usize = HISTORY + FILL;
/// Longest match.
pub(crate) const MATCH: usize = 258;

#[derive(Debug)]
pub(crate) struct Unpacked<'a, O> {
    output: &'a mut O,
    pub(crate) buffer: Vec<u8>,
    /// Behind the last byte made.
    pub(crate) end: usize,
    /// Where what matches may refer to begins.
    pub(crate) oldest: usize,
    /// What is before it has been counted into `checksum`.
    summed: usize,
    checksum: Hasher,
    length: u64,
}

impl<'a, O: Output> Unpacked<'a, O> {
    pub(crate) fn new(output: &'a mut O) -> Result<Self, Error<O::Error>> {
        let buffer = fitting(output.buffer())?;
        Ok(Self {
            output,
            buffer,
            end: HISTORY,
            oldest: HISTORY,
            summed: HISTORY,
            checksum: Hasher::new(),
            length: 0,
        })
    }

    /// A new stream begins, which knows nothing of the one before.
    pub(crate) fn begin(&mut self) {
        self.oldest = self.end;
        self.summed = self.end;
        self.checksum = Hasher::new();
        self.length = 0;
    }

    /// CRC-32 and length of the stream so far.
    pub(crate) fn sum(&mut self) -> (u32, u64) {
        self.count();
        (self.checksum.clone().finalize(), self.length)
    }

    fn count(&mut self) {
        self.checksum.update(&self.buffer[self.summed..self.end]);
        self.length += (self.end - self.summed) as u64;
        self.summed = self.end;
    }

    /// Sees to it that there is room for a symbol.
    pub(crate) fn make_room(&mut self) -> Result<(), Error<O::Error>> {
        if self.end < LIMIT {
            return Ok(());
        }
        self.count();
        let mut next = fitting(self.output.buffer())?;
        let kept = self.end - HISTORY;
        next[..HISTORY].copy_from_slice(&self.buffer[kept..self.end]);
        let full = std::mem::replace(&mut self.buffer, next);
        self.output.hand_over(full, self.content()).map_err(Error::Stream)?;
        self.oldest = self.oldest.saturating_sub(kept);
        self.end = HISTORY;
        self.summed = HISTORY;
        Ok(())
    }

    fn content(&self) -> Range<usize> {
        HISTORY..self.end
    }

    /// Hands over what is left.
    pub(crate) fn finish(self) -> Result<(), Error<O::Error>> {
        let content = self.content();
        self.output.hand_over(self.buffer, content).map_err(Error::Stream)
    }

    /// There must be room for a symbol.
    pub(crate) fn literal(&mut self, byte: u8) {
        self.buffer[self.end] = byte;
        self.end += 1;
    }

    /// There must be room for a symbol.
    pub(crate) fn copy_match(&mut self, length: usize, distance: usize) -> Result<(), Damage> {
        if distance == 0 || distance > self.end - self.oldest {
            return Err(Damage::Distance);
        }
        for position in self.end..self.end + length {
            self.buffer[position] = self.buffer[position - distance];
        }
        self.end += length;
        Ok(())
    }

    /// Bytes that are stored as they are.
    pub(crate) fn stored(&mut self, mut bytes: &[u8]) -> Result<(), Error<O::Error>> {
        while !bytes.is_empty() {
            self.make_room()?;
            let (now, later) = bytes.split_at(bytes.len().min(LIMIT - self.end));
            self.buffer[self.end..self.end + now.len()].copy_from_slice(now);
            self.end += now.len();
            bytes = later;
        }
        Ok(())
    }
}

/// A buffer of the right length, whatever was given.
fn fitting<E>(buffer: Result<Vec<u8>, E>) -> Result<Vec<u8>, Error<E>> {
    let mut buffer = buffer.map_err(Error::Stream)?;
    buffer.resize(BUFFER, 0);
    Ok(buffer)
}

const _: () = assert!(SLACK > 3 * MATCH + 4 + 32);
