//! Any deflate stream, in any pieces: what zlib-ng makes of it, or an error where that has one.
#![no_main]

use std::convert::Infallible;
use std::ops::Range;

use flate2::{Crc, Decompress, FlushDecompress, Status};
use libfuzzer_sys::fuzz_target;
use vmdeck_inflate::{BUFFER, Input, Output, gunzip};

struct Pieces<'a>(std::slice::Chunks<'a, u8>);

impl<'a> Input for Pieces<'a> {
    type Piece = &'a [u8];
    type Error = Infallible;

    fn next(&mut self) -> Result<Option<&'a [u8]>, Infallible> {
        Ok(self.0.next())
    }
}

struct Collect(Vec<u8>);

impl Output for Collect {
    type Error = Infallible;

    fn buffer(&mut self) -> Result<Vec<u8>, Infallible> {
        Ok(vec![0xa5; BUFFER])
    }

    fn hand_over(&mut self, buffer: Vec<u8>, content: Range<usize>) -> Result<(), Infallible> {
        self.0.extend_from_slice(&buffer[content]);
        Ok(())
    }
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, deflate) = input;
    let mut reference = Decompress::new(false);
    let mut expected = vec![0; 4 << 20];
    let status = reference.decompress(deflate, &mut expected, FlushDecompress::Finish);
    if reference.total_out() as usize == expected.len() {
        return;
    }
    expected.truncate(reference.total_out() as usize);
    let whole = matches!(status, Ok(Status::StreamEnd));

    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    if whole {
        packed.extend_from_slice(&deflate[..reference.total_in() as usize]);
        let mut crc = Crc::new();
        crc.update(&expected);
        packed.extend_from_slice(&crc.sum().to_le_bytes());
        packed.extend_from_slice(&crc.amount().to_le_bytes());
    } else {
        packed.extend_from_slice(deflate);
    }
    let mut found = Collect(Vec::new());
    let length = if piece == 0 { usize::MAX } else { usize::from(piece) };
    let ended = gunzip(&mut Pieces(packed.chunks(length)), &mut found);
    assert_eq!(ended.is_ok(), whole, "{ended:?}");
    if whole {
        assert!(found.0 == expected);
    }
});
