//! A tree in which names are looked up as a process would whose root folder it is: symbolic links
//! are followed, and neither they nor `..` lead out.

use std::borrow::Cow;

use vmdeck_ext4::{Directory, InodeId, InodeKind, Metadata, Timestamp, Tree};

use super::error::{EntryError, escape};

/// Symbolic links to follow in one name, as `umoci` has it; Linux itself stops at 40.
const LINKS: usize = 255;
/// Bytes a name may grow to by the links in it. Keeps a chain of links from costing more than the
/// entry that names it.
const EXPANDED: usize = 64 << 10;

/// The tree being built, and the inodes of files that have content.
#[derive(Debug)]
pub(super) struct Jail {
    pub(super) tree: Tree,
    /// So that content no name leads to any more can be given back.
    pub(super) files: Vec<InodeId>,
    /// The folder that was looked up last: entries of one folder come one after the other.
    last: Option<(Vec<u8>, InodeId)>,
}

/// How far a name leads.
struct Walk {
    /// From the root on; never empty.
    found: Vec<InodeId>,
    /// Parts below the last one found that do not exist.
    missing: Vec<Vec<u8>>,
}

impl Jail {
    pub(super) fn new(root: Metadata) -> Self {
        Self { tree: Tree::new(root), files: Vec::new(), last: None }
    }

    /// Bytes of content in the image, hidden files' included.
    pub(super) fn stored(&self) -> u64 {
        let content = self.files.iter().map(|id| match &self.tree.inode(*id).kind {
            InodeKind::File(data) => data.extents.iter().map(|extent| u64::from(extent.blocks)).sum(),
            _ => 0,
        });
        content.sum::<u64>() * 4096
    }

    /// The folder a clean name leads to. What is missing of it is created as root's, mode 0755;
    /// `count` is called for each such folder and may refuse it.
    pub(super) fn make_folder<E: From<EntryError>>(
        &mut self,
        path: &[u8],
        modified: Timestamp,
        mut count: impl FnMut() -> Result<(), E>,
    ) -> Result<InodeId, E> {
        if let Some((last, id)) = &self.last
            && last == path
        {
            return Ok(*id);
        }
        let walk = self.walk(path)?;
        let mut folder = self.tree.root();
        folder = walk.found.last().copied().unwrap_or(folder);
        if !self.tree.inode(folder).is_directory() {
            return Err(EntryError::NotADirectory(escape(path)).into());
        }
        for name in &walk.missing {
            count()?;
            let metadata = Metadata { mode: 0o755, modified, ..Metadata::default() };
            let kind = InodeKind::Directory(Directory::new());
            folder = self.tree.create(folder, name, metadata, kind).map_err(EntryError::from)?;
        }
        self.last = Some((path.to_vec(), folder));
        Ok(folder)
    }

    /// What a clean name leads to; the last part, too, is followed when it is a symbolic link.
    pub(super) fn follow(&self, path: &[u8]) -> Option<InodeId> {
        let walk = self.walk(path).ok()?;
        if walk.missing.is_empty() { walk.found.last().copied() } else { None }
    }

    /// What a clean name names; the last part is not followed.
    pub(super) fn find(&self, path: &[u8]) -> Option<InodeId> {
        let (parents, name) = split(path);
        self.tree.lookup(self.follow(parents)?, name)
    }

    /// Puts an inode in the place of whatever has that name. A folder in the place of a folder is
    /// that folder with new metadata.
    pub(super) fn place(
        &mut self,
        folder: InodeId,
        name: &[u8],
        metadata: Metadata,
        kind: InodeKind,
    ) -> Result<InodeId, EntryError> {
        if let Some(present) = self.tree.lookup(folder, name) {
            if matches!(kind, InodeKind::Directory(_)) && self.tree.inode(present).is_directory() {
                *self.tree.metadata_mut(present) = metadata;
                return Ok(present);
            }
            self.remove(folder, name);
        }
        let content = matches!(&kind, InodeKind::File(data) if !data.extents.is_empty());
        let id = self.tree.create(folder, name, metadata, kind)?;
        if content {
            self.files.push(id);
        }
        Ok(id)
    }

    pub(super) fn remove(&mut self, folder: InodeId, name: &[u8]) {
        // The folder that was looked up last may go with it, or be reached another way.
        let changes_ways = self.tree.lookup(folder, name).is_some_and(|id| {
            matches!(self.tree.inode(id).kind, InodeKind::Directory(_) | InodeKind::Symlink(_))
        });
        if changes_ways {
            self.last = None;
        }
        self.tree.remove(folder, name);
    }

    pub(super) fn empty(&mut self, folder: InodeId) {
        self.last = None;
        while let Some((name, _)) = self.tree.directory(folder).and_then(Directory::first_key_value) {
            let name = name.clone();
            self.tree.remove(folder, &name);
        }
    }

