//! What is left of a layer once its files are in the image: a list of entries.
//!
//! An image may have a million entries, so that a list is compact: names, targets and attributes
//! lie one after the other in one buffer, and a file's content is usually one run of blocks. It
//! comes in pieces, each of which is freed when it has been merged.

use vmdeck_ext4::{Extent, FileData, Timestamp};

/// Entries of one piece.
const CHUNK: usize = 4096;
/// Bytes of text after which a piece ends.
const CHUNK_TEXT: usize = 1 << 20;

/// The entries of one layer, in the order of its archive.
#[derive(Debug, Default)]
pub(super) struct LayerEntries {
    pub(super) chunks: Vec<EntryChunk>,
    /// Whether any entry hides something of the lower layers.
    pub(super) whiteouts: bool,
    /// Bytes of text of the pieces that are complete.
    text: usize,
}

/// A piece of a list.
#[derive(Debug, Default)]
pub(super) struct EntryChunk {
    pub(super) text: Vec<u8>,
    entries: Vec<LayerEntry>,
}

/// A part of a piece's text.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    start: u32,
    length: u32,
}

#[derive(Debug)]
pub(super) struct LayerEntry {
    /// Clean; see [`super::path::clean_entry`].
    pub(super) path: Span,
    /// Attributes: for each, lengths of name and value (`u32`, native), then both.
    pub(super) xattrs: Span,
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
    File(Content),
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

/// Where a file's content lies, without an allocation for the usual cases.
#[derive(Debug)]
pub(super) enum Content {
    /// Nothing but a hole, perhaps of no bytes.
    Empty {
        size: u64,
    },
    /// One run of blocks that begins the file.
    Run {
        size: u64,
        physical: u64,
        blocks: u32,
    },
    Scattered(Box<FileData>),
}

impl From<FileData> for Content {
    fn from(data: FileData) -> Self {
        match data.extents[..] {
            [] => Self::Empty { size: data.size },
            [Extent { logical: 0, physical, blocks }] => Self::Run { size: data.size, physical, blocks },
            _ => Self::Scattered(Box::new(data)),
        }
    }
}

impl From<Content> for FileData {
    fn from(content: Content) -> Self {
        match content {
            Content::Empty { size } => Self { size, extents: Vec::new() },
            Content::Run { size, physical, blocks } => {
                Self { size, extents: vec![Extent { logical: 0, physical, blocks }] }
            }
            Content::Scattered(data) => *data,
        }
    }
}

impl LayerEntries {
    /// The piece to add to.
    pub(super) fn open_chunk(&mut self) -> &mut EntryChunk {
        if self.chunks.last().is_none_or(EntryChunk::is_full) {
            if let Some(full) = self.chunks.last_mut() {
                full.text.shrink_to_fit();
                self.text += full.text.len();
            }
            self.chunks.push(EntryChunk::default());
        }
        let last = self.chunks.len() - 1;
        &mut self.chunks[last]
    }

    /// Takes the last piece out when it is full. What it holds still counts as a part of the list.
    pub(super) fn take_full(&mut self) -> Option<EntryChunk> {
        let full = self.chunks.pop_if(|chunk| chunk.is_full())?;
        self.text += full.text.len();
        Some(full)
    }

    /// Bytes of all names, targets and attributes.
    pub(super) fn text_length(&self) -> usize {
        self.text + self.chunks.last().map_or(0, |chunk| chunk.text.len())
    }

    /// Every entry with the piece it is in.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&EntryChunk, &LayerEntry)> {
        self.chunks.iter().flat_map(|chunk| chunk.entries.iter().map(move |entry| (chunk, entry)))
    }
}

impl EntryChunk {
    fn is_full(&self) -> bool {
        self.entries.len() >= CHUNK || self.text.len() >= CHUNK_TEXT
    }

    pub(super) fn push(&mut self, entry: LayerEntry) {
        self.entries.push(entry);
    }

    /// Takes the entries out, so that their content moves into the tree.
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
    pub(super) fn mark(&self) -> usize {
        self.text.len()
    }

    /// The text since a mark. It is within `u32`: one entry's text is bounded by what a tar header
    /// may hold, and a piece has few entries and ends when its text is long.
    pub(super) fn span(&self, mark: usize) -> Span {
        Span { start: mark as u32, length: (self.text.len() - mark) as u32 }
    }

    pub(super) fn push_xattrs(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Span {
        let mark = self.mark();
        for (name, value) in xattrs.iter().filter(|(name, _)| !is_dropped(name)) {
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
