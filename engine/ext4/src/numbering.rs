//! Inode numbers for everything that can be reached from the root.
//!
//! Directories are visited level by level and their entries are numbered one after the other, so
//! that reading a directory and then its inodes reads the inode table in order.

use std::collections::VecDeque;

use crate::error::{FormatError, InodeError};
use crate::inode;
use crate::tree::{Inode, InodeId, InodeKind, Tree};

/// The name of the directory e2fsck puts orphans into.
pub(crate) const LOST_AND_FOUND: &[u8] = b"lost+found";

#[derive(Debug)]
pub(crate) struct Numbering {
    /// Inodes in the order of their numbers, the root (number 2) first.
    pub(crate) order: Vec<InodeId>,
    /// By position in the tree; 0 for what cannot be reached.
    numbers: Vec<u32>,
    /// Entries that name the inode, by position in the tree.
    links: Vec<u32>,
    /// For directories: the number of the directory above, by position in the tree.
    parents: Vec<u32>,
    /// For directories: how many directories it holds, by position in the tree.
    subdirectories: Vec<u32>,
    /// Whether the tree has a `lost+found` of its own; else one gets the first free number.
    pub(crate) has_lost_and_found: bool,
    /// First number that is not in use.
    pub(crate) end: u32,
}

impl Numbering {
    pub(crate) fn new(tree: &Tree) -> Result<Self, FormatError> {
        let root = tree.root();
        let has_lost_and_found = tree.lookup(root, LOST_AND_FOUND).is_some();
        let mut numbering = Self {
            order: Vec::with_capacity(tree.len()),
            numbers: vec![0; tree.len()],
            links: vec![0; tree.len()],
            parents: vec![0; tree.len()],
            subdirectories: vec![0; tree.len()],
            has_lost_and_found,
            end: inode::FIRST + u32::from(!has_lost_and_found),
        };
        numbering.order.push(root);
        numbering.numbers[root.index()] = inode::ROOT;
        numbering.parents[root.index()] = inode::ROOT;
        let mut pending = VecDeque::from([root]);
        while let Some(directory) = pending.pop_front() {
            let Some(entries) = tree.directory(directory) else { continue };
            for child in entries.values() {
                let fail = |reason: InodeError| Err(InodeError::at(reason, tree, directory));
                if child.index() >= tree.len() {
                    return fail(InodeError::ForeignInode);
                }
                let is_directory = tree.inode(*child).is_directory();
                if numbering.numbers[child.index()] == 0 {
                    let next = numbering.end.checked_add(1).ok_or(FormatError::TooManyInodes)?;
                    numbering.numbers[child.index()] = numbering.end;
                    numbering.end = next;
                    numbering.order.push(*child);
                    if is_directory {
                        numbering.parents[child.index()] = numbering.number(directory);
                        pending.push_back(*child);
                    }
                } else if is_directory {
                    return fail(InodeError::DirectoryLinkedTwice);
                }
                numbering.links[child.index()] += 1;
                if is_directory {
                    numbering.subdirectories[directory.index()] += 1;
                }
            }
        }
        numbering.subdirectories[root.index()] += u32::from(!has_lost_and_found);
        Ok(numbering)
    }

    pub(crate) fn number(&self, id: InodeId) -> u32 {
        self.numbers[id.index()]
    }

    pub(crate) fn parent(&self, id: InodeId) -> u32 {
        self.parents[id.index()]
    }

    /// The link count the inode's record gets. A directory is named by its parent, by its own `.`
    /// and by the `..` of each directory in it.
    pub(crate) fn link_count(&self, id: InodeId, inode: &Inode) -> Result<u16, InodeError> {
        match inode.kind {
            InodeKind::Directory(_) => {
                let links = self.subdirectories[id.index()].saturating_add(2);
                // 1 stands for "more than can be counted" (feature dir_nlink).
                Ok(if links > inode::MAX_LINKS { 1 } else { links as u16 })
            }
            _ => {
                let links = self.links[id.index()];
                if links > inode::MAX_LINKS {
                    return Err(InodeError::TooManyLinks { links });
                }
                Ok(links as u16)
            }
        }
    }
}

/// The path of an inode, for messages; slow, and only taken when something failed.
pub(crate) fn path_of(tree: &Tree, wanted: InodeId) -> String {
    let mut parents: Vec<Option<(InodeId, &[u8])>> = vec![None; tree.len()];
    let mut pending = vec![tree.root()];
    while let Some(directory) = pending.pop() {
        for (name, child) in tree.directory(directory).into_iter().flatten() {
            if child.index() < tree.len() && *child != tree.root() && parents[child.index()].is_none() {
                parents[child.index()] = Some((directory, name));
                if tree.inode(*child).is_directory() {
                    pending.push(*child);
                }
            }
        }
    }
    let mut names = Vec::new();
    let mut id = wanted;
    while let Some((parent, name)) = parents.get(id.index()).copied().flatten() {
        names.push(String::from_utf8_lossy(name).escape_debug().to_string());
        id = parent;
    }
    names.reverse();
    format!("/{}", names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Directory, Metadata};

    #[test]
    fn entries_of_a_directory_are_numbered_one_after_the_other() {
        let mut tree = Tree::new(Metadata::default());
        let root = tree.root();
        let new = |tree: &mut Tree, parent, name: &[u8], kind| {
            tree.create(parent, name, Metadata::default(), kind).unwrap()
        };
        let z = new(&mut tree, root, b"z", InodeKind::Fifo);
        let b = new(&mut tree, root, b"b", InodeKind::Directory(Directory::new()));
        let deep = new(&mut tree, b, b"deep", InodeKind::Fifo);
        let a = new(&mut tree, root, b"a", InodeKind::Fifo);
        tree.link(b, b"also-a", a).unwrap();
        let gone = new(&mut tree, root, b"gone", InodeKind::Fifo);
        tree.remove(root, b"gone");
        let numbering = Numbering::new(&tree).unwrap();
        let numbers: Vec<u32> = [a, b, z, deep, gone].map(|id| numbering.number(id)).to_vec();
        assert_eq!(numbers, [12, 13, 14, 15, 0]);
        assert_eq!(numbering.parent(b), inode::ROOT);
        assert_eq!(numbering.link_count(a, tree.inode(a)), Ok(2));
        // `.`, `..` of b and of lost+found, and its own name.
        assert_eq!(numbering.link_count(root, tree.inode(root)), Ok(4));
        assert_eq!(path_of(&tree, deep), "/b/deep");
    }

    #[test]
    fn ids_of_other_trees_are_refused() {
        let mut other = Tree::new(Metadata::default());
        let far = other.create(other.root(), b"x", Metadata::default(), InodeKind::Fifo).unwrap();
        let mut tree = Tree::new(Metadata::default());
        let entries = Directory::from([(b"x"[..].into(), far)]);
        let root = tree.root();
        // One inode, so that id 1 is the directory itself: a directory below itself.
        tree.create(root, b"d", Metadata::default(), InodeKind::Directory(entries)).unwrap();
        let error = Numbering::new(&tree).unwrap_err();
        assert!(error.to_string().starts_with("`/d`: has a directory below it"), "{error}");
    }
}
