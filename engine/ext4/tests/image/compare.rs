//! Compares what readers see of an image with the tree it was made from.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use ext4_view::Ext4;
use vmdeck_ext4::{FileKind, InodeId, InodeKind, Reader, Tree};

/// Content of files by inode.
pub(crate) type Contents = HashMap<InodeId, Vec<u8>>;

/// Every path of a tree, in the order of a walk.
fn paths(tree: &Tree) -> Vec<(Vec<u8>, InodeId)> {
    let mut found = Vec::new();
    let mut pending = vec![(Vec::new(), tree.root())];
    while let Some((path, id)) = pending.pop() {
        for (name, child) in tree.directory(id).into_iter().flatten() {
            pending.push(([&path[..], b"/", name].concat(), *child));
        }
        found.push((path, id));
    }
    found
}

/// By the reader `ext4-view`, which knows no attributes, devices, nor times beyond 31 bits.
pub(crate) fn with_ext4_view(image: &Path, tree: &Tree, contents: &Contents) {
    let ext4 = Ext4::load_from_path(image).unwrap();
    for (path, id) in paths(tree) {
        let path = if path.is_empty() { b"/".to_vec() } else { path };
        let shown = String::from_utf8_lossy(&path).into_owned();
        let inode = tree.inode(id);
        let seen = ext4.symlink_metadata(path.as_slice()).unwrap();
        assert_eq!(seen.mode(), inode.metadata.mode, "{shown}");
        assert_eq!((seen.uid(), seen.gid()), (inode.metadata.uid, inode.metadata.gid), "{shown}");
        assert_eq!(seen.modified().seconds(), inode.metadata.modified.seconds, "{shown}");
        assert_eq!(seen.modified().nanoseconds(), inode.metadata.modified.nanoseconds, "{shown}");
        let kind = seen.file_type();
        match &inode.kind {
            InodeKind::Directory(entries) => {
                assert!(kind.is_dir());
                let mut names: BTreeSet<Vec<u8>> = ext4
                    .read_dir(path.as_slice())
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name().as_ref().to_vec())
                    .filter(|name| name != b"." && name != b"..")
                    .collect();
                if id == tree.root() {
                    names.remove(&b"lost+found"[..]);
                }
                assert!(names.iter().map(Vec::as_slice).eq(entries.keys().map(|name| &name[..])), "{shown}");
            }
            InodeKind::File(_) => {
                assert!(kind.is_regular_file());
                assert!(ext4.read(path.as_slice()).unwrap() == contents[&id], "content of {shown}");
            }
            InodeKind::Symlink(target) => {
                assert!(kind.is_symlink());
                // It takes targets with names longer than 255 bytes, which Linux allows, for corrupt.
                if target.split(|byte| *byte == b'/').all(|name| name.len() <= 255) {
                    assert_eq!(ext4.read_link(path.as_slice()).unwrap().as_ref(), &target[..], "{shown}");
                }
            }
            InodeKind::CharacterDevice { .. } => assert!(kind.is_char_dev()),
            InodeKind::BlockDevice { .. } => assert!(kind.is_block_dev()),
            InodeKind::Fifo => assert!(kind.is_fifo()),
            InodeKind::Socket => assert!(kind.is_socket()),
        }
    }
}

