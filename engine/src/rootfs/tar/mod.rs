//! A reader of tar streams: V7, ustar, PAX, GNU and star, sparse files included.
//!
//! It pulls from a [`Source`] and hands content on without copying it. Everything is bounded: the
//! length of names, of extended headers and of sparse maps. Where readers differ it does what Go's
//! `archive/tar` does, because that is what made and unpacks nearly every layer there is; where
//! that gives up on legal archives (old sparse files, contiguous files, global headers, hard links
//! with content), it follows GNU tar and POSIX.

mod header;
mod number;
mod pax;
mod sparse;

use vmdeck_ext4::Timestamp;

use self::header::{Block, Dialect};
use self::pax::Extended;
pub(super) use self::sparse::Fragment;
use super::error::LayerError;

/// Everything in a tar archive comes in blocks of 512 bytes.
pub(super) const BLOCK: usize = 512;

/// Bytes of one extended header or long name: as Go's reader has it. Names may be 4 KiB and
/// attributes 64 KiB, so that this is plenty.
const SPECIAL_LIMIT: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    #[error("it ends in the middle of an entry")]
    Truncated,
    #[error("a header's checksum is wrong")]
    Checksum,
    #[error("a header follows a block of zeros")]
    LoneZeroBlock,
    #[error("the field `{0}` holds no number that makes sense")]
    Number(&'static str),
    #[error("an extended header is malformed")]
    MalformedRecord,
    #[error("the extended header's value of `{0}` makes no sense")]
    Record(&'static str),
    #[error("an extended header or long name is longer than 1 MiB")]
    SpecialTooLong,
    #[error("a sparse file's map is malformed")]
    SparseMap,
    #[error("an entry has the unknown type `{}`", .0.escape_ascii())]
    UnknownType(u8),
    #[error("it is one of several volumes")]
    MultiVolume,
}

/// Where the bytes come from.
pub(super) trait Source {
    /// What is there; waits for more when nothing is. Empty only at the end.
    fn fill(&mut self) -> Result<&[u8], LayerError>;

    /// Takes away the first `count` bytes of what `fill` returned.
    fn consume(&mut self, count: usize);
}

impl Source for &[u8] {
    fn fill(&mut self) -> Result<&[u8], LayerError> {
        Ok(self)
    }

    fn consume(&mut self, count: usize) {
        *self = &self[count..];
    }
}

/// Where the content of files goes.
pub(super) trait Content {
    fn write(&mut self, content: &[u8]) -> Result<(), LayerError>;
    fn write_hole(&mut self, length: u64) -> Result<(), LayerError>;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum EntryType {
    #[default]
    Regular,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
}

/// One entry, extended headers applied. Names are as the archive has them: not to be trusted.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) entry_type: EntryType,
    pub(super) path: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub(super) link: Vec<u8>,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: Timestamp,
    /// Of character and block devices.
    pub(super) device: (u64, u64),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Length of a regular file, holes included.
    pub(super) size: u64,
    /// The parts of a sparse file that are stored.
    pub(super) fragments: Option<Vec<Fragment>>,
}

#[derive(Debug)]
pub(super) struct Reader<S> {
    source: S,
    /// Bytes taken from the source.
    offset: u64,
    block: [u8; BLOCK],
    global: Extended,
    /// Bytes of the current entry's content that are still in the stream, and what fills up its
    /// last block.
    stored: u64,
    padding: u64,
    /// A header that was read ahead waits in `block`.
    peeked: bool,
}

/// What one block turned out to be.
enum Read {
    End,
    Block,
}

impl<S: Source> Reader<S> {
    pub(super) fn new(source: S) -> Self {
        Self {
            source,
            offset: 0,
            block: [0; BLOCK],
            global: Extended::default(),
            stored: 0,
            padding: 0,
            peeked: false,
        }
    }

    pub(super) fn into_source(self) -> S {
        self.source
    }

    /// An error of the archive at this place.
    pub(super) fn error(&self, source: TarError) -> LayerError {
        LayerError::Tar { offset: self.offset, source }
    }

    /// Reads the next entry, skipping what is left of the last one's content. False at the end of
    /// the archive: two blocks of zeros, or the end of the stream between two entries.
    pub(super) fn next(&mut self, entry: &mut Entry) -> Result<bool, LayerError> {
        self.skip_content()?;
        let mut local = Extended::default();
        let mut long_name: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        let mut dangling = false;
        loop {
            if matches!(self.read_header()?, Read::End) {
                return if dangling { Err(self.error(TarError::Truncated)) } else { Ok(false) };
            }
            let bytes = self.block;
            let block = Block::verified(&bytes).ok_or_else(|| self.error(TarError::Checksum))?;
            match block.typeflag() {
                b'x' | b'X' => {
                    let records = self.read_special(block)?;
                    local = Extended::parse(&records).map_err(|error| self.error(error))?;
                    dangling = true;
                }
                b'g' => {
                    let records = self.read_special(block)?;
                    self.global.merge(Extended::parse(&records).map_err(|error| self.error(error))?);
                }
                b'L' => {
                    long_name = Some(self.read_name(block)?);
                    dangling = true;
                }
                b'K' => {
                    long_link = Some(self.read_name(block)?);
                    dangling = true;
                }
                // A volume's label, and Solaris' access lists: nothing that belongs in the tree.
                b'V' | b'A' => {
                    self.announce(block.size().map_err(|error| self.error(error))?);
                    self.skip_content()?;
                }
                b'M' => return Err(self.error(TarError::MultiVolume)),
                flag => {
                    self.entry(block, flag, local, entry)?;
                    // As in Go's reader, GNU's long names win over PAX.
                    if let Some(name) = long_name {
                        entry.path = name;
                    }
                    if let Some(link) = long_link {
                        entry.link = link;
                    }
                    return Ok(true);
                }
            }
        }
    }

    /// Hands the content of the current entry on.
    pub(super) fn copy_content(&mut self, entry: &Entry, to: &mut impl Content) -> Result<(), LayerError> {
        match &entry.fragments {
            None => self.copy(self.stored, to)?,
            Some(fragments) => {
                let mut position = 0;
                for fragment in fragments {
                    if fragment.offset > position {
                        to.write_hole(fragment.offset - position)?;
                    }
                    self.copy(fragment.length, to)?;
                    position = fragment.offset + fragment.length;
                }
                if entry.size > position {
                    to.write_hole(entry.size - position)?;
                }
            }
        }
        self.skip_content()
    }

    /// Turns a header into an entry and finds out what content follows it.
    fn entry(
        &mut self,
        block: Block<'_>,
        flag: u8,
        local: Extended,
        entry: &mut Entry,
    ) -> Result<(), LayerError> {
        let at = |this: &Self| {
            let offset = this.offset;
            move |source| LayerError::Tar { offset, source }
        };
        let fail = at(self);
        let global = &self.global;

        entry.path.clear();
        entry.link.clear();
        match local.path.over(&global.path) {
            Some(path) => entry.path.extend_from_slice(path),
            None => block.name(&mut entry.path),
        }
        entry.link.extend_from_slice(match local.link.over(&global.link) {
            Some(link) => link,
            None => block.link(),
        });
        entry.mode = (block.mode().map_err(fail)? & 0o7777) as u16;
        let uid = local.uid.over(&global.uid).copied().map_or_else(|| block.uid(), Ok).map_err(fail)?;
        let gid = local.gid.over(&global.gid).copied().map_or_else(|| block.gid(), Ok).map_err(fail)?;
        entry.uid = owner(uid).ok_or_else(|| fail(TarError::Number("uid")))?;
        entry.gid = owner(gid).ok_or_else(|| fail(TarError::Number("gid")))?;
        entry.modified = match local.modified.over(&global.modified) {
            Some(time) => *time,
            None => Timestamp { seconds: block.modified().map_err(fail)?, nanoseconds: 0 },
        };
        entry.xattrs = local.xattrs;
        for (name, value) in &global.xattrs {
            if !entry.xattrs.iter().any(|(present, _)| present == name) {
                entry.xattrs.push((name.clone(), value.clone()));
            }
        }
        entry.device = (0, 0);
        entry.fragments = None;
        let stored = local.size.over(&global.size).copied().map_or_else(|| block.size(), Ok).map_err(fail)?;
        entry.size = stored;
        entry.entry_type = match flag {
            // Before there was a type for folders, a slash at the end told.
            0 if entry.path.ends_with(b"/") => EntryType::Directory,
            // POSIX: a contiguous file is a regular one where nothing else is meant.
            0 | b'0' | b'7' => EntryType::Regular,
            b'S' if block.dialect() == Dialect::Gnu => EntryType::Regular,
            b'1' => EntryType::HardLink,
            b'2' => EntryType::Symlink,
            b'3' => EntryType::Character,
            b'4' => EntryType::Block,
            // GNU's incremental archives put a list of names into a folder's content.
            b'5' | b'D' => EntryType::Directory,
            b'6' => EntryType::Fifo,
            flag => return Err(fail(TarError::UnknownType(flag))),
        };
        match entry.entry_type {
            EntryType::Regular => {
                self.announce(stored);
                if flag == b'S' {
                    self.old_sparse(block, entry)?;
                } else if local.sparse.is_sparse() {
                    self.pax_sparse(local.sparse, entry)?;
                }
            }
            EntryType::Directory if flag == b'D' => self.announce(stored),
            EntryType::Character | EntryType::Block => {
                let major = local
                    .major
                    .over(&global.major)
                    .copied()
                    .map_or_else(|| block.major(), Ok)
                    .map_err(fail)?;
                let minor = local
                    .minor
                    .over(&global.minor)
                    .copied()
                    .map_or_else(|| block.minor(), Ok)
                    .map_err(fail)?;
                let unsigned = |number| u64::try_from(number).map_err(|_| fail(TarError::Number("device")));
                entry.device = (unsigned(major)?, unsigned(minor)?);
                self.announce_unlikely(stored)?;
            }
            _ => self.announce_unlikely(stored)?,
        }
        if entry.entry_type != EntryType::Regular {
            entry.size = 0;
        }
        Ok(())
    }

    fn old_sparse(&mut self, block: Block<'_>, entry: &mut Entry) -> Result<(), LayerError> {
        let mut map = Vec::new();
        entry.size = block.sparse_size().map_err(|error| self.error(error))?;
        sparse::old_gnu(block.sparse_structs(), &mut map).map_err(|error| self.error(error))?;
        let mut goes_on = block.sparse_goes_on();
        while goes_on {
            // The extension blocks stand between the header and the content and count for neither.
            if !self.read_block()? {
                return Err(self.error(TarError::Truncated));
            }
            let extension = self.block;
            sparse::old_gnu(&extension[..504], &mut map).map_err(|error| self.error(error))?;
            goes_on = extension[504] != 0;
        }
        sparse::check(&map, entry.size, self.stored).map_err(|error| self.error(error))?;
        entry.fragments = Some(map);
        Ok(())
    }

    fn pax_sparse(&mut self, records: pax::SparseRecords, entry: &mut Entry) -> Result<(), LayerError> {
        let map = match records.version {
            (0, _) => records.map.unwrap_or_default(),
            (1, 0) => {
                let mut reader = sparse::MapReader::default();
                loop {
                    if self.stored < BLOCK as u64 {
                        return Err(self.error(TarError::SparseMap));
                    }
                    if !self.read_block()? {
                        return Err(self.error(TarError::Truncated));
                    }
                    self.stored -= BLOCK as u64;
                    let block = self.block;
                    if reader.block(&block).map_err(|error| self.error(error))? {
                        break reader.finish();
                    }
                }
            }
            _ => return Err(self.error(TarError::SparseMap)),
        };
        if let Some(name) = records.name {
            entry.path = name;
        }
        entry.size = records.size.ok_or_else(|| self.error(TarError::SparseMap))?;
        sparse::check(&map, entry.size, self.stored).map_err(|error| self.error(error))?;
        entry.fragments = Some(map);
        Ok(())
    }

    fn announce(&mut self, size: u64) {
        self.stored = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// Content of an entry that should have none. Most writers that put a size there mean nothing
    /// by it; POSIX 2001 allows hard links with content. A header (or the end) right behind tells
    /// the two apart.
    fn announce_unlikely(&mut self, size: u64) -> Result<(), LayerError> {
        if size == 0 {
            return Ok(());
        }
        if !self.read_block()? {
            return Ok(());
        }
        if self.block.iter().all(|byte| *byte == 0) || Block::verified(&self.block).is_some() {
            self.peeked = true;
            return Ok(());
        }
        self.announce(size);
        // One block of it is gone already.
        let gone = BLOCK as u64;
        self.padding = if self.stored < gone { 0 } else { self.padding };
        self.stored = self.stored.saturating_sub(gone);
        Ok(())
    }

    fn read_name(&mut self, block: Block<'_>) -> Result<Vec<u8>, LayerError> {
        let mut name = self.read_special(block)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    /// Reads the content of an extended header.
    fn read_special(&mut self, block: Block<'_>) -> Result<Vec<u8>, LayerError> {
        struct Collect(Vec<u8>);
        impl Content for Collect {
            fn write(&mut self, content: &[u8]) -> Result<(), LayerError> {
                self.0.extend_from_slice(content);
                Ok(())
            }

            fn write_hole(&mut self, _length: u64) -> Result<(), LayerError> {
                Ok(())
            }
        }
        let size = block.size().map_err(|error| self.error(error))?;
        if size > SPECIAL_LIMIT {
            return Err(self.error(TarError::SpecialTooLong));
        }
        self.announce(size);
        let mut collect = Collect(Vec::new());
        self.copy(size, &mut collect)?;
        self.skip_content()?;
        Ok(collect.0)
    }

    /// Reads a header block, or finds the end of the archive.
    fn read_header(&mut self) -> Result<Read, LayerError> {
        if !std::mem::take(&mut self.peeked) && !self.read_block()? {
            return Ok(Read::End);
        }
        if self.block.iter().any(|byte| *byte != 0) {
            return Ok(Read::Block);
        }
        if self.read_block()? && self.block.iter().any(|byte| *byte != 0) {
            return Err(self.error(TarError::LoneZeroBlock));
        }
        Ok(Read::End)
    }

    /// Reads a block; false when the stream ends in front of it.
    fn read_block(&mut self) -> Result<bool, LayerError> {
        let mut filled = 0;
        while filled < BLOCK {
            let ready = self.source.fill()?;
            if ready.is_empty() {
                return if filled == 0 { Ok(false) } else { Err(self.error(TarError::Truncated)) };
            }
            let count = ready.len().min(BLOCK - filled);
            self.block[filled..filled + count].copy_from_slice(&ready[..count]);
            self.source.consume(count);
            self.offset += count as u64;
            filled += count;
        }
        Ok(true)
    }

    /// Hands `length` bytes of content on.
    fn copy(&mut self, mut length: u64, to: &mut impl Content) -> Result<(), LayerError> {
        self.stored -= length;
        while length > 0 {
            let ready = self.source.fill()?;
            if ready.is_empty() {
                return Err(self.error(TarError::Truncated));
            }
            let count = ready.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            to.write(&ready[..count])?;
            self.source.consume(count);
            self.offset += count as u64;
            length -= count as u64;
        }
        Ok(())
    }

    fn skip_content(&mut self) -> Result<(), LayerError> {
        struct Nowhere;
        impl Content for Nowhere {
            fn write(&mut self, _content: &[u8]) -> Result<(), LayerError> {
                Ok(())
            }

            fn write_hole(&mut self, _length: u64) -> Result<(), LayerError> {
                Ok(())
            }
        }
        self.copy(self.stored, &mut Nowhere)?;
        self.stored = std::mem::take(&mut self.padding);
        self.copy(self.stored, &mut Nowhere)
    }
}

/// Linux counts owners in 32 bits; some systems write -2 for `nobody`.
fn owner(number: i64) -> Option<u32> {
    u32::try_from(number).ok().or_else(|| i32::try_from(number).ok().map(i32::cast_unsigned))
}
