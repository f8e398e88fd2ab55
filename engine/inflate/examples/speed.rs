//! `speed FILE.gz`: bytes unpacked per second of processor time, best of five, beside zlib-ng.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::convert::Infallible;
use std::ops::Range;

use vmdeck_inflate::{BUFFER, Input, Output, gunzip};

struct Pieces<'a>(std::slice::Chunks<'a, u8>);

impl<'a> Input for Pieces<'a> {
    type Piece = &'a [u8];
    type Error = Infallible;

    fn next(&mut self) -> Result<Option<&'a [u8]>, Infallible> {
        Ok(self.0.next())
    }
}

struct Count(u64, Vec<Vec<u8>>);

impl Output for Count {
    type Error = Infallible;

    fn buffer(&mut self) -> Result<Vec<u8>, Infallible> {
        Ok(self.1.pop().unwrap_or_else(|| vec![0; BUFFER]))
    }

    fn hand_over(&mut self, buffer: Vec<u8>, content: Range<usize>) -> Result<(), Infallible> {
        self.0 += content.len() as u64;
        self.1.push(buffer);
        Ok(())
    }
}

fn ours(packed: &[u8]) -> u64 {
    let mut count = Count(0, Vec::new());
    gunzip(&mut Pieces(packed.chunks(64 << 10)), &mut count).unwrap();
    count.0
}

fn zlib_ng(packed: &[u8]) -> u64 {
    let mut inflate = flate2::Decompress::new_gzip(15);
    let mut buffer = vec![0; 256 << 10];
    let mut status = flate2::Status::Ok;
    while status != flate2::Status::StreamEnd {
        let taken = inflate.total_in() as usize;
        let piece = &packed[taken..packed.len().min(taken + (64 << 10))];
        status = inflate.decompress(piece, &mut buffer, flate2::FlushDecompress::None).unwrap();
    }
    inflate.total_out()
}

/// Linux, `Documentation/scheduler/sched-stats.rst`; hardly depends on what else runs.
fn processor_nanoseconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

fn main() {
    let packed = std::fs::read(std::env::args().nth(1).unwrap()).unwrap();
    for (name, decode) in [("vmdeck", ours as fn(&[u8]) -> u64), ("zlib-ng", zlib_ng)] {
        let best = (0..5)
            .map(|_| {
                let begun = processor_nanoseconds();
                let made = decode(&packed);
                made as f64 * 1e3 / (processor_nanoseconds() - begun)
            })
            .fold(0.0, f64::max);
        println!("{name:8} {best:.0} MB/s");
    }
}
