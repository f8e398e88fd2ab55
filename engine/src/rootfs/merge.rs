//! Layers, one on top of the other, become one tree.
//!
//! A layer is laid over what lies below it in two steps: first everything it hides goes, then what
//! it brings is added, in its order. So a whiteout never hides anything of its own layer, wherever
//! in the archive it stands (image-spec, layer.md, "Whiteouts").

use std::cell::LazyCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use tokio_util::sync::CancellationToken;
use vmdeck_ext4::{Directory, FileData, InodeId, InodeKind, Metadata, Tree};

use super::entries::{EntryChunk, LayerEntries, LayerEntry, LayerEntryKind};
use super::error::{EntryError, LayerError, escape};
use super::jail::{Jail, split};
use super::layer::Budget;
use super::path::AUFS_LINKS;

/// How many entries to look at between two looks at the cancel token.
const CANCEL_EVERY: usize = 1024;

/// Lays one layer over the tree.
pub(super) fn apply(
    jail: &mut Jail,
    list: LayerEntries,
    budget: &Budget,
    cancel: &CancellationToken,
) -> Result<(), LayerError> {
    let links = if list.whiteouts { hidden_links(jail, &list) } else { HashMap::new() };
    if list.whiteouts {
        hide(jail, &list, cancel)?;
    }
    let mut position = 0;
    for chunk in list.chunks {
        if cancel.is_cancelled() {
            return Err(LayerError::Cancelled);
        }
        position = place(jail, chunk, position, &links, budget)?;
    }
    forget_aufs(jail);
    Ok(())
}

/// Adds what is left of the bottom layer, which has nothing below it to hide.
pub(super) fn add_all(
    jail: &mut Jail,
    list: LayerEntries,
    budget: &Budget,
    cancel: &CancellationToken,
) -> Result<(), LayerError> {
    for chunk in list.chunks {
        if cancel.is_cancelled() {
            return Err(LayerError::Cancelled);
        }
        add_chunk(jail, chunk, budget)?;
    }
    forget_aufs(jail);
    Ok(())
}

/// Adds a piece of the bottom layer.
pub(super) fn add_chunk(jail: &mut Jail, chunk: EntryChunk, budget: &Budget) -> Result<(), LayerError> {
    place(jail, chunk, 0, &HashMap::new(), budget).map(drop)
}

/// Adds the entries of a piece, the first of which is at `position` in its list; returns where the
/// next piece begins. `links`: see [`hidden_links`].
fn place(
    jail: &mut Jail,
    mut chunk: EntryChunk,
    mut position: usize,
    links: &HashMap<usize, InodeId>,
    budget: &Budget,
) -> Result<usize, LayerError> {
    for mut entry in chunk.take_entries() {
        let hidden = links.get(&position).copied();
        position += 1;
        add(jail, &chunk, &mut entry, hidden, budget).map_err(|problem| match problem {
            Problem::Entry(source) => LayerError::Entry { name: escape(chunk.path(&entry)), source },
            Problem::Layer(error) => error,
        })?;
    }
    Ok(position)
}

/// AUFS keeps files with several names in a folder of its own; only the links to what is in there belong
/// to the image.
fn forget_aufs(jail: &mut Jail) {
    let root = jail.tree.root();
    jail.remove(root, AUFS_LINKS);
}

/// Of this entry, or of the layer as a whole.
enum Problem {
    Entry(EntryError),
    Layer(LayerError),
}

impl From<EntryError> for Problem {
    fn from(error: EntryError) -> Self {
        Self::Entry(error)
    }
}

/// What the hard links of this layer lead to before it hides anything: renaming a file may come as
/// a link to it and a whiteout of its old name.
fn hidden_links(jail: &Jail, list: &LayerEntries) -> HashMap<usize, InodeId> {
    let targets = list.iter().enumerate().filter_map(|(position, (chunk, entry))| match entry.kind {
        LayerEntryKind::HardLink(target) => Some((position, jail.find(chunk.text(target))?)),
        _ => None,
    });
    targets.collect()
}

