//! Reading a layer: content goes to the image, the rest becomes a list of entries.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;
use vmdeck_ext4::{DataWriter, FileData};

use super::RootfsLimits;
use super::entries::{EntryChunk, LayerEntries, LayerEntry, LayerEntryKind};
use super::error::{EntryError, LayerError, escape};
use super::jail::Jail;
use super::merge;
use super::path::{self, NameKind};
use super::tar::{self, Content, EntryType, Reader, Source};

/// Bytes of names, link targets and attributes of one layer.
const TEXT_LIMIT: usize = 256 << 20;
/// Longest target of a symbolic link that ext4 can store: one block less the final zero byte.
const TARGET_LIMIT: usize = 4095;

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
        // Added only when it fits, so that no other layer is blamed for this one's file.
        let added = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| {
            before.checked_add(count).filter(|sum| *sum <= limit)
        });
        added.map(drop).map_err(|_| LayerError::Limit { what: "bytes of content", limit })
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
///
/// `bottom` is the tree, where this is the bottom layer: then the list has only what came last.
pub(super) fn read_layer<S: Source>(
    source: S,
    writer: &mut DataWriter<'_>,
    budget: &Budget,
    mut bottom: Option<&mut Jail>,
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
        if list.text_length() > TEXT_LIMIT {
            return Err(LayerError::Limit { what: "bytes of names", limit: TEXT_LIMIT as u64 });
        }
        if let Some(jail) = &mut bottom
            && let Some(chunk) = list.take_full()
        {
            merge::add_chunk(jail, chunk, budget)?;
        }
        let chunk = list.open_chunk();
        let mark = chunk.mark();
        let named = path::clean_entry(&entry.path, &mut chunk.text)
            .and_then(|kind| Ok((kind, chunk.span(mark), describe(&entry, kind, chunk)?)));
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
                LayerEntryKind::File(writer.end().map_err(LayerError::Write)?.into())
            }
            Some(kind) => kind,
            None => {
                chunk.text.truncate(mark);
                continue;
            }
        };
        let xattrs = chunk.push_xattrs(&entry.xattrs);
        // A symbolic link has no rights of its own on Linux (symlink(7)), whatever its archive says.
        let mode = if matches!(kind, LayerEntryKind::Symlink(_)) { 0o777 } else { entry.mode };
        chunk.push(LayerEntry {
            path,
            xattrs,
            kind,
            mode,
            uid: entry.uid,
            gid: entry.gid,
            modified: entry.modified,
        });
        list.whiteouts |= matches!(name_kind, NameKind::Whiteout | NameKind::Opaque);
    }
    Ok((list, reader.into_source()))
}

/// What an entry is to become; nothing for what is no part of the image. A file's content follows.
fn describe(
    entry: &tar::Entry,
    name_kind: NameKind,
    chunk: &mut EntryChunk,
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
        EntryType::Regular => LayerEntryKind::File(FileData::default().into()),
        EntryType::Fifo => LayerEntryKind::Fifo,
        EntryType::Symlink => {
            let length = entry.link.len();
            if length == 0 || length > TARGET_LIMIT || entry.link.contains(&0) {
                return Err(EntryError::Target(length));
            }
            let mark = chunk.mark();
            chunk.text.extend_from_slice(&entry.link);
            LayerEntryKind::Symlink(chunk.span(mark))
        }
        EntryType::HardLink => {
            let mark = chunk.mark();
            path::clean_link(&entry.link, &mut chunk.text)?;
            LayerEntryKind::HardLink(chunk.span(mark))
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
