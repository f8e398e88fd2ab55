//! The records of a stream.
//!
//! ```text
//! stream  = magic record… end
//! record  = kind (1 byte) │ length (4 bytes, little-endian) │ that many bytes
//! folder  = attributes │ path
//! file    = attributes │ path            followed by data…, extended… and file-end
//! named   = number (4) │ attributes │ path        the same for a file that may have further names
//! name    = number (4) │ is last (1) │ path       a further name of the file with that number
//! link    = attributes │ length of path (2 bytes) │ path │ where it leads
//! extended = length of name (1) │ name │ value    of the folder before, or of the file that is open
//! attributes = permissions (4) │ seconds since 1970 (8, signed) │ nanoseconds (4)
//! ```
//! Paths are relative to what is copied, which itself has the empty path and comes first. A record
//! has at most [`MAX_RECORD`] bytes, so that neither end ever holds more than that.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::{TransferError, extended};

/// Most bytes in one record.
pub const MAX_RECORD: usize = 128 * 1024;

/// Longest path, as Linux has it (`PATH_MAX`).
pub const MAX_PATH: usize = 4096;

/// Version 1 knew no extended attributes and no further names.
const MAGIC: &[u8; 8] = b"vmdeckT2";

const ATTRIBUTES: usize = 16;

mod kind {
    pub(super) const FOLDER: u8 = 1;
    pub(super) const FILE: u8 = 2;
    pub(super) const LINK: u8 = 3;
    pub(super) const DATA: u8 = 4;
    pub(super) const FILE_END: u8 = 5;
    pub(super) const WARNING: u8 = 6;
    pub(super) const END: u8 = 7;
    pub(super) const NAMED: u8 = 8;
    pub(super) const NAME: u8 = 9;
    pub(super) const EXTENDED: u8 = 10;
}

/// Permissions and time of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The lower twelve bits of `st_mode`.
    pub mode: u32,
    pub seconds: i64,
    pub nanoseconds: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Folder {
        attributes: Attributes,
        path: Vec<OsString>,
    },
    File {
        attributes: Attributes,
        path: Vec<OsString>,
        /// By which further names of it are told.
        number: Option<u32>,
    },
    /// A further name of a file that came before.
    Name {
        number: u32,
        path: Vec<OsString>,
        /// No more of them come.
        is_last: bool,
    },
    /// An extended attribute of the folder before, or of the file that is open.
    Extended {
        name: OsString,
        value: Vec<u8>,
    },
    Link {
        attributes: Attributes,
        path: Vec<OsString>,
        leads_to: OsString,
    },
    /// More of the content of the file before.
    Data(Vec<u8>),
    FileEnd,
    /// Something was left out, and why. Text of the peer: show it escaped.
    Warning(String),
    End,
    /// Its path cannot be one; what belongs to it is to be skipped.
    Nowhere {
        path: String,
    },
}

/// Writes records.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        Ok(Self { out })
    }

    pub fn folder(&mut self, attributes: Attributes, path: &OsStr) -> io::Result<()> {
        self.record(kind::FOLDER, &[&attributes.bytes(), path.as_bytes()])
    }

    pub fn file(&mut self, attributes: Attributes, path: &OsStr) -> io::Result<()> {
        self.record(kind::FILE, &[&attributes.bytes(), path.as_bytes()])
    }

    /// A file that may have further names, told by [`Self::name`].
    pub fn named(&mut self, attributes: Attributes, path: &OsStr, number: u32) -> io::Result<()> {
        self.record(kind::NAMED, &[&number.to_le_bytes(), &attributes.bytes(), path.as_bytes()])
    }

    pub fn name(&mut self, number: u32, path: &OsStr, is_last: bool) -> io::Result<()> {
        self.record(kind::NAME, &[&number.to_le_bytes(), &[u8::from(is_last)], path.as_bytes()])
    }

    /// A name of at most 255 bytes, and a value of at most 64 KiB.
    pub fn extended(&mut self, name: &OsStr, value: &[u8]) -> io::Result<()> {
        let length = u8::try_from(name.len()).map_err(io::Error::other)?;
        self.record(kind::EXTENDED, &[&[length], name.as_bytes(), value])
    }

    pub fn link(&mut self, attributes: Attributes, path: &OsStr, leads_to: &OsStr) -> io::Result<()> {
        let length = u16::try_from(path.len()).map_err(io::Error::other)?.to_le_bytes();
        self.record(kind::LINK, &[&attributes.bytes(), &length, path.as_bytes(), leads_to.as_bytes()])
    }

    /// At most [`MAX_RECORD`] bytes.
    pub fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.record(kind::DATA, &[data])
    }

    pub fn file_end(&mut self) -> io::Result<()> {
        self.record(kind::FILE_END, &[])
    }

    pub fn warning(&mut self, text: &str) -> io::Result<()> {
        let end = text.floor_char_boundary(MAX_PATH * 2);
        self.record(kind::WARNING, &[&text.as_bytes()[..end]])
    }

    /// The stream is whole.
    pub fn end(mut self) -> io::Result<()> {
        self.record(kind::END, &[])?;
        self.out.flush()
    }

    fn record(&mut self, kind: u8, parts: &[&[u8]]) -> io::Result<()> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > MAX_RECORD {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let length = u32::try_from(length).map_err(io::Error::other)?.to_le_bytes();
        self.out.write_all(&[kind, length[0], length[1], length[2], length[3]])?;
        parts.iter().try_for_each(|part| self.out.write_all(part))
    }
}

