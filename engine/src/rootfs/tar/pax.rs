//! PAX extended headers (POSIX.1-2001 `pax`, "pax Extended Header") and the vendors' keys that
//! container layers use.

use vmdeck_ext4::Timestamp;

use super::sparse::{self, Fragment};
use super::{TarError, number};

/// What extended headers say of the next entry (`x`), or of all that follow (`g`).
#[derive(Clone, Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Record<Vec<u8>>,
    pub(super) link: Record<Vec<u8>>,
    pub(super) size: Record<u64>,
    pub(super) uid: Record<i64>,
    pub(super) gid: Record<i64>,
    pub(super) modified: Record<Timestamp>,
    pub(super) major: Record<i64>,
    pub(super) minor: Record<i64>,
    /// Full names and values, in the order they came.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseRecords,
}

/// A record may be absent, or be there with an empty value, which takes away what a global header
/// said and brings back the entry's own field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Record<T> {
    #[default]
    Absent,
    Empty,
    Value(T),
}

impl<T> Record<T> {
    fn set(&mut self, value: &[u8], parsed: Option<T>, key: &'static str) -> Result<(), TarError> {
        *self = match parsed {
            _ if value.is_empty() => Self::Empty,
            Some(parsed) => Self::Value(parsed),
            None => return Err(TarError::Record(key)),
        };
        Ok(())
    }

    /// This record, else the one of the global header, else nothing.
    pub(super) fn over<'a>(&'a self, global: &'a Self) -> Option<&'a T> {
        match (self, global) {
            (Self::Value(value), _) | (Self::Absent, Self::Value(value)) => Some(value),
            _ => None,
        }
    }

    fn merge(&mut self, newer: Self) {
        match newer {
            Self::Absent => {}
            Self::Empty => *self = Self::Absent,
            Self::Value(value) => *self = Self::Value(value),
        }
    }
}

