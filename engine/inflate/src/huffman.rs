//! Tables that turn codes into symbols.
//!
//! An entry is one word, so that what follows from it needs no second look:
//!
//! ```text
//! symbol    value, or base of the length or distance (17..32) | LITERAL, LENGTH or neither
//!           | length of the code (8..14) | that and the extra bits (0..8)
//! others    EXCEPTIONAL, and: SUBTABLE where (17..32), its bits (8..14), bits of the root (0..8);
//!           END of the block (its code's length: 0..8); or nothing, for a code that nothing stands for
//! ```

use crate::error::Damage;

/// A length: a distance follows.
pub(crate) const LENGTH: u32 = 1 << 14;
pub(crate) const EXCEPTIONAL: u32 = 1 << 15;
pub(crate) const LITERAL: u32 = 1 << 16;
/// These two go with [`EXCEPTIONAL`] only.
pub(crate) const END: u32 = 1 << 14;
pub(crate) const SUBTABLE: u32 = 1 << 16;
/// Where the length of the code is, or the bits of the table below.
pub(crate) const CODE_AT: u32 = 8;
pub(crate) const VALUE_AT: u32 = 17;

/// Bits of the roots of both tables. More would push other things out of the cache, fewer lead to the tables
/// below more often.
pub(crate) const ROOT_BITS: u32 = 11;
pub(crate) const ROOT_SIZE: usize = 1 << ROOT_BITS;
/// Entries of the root and those below: as many as 288 codes of up to 15 bits can need (2,342, zlib's
/// `enough` for 11 bits; distances need fewer), made a power of two.
pub(crate) const TABLE_SIZE: usize = 4096;
/// Bits of the longest code that describes code lengths.
pub(crate) const LENGTH_BITS: u32 = 7;

/// Longest code.
const MAX_BITS: usize = 15;
/// Most symbols of one alphabet.
const MAX_SYMBOLS: usize = 288;

/// What symbols stand for, without the length of their code.
pub(crate) const LITERALS: [u32; 288] = literals();
pub(crate) const DISTANCES: [u32; 32] = distances();
pub(crate) const LENGTHS: [u32; 19] = lengths();

const fn literals() -> [u32; 288] {
    let mut results = [EXCEPTIONAL; 288];
    let mut symbol = 0;
    while symbol < 256 {
        results[symbol] = LITERAL | (symbol as u32) << VALUE_AT;
        symbol += 1;
    }
    results[256] = EXCEPTIONAL | END;
    let mut base = 3;
    symbol = 257;
    while symbol < 285 {
        let extra = if symbol < 265 { 0 } else { (symbol as u32 - 261) / 4 };
        results[symbol] = base << VALUE_AT | LENGTH | extra;
        base += 1 << extra;
        symbol += 1;
    }
    results[285] = 258 << VALUE_AT | LENGTH;
    results
}

const fn distances() -> [u32; 32] {
    let mut results = [EXCEPTIONAL; 32];
    let mut base = 1;
    let mut symbol = 0;
    while symbol < 30 {
        let extra = if symbol < 4 { 0 } else { (symbol as u32 - 2) / 2 };
        results[symbol] = base << VALUE_AT | extra;
        base += 1 << extra;
        symbol += 1;
    }
    results
}

const fn lengths() -> [u32; 19] {
    let mut results = [0; 19];
    let mut symbol = 0;
    while symbol < 19 {
        results[symbol] = (symbol as u32) << VALUE_AT;
        symbol += 1;
    }
    results
}

