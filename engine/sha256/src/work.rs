//! What is known of a stream, and what of it is still to be hashed.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use sha2::block_api::compress256;

use super::pair;

/// Bytes of a block (FIPS 180-4, section 1).
pub(super) const BLOCK: usize = 64;

/// The initial hash value (section 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

#[derive(Debug)]
pub(super) struct Work {
    state: [u32; 8],
    /// The beginning of a block whose rest is not there yet.
    partial: [u8; BLOCK],
    partial_length: usize,
    /// Of the whole stream up to here, in bytes.
    length: u64,
    /// None is empty.
    pieces: VecDeque<Bytes>,
    waiting: usize,
}

impl Work {
    pub(super) fn new() -> Self {
        Self {
            state: INITIAL,
            partial: [0; BLOCK],
            partial_length: 0,
            length: 0,
            pieces: VecDeque::new(),
            waiting: 0,
        }
    }

    pub(super) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.length += piece.len() as u64;
            self.waiting += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Bytes of the pieces that are not hashed yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Hashes two streams until nothing is left of one of them.
    pub(super) fn hash_both(&mut self, other: &mut Self) {
        loop {
            let count = self.blocks().len().min(other.blocks().len());
            if count == 0 {
                return;
            }
            let (mut mine, mut others) = (self.state, other.state);
            pair::compress([&mut mine, &mut others], [&self.front()[..count], &other.front()[..count]]);
            (self.state, other.state) = (mine, others);
            self.advance(count * BLOCK);
            other.advance(count * BLOCK);
        }
    }

    /// Hashes the first piece, as far as it makes blocks.
    pub(super) fn hash_first(&mut self) {
        let count = self.blocks().len();
        if count > 0 {
            let mut state = self.state;
            compress256(&mut state, self.front());
            self.state = state;
            self.advance(count * BLOCK);
            self.blocks();
        }
    }

    /// Hashes all that waits, with the padding of section 5.1.1.
    pub(super) fn finish(mut self) -> [u8; 32] {
        while !self.blocks().is_empty() {
            self.hash_first();
        }
        let mut end = [[0; BLOCK]; 2];
        let bits = self.length.wrapping_mul(8).to_be_bytes();
        end[0][..self.partial_length].copy_from_slice(&self.partial[..self.partial_length]);
        end[0][self.partial_length] = 0x80;
        let blocks = if self.partial_length < BLOCK - bits.len() { 1 } else { 2 };
        end[blocks - 1][BLOCK - bits.len()..].copy_from_slice(&bits);
        compress256(&mut self.state, &end[..blocks]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        digest
    }

    /// The whole blocks that the first piece begins with, once a block that began before it is complete:
    /// none only when nothing is left.
    fn blocks(&mut self) -> &[[u8; BLOCK]] {
        while let Some(front) = self.pieces.front() {
            if self.partial_length == 0 && front.len() >= BLOCK {
                break;
            }
            let count = front.len().min(BLOCK - self.partial_length);
            self.partial[self.partial_length..][..count].copy_from_slice(&front[..count]);
            self.partial_length += count;
            self.advance(count);
            if self.partial_length == BLOCK {
                compress256(&mut self.state, &[self.partial]);
                self.partial_length = 0;
            }
        }
        self.front()
    }

    fn front(&self) -> &[[u8; BLOCK]] {
        self.pieces.front().map_or(&[], |piece| piece.as_chunks().0)
    }

    fn advance(&mut self, count: usize) {
        self.waiting -= count;
        let Some(front) = self.pieces.front_mut() else { return };
        front.advance(count);
        if front.is_empty() {
            self.pieces.pop_front();
        }
    }
}
