//! Members: header, blocks, checksum and length (RFC 1952).

use crc32fast::Hasher;

use crate::bits::Packed;
use crate::block::Inflate;
use crate::error::{Damage, Error};
use crate::output::Unpacked;
use crate::{Input, Output};

const MAGIC: [u8; 2] = [0x1f, 0x8b];
const DEFLATE: u8 = 8;
/// Bits of the header's flags.
const HEADER_CHECKSUM: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

/// Unpacks members that follow each other. What comes behind the last one and is none is read and
/// ignored, as by gzip(1).
pub fn gunzip<E>(
    input: &mut impl Input<Error = E>,
    output: &mut impl Output<Error = E>,
) -> Result<(), Error<E>> {
    let mut packed = Packed::new(input);
    let mut unpacked = Unpacked::new(output)?;
    let mut inflate = Inflate::default();
    packed.fill()?;
    if !begins_member(&packed) {
        return Err(if packed.count < 16 { Error::Truncated } else { Damage::Magic.into() });
    }
    while begins_member(&packed) {
        header(&mut packed)?;
        unpacked.begin();
        inflate.run(&mut packed, &mut unpacked)?;
        packed.align();
        let (checksum, length) = (packed.take(32)?, packed.take(32)?);
        let found = unpacked.sum();
        if checksum != found.0 {
            return Err(Damage::Checksum.into());
        }
        // It holds the lowest 32 bits.
        if length != found.1 as u32 {
            return Err(Damage::Length.into());
        }
        packed.fill()?;
    }
    unpacked.finish()?;
    packed.drain()
}

fn begins_member<I: Input>(packed: &Packed<'_, I>) -> bool {
    packed.count >= 16 && packed.bits.to_le_bytes()[..2] == MAGIC
}

fn header<I: Input>(packed: &mut Packed<'_, I>) -> Result<(), Error<I::Error>> {
    let mut header = Header { packed, checksum: Hasher::new() };
    let mut fixed = [0; 10];
    for byte in &mut fixed {
        *byte = header.byte()?;
    }
    let flags = fixed[3];
    if fixed[2] != DEFLATE || flags & RESERVED != 0 {
        return Err(Damage::Header.into());
    }
    if flags & EXTRA != 0 {
        let length = u16::from_le_bytes([header.byte()?, header.byte()?]);
        for _ in 0..length {
            header.byte()?;
        }
    }
    for _ in 0..(flags & NAME).count_ones() + (flags & COMMENT).count_ones() {
        while header.byte()? != 0 {}
    }
    let Header { packed, checksum } = header;
    if flags & HEADER_CHECKSUM != 0 && packed.take(16)? != checksum.finalize() & 0xffff {
        return Err(Damage::HeaderChecksum.into());
    }
    Ok(())
}

struct Header<'a, 'b, I: Input> {
    packed: &'a mut Packed<'b, I>,
    checksum: Hasher,
}

impl<I: Input> Header<'_, '_, I> {
    fn byte(&mut self) -> Result<u8, Error<I::Error>> {
        let byte = self.packed.take_byte()?;
        self.checksum.update(&[byte]);
        Ok(byte)
    }
}
