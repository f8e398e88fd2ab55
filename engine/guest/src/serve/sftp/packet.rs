//! Packets of SFTP: a length, a kind, a number, and fields, all big-endian.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Longest request; what OpenSSH's own server takes (`SFTP_MAX_MSG_LENGTH`).
pub(super) const MAX_PACKET: usize = 256 * 1024;

pub(super) const INIT: u8 = 1;
pub(super) const VERSION: u8 = 2;
pub(super) const OPEN: u8 = 3;
pub(super) const CLOSE: u8 = 4;
pub(super) const READ: u8 = 5;
pub(super) const WRITE: u8 = 6;
pub(super) const LSTAT: u8 = 7;
pub(super) const FSTAT: u8 = 8;
pub(super) const SETSTAT: u8 = 9;
pub(super) const FSETSTAT: u8 = 10;
pub(super) const OPENDIR: u8 = 11;
pub(super) const READDIR: u8 = 12;
pub(super) const REMOVE: u8 = 13;
pub(super) const MKDIR: u8 = 14;
pub(super) const RMDIR: u8 = 15;
pub(super) const REALPATH: u8 = 16;
pub(super) const STAT: u8 = 17;
pub(super) const RENAME: u8 = 18;
pub(super) const READLINK: u8 = 19;
pub(super) const SYMLINK: u8 = 20;
pub(super) const STATUS: u8 = 101;
pub(super) const HANDLE: u8 = 102;
pub(super) const DATA: u8 = 103;
pub(super) const NAME: u8 = 104;
pub(super) const ATTRS: u8 = 105;
pub(super) const EXTENDED: u8 = 200;

pub(super) const FLAG_READ: u32 = 1;
pub(super) const FLAG_WRITE: u32 = 2;
pub(super) const FLAG_APPEND: u32 = 4;
pub(super) const FLAG_CREATE: u32 = 8;
pub(super) const FLAG_TRUNCATE: u32 = 16;
pub(super) const FLAG_EXCLUSIVE: u32 = 32;

const HAS_SIZE: u32 = 1;
const HAS_OWNER: u32 = 2;
const HAS_MODE: u32 = 4;
const HAS_TIMES: u32 = 8;

/// A request ends before its fields do.
#[derive(Debug)]
pub(super) struct Short;

#[derive(Debug, Default)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    /// User and group.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<u32>,
    /// Of access and of change, seconds since 1970.
    pub(super) times: Option<(u32, u32)>,
}

#[derive(Debug)]
pub(super) struct Parser<'a> {
    rest: &'a [u8],
}

impl<'a> Parser<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(super) fn u32(&mut self) -> Result<u32, Short> {
        let (number, rest) = self.rest.split_first_chunk().ok_or(Short)?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*number))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Short> {
        let (number, rest) = self.rest.split_first_chunk().ok_or(Short)?;
        self.rest = rest;
        Ok(u64::from_be_bytes(*number))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Short> {
        let length = usize::try_from(self.u32()?).map_err(|_| Short)?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Short)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// The empty path is where the server stands.
    pub(super) fn path(&mut self) -> Result<&'a Path, Short> {
        let bytes = self.bytes()?;
        Ok(Path::new(OsStr::from_bytes(if bytes.is_empty() { b"." } else { bytes })))
    }

    pub(super) fn handle(&mut self) -> Result<u32, Short> {
        let bytes = self.bytes()?.try_into().map_err(|_| Short)?;
        Ok(u32::from_be_bytes(bytes))
    }

    pub(super) fn attributes(&mut self) -> Result<Attributes, Short> {
        let flags = self.u32()?;
        let mut attributes = Attributes::default();
        if flags & HAS_SIZE != 0 {
            attributes.size = Some(self.u64()?);
        }
        if flags & HAS_OWNER != 0 {
            attributes.owner = Some((self.u32()?, self.u32()?));
        }
        if flags & HAS_MODE != 0 {
            attributes.mode = Some(self.u32()?);
        }
        if flags & HAS_TIMES != 0 {
            attributes.times = Some((self.u32()?, self.u32()?));
        }
        Ok(attributes)
    }
}

#[derive(Debug)]
pub(super) struct Reply {
    /// Begins with room for the length.
    wire: Vec<u8>,
}

impl Reply {
    pub(super) fn new(kind: u8, id: u32) -> Self {
        let mut reply = Self::without_id(kind);
        reply.u32(id);
        reply
    }

    pub(super) fn without_id(kind: u8) -> Self {
        Self { wire: vec![0, 0, 0, 0, kind] }
    }

    pub(super) fn u32(&mut self, number: u32) {
        self.wire.extend(number.to_be_bytes());
    }

    /// Never longer than what was read at once.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).unwrap_or_default());
        self.wire.extend(bytes);
    }

    pub(super) fn no_attributes(&mut self) {
        self.u32(0);
    }

    pub(super) fn attributes(&mut self, metadata: &Metadata) {
        self.u32(HAS_SIZE | HAS_OWNER | HAS_MODE | HAS_TIMES);
        self.wire.extend(metadata.len().to_be_bytes());
        self.u32(metadata.uid());
        self.u32(metadata.gid());
        self.u32(metadata.mode());
        // The protocol's times end in 2106.
        self.u32(u32::try_from(metadata.atime()).unwrap_or_default());
        self.u32(u32::try_from(metadata.mtime()).unwrap_or_default());
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.wire.len() - 4).unwrap_or_default();
        self.wire[..4].copy_from_slice(&length.to_be_bytes());
        self.wire
    }
}
