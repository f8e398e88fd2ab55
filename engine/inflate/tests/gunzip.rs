//! Against zlib-ng, which accepts what zlib accepts.

// A test that cannot go on should say where.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::io::Write;
use std::ops::Range;

use flate2::write::GzEncoder;
use flate2::{Compression, Crc, Decompress, FlushDecompress, Status};
use proptest::prelude::*;
use vmdeck_inflate::{BUFFER, Damage, Error, Input, Output, gunzip};

/// A stream in pieces of the given lengths, over and over.
struct Pieces<'a> {
    left: &'a [u8],
    lengths: Vec<usize>,
    next: usize,
}

impl<'a> Input for Pieces<'a> {
    type Piece = &'a [u8];
    type Error = Infallible;

    fn next(&mut self) -> Result<Option<&'a [u8]>, Infallible> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let length = self.lengths[self.next % self.lengths.len()];
        self.next += 1;
        let (piece, left) = self.left.split_at(length.min(self.left.len()));
        self.left = left;
        Ok(Some(piece))
    }
}

/// Buffers come back dirty, as in a pipeline.
#[derive(Default)]
struct Collect {
    content: Vec<u8>,
    used: Vec<Vec<u8>>,
}

impl Output for Collect {
    type Error = Infallible;

    fn buffer(&mut self) -> Result<Vec<u8>, Infallible> {
        Ok(self.used.pop().unwrap_or_else(|| vec![0xa5; BUFFER]))
    }

    fn hand_over(&mut self, buffer: Vec<u8>, content: Range<usize>) -> Result<(), Infallible> {
        self.content.extend_from_slice(&buffer[content]);
        self.used.push(buffer);
        Ok(())
    }
}

fn unpack(packed: &[u8], lengths: &[usize]) -> Result<Vec<u8>, Error<Infallible>> {
    let lengths = if lengths.iter().all(|length| *length == 0) { vec![1] } else { lengths.to_vec() };
    let mut output = Collect::default();
    gunzip(&mut Pieces { left: packed, lengths, next: 0 }, &mut output)?;
    Ok(output.content)
}

fn pack(content: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// What zlib makes of a deflate stream; `None` when it is damaged or cut short. Also how long it is.
fn zlib(deflate: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut decoder = Decompress::new(false);
    let mut content = vec![0; 4 << 20];
    let status = decoder.decompress(deflate, &mut content, FlushDecompress::Finish).ok()?;
    content.truncate(decoder.total_out() as usize);
    (status == Status::StreamEnd).then_some((content, decoder.total_in() as usize))
}

fn trailer(content: &[u8]) -> [u8; 8] {
    let mut crc = Crc::new();
    crc.update(content);
    let mut trailer = [0; 8];
    trailer[..4].copy_from_slice(&crc.sum().to_le_bytes());
    trailer[4..].copy_from_slice(&crc.amount().to_le_bytes());
    trailer
}

const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// Both say the same of a deflate stream.
fn compare(deflate: &[u8], lengths: &[usize]) {
    let expected = zlib(deflate);
    let mut packed = HEADER.to_vec();
    match &expected {
        Some((content, length)) => {
            packed.extend_from_slice(&deflate[..*length]);
            packed.extend_from_slice(&trailer(content));
        }
        // What could be taken for the rest of the stream would be no damage.
        None => packed.extend_from_slice(deflate),
    }
    let found = unpack(&packed, lengths);
    match expected {
        Some((content, _)) => assert!(found.is_ok_and(|found| found == content), "content differs"),
        None => assert!(found.is_err(), "zlib refuses it"),
    }
}

/// Runs of text, noise, repetition and zeros: every kind of block and match.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..3000),
        prop::collection::vec(prop::sample::select(&b"etaoin shrdlu\n"[..]), 0..6000),
        (prop::collection::vec(any::<u8>(), 1..40), 1_usize..800)
            .prop_map(|(unit, times)| unit.repeat(times)),
        (any::<u8>(), 0_usize..50_000).prop_map(|(byte, length)| vec![byte; length]),
        (prop::collection::vec(any::<u8>(), 1..300), 32_000_usize..33_000).prop_map(|(unit, gap)| {
            let mut far = unit.clone();
            far.resize(gap, 7);
            far.extend(unit);
            far
        }),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(vec![usize::MAX]),
        prop::collection::vec(0_usize..40, 1..8),
        prop::collection::vec(1_usize..20_000, 1..8),
    ]
}

