//! What is left of a layer once its files are in the image: a list of entries.
//!
//! An image may have a million entries, so that a list is compact: names, targets and attributes
//! lie one after the other in one buffer.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;
use vmdeck_ext4::{DataWriter, FileData, Timestamp};

use super::RootfsLimits;
use super::error::{EntryError, LayerError, escape};
use super::path::{self, NameKind};
use super::tar::{self, Content, EntryType, Reader, Source};

/// Bytes of names, link targets and attributes of one layer.
const TEXT_LIMIT: usize = 256 << 20;
/// Longest target of a symbolic link that ext4 can store: one block less the final zero byte.
const TARGET_LIMIT: usize = 4095;

/// A piece of a list's text.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    start: u32,
    length: u32,
}

/// The entries of one layer, in the order of its archive.
#[derive(Debug, Default)]
pub(super) struct LayerEntries {
    text: Vec<u8>,
    entries: Vec<LayerEntry>,
    /// Whether any entry hides something of the lower layers.
    pub(super) whiteouts: bool,
}

#[derive(Debug)]
pub(super) struct LayerEntry {
    /// Clean; see [`path::clean_entry`].
    path: Span,
    /// Attributes: for each, lengths of name and value (`u32`, native), then both.
    xattrs: Span,
    pub(super) kind: LayerEntryKind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: Timestamp,
}

#[derive(Debug)]
pub(super) enum LayerEntryKind {
    Whiteout,
    Opaque,
    Directory,
    File(FileData),
    Symlink(Span),
    /// The target is clean, too.
    HardLink(Span),
    CharacterDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

impl LayerEntries {
    pub(super) fn entries(&self) -> &[LayerEntry] {
        &self.entries
    }

    /// Takes the entries out, so that their content moves into the tree without a copy.
    pub(super) fn take_entries(&mut self) -> Vec<LayerEntry> {
        std::mem::take(&mut self.entries)
    }

    pub(super) fn path(&self, entry: &LayerEntry) -> &[u8] {
        self.text(entry.path)
    }

    pub(super) fn text(&self, span: Span) -> &[u8] {
        &self.text[span.start as usize..][..span.length as usize]
    }

    /// Names and values of an entry's extended attributes.
    pub(super) fn xattrs(&self, entry: &LayerEntry) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = self.text(entry.xattrs);
        std::iter::from_fn(move || {
            let (name, tail) = take_counted(rest)?;
            let (value, tail) = take_counted(tail)?;
            rest = tail;
            Some((name, value))
        })
    }

    /// Where the text to come will start.
    fn mark(&self) -> usize {
        self.text.len()
    }

    /// The text since a mark. Within `u32`: the text is bounded by [`TEXT_LIMIT`].
    fn span(&self, mark: usize) -> Span {
        Span { start: mark as u32, length: (self.text.len() - mark) as u32 }
    }

