//! Blocks: stored, with the fixed codes, or with codes of their own (RFC 1951, section 3.2).

use crate::bits::Packed;
use crate::error::{Damage, Error};
use crate::fast;
use crate::huffman::{
    CODE_AT, DISTANCES, END, EXCEPTIONAL, LENGTH_BITS, LENGTHS, LITERAL, LITERALS, ROOT_BITS, ROOT_SIZE,
    SUBTABLE, TABLE_SIZE, VALUE_AT, build, subtable_index,
};
use crate::output::{LIMIT, Unpacked};
use crate::{Input, Output};

/// The order in which lengths of the codes for code lengths are sent.
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
/// Most symbols that codes can be sent for.
const MAX_LITERALS: usize = 286;
const MAX_DISTANCES: usize = 30;

/// Tables of the block in hand.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) literals: [u32; TABLE_SIZE],
    pub(crate) distances: [u32; TABLE_SIZE],
}

/// The decoder: what is worth keeping from one block to the next.
#[derive(Debug)]
pub(crate) struct Inflate {
    tables: Box<Tables>,
    /// The tables are those of the fixed codes.
    fixed: bool,
}

impl Default for Inflate {
    fn default() -> Self {
        let tables = Box::new(Tables { literals: [0; TABLE_SIZE], distances: [0; TABLE_SIZE] });
        Self { tables, fixed: false }
    }
}