/// The keys GNU tar uses for sparse files (GNU tar manual, "PAX Format, Versions 0.0, 0.1, 1.0").
#[derive(Clone, Debug, Default)]
pub(super) struct SparseRecords {
    /// `GNU.sparse.major` and `.minor`: 1.0 has its map in front of the content.
    pub(super) version: (u32, u32),
    /// `GNU.sparse.name`: the true name; the entry's own is a made-up one.
    pub(super) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` (0.x) or `GNU.sparse.realsize` (1.0).
    pub(super) size: Option<u64>,
    /// Versions 0.0 and 0.1.
    pub(super) map: Option<Vec<Fragment>>,
    /// An offset (0.0) that waits for its length.
    offset: Option<u64>,
}

impl Extended {
    /// Reads the records of one extended header.
    pub(super) fn parse(mut records: &[u8]) -> Result<Self, TarError> {
        let mut this = Self::default();
        while !records.is_empty() {
            let (key, value, rest) = split(records)?;
            this.record(key, value)?;
            records = rest;
        }
        if this.sparse.offset.is_some() {
            return Err(TarError::SparseMap);
        }
        Ok(this)
    }

    /// Takes over what a later global header says.
    pub(super) fn merge(&mut self, newer: Self) {
        self.path.merge(newer.path);
        self.link.merge(newer.link);
        self.size.merge(newer.size);
        self.uid.merge(newer.uid);
        self.gid.merge(newer.gid);
        self.modified.merge(newer.modified);
        self.major.merge(newer.major);
        self.minor.merge(newer.minor);
        for (name, value) in newer.xattrs {
            set_xattr(&mut self.xattrs, name, value, true);
        }
        // Sparse maps belong to one file: a global one makes no sense.
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        match key {
            b"path" => self.path.set(value, text(value), "path")?,
            b"linkpath" => self.link.set(value, text(value), "linkpath")?,
            b"size" => self.size.set(value, number::decimal(value), "size")?,
            b"uid" => self.uid.set(value, number::decimal(value), "uid")?,
            b"gid" => self.gid.set(value, number::decimal(value), "gid")?,
            b"mtime" => self.modified.set(value, number::time(value), "mtime")?,
            b"SCHILY.devmajor" => self.major.set(value, number::decimal(value), "SCHILY.devmajor")?,
            b"SCHILY.devminor" => self.minor.set(value, number::decimal(value), "SCHILY.devminor")?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(name, value.to_vec(), true)?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let decoded = decode_base64(value).ok_or(TarError::Record("LIBARCHIVE.xattr"))?;
                    // libarchive writes both forms; the plain one is nearer to the truth.
                    self.xattr(&decode_percent(name), decoded, false)?;
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.record(key, value)?;
                }
                // POSIX: unknown keys are ignored.
            }
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: Vec<u8>, overwrite: bool) -> Result<(), TarError> {
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err(TarError::Record("SCHILY.xattr"));
        }
        set_xattr(&mut self.xattrs, name.to_vec(), value, overwrite);
        Ok(())
    }
}

impl SparseRecords {
    pub(super) fn is_sparse(&self) -> bool {
        self.map.is_some() || self.version.0 >= 1
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        let number = || number::decimal::<u64>(value).ok_or(TarError::Record("GNU.sparse"));
        let small = || number::decimal::<u32>(value).ok_or(TarError::Record("GNU.sparse"));
        match key {
            b"major" => self.version.0 = small()?,
            b"minor" => self.version.1 = small()?,
            b"name" => self.name = Some(text(value).ok_or(TarError::Record("GNU.sparse.name"))?),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"numblocks" if self.map.is_none() => self.map = Some(Vec::new()),
            b"offset" => match self.offset.replace(number()?) {
                None => {}
                Some(_) => return Err(TarError::SparseMap),
            },
            b"numbytes" => {
                let offset = self.offset.take().ok_or(TarError::SparseMap)?;
                sparse::push(self.map.get_or_insert_default(), Fragment { offset, length: number()? })?;
            }
            // A file with nothing but a hole.
            b"map" if value.is_empty() => self.map = Some(Vec::new()),
            b"map" => {
                let map = self.map.insert(Vec::new());
                let mut numbers = value.split(|byte| *byte == b',');
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().ok_or(TarError::SparseMap)?;
                    let parse = |text| number::decimal::<u64>(text).ok_or(TarError::SparseMap);
                    sparse::push(map, Fragment { offset: parse(offset)?, length: parse(length)? })?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Key, value, and the records that follow.
type Split<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Splits `"%d %s=%s\n"` off: the length in decimal counts the whole record, itself included. The
/// value may hold any byte, newlines and zeros too.
fn split(records: &[u8]) -> Result<Split<'_>, TarError> {
    let malformed = || TarError::MalformedRecord;
    let space = records.iter().take(20).position(|byte| *byte == b' ').ok_or_else(malformed)?;
    let length: usize = number::decimal(&records[..space]).ok_or_else(malformed)?;
    if length <= space + 1 || length > records.len() {
        return Err(malformed());
    }
    let (record, rest) = records.split_at(length);
    let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(malformed)?;
    let equals = record.iter().position(|byte| *byte == b'=').filter(|at| *at > 0).ok_or_else(malformed)?;
    Ok((&record[..equals], &record[equals + 1..], rest))
}

/// A name: must not hold a zero byte.
fn text(value: &[u8]) -> Option<Vec<u8>> {
    (!value.contains(&0)).then(|| value.to_vec())
}

fn set_xattr(xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>, name: Vec<u8>, value: Vec<u8>, overwrite: bool) {
    match xattrs.iter_mut().find(|(present, _)| *present == name) {
        Some((_, present)) if overwrite => *present = value,
        Some(_) => {}
        None => xattrs.push((name, value)),
    }
}

/// `%41` → `A`: libarchive's encoding of attribute names.
fn decode_percent(name: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if let (b'%', [high, low, after @ ..]) = (first, tail)
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            decoded.push(high << 4 | low);
            rest = after;
        } else {
            decoded.push(*first);
        }
    }
    decoded
}

/// Base64 (RFC 4648, section 4), with or without padding at the end.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = &text[..text.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1)];
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut bits: u32 = 0;
        for byte in group {
            let digit = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(digit);
        }
        bits <<= 6 * (4 - group.len());
        let bytes = bits.to_be_bytes();
        decoded.extend_from_slice(&bytes[1..group.len().max(2)]);
        if group.len() == 1 {
            return None;
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let length = (1..9).map(|digits| body + digits).find(|all| all.to_string().len() + body == *all);
        let mut record = format!("{} {key}=", length.unwrap()).into_bytes();
        record.extend_from_slice(value);
        record.push(b'\n');
        record
    }

    #[test]
    fn values_may_hold_newlines_zeros_and_equal_signs() {
        let mut records = record("SCHILY.xattr.user.a", b"x\n7 b=c\n\0=");
        records.extend(record("path", b"a\nb"));
        let extended = Extended::parse(&records).unwrap();
        assert_eq!(extended.xattrs, [(b"user.a".to_vec(), b"x\n7 b=c\n\0=".to_vec())]);
        assert_eq!(extended.path, Record::Value(b"a\nb".to_vec()));
    }

    #[test]
    fn an_empty_value_brings_back_the_entrys_own_field() {
        let global = Extended::parse(&record("path", b"everywhere")).unwrap();
        let local = Extended::parse(&record("path", b"")).unwrap();
        assert_eq!(local.path.over(&global.path), None);
        assert_eq!(Record::Absent.over(&global.path), Some(&b"everywhere".to_vec()));
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"junk"[..],
            b"5 a=b",
            b"99 path=x\n",
            b"6 a=bc\n",
            b"4 =\n",
            b"+6 a=b\n",
            b"7 =abc\n",
            b"0 a=b\n",
            b"18446744073709551616 a=b\n",
            b"11 size=-1\n",
            b"12 path=a\0b\n\0",
        ] {
            assert!(Extended::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
        assert!(Extended::parse(&record("path", b"a\0b")).is_err());
        assert!(Extended::parse(&record("mtime", b"yesterday")).is_err());
    }

    #[test]
    fn libarchive_attributes_are_decoded_and_give_way_to_plain_ones() {
        let mut records = record("LIBARCHIVE.xattr.user.p%3dq", b"AAEC/w");
        records.extend(record("SCHILY.xattr.user.both", b"plain"));
        records.extend(record("LIBARCHIVE.xattr.user.both", b"eA=="));
        let extended = Extended::parse(&records).unwrap();
        assert_eq!(extended.xattrs[0], (b"user.p=q".to_vec(), vec![0, 1, 2, 255]));
        assert_eq!(extended.xattrs[1], (b"user.both".to_vec(), b"plain".to_vec()));
    }

    #[test]
    fn base64_is_decoded() {
        let check = |text: &str, expected: Option<&[u8]>| {
            assert_eq!(decode_base64(text.as_bytes()).as_deref(), expected, "{text}");
        };
        check("", Some(b""));
        check("Zg==", Some(b"f"));
        check("Zg", Some(b"f"));
        check("Zm8=", Some(b"fo"));
        check("Zm9v", Some(b"foo"));
        check("Zm9vYg==", Some(b"foob"));
        check("Z", None);
        check("Zm9?", None);
    }
}
