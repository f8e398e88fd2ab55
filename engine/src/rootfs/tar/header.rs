//! One 512-byte header block (POSIX.1-1988 ustar, GNU, star, V7).

use super::{BLOCK, TarError, number};

/// Which of the dialects a block is in: it decides what the bytes behind `linkname` mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// No magic: before POSIX.
    V7,
    /// `ustar\0` `00`: has a prefix for names.
    Ustar,
    /// As ustar, but with a shorter prefix, followed by times (`tar\0` at the end of the block).
    Star,
    /// `ustar  \0`: times, sparse map and true size where ustar has its prefix.
    Gnu,
}

/// A header block whose checksum was right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block<'a>(&'a [u8; BLOCK]);

impl<'a> Block<'a> {
    /// Takes the block when its checksum is right. Some old writers summed signed bytes.
    pub(super) fn verified(bytes: &'a [u8; BLOCK]) -> Option<Self> {
        let stored = number::field(&bytes[148..156], "checksum").ok()?;
        let blank = 8 * i64::from(b' ');
        let sum = |part: &[u8]| part.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let unsigned = i64::from(sum(&bytes[..148]) + sum(&bytes[156..])) + blank;
        if unsigned == stored {
            return Some(Self(bytes));
        }
        // A byte above 0x7f counts 256 less when it is signed.
        let high = bytes[..148].iter().chain(&bytes[156..]).filter(|byte| **byte >= 0x80).count();
        (i64::try_from(high).is_ok_and(|high| unsigned - 256 * high == stored)).then_some(Self(bytes))
    }

    pub(super) fn dialect(self) -> Dialect {
        match (&self.0[257..265], &self.0[508..]) {
            (b"ustar\x0000", b"tar\0") => Dialect::Star,
            (b"ustar\x0000", _) => Dialect::Ustar,
            (b"ustar  \0", _) => Dialect::Gnu,
            // Writers that got the version wrong exist; the magic alone tells of the prefix.
            ([b'u', b's', b't', b'a', b'r', 0, ..], _) => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }

    pub(super) fn typeflag(self) -> u8 {
        self.0[156]
    }

    /// Appends the name, with its prefix where the dialect has one.
    pub(super) fn name(self, into: &mut Vec<u8>) {
        let prefix = match self.dialect() {
            Dialect::Ustar => text(&self.0[345..500]),
            Dialect::Star => text(&self.0[345..476]),
            Dialect::V7 | Dialect::Gnu => &[],
        };
        if !prefix.is_empty() {
            into.extend_from_slice(prefix);
            into.push(b'/');
        }
        into.extend_from_slice(text(&self.0[..100]));
    }

    pub(super) fn link(self) -> &'a [u8] {
        text(&self.0[157..257])
    }

    pub(super) fn mode(self) -> Result<i64, TarError> {
        number::field(&self.0[100..108], "mode")
    }

    pub(super) fn uid(self) -> Result<i64, TarError> {
        number::field(&self.0[108..116], "uid")
    }

    pub(super) fn gid(self) -> Result<i64, TarError> {
        number::field(&self.0[116..124], "gid")
    }

    pub(super) fn size(self) -> Result<u64, TarError> {
        u64::try_from(number::field(&self.0[124..136], "size")?).map_err(|_| TarError::Number("size"))
    }

    pub(super) fn modified(self) -> Result<i64, TarError> {
        number::field(&self.0[136..148], "mtime")
    }

    pub(super) fn major(self) -> Result<i64, TarError> {
        number::field(&self.0[329..337], "devmajor")
    }

    pub(super) fn minor(self) -> Result<i64, TarError> {
        number::field(&self.0[337..345], "devminor")
    }

    /// Old GNU sparse header: the first four structs of the map.
    pub(super) fn sparse_structs(self) -> &'a [u8] {
        &self.0[386..482]
    }

    /// Old GNU sparse header: whether a block with more structs follows.
    pub(super) fn sparse_goes_on(self) -> bool {
        self.0[482] != 0
    }

    /// Old GNU sparse header: length of the file, holes included.
    pub(super) fn sparse_size(self) -> Result<u64, TarError> {
        u64::try_from(number::field(&self.0[483..495], "sparse size")?)
            .map_err(|_| TarError::Number("sparse size"))
    }
}

/// A text field: up to its first zero byte, or all of it.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}