impl Inflate {
    /// Decodes one deflate stream to its end.
    pub(crate) fn run<I: Input, O: Output<Error = I::Error>>(
        &mut self,
        packed: &mut Packed<'_, I>,
        unpacked: &mut Unpacked<'_, O>,
    ) -> Result<(), Error<I::Error>> {
        loop {
            let is_last = packed.take(1)? == 1;
            match packed.take(2)? {
                0 => stored(packed, unpacked)?,
                1 => {
                    self.use_fixed_codes()?;
                    self.symbols(packed, unpacked)?;
                }
                2 => {
                    self.read_codes(packed)?;
                    self.symbols(packed, unpacked)?;
                }
                _ => return Err(Damage::BlockType.into()),
            }
            if is_last {
                return Ok(());
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn with_fixed_codes() -> Box<Tables> {
        let mut inflate = Self::default();
        inflate.use_fixed_codes().unwrap();
        inflate.tables
    }

    fn use_fixed_codes(&mut self) -> Result<(), Damage> {
        if self.fixed {
            return Ok(());
        }
        let mut lengths = [8; 288];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        build(&mut self.tables.literals, ROOT_BITS, &lengths, &LITERALS, false)?;
        build(&mut self.tables.distances, ROOT_BITS, &[5; 32], &DISTANCES, false)?;
        self.fixed = true;
        Ok(())
    }

    fn read_codes<I: Input>(&mut self, packed: &mut Packed<'_, I>) -> Result<(), Error<I::Error>> {
        self.fixed = false;
        let literals = packed.take(5)? as usize + 257;
        let distances = packed.take(5)? as usize + 1;
        let described = packed.take(4)? as usize + 4;
        if literals > MAX_LITERALS || distances > MAX_DISTANCES {
            return Err(Damage::Codes.into());
        }
        let mut order = [0; 19];
        for place in &ORDER[..described] {
            order[*place] = packed.take(3)? as u8;
        }
        let mut table = [0; 1 << LENGTH_BITS];
        build(&mut table, LENGTH_BITS, &order, &LENGTHS, false)?;

        let count = literals + distances;
        let mut lengths = [0_u8; MAX_LITERALS + MAX_DISTANCES];
        let mut position = 0;
        while position < count {
            // A code of up to 7 bits, and up to 7 more.
            if packed.count < 14 {
                packed.fill()?;
            }
            let entry = table[(packed.bits & ((1 << LENGTH_BITS) - 1)) as usize];
            packed.consume(entry & 0xff)?;
            let (value, repeat) = match entry >> VALUE_AT {
                length @ 0..16 => {
                    lengths[position] = length as u8;
                    position += 1;
                    continue;
                }
                16 => {
                    let Some(before) = position.checked_sub(1) else { return Err(Damage::Codes.into()) };
                    (lengths[before], 3 + packed.take(2)?)
                }
                17 => (0, 3 + packed.take(3)?),
                _ => (0, 11 + packed.take(7)?),
            };
            let end = position + repeat as usize;
            if end > count {
                return Err(Damage::Codes.into());
            }
            lengths[position..end].fill(value);
            position = end;
        }
        // A block that cannot end.
        if lengths[256] == 0 {
            return Err(Damage::Codes.into());
        }
        let (literals, distances) = lengths[..count].split_at(literals);
        build(&mut self.tables.literals, ROOT_BITS, literals, &LITERALS, true)?;
        build(&mut self.tables.distances, ROOT_BITS, distances, &DISTANCES, true)?;
        Ok(())
    }

    /// Decodes the symbols of a block.
    fn symbols<I: Input, O: Output<Error = I::Error>>(
        &mut self,
        packed: &mut Packed<'_, I>,
        unpacked: &mut Unpacked<'_, O>,
    ) -> Result<(), Error<I::Error>> {
        loop {
            unpacked.make_room()?;
            if fast::symbols(&self.tables, packed, unpacked)? {
                return Ok(());
            }
            // Between two pieces, byte by byte.
            if unpacked.end < LIMIT && self.symbol(packed, unpacked)? {
                return Ok(());
            }
        }
    }

    /// Decodes one symbol; true at the end of the block. There must be room for it.
    fn symbol<I: Input, O: Output<Error = I::Error>>(
        &self,
        packed: &mut Packed<'_, I>,
        unpacked: &mut Unpacked<'_, O>,
    ) -> Result<bool, Error<I::Error>> {
        // The longest match takes 48 bits.
        packed.fill()?;
        let entry = look_up(&self.tables.literals, packed)?;
        if entry & EXCEPTIONAL != 0 {
            if entry & END == 0 {
                return Err(Damage::Symbol.into());
            }
            packed.consume(entry & 0xff)?;
            return Ok(true);
        }
        if entry & LITERAL != 0 {
            packed.consume(entry & 0xff)?;
            unpacked.literal((entry >> VALUE_AT) as u8);
            return Ok(false);
        }
        let length = value(entry, packed)?;
        let entry = look_up(&self.tables.distances, packed)?;
        if entry & EXCEPTIONAL != 0 {
            return Err(Damage::Symbol.into());
        }
        let distance = value(entry, packed)?;
        unpacked.copy_match(length, distance)?;
        Ok(false)
    }
}

/// The entry for the bits at hand, of which those of the root are taken already if it is below that.
fn look_up<I: Input>(table: &[u32; TABLE_SIZE], packed: &mut Packed<'_, I>) -> Result<u32, Error<I::Error>> {
    let entry = table[packed.bits as usize & (ROOT_SIZE - 1)];
    if entry & EXCEPTIONAL == 0 || entry & SUBTABLE == 0 {
        return Ok(entry);
    }
    packed.consume(ROOT_BITS)?;
    Ok(table[subtable_index(entry, packed.bits)])
}

/// Length or distance: the base and the extra bits behind the code.
fn value<I: Input>(entry: u32, packed: &mut Packed<'_, I>) -> Result<usize, Error<I::Error>> {
    let extra = (packed.bits & ((1 << (entry & 0xff)) - 1)) >> (entry >> CODE_AT & 63);
    packed.consume(entry & 0xff)?;
    Ok((entry >> VALUE_AT) as usize + extra as usize)
}

fn stored<I: Input, O: Output<Error = I::Error>>(
    packed: &mut Packed<'_, I>,
    unpacked: &mut Unpacked<'_, O>,
) -> Result<(), Error<I::Error>> {
    packed.align();
    let (length, inverse) = (packed.take(16)?, packed.take(16)?);
    if length != !inverse & 0xffff {
        return Err(Damage::StoredLength.into());
    }
    let mut left = length as usize;
    while left > 0 {
        left -= packed.bytes(left, |bytes| unpacked.stored(bytes))?;
    }
    Ok(())
}