/// Builds the table for an alphabet. `lengths` has the length of each symbol's code, 0 for none, and
/// `results` what each symbol stands for.
///
/// As with zlib, a set of codes is complete, or has one code of one bit, or (`may_be_empty`) none.
pub(crate) fn build(
    table: &mut [u32],
    bits: u32,
    lengths: &[u8],
    results: &[u32],
    may_be_sparse: bool,
) -> Result<(), Damage> {
    let mut counts = [0_usize; MAX_BITS + 1];
    for length in lengths {
        counts[usize::from(*length & 15)] += 1;
    }
    // Where the symbols of each length begin in the order of their codes.
    let mut offsets = [0_usize; MAX_BITS + 2];
    let mut left = 1_i32;
    for length in 1..=MAX_BITS {
        offsets[length + 1] = offsets[length] + counts[length];
        left = (left << 1) - counts[length] as i32;
        if left < 0 {
            return Err(Damage::Codes);
        }
    }
    let codes = offsets[MAX_BITS + 1];
    let mut sorted = [0_u16; MAX_SYMBOLS];
    for (symbol, length) in lengths.iter().enumerate().filter(|(_, length)| **length != 0) {
        let place = &mut offsets[usize::from(*length & 15)];
        sorted[*place] = symbol as u16;
        *place += 1;
    }
    let entry = |symbol: u16, length: u32| {
        let result = results[usize::from(symbol)];
        let code = if result & EXCEPTIONAL == 0 { length << CODE_AT } else { 0 };
        result + code + length
    };
    if left > 0 {
        if !may_be_sparse || codes > 1 || codes != counts[1] {
            return Err(Damage::Codes);
        }
        table[..1 << bits].fill(EXCEPTIONAL);
        if codes == 1 {
            let only = entry(sorted[0], 1);
            table[..1 << bits].iter_mut().step_by(2).for_each(|place| *place = only);
        }
        return Ok(());
    }

    // Codes are in the table with their first bit lowest, so that the next one is found by adding 1
    // from the other end. The table begins with as many entries as the shortest code needs and is
    // doubled whenever codes become longer.
    let mut symbols = sorted[..codes].iter().copied();
    let mut length = 1;
    while counts[length] == 0 {
        length += 1;
    }
    let mut count = counts[length];
    let mut code = 0_usize;
    let mut size = 1 << length.min(bits as usize);
    while length <= bits as usize {
        loop {
            let Some(symbol) = symbols.next() else { return Err(Damage::Codes) };
            table[code] = entry(symbol, length as u32);
            if code == size - 1 {
                // All ones: the last code.
                while size < 1 << bits {
                    table.copy_within(..size, size);
                    size <<= 1;
                }
                return Ok(());
            }
            code = next_code(code, size - 1);
            count -= 1;
            if count == 0 {
                break;
            }
        }
        while count == 0 {
            length += 1;
            if length <= bits as usize {
                table.copy_within(..size, size);
                size <<= 1;
            }
            count = counts[length];
        }
    }

    let mask = (1_usize << bits) - 1;
    let mut end = 1 << bits;
    let mut start = end;
    let mut prefix = usize::MAX;
    loop {
        if code & mask != prefix {
            prefix = code & mask;
            start = end;
            // As large as the codes that share this prefix need.
            let mut sub_bits = length - bits as usize;
            let mut used = count;
            while used < 1 << sub_bits {
                sub_bits += 1;
                used = (used << 1) + counts[bits as usize + sub_bits];
            }
            end = start + (1 << sub_bits);
            table[prefix] =
                (start as u32) << VALUE_AT | EXCEPTIONAL | SUBTABLE | (sub_bits as u32) << CODE_AT | bits;
        }
        let Some(symbol) = symbols.next() else { return Err(Damage::Codes) };
        let made = entry(symbol, length as u32 - bits);
        let first = start + (code >> bits);
        table[first..end].iter_mut().step_by(1 << (length - bits as usize)).for_each(|place| *place = made);
        let ones = (1 << length) - 1;
        if code == ones {
            return Ok(());
        }
        code = next_code(code, ones);
        count -= 1;
        while count == 0 {
            length += 1;
            count = counts[length];
        }
    }
}

/// The code behind this one, which is not the last: its highest zero becomes one, and the ones above
/// it zeros.
fn next_code(code: usize, ones: usize) -> usize {
    let bit = 1 << (code ^ ones).ilog2();
    (code & (bit - 1)) | bit
}

/// Where the entry of a table below the root is, for bits behind those of the root.
pub(crate) fn subtable_index(entry: u32, bits: u64) -> usize {
    (entry >> VALUE_AT) as usize + (bits & ((1 << (entry >> CODE_AT & 15)) - 1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_symbols_stand_for_is_as_rfc_1951_has_it() {
        // Section 3.2.5: codes 264, 265, 284; distance codes 3, 4, 29.
        assert_eq!(LITERALS[264], 10 << VALUE_AT | LENGTH);
        assert_eq!(LITERALS[265], 11 << VALUE_AT | LENGTH | 1);
        assert_eq!(LITERALS[284], 227 << VALUE_AT | LENGTH | 5);
        assert_eq!(LITERALS[285], 258 << VALUE_AT | LENGTH);
        assert_eq!(LITERALS[286], EXCEPTIONAL);
        assert_eq!(DISTANCES[3], 4 << VALUE_AT);
        assert_eq!(DISTANCES[4], 5 << VALUE_AT | 1);
        assert_eq!(DISTANCES[29], 24_577 << VALUE_AT | 13);
        assert_eq!(DISTANCES[30], EXCEPTIONAL);
    }

    #[test]
    fn codes_are_those_of_the_example_in_rfc_1951() {
        // Section 3.2.2: lengths (3,3,3,3,3,2,4,4) give F=00, A=010, …, H=1111.
        let lengths = [3, 3, 3, 3, 3, 2, 4, 4];
        let results: Vec<u32> = (0..8).map(|symbol| symbol << VALUE_AT).collect();
        for bits in [3, 4, 7] {
            let mut table = [0; 256];
            build(&mut table, bits, &lengths, &results, false).unwrap();
            for (symbol, code) in ["010", "011", "100", "101", "110", "00", "1110", "1111"].iter().enumerate()
            {
                let stream = code.chars().rev().fold(0_u64, |bits, bit| bits << 1 | u64::from(bit == '1'));
                let mut entry = table[(stream & ((1 << bits) - 1)) as usize];
                if entry & EXCEPTIONAL != 0 {
                    entry = table[subtable_index(entry, stream >> bits)];
                }
                assert_eq!(entry >> VALUE_AT, symbol as u32, "{code} with {bits} bits");
            }
        }
    }

    #[test]
    fn incomplete_and_crowded_sets_are_refused() {
        let mut table = [0; 256];
        let results = [0; 4];
        let mut check = |lengths: &[u8], sparse| build(&mut table, 7, lengths, &results, sparse).is_ok();
        assert!(check(&[1, 1], false));
        assert!(!check(&[1, 1, 1], true));
        assert!(!check(&[1, 2], true));
        assert!(check(&[1], true) && !check(&[1], false));
        assert!(!check(&[2], true));
        assert!(check(&[0, 0], true) && !check(&[0, 0], false));
    }
}