/// By the reader of this crate.
pub(crate) fn with_reader(image: &Path, tree: &Tree, contents: &Contents) {
    let reader = Reader::open(fs::File::open(image).unwrap()).unwrap();
    let mut numbers = HashMap::new();
    let mut pending = vec![(reader.root(), tree.root())];
    while let Some((number, id)) = pending.pop() {
        let inode = tree.inode(id);
        let seen = reader.stat(number).unwrap();
        assert_eq!(*numbers.entry(id).or_insert(number), number);
        assert_eq!(seen.mode, inode.metadata.mode);
        assert_eq!((seen.uid, seen.gid), (inode.metadata.uid, inode.metadata.gid));
        assert_eq!(seen.modified, inode.metadata.modified);
        assert_eq!(reader.xattrs(number).unwrap(), inode.metadata.xattrs);
        let kind = match &inode.kind {
            InodeKind::Directory(entries) => {
                let mut names: BTreeMap<_, _> = reader.entries(number).unwrap().into_iter().collect();
                if id == tree.root() {
                    names.remove(&b"lost+found"[..]);
                }
                assert!(names.keys().map(Vec::as_slice).eq(entries.keys().map(|name| &name[..])));
                for (name, child) in entries {
                    pending.push((names[&name[..]], *child));
                }
                FileKind::Directory
            }
            InodeKind::File(_) => {
                assert_eq!(u32::from(seen.links), inode.links());
                assert!(reader.read(number, u64::MAX).unwrap() == contents[&id]);
                FileKind::File
            }
            InodeKind::Symlink(target) => {
                assert_eq!(reader.read_link(number).unwrap(), &target[..]);
                FileKind::Symlink
            }
            InodeKind::CharacterDevice { major, minor } => {
                FileKind::CharacterDevice { major: *major, minor: *minor }
            }
            InodeKind::BlockDevice { major, minor } => FileKind::BlockDevice { major: *major, minor: *minor },
            InodeKind::Fifo => FileKind::Fifo,
            InodeKind::Socket => FileKind::Socket,
        };
        assert_eq!(seen.kind, kind);
    }
}

/// By the kernel, on the folder the image is mounted on.
pub(crate) fn with_kernel(mounted: &Path, tree: &Tree, contents: &Contents) {
    let mut numbers = HashMap::new();
    for (path, id) in paths(tree) {
        let relative = OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or_default());
        let path = mounted.join(relative);
        let shown = path.display().to_string();
        let inode = tree.inode(id);
        let seen = fs::symlink_metadata(&path).unwrap();
        assert_eq!(seen.mode() & 0o7777, u32::from(inode.metadata.mode), "{shown}");
        assert_eq!((seen.uid(), seen.gid()), (inode.metadata.uid, inode.metadata.gid), "{shown}");
        let modified = inode.metadata.modified;
        assert_eq!(
            (seen.mtime(), seen.mtime_nsec()),
            (modified.seconds, i64::from(modified.nanoseconds)),
            "{shown}"
        );
        // Hard links are one inode, and nothing else shares one.
        assert_eq!(*numbers.entry(id).or_insert(seen.ino()), seen.ino(), "{shown}");
        let kind = seen.file_type();
        match &inode.kind {
            InodeKind::Directory(entries) => {
                assert!(kind.is_dir());
                let mut names: BTreeSet<Vec<u8>> =
                    fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name().into_vec()).collect();
                if id == tree.root() {
                    names.remove(&b"lost+found"[..]);
                }
                assert!(names.iter().map(Vec::as_slice).eq(entries.keys().map(|name| &name[..])), "{shown}");
            }
            InodeKind::File(data) => {
                assert!(kind.is_file());
                assert_eq!(seen.nlink(), u64::from(inode.links()), "{shown}");
                assert_eq!(seen.len(), data.size, "{shown}");
                assert!(fs::read(&path).unwrap() == contents[&id], "content of {shown}");
            }
            InodeKind::Symlink(target) => {
                assert_eq!(fs::read_link(&path).unwrap().as_os_str().as_bytes(), &target[..], "{shown}");
            }
            InodeKind::CharacterDevice { major, minor } => {
                assert!(kind.is_char_device());
                assert_eq!(device(seen.rdev()), (*major, *minor), "{shown}");
            }
            InodeKind::BlockDevice { major, minor } => {
                assert!(kind.is_block_device());
                assert_eq!(device(seen.rdev()), (*major, *minor), "{shown}");
            }
            InodeKind::Fifo => assert!(kind.is_fifo()),
            InodeKind::Socket => assert!(kind.is_socket()),
        }
        assert_eq!(attributes(&path), inode.metadata.xattrs, "{shown}");
    }
    let distinct: BTreeSet<u64> = numbers.values().copied().collect();
    assert_eq!(distinct.len(), numbers.len());
}

fn device(number: u64) -> (u32, u32) {
    (rustix::fs::major(number), rustix::fs::minor(number))
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap();
    let names: Vec<Vec<u8>> = buffer[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    names
        .into_iter()
        .map(|name| {
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(&name), &mut buffer[..]).unwrap();
            (name, buffer[..length].to_vec())
        })
        .collect()
}