    fn push_xattrs(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Span {
        let mark = self.mark();
        for (name, value) in xattrs {
            if is_dropped(name) {
                continue;
            }
            for part in [name, value] {
                self.text.extend_from_slice(&(part.len() as u32).to_ne_bytes());
                self.text.extend_from_slice(part);
            }
        }
        self.span(mark)
    }
}

fn take_counted(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = text.split_first_chunk()?;
    rest.split_at_checked(u32::from_ne_bytes(*length) as usize)
}

/// Attributes that mean nothing in another system: labels of the host that packed the layer (as in
/// `umoci`), and namespaces Linux does not have on ext4 (`com.apple.…`, `btrfs.…`).
fn is_dropped(name: &[u8]) -> bool {
    const KNOWN: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    let known = KNOWN.iter().any(|prefix| name.starts_with(prefix) && name.len() > prefix.len())
        || matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default");
    !known || name == b"security.selinux"
}

/// Counts what all layers of an image hold together.
#[derive(Debug)]
pub(super) struct Budget {
    limits: RootfsLimits,
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl Budget {
    pub(super) fn new(limits: RootfsLimits) -> Self {
        Self { limits, entries: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    pub(super) fn entry(&self) -> Result<(), LayerError> {
        let limit = self.limits.entries;
        // Relaxed: a count that guards nothing else.
        if self.entries.fetch_add(1, Ordering::Relaxed) >= limit {
            return Err(LayerError::Limit { what: "entries", limit });
        }
        Ok(())
    }

    fn bytes(&self, count: u64) -> Result<(), LayerError> {
        let limit = self.limits.bytes;
        let before = self.bytes.fetch_add(count.min(limit + 1), Ordering::Relaxed);
        if before.saturating_add(count) > limit {
            return Err(LayerError::Limit { what: "bytes of content", limit });
        }
        Ok(())
    }
}

impl Content for DataWriter<'_> {
    fn write(&mut self, content: &[u8]) -> Result<(), LayerError> {
        DataWriter::write(self, content).map_err(LayerError::Write)
    }

    fn write_hole(&mut self, length: u64) -> Result<(), LayerError> {
        DataWriter::write_hole(self, length).map_err(LayerError::Write)
    }
}

/// Reads a layer's archive to its end: content goes to `writer`, the rest becomes the list.
/// Returns the source as well, which may have more behind the archive's end.
pub(super) fn read_layer<S: Source>(
    source: S,
    writer: &mut DataWriter<'_>,
    budget: &Budget,
    cancel: &CancellationToken,
) -> Result<(LayerEntries, S), LayerError> {
    let mut reader = Reader::new(source);
    let mut entry = tar::Entry::default();
    let mut list = LayerEntries::default();
    while reader.next(&mut entry)? {
        if cancel.is_cancelled() {
            return Err(LayerError::Cancelled);
        }
        budget.entry()?;
        if list.text.len() > TEXT_LIMIT {
            return Err(LayerError::Limit { what: "bytes of names", limit: TEXT_LIMIT as u64 });
        }
        let mark = list.mark();
        let named = path::clean_entry(&entry.path, &mut list.text)
            .and_then(|kind| Ok((kind, list.span(mark), describe(&entry, kind, &mut list)?)));
        let (name_kind, path, kind) =
            named.map_err(|source| LayerError::Entry { name: escape(&entry.path), source })?;
        let kind = match kind {
            Some(LayerEntryKind::File(_)) => {
                budget.bytes(entry.size)?;
                // Holes get no blocks, so that only what is stored asks for a place.
                let announced = entry
                    .fragments
                    .as_ref()
                    .map_or(entry.size, |fragments| fragments.iter().map(|fragment| fragment.length).sum());
                writer.begin(announced).map_err(LayerError::Write)?;
                reader.copy_content(&entry, writer)?;
                LayerEntryKind::File(writer.end().map_err(LayerError::Write)?)
            }
            Some(kind) => kind,
            None => {
                list.text.truncate(mark);
                continue;
            }
        };
        list.whiteouts |= matches!(name_kind, NameKind::Whiteout | NameKind::Opaque);
        let xattrs = list.push_xattrs(&entry.xattrs);
        list.entries.push(LayerEntry {
            path,
            xattrs,
            kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            modified: entry.modified,
        });
    }
    list.text.shrink_to_fit();
    list.entries.shrink_to_fit();
    Ok((list, reader.into_source()))
}

/// What an entry is to become; nothing for what is no part of the image. A file's content follows.
fn describe(
    entry: &tar::Entry,
    name_kind: NameKind,
    list: &mut LayerEntries,
) -> Result<Option<LayerEntryKind>, EntryError> {
    match name_kind {
        // Whatever type of entry it is shipped as.
        NameKind::Whiteout => return Ok(Some(LayerEntryKind::Whiteout)),
        NameKind::Opaque => return Ok(Some(LayerEntryKind::Opaque)),
        NameKind::Aufs => return Ok(None),
        NameKind::Root if entry.entry_type != EntryType::Directory => return Err(EntryError::RootReplaced),
        NameKind::Root | NameKind::Ordinary => {}
    }
    Ok(Some(match entry.entry_type {
        EntryType::Directory => LayerEntryKind::Directory,
        EntryType::Regular => LayerEntryKind::File(FileData::default()),
        EntryType::Fifo => LayerEntryKind::Fifo,
        EntryType::Symlink => {
            let length = entry.link.len();
            if length == 0 || length > TARGET_LIMIT || entry.link.contains(&0) {
                return Err(EntryError::Target(length));
            }
            let mark = list.mark();
            list.text.extend_from_slice(&entry.link);
            LayerEntryKind::Symlink(list.span(mark))
        }
        EntryType::HardLink => {
            let mark = list.mark();
            path::clean_link(&entry.link, &mut list.text)?;
            LayerEntryKind::HardLink(list.span(mark))
        }
        EntryType::Character | EntryType::Block => {
            let (major, minor) = device(entry.device)?;
            if entry.entry_type == EntryType::Character {
                LayerEntryKind::CharacterDevice { major, minor }
            } else {
                LayerEntryKind::BlockDevice { major, minor }
            }
        }
    }))
}

/// Linux has 12 bits for the major number and 20 for the minor one.
fn device((major, minor): (u64, u64)) -> Result<(u32, u32), EntryError> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(small_major), Ok(small_minor)) if small_major < 1 << 12 && small_minor < 1 << 20 => {
            Ok((small_major, small_minor))
        }
        _ => Err(EntryError::Device { major, minor }),
    }
}
