//! Unpacking a layer's stream: gzip, zstd, or nothing to do.
//!
//! The container engines go by the first bytes of a layer, whatever its media type says; so does
//! this. Memory is bounded whatever the stream says: 32 KiB of window for gzip, at most 128 MiB for
//! zstd (and 8 MiB for every level below 20).

use std::io;

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};
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
    /// An empty buffer to fill; its length is what fits.
    fn buffer(&mut self) -> Result<Vec<u8>, LayerError>;

    /// Hands on the first `filled` bytes of a buffer.
    fn send(&mut self, buffer: Vec<u8>, filled: usize) -> Result<(), LayerError>;

    /// Hands on bytes that needed no unpacking.
    fn pass(&mut self, bytes: Bytes) -> Result<(), LayerError>;
}

/// Most bytes of zstd window to provide, as a power of two: what `zstd -d` provides by default.
const ZSTD_WINDOW: u32 = 27;

/// What a stream's first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Magic {
    Gzip,
    Zstd,
    /// A packing that is not used in images.
    Other(&'static str),
    Unknown,
}

fn magic(start: &[u8]) -> Magic {
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
/// is none is ignored.
fn gunzip(first: Bytes, input: &mut impl Input, output: &mut impl Output) -> Result<(), LayerError> {
    const NAME: &str = "gzip";
    /// Window of 2^15 bytes, the largest there is.
    const WINDOW: u8 = 15;
    let mut packed = first;
    let mut buffer = output.buffer()?;
    let mut filled = 0;
    'members: loop {
        let mut inflate = Decompress::new_gzip(WINDOW);
        loop {
            if packed.is_empty() {
                packed = input.next()?.ok_or(LayerError::InflateTruncated(NAME))?;
            }
            let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
            let status = inflate.decompress(&packed, &mut buffer[filled..], FlushDecompress::None).map_err(
                |error| LayerError::Inflate(NAME, io::Error::new(io::ErrorKind::InvalidData, error)),
            )?;
            // Both are at most the lengths that were given.
            let taken = (inflate.total_in() - before_in) as usize;
            let made = (inflate.total_out() - before_out) as usize;
            packed = packed.split_off(taken);
            filled += made;
            if filled == buffer.len() {
                output.send(buffer, filled)?;
                buffer = output.buffer()?;
                filled = 0;
            }
            match status {
                Status::StreamEnd => break,
                // With input and room at hand there is always something to do.
                Status::Ok | Status::BufError if taken == 0 && made == 0 => {
                    return Err(LayerError::Inflate(NAME, io::ErrorKind::InvalidData.into()));
                }
                Status::Ok | Status::BufError => {}
            }
        }
        while packed.len() < 2 {
            match input.next()? {
                Some(more) if packed.is_empty() => packed = more,
                Some(more) => packed = [packed, more].concat().into(),
                None => break 'members,
            }
        }
        if magic(&packed) != Magic::Gzip {
            break;
        }
    }
    output.send(buffer, filled)?;
    // The blob's own digest is over its garbage, too: its sender must not be left hanging.
    while input.next()?.is_some() {}
    Ok(())
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
            output.send(buffer, filled)?;
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
    output.send(buffer, filled)
}
