//! Bytes hashed per second of processor time, best of five: two streams in turns, beside one alone.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use vmdeck_sha256::Stream;

const PIECE: usize = 256 << 10;
const PIECES: usize = 2_000;

fn in_turns(piece: &Bytes) {
    let mut streams = [Stream::new(PIECE), Stream::new(PIECE)];
    for _ in 0..PIECES / 2 {
        for stream in &mut streams {
            stream.update(piece.clone());
        }
    }
    std::hint::black_box(streams.map(Stream::finish));
}

fn alone(piece: &Bytes) {
    let mut hasher = Sha256::new();
    for _ in 0..PIECES {
        hasher.update(piece);
    }
    std::hint::black_box(hasher.finalize());
}

/// Linux, `Documentation/scheduler/sched-stats.rst`; hardly depends on what else runs.
fn processor_nanoseconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

fn main() {
    let piece = Bytes::from((0..PIECE).map(|index| (index * 7 + index / 255) as u8).collect::<Vec<_>>());
    for (name, hash) in [("in turns", in_turns as fn(&Bytes)), ("alone", alone)] {
        let best = (0..5)
            .map(|_| {
                let begun = processor_nanoseconds();
                hash(&piece);
                (PIECE * PIECES) as f64 * 1e3 / (processor_nanoseconds() - begun)
            })
            .fold(0.0, f64::max);
        println!("{name:8} {best:.0} MB/s");
    }
}
