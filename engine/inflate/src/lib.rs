//! A streaming decoder of gzip (RFC 1952) and deflate (RFC 1951).
//!
//! ```text
//! Input::next ─▶ pieces ─▶ bits ─▶ blocks ─▶ buffer with 32 KiB of history in front ─▶ Output::hand_over
//! ```
//!
//! It pulls: whoever calls [`gunzip`] lends a thread that waits in [`Input::next`] for more packed
//! bytes and in [`Output::hand_over`] for the next buffer. So there is no state to be saved in the
//! middle of a symbol, and what is made is made where it stays: the last 32 KiB of one buffer become
//! the history of the next, which is the only copy there is.
//!
//! Nearly all symbols go through one loop without a branch that could be guessed wrong (`fast.rs`): 64 bits
//! at hand, tables of 2,048 entries with smaller ones below them, matches copied 32 bytes at a time. Accepted
//! is what zlib accepts; memory is bounded whatever the stream says.

mod bits;
mod block;
mod error;
mod fast;
mod gzip;
mod huffman;
mod output;

pub use error::{Damage, Error};
pub use gzip::gunzip;
pub use output::{BUFFER, HISTORY};

use std::ops::Range;

/// Where the packed bytes come from.
pub trait Input {
    type Piece: AsRef<[u8]>;
    type Error;

    /// The next piece; `None` at the end. Empty ones are passed over.
    fn next(&mut self) -> Result<Option<Self::Piece>, Self::Error>;
}

/// Where the unpacked bytes go.
pub trait Output {
    type Error;

    /// A buffer of [`BUFFER`] bytes. What it holds does not matter.
    fn buffer(&mut self) -> Result<Vec<u8>, Self::Error>;

    /// Takes a buffer; `content` says where in it the new bytes are (perhaps none).
    fn hand_over(&mut self, buffer: Vec<u8>, content: Range<usize>) -> Result<(), Self::Error>;
}
