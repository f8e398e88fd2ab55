//! The packed side: pieces, and bits of them at hand.

use crate::Input;
use crate::error::Error;

#[derive(Debug)]
pub(crate) struct Packed<'a, I: Input> {
    input: &'a mut I,
    pub(crate) piece: Option<I::Piece>,
    /// Bytes of the piece that are used up.
    pub(crate) position: usize,
    /// Bits at hand, the next one lowest; those above `count` are zeros.
    pub(crate) bits: u64,
    pub(crate) count: u32,
}

impl<'a, I: Input> Packed<'a, I> {
    pub(crate) fn new(input: &'a mut I) -> Self {
        Self { input, piece: None, position: 0, bits: 0, count: 0 }
    }

    /// What is left of the piece in hand, or the next one; empty only at the end.
    fn rest(&mut self) -> Result<&[u8], Error<I::Error>> {
        while self.piece.as_ref().is_none_or(|piece| self.position >= piece.as_ref().len()) {
            // Given up before the next one is waited for.
            self.piece = None;
            self.position = 0;
            self.piece = self.input.next().map_err(Error::Stream)?;
            if self.piece.is_none() {
                return Ok(&[]);
            }
        }
        Ok(self.piece.as_ref().map_or(&[], |piece| &piece.as_ref()[self.position..]))
    }

    /// Gets at least 56 bits, or as many as there are; never more than 63.
    pub(crate) fn fill(&mut self) -> Result<(), Error<I::Error>> {
        while self.count < 56 {
            let Some(byte) = self.rest()?.first().copied() else { break };
            self.position += 1;
            self.bits |= u64::from(byte) << self.count;
            self.count += 8;
        }
        Ok(())
    }

    /// Takes bits that have been looked at.
    pub(crate) fn consume(&mut self, count: u32) -> Result<(), Error<I::Error>> {
        if count > self.count {
            return Err(Error::Truncated);
        }
        self.bits >>= count;
        self.count -= count;
        Ok(())
    }

    /// Takes up to 32 bits.
    pub(crate) fn take(&mut self, count: u32) -> Result<u32, Error<I::Error>> {
        if self.count < count {
            self.fill()?;
        }
        let value = self.bits & ((1 << count) - 1);
        self.consume(count)?;
        Ok(value as u32)
    }

    pub(crate) fn take_byte(&mut self) -> Result<u8, Error<I::Error>> {
        Ok(self.take(8)? as u8)
    }

    /// Goes on at the next whole byte.
    pub(crate) fn align(&mut self) {
        let odd = self.count % 8;
        self.bits >>= odd;
        self.count -= odd;
    }

    /// Whole bytes, up to `limit` of them, in one piece; what was given is passed to `work`.
    /// The reader must be aligned.
    pub(crate) fn bytes(
        &mut self,
        limit: usize,
        work: impl FnOnce(&[u8]) -> Result<(), Error<I::Error>>,
    ) -> Result<usize, Error<I::Error>> {
        if self.count > 0 {
            let byte = self.take_byte()?;
            work(&[byte])?;
            return Ok(1);
        }
        let rest = self.rest()?;
        if rest.is_empty() {
            return Err(Error::Truncated);
        }
        let taken = rest.len().min(limit);
        work(&rest[..taken])?;
        self.position += taken;
        Ok(taken)
    }

    /// Takes everything to the end, whatever it is.
    pub(crate) fn drain(&mut self) -> Result<(), Error<I::Error>> {
        self.piece = None;
        while self.input.next().map_err(Error::Stream)?.is_some() {}
        Ok(())
    }
}