proptest! {
    #[test]
    fn what_was_packed_comes_out(content in content(), level in 0_u32..=9, lengths in lengths()) {
        prop_assert!(unpack(&pack(&content, level), &lengths).unwrap() == content);
    }

    #[test]
    fn members_follow_each_other_and_the_rest_is_ignored(
        parts in prop::collection::vec((content(), 0_u32..=9), 1..4),
        garbage in prop::collection::vec(0_u8..0x1f, 0..50),
        lengths in lengths(),
    ) {
        let mut packed: Vec<u8> = parts.iter().flat_map(|(content, level)| pack(content, *level)).collect();
        packed.extend(garbage);
        let content: Vec<u8> = parts.into_iter().flat_map(|(content, _)| content).collect();
        prop_assert!(unpack(&packed, &lengths).unwrap() == content);
    }

    #[test]
    fn damage_is_seen_as_by_zlib(
        content in content(),
        level in 0_u32..=9,
        lengths in lengths(),
        // Mostly where the codes are described.
        flips in prop::collection::vec((prop_oneof![0_usize..120, any::<usize>()], 0_u8..8), 1..4),
        cut in prop::option::weighted(0.2, any::<usize>()),
    ) {
        let packed = pack(&content, level);
        let mut deflate = packed[10..packed.len() - 8].to_vec();
        for (place, bit) in flips {
            let place = place % deflate.len();
            deflate[place] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            deflate.truncate(cut % deflate.len());
        }
        compare(&deflate, &lengths);
    }

    #[test]
    fn any_bytes_are_taken_as_by_zlib(bytes in prop::collection::vec(any::<u8>(), 0..400), lengths in lengths()) {
        compare(&bytes, &lengths);
    }
}

/// Every kind of match at every place in the buffer, and literals up to its end.
#[test]
fn long_streams_pass_many_buffers() {
    let mut state = 1_u64;
    let mut content = Vec::new();
    while content.len() < 3 * BUFFER {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let random = (state >> 33) as usize;
        let distance = 1 + random % content.len().clamp(1, 40_000);
        if content.is_empty() || random.is_multiple_of(3) {
            content.push((random >> 8) as u8);
        } else {
            for _ in 0..3 + (random >> 5) % 300 {
                content.push(content[content.len() - distance.min(content.len())]);
            }
        }
    }
    for level in [0, 1, 6, 9] {
        let packed = pack(&content, level);
        for lengths in [vec![usize::MAX], vec![4096], vec![33, 1], vec![1]] {
            assert!(unpack(&packed, &lengths).unwrap() == content, "level {level}, pieces {lengths:?}");
        }
    }
}

#[test]
fn every_part_of_the_header_is_read() {
    let whole = pack(b"hello", 6);
    let body = &whole[10..];
    let mut header = vec![0x1f, 0x8b, 8, 2 | 4 | 8 | 16, 1, 2, 3, 4, 0, 3];
    header.extend_from_slice(b"\x03\0abcname\0comment\0");
    let mut crc = Crc::new();
    crc.update(&header);
    let sum = crc.sum() as u16;
    let with = |sum: u16| [&header[..], &sum.to_le_bytes(), body].concat();
    assert_eq!(unpack(&with(sum), &[1]).unwrap(), b"hello");
    assert_eq!(unpack(&with(sum ^ 1), &[1]), Err(Error::Damaged(Damage::HeaderChecksum)));
    for (place, value, damage) in [(0, 0, Damage::Magic), (2, 7, Damage::Header), (3, 0x20, Damage::Header)] {
        let mut packed = whole.clone();
        packed[place] = value;
        assert_eq!(unpack(&packed, &[100]), Err(Error::Damaged(damage)));
    }
}

#[test]
fn checksum_and_length_are_compared() {
    let packed = pack(b"hello", 6);
    let end = packed.len();
    for (place, damage) in [(end - 8, Damage::Checksum), (end - 1, Damage::Length)] {
        let mut packed = packed.clone();
        packed[place] ^= 1;
        assert_eq!(unpack(&packed, &[100]), Err(Error::Damaged(damage)));
    }
    for length in 0..end {
        assert_eq!(unpack(&packed[..length], &[3]), Err(Error::Truncated), "{length} bytes");
    }
}
