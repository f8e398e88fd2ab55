//! The loop that nearly everything goes through.
//!
//! It runs while there are 24 bytes of the piece ahead and room for a symbol behind; what is before
//! and after is the business of [`crate::block`].

use crate::bits::Packed;
use crate::block::Tables;
use crate::error::{Damage, Error};
use crate::huffman::{
    DISTANCE_BITS, DISTANCE_SIZE, END, EXCEPTIONAL, LITERAL, LITERAL_BITS, LITERAL_SIZE, SUBTABLE,
    subtable_index,
};
use crate::output::{BUFFER, LIMIT, Unpacked};
use crate::{Input, Output};

/// Bytes of the piece that one round may look at: two refills of up to seven bytes, each of which looks
/// at eight.
const AHEAD: usize = 24;

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The block is complete.
    End,
    /// The piece is nearly used up, or the buffer nearly full.
    Short,
    Symbol,
    Distance,
}

/// What the loop works on.
struct State<'a> {
    input: &'a [u8],
    position: usize,
    bits: u64,
    count: u32,
    output: &'a mut [u8; BUFFER],
    end: usize,
    oldest: usize,
}

/// Decodes as many symbols as can be decoded without looking; true at the end of the block.
pub(crate) fn symbols<I: Input, O: Output<Error = I::Error>>(
    tables: &Tables,
    packed: &mut Packed<'_, I>,
    unpacked: &mut Unpacked<'_, O>,
) -> Result<bool, Error<I::Error>> {
    let Some(piece) = &packed.piece else { return Ok(false) };
    let Some(output) = unpacked.buffer.first_chunk_mut::<BUFFER>() else { return Ok(false) };
    let mut state = State {
        input: piece.as_ref(),
        position: packed.position,
        bits: packed.bits,
        count: packed.count,
        output,
        end: unpacked.end,
        oldest: unpacked.oldest,
    };
    let stop = run(tables, &mut state);
    packed.position = state.position;
    packed.count = state.count;
    // Above the bits that count there are others, of bytes that are not used up.
    packed.bits = state.bits & (1_u64 << state.count).wrapping_sub(1);
    unpacked.end = state.end;
    match stop {
        Stop::End => Ok(true),
        Stop::Short => Ok(false),
        Stop::Symbol => Err(Damage::Symbol.into()),
        Stop::Distance => Err(Damage::Distance.into()),
    }
}

fn run(tables: &Tables, state: &mut State<'_>) -> Stop {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("bmi2") && std::arch::is_x86_feature_detected!("avx2") {
            #[expect(unsafe_code, reason = "the processor was asked whether it has these instructions")]
            // SAFETY: all that is asked for is BMI2 and AVX2, which are there.
            return unsafe { run_wide(tables, state) };
        }
    }
    run_any(tables, state)
}

/// The same code with shifts that take their count from any register, and copies of 32 bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi2,avx2")]
fn run_wide(tables: &Tables, state: &mut State<'_>) -> Stop {
    run_inlined(tables, state)
}

fn run_any(tables: &Tables, state: &mut State<'_>) -> Stop {
    run_inlined(tables, state)
}

/// The lowest `count` bits, of which there are fewer than 64; only the count's lowest byte counts.
#[inline(always)]
fn lowest(bits: u64, count: u32) -> u64 {
    bits & (1_u64 << (count & 63)).wrapping_sub(1)
}