/// Takes away what the layer hides.
fn hide(jail: &mut Jail, list: &LayerEntries, cancel: &CancellationToken) -> Result<(), LayerError> {
    // Needed only where a link is in the way.
    let brought = LazyCell::new(|| {
        list.iter()
            .filter(|(_, entry)| !matches!(entry.kind, LayerEntryKind::Whiteout | LayerEntryKind::Opaque))
            .map(|(chunk, entry)| chunk.path(entry))
            .collect::<HashSet<&[u8]>>()
    });
    let brings = |path: &[u8]| brought.contains(path);
    for (position, (chunk, entry)) in list.iter().enumerate() {
        if position % CANCEL_EVERY == 0 && cancel.is_cancelled() {
            return Err(LayerError::Cancelled);
        }
        let path = chunk.path(entry);
        match entry.kind {
            LayerEntryKind::Whiteout => {
                let (parents, name) = split(path);
                if let Some(folder) = lower_folder(jail, parents, &brings) {
                    jail.remove(folder, name);
                }
            }
            LayerEntryKind::Opaque => {
                if let Some(folder) = lower_folder(jail, path, &brings) {
                    jail.empty(folder);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The folder of the lower layers that a whiteout is in.
///
/// Where a lower layer has a symbolic link and this one brings something of that name, the whiteout
/// is in what this layer brings: nothing below is hidden by it, least of all where the link leads.
/// (Docker marks every folder it creates in the place of something else as opaque.)
fn lower_folder(jail: &Jail, path: &[u8], brings: &dyn Fn(&[u8]) -> bool) -> Option<InodeId> {
    let mut here = jail.tree.root();
    let mut end = 0;
    for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        end = if end == 0 { part.len() } else { end + 1 + part.len() };
        let next = jail.tree.lookup(here, part)?;
        if matches!(jail.tree.inode(next).kind, InodeKind::Symlink(_)) {
            if brings(&path[..end]) {
                return None;
            }
            let folder = jail.follow(path)?;
            return jail.tree.inode(folder).is_directory().then_some(folder);
        }
        here = next;
    }
    jail.tree.inode(here).is_directory().then_some(here)
}

/// Adds one entry. `hidden` is what it links to as the layers below have it.
fn add(
    jail: &mut Jail,
    chunk: &EntryChunk,
    entry: &mut LayerEntry,
    hidden: Option<InodeId>,
    budget: &Budget,
) -> Result<(), Problem> {
    let path = chunk.path(entry);
    if path.is_empty() {
        if matches!(entry.kind, LayerEntryKind::Directory) {
            let root = jail.tree.root();
            *jail.tree.metadata_mut(root) = metadata(chunk, entry);
        }
        return Ok(());
    }
    let kind = match std::mem::replace(&mut entry.kind, LayerEntryKind::Fifo) {
        LayerEntryKind::Whiteout | LayerEntryKind::Opaque => return Ok(()),
        LayerEntryKind::HardLink(target) => {
            return add_link(jail, chunk, entry, chunk.text(target), hidden, budget);
        }
        LayerEntryKind::Directory => InodeKind::Directory(Directory::new()),
        LayerEntryKind::File(content) => InodeKind::File(content.into()),
        LayerEntryKind::Symlink(target) => InodeKind::Symlink(chunk.text(target).into()),
        LayerEntryKind::CharacterDevice { major, minor } => InodeKind::CharacterDevice { major, minor },
        LayerEntryKind::BlockDevice { major, minor } => InodeKind::BlockDevice { major, minor },
        LayerEntryKind::Fifo => InodeKind::Fifo,
    };
    let (parents, name) = split(path);
    let folder = parent(jail, parents, entry, budget)?;
    jail.place(folder, name, metadata(chunk, entry), kind)?;
    Ok(())
}

fn add_link(
    jail: &mut Jail,
    chunk: &EntryChunk,
    entry: &LayerEntry,
    target: &[u8],
    hidden: Option<InodeId>,
    budget: &Budget,
) -> Result<(), Problem> {
    let (parents, name) = split(chunk.path(entry));
    let folder = parent(jail, parents, entry, budget)?;
    let present = jail.find(target);
    let missing = || EntryError::LinkTarget(escape(target));
    let inode = present.or(hidden).ok_or_else(missing)?;
    if jail.tree.inode(inode).is_directory() {
        return Err(EntryError::LinkToDirectory(escape(target)).into());
    }
    if let Some(there) = jail.tree.lookup(folder, name) {
        if there == inode {
            return Ok(());
        }
        jail.remove(folder, name);
        // It was inside the folder whose place it is to take.
        if present.is_some() && jail.tree.inode(inode).links() == 0 {
            return Err(missing().into());
        }
    }
    jail.tree.link(folder, name, inode).map_err(EntryError::from)?;
    Ok(())
}

fn parent(jail: &mut Jail, parents: &[u8], entry: &LayerEntry, budget: &Budget) -> Result<InodeId, Problem> {
    // A folder no layer describes gets the time of what made it necessary: any other would be
    // made up, and the same layers should give the same tree.
    jail.make_folder(parents, entry.modified, || budget.entry().map_err(Problem::Layer))
}

fn metadata(chunk: &EntryChunk, entry: &LayerEntry) -> Metadata {
    let xattrs: BTreeMap<_, _> =
        chunk.xattrs(entry).map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    Metadata { mode: entry.mode, uid: entry.uid, gid: entry.gid, modified: entry.modified, xattrs }
}

/// Files that have content but no name any more.
pub(super) fn nameless(jail: &Jail) -> impl Iterator<Item = &FileData> {
    let tree: &Tree = &jail.tree;
    jail.files.iter().filter_map(move |id| match &tree.inode(*id).kind {
        InodeKind::File(data) if tree.inode(*id).links() == 0 => Some(data),
        _ => None,
    })
}
