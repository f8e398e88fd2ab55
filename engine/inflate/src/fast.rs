//! The loop that nearly everything goes through.
//!
//! It runs while there are 24 bytes of the piece ahead and room for a round's symbols behind; what is before
//! and after is the business of [`crate::block`].
//!
//! Whether a literal comes next or a length cannot be foreseen, and a branch that the processor guesses wrong
//! costs more than a symbol. So there is none: every step does what any symbol may need. It takes one code
//! from the table that is due, distances behind a length and literals behind everything else; it copies 32
//! bytes to the end, a match's or any; it stores a byte behind those, the literal or any; and it moves the end
//! by what of it counts. Branches are left for what is rare: codes longer than the root of a table, matches
//! longer than 32 bytes or that overlap themselves, and the end.

use std::hint::select_unpredictable;

use crate::bits::Packed;
use crate::block::Tables;
use crate::error::{Damage, Error};
use crate::huffman::{
    CODE_AT, END, EXCEPTIONAL, LENGTH, LITERAL, ROOT_BITS, ROOT_SIZE, SUBTABLE, TABLE_SIZE, VALUE_AT,
    subtable_index,
};
use crate::output::{BUFFER, LIMIT, Unpacked};
use crate::{Input, Output};

/// Bytes of the piece that one round may look at: two refills of up to seven bytes, and one behind the last
/// round; each looks at eight.
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

/// The same code with instructions that take the count of a shift, or of the bits to leave, from any
/// register, and copies of 32 bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi2,avx2")]
fn run_wide(tables: &Tables, state: &mut State<'_>) -> Stop {
    run_inlined(
        tables,
        state,
        #[inline(always)]
        |bits, count| std::arch::x86_64::_bzhi_u64(bits, count),
    )
}

fn run_any(tables: &Tables, state: &mut State<'_>) -> Stop {
    run_inlined(
        tables,
        state,
        #[inline(always)]
        |bits, count| bits & (1_u64 << (count & 63)).wrapping_sub(1),
    )
}

/// `lowest` leaves the lowest so many bits, fewer than 64; only the lowest byte of the count counts.
#[expect(unused_assignments, reason = "what the step behind the rounds leaves, nobody needs")]
#[inline(always)]
fn run_inlined(tables: &Tables, state: &mut State<'_>, lowest: impl Fn(u64, u32) -> u64) -> Stop {
    let (literals, distances) = (root(&tables.literals), root(&tables.distances));
    let input = state.input;
    let output = &mut *state.output;
    let oldest = state.oldest;
    let (mut position, mut end) = (state.position, state.end);
    let (mut bits, mut count) = (state.bits, state.count);

    // Bytes of `window` that are used up.
    let mut ahead = 0;
    // What the last symbol was, which table is due, and what it said: the length, if it was one.
    let mut last = LITERAL;
    let mut due = literals;
    let mut length = 0;

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
    let stop = 'rounds: {
        // Takes 28 bits at most, and two that follow each other 48.
        macro_rules! step {
            () => {
                let mut entry = due[bits as usize & (ROOT_SIZE - 1)];
                let is_distance = last & LENGTH != 0;
                if entry & EXCEPTIONAL != 0 {
                    if entry & SUBTABLE != 0 {
                        consume!(ROOT_BITS);
                        let table = if is_distance { &tables.distances } else { &tables.literals };
                        entry = table[subtable_index(entry, bits) & (TABLE_SIZE - 1)];
                    }
                    if entry & EXCEPTIONAL != 0 {
                        if entry & END == 0 {
                            break 'rounds Stop::Symbol;
                        }
                        consume!(entry);
                        break 'rounds Stop::End;
                    }
                }
                let before = bits;
                consume!(entry);
                let extra = lowest(before, entry) >> (entry >> CODE_AT & 63);
                let value = (entry >> VALUE_AT) as usize + extra as usize;
                // Any that is there, if this is no match. The longest distance is not longer than what is
                // in front of the buffer's new bytes.
                let from = select_unpredictable(is_distance, end.wrapping_sub(value), oldest);
                let matched = select_unpredictable(is_distance, length, 0);
                if from < oldest {
                    break 'rounds Stop::Distance;
                }
                copy_bytes::<32>(output, from, end);
                if matched > value.min(32) {
                    copy(output, end, value, matched);
                }
                end += matched;
                output[end] = value as u8;
                end += (entry / LITERAL & 1) as usize;
                length = value;
                last = entry;
                due = select_unpredictable(entry & LENGTH != 0, distances, literals);
            };
        }
        let mut window = &[0; AHEAD];
        while let Some(next) = look_ahead(input, position + ahead, end) {
            window = next;
            position += ahead;
            ahead = 0;
            refill!(window);
            step!();
            step!();
            refill!(window);
            step!();
            step!();
        }
        // Nobody else knows that a distance is due.
        if last & LENGTH != 0 {
            refill!(window);
            step!();
        }
        Stop::Short
    };
    (state.position, state.end) = (position + ahead, end);
    (state.bits, state.count) = (bits, count & 63);
    stop
}

fn root(table: &[u32; TABLE_SIZE]) -> &[u32; ROOT_SIZE] {
    table.first_chunk().expect("the root is in front")
}

/// What one round may look at, if there is as much, and room behind `end`.
#[inline(always)]
fn look_ahead(input: &[u8], position: usize, end: usize) -> Option<&[u8; AHEAD]> {
    if end >= LIMIT {
        return None;
    }
    input.get(position..)?.first_chunk()
}

/// Copies a match that is longer than 32 bytes or than its distance; may write up to 31 bytes too many.
#[cold]
#[inline(never)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HISTORY;
    use crate::block::Inflate;

    /// Nothing else here runs without the instructions of newer processors.
    #[test]
    fn every_processor_decodes_alike() {
        let tables = Inflate::with_fixed_codes();
        let mut random = 1_u64;
        let mut byte = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 56) as u8
        };
        for round in 0..500 {
            let input: Vec<u8> = (0..400).map(|_| byte()).collect();
            let history: Vec<u8> = (0..BUFFER).map(|_| byte()).collect();
            let decode = |run: fn(&Tables, &mut State<'_>) -> Stop| {
                let mut output = history.clone();
                let mut state = State {
                    input: &input,
                    position: 0,
                    bits: 0,
                    count: 0,
                    output: output.first_chunk_mut().unwrap(),
                    end: HISTORY + round,
                    oldest: round * 64,
                };
                let stop = run(&tables, &mut state);
                let (position, count, end) = (state.position, state.count, state.end);
                let bits = state.bits & ((1 << count) - 1);
                output.truncate(end);
                (stop, position, bits, count, output)
            };
            let (plain, chosen) = (decode(run_any), decode(run));
            assert!(plain.4.len() > HISTORY + round || plain.0 != Stop::Short, "round {round}");
            assert!(plain == chosen, "round {round}: {:?} and {:?}", plain.0, chosen.0);
        }
    }
}