#[inline(always)]
fn run_inlined(tables: &Tables, state: &mut State<'_>) -> Stop {
    const LITERAL_MASK: u64 = (1 << LITERAL_BITS) - 1;
    const DISTANCE_MASK: u64 = (1 << DISTANCE_BITS) - 1;
    let literals: &[u32; LITERAL_SIZE] = &tables.literals;
    let distances: &[u32; DISTANCE_SIZE] = &tables.distances;
    let input = state.input;
    let output = &mut *state.output;
    let oldest = state.oldest;
    let (mut position, mut end) = (state.position, state.end);
    let (mut bits, mut count) = (state.bits, state.count);

    // Bytes of `window` that are used up.
    let mut ahead = 0;

    // Only the lowest six bits of `count` count: so a whole entry can be taken from it. After a
    // refill it is at least 56, and more bits may be there than it says: the same ones come again.
    // The mask changes nothing and tells the compiler so.
    macro_rules! refill {
        ($window:expr) => {
            let mut word = [0; 8];
            word.copy_from_slice(&$window[ahead & 15..][..8]);
            bits |= u64::from_le_bytes(word) << (count & 63);
            ahead += 7 - (count >> 3 & 7) as usize;
            count |= 56;
        };
    }
    macro_rules! consume {
        ($entry:expr) => {
            bits >>= $entry & 63;
            count = count.wrapping_sub($entry);
        };
    }
    macro_rules! literal {
        ($entry:expr) => {
            output[end] = ($entry >> 16) as u8;
            end += 1;
        };
    }
    macro_rules! literal_entry {
        () => {
            literals[(bits & LITERAL_MASK) as usize]
        };
    }

    let Some(window) = look_ahead(input, position, end) else { return Stop::Short };
    refill!(window);
    let mut entry = literal_entry!();
    let stop = 'rounds: loop {
        // `entry` is that of the bits at hand, of which there are at least 56.
        position += ahead;
        ahead = 0;
        let Some(window) = look_ahead(input, position, end) else { break 'rounds Stop::Short };
        let mut before = bits;
        'last_literal: {
            if entry & LITERAL != 0 {
                consume!(entry);
                literal!(entry);
                entry = literal_entry!();
                before = bits;
                if entry & LITERAL != 0 {
                    consume!(entry);
                    literal!(entry);
                    entry = literal_entry!();
                    before = bits;
                    if entry & LITERAL != 0 {
                        break 'last_literal;
                    }
                }
            }
            if entry & EXCEPTIONAL != 0 {
                if entry & SUBTABLE != 0 {
                    consume!(LITERAL_BITS);
                    entry = literals[subtable_index(entry, bits) & (LITERAL_SIZE - 1)];
                    before = bits;
                    if entry & LITERAL != 0 {
                        break 'last_literal;
                    }
                }
                if entry & EXCEPTIONAL != 0 {
                    if entry & END == 0 {
                        break 'rounds Stop::Symbol;
                    }
                    consume!(entry);
                    break 'rounds Stop::End;
                }
            }
            // Two literals, a code of 15 bits and 5 more at most.
            consume!(entry);
            let length = (entry >> 16) as usize + (lowest(before, entry) >> (entry >> 8 & 15)) as usize;
            if count & 63 < 28 {
                refill!(window);
            }
            entry = distances[(bits & DISTANCE_MASK) as usize];
            if entry & EXCEPTIONAL != 0 {
                if entry & SUBTABLE == 0 {
                    break 'rounds Stop::Symbol;
                }
                consume!(DISTANCE_BITS);
                entry = distances[subtable_index(entry, bits) & (DISTANCE_SIZE - 1)];
                if entry & EXCEPTIONAL != 0 {
                    break 'rounds Stop::Symbol;
                }
            }
            let before = bits;
            consume!(entry);
            let distance = (entry >> 16) as usize + (lowest(before, entry) >> (entry >> 8 & 15)) as usize;
            if distance > end - oldest {
                break 'rounds Stop::Distance;
            }
            let to = end;
            end += length;
            // Before the copy, so that what depends on it need not wait.
            refill!(window);
            entry = literal_entry!();
            copy(output, to, distance, length);
            continue 'rounds;
        }
        // Of 56 bits at most 37 are used up: enough are left to look the next one up.
        consume!(entry);
        literal!(entry);
        entry = literal_entry!();
        refill!(window);
    };
    (state.position, state.end) = (position + ahead, end);
    (state.bits, state.count) = (bits, count & 63);
    stop
}

/// What one round may look at, if there is as much, and room behind `end`.
#[inline(always)]
fn look_ahead(input: &[u8], position: usize, end: usize) -> Option<&[u8; AHEAD]> {
    if end >= LIMIT {
        return None;
    }
    input.get(position..)?.first_chunk()
}

/// Copies a match; may write up to 31 bytes too many.
#[inline(always)]
fn copy(output: &mut [u8; BUFFER], end: usize, distance: usize, length: usize) {
    let (mut from, mut to) = (end - distance, end);
    let stop = end + length;
    if distance >= 32 {
        copy_bytes::<32>(output, from, to);
        while to + 32 < stop {
            (from, to) = (from + 32, to + 32);
            copy_bytes::<32>(output, from, to);
        }
    } else if distance >= 16 {
        copy_bytes::<16>(output, from, to);
        while to + 16 < stop {
            (from, to) = (from + 16, to + 16);
            copy_bytes::<16>(output, from, to);
        }
    } else if distance == 1 {
        let byte = output[from];
        output[to..stop].fill(byte);
    } else if distance >= 8 {
        copy_bytes::<8>(output, from, to);
        while to + 8 < stop {
            (from, to) = (from + 8, to + 8);
            copy_bytes::<8>(output, from, to);
        }
    } else {
        while to < stop {
            output[to] = output[from];
            (from, to) = (from + 1, to + 1);
        }
    }
}

/// Copies `N` bytes at once.
#[inline(always)]
fn copy_bytes<const N: usize>(output: &mut [u8; BUFFER], from: usize, to: usize) {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&output[from..from + N]);
    output[to..to + N].copy_from_slice(&bytes);
}
