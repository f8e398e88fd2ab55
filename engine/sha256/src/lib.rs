//! SHA-256 (FIPS 180-4) of several streams at once.
//!
//! A processor's SHA instructions wait for each other: one stream keeps them busy half of the time. Two
//! streams, block by block in turns, take little longer than one. So whoever has a piece of a stream to
//! hash looks whether a piece of another stream waits, and hashes both; where none does, it leaves its own
//! piece to wait, and hashes it alone only when too much waits.
//!
//! ```text
//! thread of stream A   update(a1) ─▶ a1 waits              update(a2) ─▶ …
//! thread of stream B                  update(b1) ─▶ a1 + b1 are hashed together
//! ```
//!
//! There are no threads of its own, and nothing is waited for but a piece that another thread is hashing
//! right now.

mod pair;
mod pool;
mod work;

use bytes::Bytes;

use pool::POOL;
use work::Work;

/// A stream being hashed.
#[derive(Debug)]
pub struct Stream {
    id: u64,
    waiting: usize,
}

impl Stream {
    /// Up to `waiting` bytes of the stream are left to wait for a piece of another one. More than what comes in
    /// one turn of its thread finds more company; but who makes the pieces must be able to do without those.
    pub fn new(waiting: usize) -> Self {
        Self { id: POOL.enter(Work::new()), waiting }
    }

    /// Takes the next piece of the stream, which may be held until others have come, or until
    /// [`Self::finish`].
    pub fn update(&mut self, piece: Bytes) {
        let mut work = POOL.take(self.id);
        work.push(piece);
        POOL.hash_with_others(&mut work);
        while work.waiting() > self.waiting {
            work.hash_first();
        }
        POOL.put(self.id, work);
    }

    /// The digest of all pieces.
    pub fn finish(self) -> [u8; 32] {
        let mut work = POOL.take(self.id);
        POOL.hash_with_others(&mut work);
        work.finish()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        POOL.leave(self.id);
    }
}

#[cfg(test)]
mod tests;