/// Reads records of a peer that is not trusted.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    began: bool,
}

impl<R: Read> Reader<R> {
    pub fn new(input: R) -> Self {
        Self { input, began: false }
    }

    pub fn read(&mut self) -> Result<Record, TransferError> {
        if !self.began {
            let mut magic = [0; MAGIC.len()];
            self.fill(&mut magic)?;
            if magic != *MAGIC {
                return Err(TransferError::Malformed("it does not begin as one"));
            }
            self.began = true;
        }
        let mut header = [0; 5];
        self.fill(&mut header)?;
        let [kind, a, b, c, d] = header;
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > MAX_RECORD {
            return Err(TransferError::Malformed("a record is too long"));
        }
        let mut body = vec![0; length];
        self.fill(&mut body)?;
        match kind {
            kind::FOLDER => placed(&body, |attributes, path| Record::Folder { attributes, path }),
            kind::FILE => placed(&body, |attributes, path| Record::File { attributes, path, number: None }),
            kind::NAMED => {
                let (number, rest) = body.split_first_chunk().ok_or(SHORT)?;
                let number = Some(u32::from_le_bytes(*number));
                placed(rest, |attributes, path| Record::File { attributes, path, number })
            }
            kind::NAME => {
                let (number, rest) = body.split_first_chunk().ok_or(SHORT)?;
                let (is_last, path) = rest.split_first().ok_or(SHORT)?;
                let number = u32::from_le_bytes(*number);
                Ok(components(path).map_or_else(
                    || nowhere(path),
                    |path| Record::Name { number, path, is_last: *is_last != 0 },
                ))
            }
            kind::EXTENDED => {
                let (length, rest) = body.split_first().ok_or(SHORT)?;
                let (name, value) = rest.split_at_checked(usize::from(*length)).ok_or(SHORT)?;
                if name.is_empty() || name.contains(&0) || value.len() > extended::MAX_VALUE {
                    return Err(TransferError::Malformed("an attribute cannot be one"));
                }
                Ok(Record::Extended { name: OsString::from_vec(name.to_vec()), value: value.to_vec() })
            }
            kind::LINK => {
                let (attributes, rest) = Attributes::split(&body)?;
                let (length, rest) = rest.split_first_chunk().ok_or(SHORT)?;
                let (path, leads_to) =
                    rest.split_at_checked(usize::from(u16::from_le_bytes(*length))).ok_or(SHORT)?;
                if leads_to.is_empty() || leads_to.len() >= MAX_PATH || leads_to.contains(&0) {
                    return Ok(nowhere(path));
                }
                let leads_to = OsString::from_vec(leads_to.to_vec());
                Ok(match components(path) {
                    Some(path) => Record::Link { attributes, path, leads_to },
                    None => nowhere(path),
                })
            }
            kind::DATA => Ok(Record::Data(body)),
            kind::FILE_END => Ok(Record::FileEnd),
            kind::WARNING => Ok(Record::Warning(String::from_utf8_lossy(&body).into_owned())),
            kind::END => Ok(Record::End),
            _ => Err(TransferError::Malformed("a record is of no known kind")),
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), TransferError> {
        self.input.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => TransferError::Cut,
            _ => TransferError::Stream(error),
        })
    }
}

const SHORT: TransferError = TransferError::Malformed("a record is too short");

fn placed(
    body: &[u8],
    make: impl FnOnce(Attributes, Vec<OsString>) -> Record,
) -> Result<Record, TransferError> {
    let (attributes, path) = Attributes::split(body)?;
    Ok(components(path).map_or_else(|| nowhere(path), |path| make(attributes, path)))
}

fn nowhere(path: &[u8]) -> Record {
    Record::Nowhere { path: String::from_utf8_lossy(&path[..path.len().min(MAX_PATH)]).into_owned() }
}

