//! Any tree that the writer takes is read back as it was made.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vmdeck_ext4::{Directory, Formatter, InodeKind, Metadata, Options, Reader, Timestamp, Tree};

#[derive(Arbitrary, Debug)]
struct Node {
    parent: u8,
    name: Vec<u8>,
    kind: Kind,
    mode: u16,
    uid: u32,
    gid: u32,
    xattrs: BTreeMap<u8, Vec<u8>>,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Directory,
    /// Announced length, content, and a hole before it.
    File(u32, Vec<u8>, u16),
    Symlink(Vec<u8>),
    Device(u8, u8),
    Fifo,
    Link(u8),
}

fuzz_target!(|nodes: Vec<Node>| {
    let file = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile()).unwrap();
    let created = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
    let options =
        Options { size: 0, free: 1 << 20, journal: 0, uuid: [7; 16], label: "fuzz".into(), created };
    let formatter = Formatter::create(file, options).unwrap();
    let mut writer = formatter.data_writer();
    let mut tree = Tree::new(Metadata { mode: 0o755, ..Metadata::default() });
    let (mut folders, mut others, mut expected) = (vec![(tree.root(), Vec::new())], Vec::new(), Vec::new());
    for node in nodes.into_iter().take(200) {
        let (parent, path) = folders[usize::from(node.parent) % folders.len()].clone();
        let mut content = None;
        let kind = match node.kind {
            Kind::Link(which) => {
                if !others.is_empty() {
                    let _ = tree.link(parent, &node.name, others[usize::from(which) % others.len()]);
                }
                continue;
            }
            Kind::Directory => InodeKind::Directory(Directory::new()),
            Kind::File(announced, bytes, hole) => {
                writer.begin(u64::from(announced)).unwrap();
                writer.write_hole(u64::from(hole)).unwrap();
                writer.write(&bytes).unwrap();
                let mut whole = vec![0; usize::from(hole)];
                whole.extend(bytes);
                content = Some(whole);
                InodeKind::File(writer.end().unwrap())
            }
            Kind::Symlink(target) => InodeKind::Symlink(target.into()),
            Kind::Device(major, minor) => {
                InodeKind::CharacterDevice { major: major.into(), minor: minor.into() }
            }
            Kind::Fifo => InodeKind::Fifo,
        };
        let xattrs = node.xattrs.into_iter();
        let metadata = Metadata {
            mode: node.mode & 0o7777,
            uid: node.uid,
            gid: node.gid,
            modified: created,
            xattrs: xattrs.map(|(name, value)| (format!("trusted.x{name}").into_bytes(), value)).collect(),
        };
        let is_folder = matches!(kind, InodeKind::Directory(_));
        let Ok(id) = tree.create(parent, &node.name, metadata.clone(), kind) else { continue };
        let path: Vec<u8> = [path.as_slice(), b"/", node.name.as_slice()].concat();
        if is_folder {
            folders.push((id, path.clone()));
        } else {
            others.push(id);
        }
        expected.push((path, metadata, content));
    }
    writer.flush().unwrap();
    drop(writer);
    // Attributes may be more than an inode can have.
    let Ok((file, _)) = formatter.finish(&tree) else { return };
    let reader = Reader::open(file).unwrap();
    for (path, metadata, content) in expected {
        // By names, not through links: the path is what was made.
        let inode = path[1..].split(|&byte| byte == b'/').fold(reader.root(), |folder, name| {
            reader.lookup(folder, name).unwrap().expect("what was made is there")
        });
        let stat = reader.stat(inode).unwrap();
        assert_eq!((stat.mode, stat.uid, stat.gid), (metadata.mode, metadata.uid, metadata.gid));
        assert_eq!(reader.xattrs(inode).unwrap(), metadata.xattrs);
        if let Some(content) = content {
            assert_eq!(reader.read(inode, 1 << 24).unwrap(), content);
        }
    }
});
