//! Unpacking a layer's stream: gzip, zstd, or nothing to do.
//!
//! The container engines go by the first bytes of a layer, whatever its media type says; so does
//! this. Memory is bounded whatever the stream says: 32 KiB of window for gzip, at most 128 MiB for
//! zstd (and 8 MiB for every level below 20).

use std::io;
use std::ops::Range;

use bytes::Bytes;
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::Compression;
use super::error::LayerError;

/// Where the packed bytes come from.
pub(super) trait Input {
    /// The next piece, never empty; `None` at the end.
    fn next(&mut self) -> Result<Option<Bytes>, LayerError>;
}

/// Where the unpacked bytes go.
pub(super) trait Output {
    /// A buffer to fill; its length is what fits.
    fn buffer(&mut self) -> Result<Vec<u8>, LayerError>;

    /// Hands a buffer on, and says where in it the new bytes are.
    fn send(&mut self, buffer: Vec<u8>, content: Range<usize>) -> Result<(), LayerError>;

    /// Hands on bytes that needed no unpacking.
    fn pass(&mut self, bytes: Bytes) -> Result<(), LayerError>;
}

/// Most bytes of zstd window to provide, as a power of two: what `zstd -d` provides by default.
const ZSTD_WINDOW: u32 = 27;

/// What a stream's first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Magic {
    Gzip,
    Zstd,
    /// A packing that is not used in images.
    Other(&'static str),
    Unknown,
}

pub(crate) fn magic(start: &[u8]) -> Magic {
    match start {
        [0x1f, 0x8b, ..] => Magic::Gzip,
        // A frame, or a skippable one (RFC 8878, sections 3.1.1 and 3.1.2).
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Magic::Zstd,
        [b'B', b'Z', b'h', ..] => Magic::Other("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Magic::Other("xz"),
        [0x04, 0x22, 0x4d, 0x18, ..] => Magic::Other("lz4"),
        _ => Magic::Unknown,
    }
}

/// Unpacks everything that `input` gives into `output`.
pub(super) fn inflate(
    announced: Compression,
    input: &mut impl Input,
    output: &mut impl Output,
) -> Result<(), LayerError> {
    let first = first_piece(input)?;
    match (announced, magic(&first)) {
        (_, Magic::Gzip) => gunzip(first, input, output),
        (_, Magic::Zstd) => unzstd(first, input, output),
        (_, Magic::Other(name)) => Err(LayerError::Packing(name)),
        (Compression::Gzip, Magic::Unknown) => Err(not_packed("gzip", &first)),
        (Compression::Zstd, Magic::Unknown) => Err(not_packed("zstd", &first)),
        (Compression::None | Compression::Detect, Magic::Unknown) => {
            if !first.is_empty() {
                output.pass(first)?;
            }
            while let Some(bytes) = input.next()? {
                output.pass(bytes)?;
            }
            Ok(())
        }
    }
}

fn not_packed(announced: &'static str, first: &[u8]) -> LayerError {
    if first.is_empty() {
        return LayerError::InflateTruncated(announced);
    }
    let found = format!("`{}`", first[..first.len().min(6)].escape_ascii());
    LayerError::NotPacked { announced, found }
}

/// The first bytes, at least six of them if there are as many.
fn first_piece(input: &mut impl Input) -> Result<Bytes, LayerError> {
    let Some(mut first) = input.next()? else { return Ok(Bytes::new()) };
    while first.len() < 6 {
        let Some(more) = input.next()? else { break };
        first = [first, more].concat().into();
    }
    Ok(first)
}

/// Gzip (RFC 1952): members one after the other. As with gzip(1), what follows the last member and
/// is none is ignored; it is read to its end all the same: the blob's own digest is over it, too, and
/// its sender must not be left hanging.
fn gunzip(first: Bytes, input: &mut impl Input, output: &mut impl Output) -> Result<(), LayerError> {
    const NAME: &str = "gzip";
    vmdeck_inflate::gunzip(&mut Pieces { first: Some(first), input }, &mut Buffers(output)).map_err(|error| {
        match error {
            vmdeck_inflate::Error::Damaged(damage) => {
                LayerError::Inflate(NAME, io::Error::new(io::ErrorKind::InvalidData, damage))
            }
            vmdeck_inflate::Error::Truncated => LayerError::InflateTruncated(NAME),
            vmdeck_inflate::Error::Stream(error) => error,
        }
    })
}

/// The input with its first piece, which was looked at, in front.
struct Pieces<'a, I> {
    first: Option<Bytes>,
    input: &'a mut I,
}

impl<I: Input> vmdeck_inflate::Input for Pieces<'_, I> {
    type Piece = Bytes;
    type Error = LayerError;

    fn next(&mut self) -> Result<Option<Bytes>, LayerError> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.input.next(),
        }
    }
}

struct Buffers<'a, O>(&'a mut O);

impl<O: Output> vmdeck_inflate::Output for Buffers<'_, O> {
    type Error = LayerError;

    fn buffer(&mut self) -> Result<Vec<u8>, LayerError> {
        self.0.buffer()
    }

    fn hand_over(&mut self, buffer: Vec<u8>, content: Range<usize>) -> Result<(), LayerError> {
        self.0.send(buffer, content)
    }
}

/// Zstandard (RFC 8878): frames one after the other, skippable ones left out.
fn unzstd(first: Bytes, input: &mut impl Input, output: &mut impl Output) -> Result<(), LayerError> {
    const NAME: &str = "zstd";
    let damaged = |error| LayerError::Inflate(NAME, error);
    let mut decoder = Decoder::new().map_err(damaged)?;
    decoder.set_parameter(zstd::zstd_safe::DParameter::WindowLogMax(ZSTD_WINDOW)).map_err(damaged)?;
    let mut buffer = output.buffer()?;
    let mut filled = 0;
    let mut packed = first;
    loop {
        let mut from = InBuffer::around(&packed);
        let mut to = OutBuffer::around_pos(buffer.as_mut_slice(), filled);
        // 0 when a frame is complete and all of it was handed out.
        let missing = decoder.run(&mut from, &mut to).map_err(damaged)?;
        let taken = from.pos();
        filled = to.pos();
        let full = filled == buffer.len();
        packed = packed.split_off(taken);
        if full {
            output.send(buffer, 0..filled)?;
            buffer = output.buffer()?;
            filled = 0;
        } else if packed.is_empty() {
            match input.next()? {
                Some(more) => packed = more,
                None if missing == 0 => break,
                None => return Err(LayerError::InflateTruncated(NAME)),
            }
        }
    }
    output.send(buffer, 0..filled)
}