    /// As `securejoin` (which `umoci` uses): parts that do not exist are taken by the text, and so
    /// are those below something that is no folder.
    fn walk(&self, path: &[u8]) -> Result<Walk, EntryError> {
        let mut walk = Walk { found: vec![self.tree.root()], missing: Vec::new() };
        let mut pending = Cow::Borrowed(path);
        let mut position = 0;
        let mut links = 0;
        while position < pending.len() {
            let rest = &pending[position..];
            let length = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
            let part = &rest[..length];
            position += (length + 1).min(rest.len());
            match part {
                b"" | b"." => continue,
                b".." => {
                    if walk.missing.pop().is_none() && walk.found.len() > 1 {
                        walk.found.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let here = walk.found.last().copied().unwrap_or(self.tree.root());
            let next = if walk.missing.is_empty() { self.tree.lookup(here, part) } else { None };
            let Some(next) = next else {
                walk.missing.push(part.to_vec());
                continue;
            };
            let InodeKind::Symlink(target) = &self.tree.inode(next).kind else {
                walk.found.push(next);
                continue;
            };
            links += 1;
            let left = pending.len() - position;
            if links > LINKS || target.len() + left > EXPANDED {
                return Err(EntryError::SymlinkLoop);
            }
            if target.starts_with(b"/") {
                walk.found.truncate(1);
            }
            let mut expanded = Vec::with_capacity(target.len() + 1 + left);
            expanded.extend_from_slice(target);
            expanded.push(b'/');
            expanded.extend_from_slice(&pending[position..]);
            pending = Cow::Owned(expanded);
            position = 0;
        }
        Ok(walk)
    }
}

/// Parents and last part of a clean name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(jail: &mut Jail, path: &str) -> InodeId {
        jail.make_folder(path.as_bytes(), Timestamp::default(), || Ok::<_, EntryError>(())).unwrap()
    }

    fn link(jail: &mut Jail, path: &str, target: &str) {
        let (parents, name) = split(path.as_bytes());
        let parents = folder(jail, std::str::from_utf8(parents).unwrap());
        let kind = InodeKind::Symlink(target.as_bytes().into());
        jail.place(parents, name, Metadata::default(), kind).unwrap();
    }

    #[test]
    fn links_are_followed_and_do_not_lead_out() {
        let mut jail = Jail::new(Metadata::default());
        let usr_bin = folder(&mut jail, "usr/bin");
        link(&mut jail, "bin", "usr/bin");
        link(&mut jail, "up", "../../../usr");
        link(&mut jail, "abs", "/../usr/./bin//");
        link(&mut jail, "usr/here", ".");
        for path in ["bin", "up/bin", "abs", "usr/here/here/bin"] {
            assert_eq!(jail.follow(path.as_bytes()), Some(usr_bin), "{path}");
        }
        assert_eq!(jail.follow(b"bin/none"), None);
    }

    #[test]
    fn what_is_missing_behind_a_link_is_created() {
        let mut jail = Jail::new(Metadata::default());
        link(&mut jail, "d", "x/nowhere/../there");
        let made = folder(&mut jail, "d/e");
        assert_eq!(jail.find(b"x/there/e"), Some(made));
        assert_eq!(jail.find(b"x/nowhere"), None);
        assert!(matches!(jail.tree.inode(jail.find(b"d").unwrap()).kind, InodeKind::Symlink(_)));
    }

    #[test]
    fn circles_and_files_in_the_way_are_errors() {
        let mut jail = Jail::new(Metadata::default());
        link(&mut jail, "a", "b");
        link(&mut jail, "b", "a");
        let root = jail.tree.root();
        jail.place(root, b"f", Metadata::default(), InodeKind::Fifo).unwrap();
        let mut make = |path: &[u8]| {
            jail.make_folder(path, Timestamp::default(), || Ok::<_, EntryError>(())).unwrap_err()
        };
        assert_eq!(make(b"a/x"), EntryError::SymlinkLoop);
        assert_eq!(make(b"f"), EntryError::NotADirectory("f".into()));
        assert_eq!(make(b"f/x"), EntryError::NotADirectory("f/x".into()));
    }

    #[test]
    fn the_folder_remembered_is_forgotten_when_the_way_to_it_changes() {
        let mut jail = Jail::new(Metadata::default());
        link(&mut jail, "way", "one");
        let one = folder(&mut jail, "way");
        let root = jail.tree.root();
        jail.place(root, b"way", Metadata::default(), InodeKind::Symlink((*b"two").into())).unwrap();
        assert_ne!(folder(&mut jail, "way"), one);
    }
}