/// The names on a relative path; `None` when it could lead out of where it begins.
fn components(path: &[u8]) -> Option<Vec<OsString>> {
    if path.is_empty() {
        return Some(Vec::new());
    }
    if path.len() >= MAX_PATH || path.contains(&0) {
        return None;
    }
    path.split(|byte| *byte == b'/')
        .map(|name| match name {
            b"" | b"." | b".." => None,
            name => Some(OsString::from_vec(name.to_vec())),
        })
        .collect()
}

impl Attributes {
    fn bytes(self) -> [u8; ATTRIBUTES] {
        let mut bytes = [0; ATTRIBUTES];
        bytes[..4].copy_from_slice(&self.mode.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.seconds.to_le_bytes());
        bytes[12..].copy_from_slice(&self.nanoseconds.to_le_bytes());
        bytes
    }

    fn split(body: &[u8]) -> Result<(Self, &[u8]), TransferError> {
        let (mode, rest) = body.split_first_chunk().ok_or(SHORT)?;
        let (seconds, rest) = rest.split_first_chunk().ok_or(SHORT)?;
        let (nanoseconds, rest) = rest.split_first_chunk().ok_or(SHORT)?;
        let this = Self {
            mode: u32::from_le_bytes(*mode) & 0o7777,
            seconds: i64::from_le_bytes(*seconds),
            nanoseconds: u32::from_le_bytes(*nanoseconds).min(999_999_999),
        };
        Ok((this, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_that_could_lead_out_are_nowhere() {
        for path in ["..", "a/../b", "/etc", "a//b", "a/.", "a/", "a\0b"] {
            assert_eq!(components(path.as_bytes()), None, "{path:?}");
        }
        assert_eq!(components(b"a/..b").unwrap(), ["a", "..b"]);
        assert_eq!(components(b"").unwrap(), Vec::<OsString>::new());
        assert_eq!(components(&[b'x'; MAX_PATH]), None);
    }

    proptest! {
        #[test]
        fn noise_ends_in_records_or_an_error(mut noise in prop::collection::vec(any::<u8>(), 0..4000), begins in any::<bool>()) {
            if begins {
                noise.splice(0..0, MAGIC.iter().copied());
            }
            let mut reader = Reader::new(noise.as_slice());
            let mut records = 0;
            while reader.read().is_ok() {
                records += 1;
            }
            prop_assert!(records * 5 <= noise.len());
        }

        #[test]
        fn records_survive(mode in 0_u32..0o10000, seconds in any::<i64>(), nanoseconds in 0_u32..1_000_000_000,
                           path in "[a-z]{1,9}(/[a-z.]{3,9}){0,3}", data in prop::collection::vec(any::<u8>(), 0..999)) {
            let attributes = Attributes { mode, seconds, nanoseconds };
            let mut wire = Vec::new();
            let mut writer = Writer::new(&mut wire).unwrap();
            writer.folder(attributes, OsStr::new("")).unwrap();
            writer.file(attributes, OsStr::new(&path)).unwrap();
            writer.data(&data).unwrap();
            writer.extended(OsStr::new("user.x"), &data).unwrap();
            writer.file_end().unwrap();
            writer.named(attributes, OsStr::new(&path), 7).unwrap();
            writer.file_end().unwrap();
            writer.name(7, OsStr::new(&path), true).unwrap();
            writer.link(attributes, OsStr::new(&path), OsStr::new("../x")).unwrap();
            writer.end().unwrap();
            let mut reader = Reader::new(wire.as_slice());
            let names = components(path.as_bytes()).filter(|_| !path.contains("..."));
            prop_assert_eq!(reader.read().unwrap(), Record::Folder { attributes, path: Vec::new() });
            if let Some(path) = names {
                let file = |number| Record::File { attributes, path: path.clone(), number };
                prop_assert_eq!(reader.read().unwrap(), file(None));
                prop_assert_eq!(reader.read().unwrap(), Record::Data(data.clone()));
                prop_assert_eq!(reader.read().unwrap(), Record::Extended { name: "user.x".into(), value: data });
                prop_assert_eq!(reader.read().unwrap(), Record::FileEnd);
                prop_assert_eq!(reader.read().unwrap(), file(Some(7)));
                prop_assert_eq!(reader.read().unwrap(), Record::FileEnd);
                prop_assert_eq!(reader.read().unwrap(), Record::Name { number: 7, path: path.clone(), is_last: true });
                prop_assert_eq!(reader.read().unwrap(), Record::Link { attributes, path, leads_to: "../x".into() });
                prop_assert_eq!(reader.read().unwrap(), Record::End);
            }
        }
    }
}
