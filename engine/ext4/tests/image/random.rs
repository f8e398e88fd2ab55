//! Random trees: clean, and seen by independent readers as they were made.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use vmdeck_ext4::{DataWriter, Directory, InodeKind, Metadata, Options, Timestamp, Tree};

use crate::compare::{self, Contents};
use crate::content::{build, noise, options};
use crate::mount::{Mount, can_mount};
use crate::oracle::assert_clean;

/// A part of a file.
#[derive(Clone, Debug)]
enum Piece {
    Noise(usize),
    Zeros(usize),
    Hole(usize),
}

#[derive(Clone, Debug)]
enum Kind {
    Directory,
    /// Pieces, and how many times the true size is announced, in tenths.
    File(Vec<Piece>, u64),
    Symlink(Vec<u8>),
    CharacterDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    Socket,
    /// A further name for one of the inodes before.
    HardLink(prop::sample::Index),
}

#[derive(Clone, Debug)]
struct Node {
    parent: prop::sample::Index,
    name: Vec<u8>,
    kind: Kind,
    metadata: Metadata,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| if matches!(byte, 0 | b'/') { b'_' } else { byte });
    prop_oneof![4 => vec(byte.clone(), 1..12), 1 => vec(byte, 1..=255)]
}

fn piece() -> impl Strategy<Value = Piece> {
    let length = || prop_oneof![0..200usize, 4000..4200usize, 0..40_000usize];
    prop_oneof![
        4 => length().prop_map(Piece::Noise),
        1 => length().prop_map(Piece::Zeros),
        1 => prop_oneof![length(), 0..2_000_000usize].prop_map(Piece::Hole),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    let target = vec(any::<u8>().prop_map(|byte| byte.max(1)), 1..70);
    let long_target = vec(any::<u8>().prop_map(|byte| byte.max(1)), 1..4096);
    let device = || (0..1u32 << 12, 0..1u32 << 20);
    prop_oneof![
        6 => Just(Kind::Directory),
        8 => (vec(piece(), 0..5), prop_oneof![Just(10), 0..40u64]).prop_map(|(p, a)| Kind::File(p, a)),
        2 => target.prop_map(Kind::Symlink),
        1 => long_target.prop_map(Kind::Symlink),
        1 => device().prop_map(|(major, minor)| Kind::CharacterDevice(major, minor)),
        1 => (0..256u32, 0..256u32).prop_map(|(major, minor)| Kind::CharacterDevice(major, minor)),
        1 => device().prop_map(|(major, minor)| Kind::BlockDevice(major, minor)),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Socket),
        2 => any::<prop::sample::Index>().prop_map(Kind::HardLink),
    ]
}

fn time(wide: bool) -> BoxedStrategy<Timestamp> {
    let seconds = if wide {
        prop_oneof![-(1i64 << 31)..(1i64 << 31) + (3i64 << 32), Just(-1), Just(0)].boxed()
    } else {
        (0..1i64 << 31).boxed()
    };
    (seconds, 0..1_000_000_000u32)
        .prop_map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds })
        .boxed()
}

/// Attributes of name spaces that root may give to inodes of every kind.
fn xattrs() -> impl Strategy<Value = BTreeMap<Vec<u8>, Vec<u8>>> {
    let name = ("(trusted|security)", "[a-z.A-Z0-9\u{80}-\u{ff}]{1,40}")
        .prop_map(|(space, name)| format!("{space}.x{name}").into_bytes());
    prop_oneof![
        4 => Just(BTreeMap::new()),
        2 => btree_map(name.clone(), vec(any::<u8>(), 0..40), 1..5),
        1 => btree_map(name, vec(any::<u8>(), 0..700), 1..5),
    ]
}

fn node(wide_times: bool) -> impl Strategy<Value = Node> {
    let owner = || prop_oneof![0..2000u32, 0..u32::MAX];
    let metadata = (0..0o10000u16, owner(), owner(), time(wide_times), xattrs());
    (any::<prop::sample::Index>(), name(), kind(), metadata).prop_map(
        |(parent, name, kind, (mode, uid, gid, modified, xattrs))| Node {
            parent,
            name,
            kind,
            metadata: Metadata { mode, uid, gid, modified, xattrs },
        },
    )
}

/// Adds nodes to a tree; those whose name is taken are left out.
fn plant(nodes: &[Node], writer: &mut DataWriter<'_>, tree: &mut Tree, contents: &mut Contents) {
    let mut directories = vec![tree.root()];
    let mut others = Vec::new();
    for (seed, node) in (1..).zip(nodes) {
        let parent = directories[node.parent.index(directories.len())];
        let mut content = None;
        let kind = match &node.kind {
            Kind::HardLink(which) => {
                if !others.is_empty() {
                    let _ = tree.link(parent, &node.name, others[which.index(others.len())]);
                }
                continue;
            }
            Kind::Directory => InodeKind::Directory(Directory::new()),
            Kind::File(pieces, announced) => {
                let (bytes, kind) = stream(pieces, *announced, seed, writer);
                content = Some(bytes);
                kind
            }
            Kind::Symlink(target) => InodeKind::Symlink(target[..].into()),
            Kind::CharacterDevice(major, minor) => {
                InodeKind::CharacterDevice { major: *major, minor: *minor }
            }
            Kind::BlockDevice(major, minor) => InodeKind::BlockDevice { major: *major, minor: *minor },
            Kind::Fifo => InodeKind::Fifo,
            Kind::Socket => InodeKind::Socket,
        };
        let is_directory = matches!(kind, InodeKind::Directory(_));
        let Ok(id) = tree.create(parent, &node.name, node.metadata.clone(), kind) else { continue };
        if is_directory {
            directories.push(id);
        } else {
            others.push(id);
        }
        if let Some(content) = content {
            contents.insert(id, content);
        }
    }
}

fn stream(pieces: &[Piece], announced: u64, seed: u64, writer: &mut DataWriter<'_>) -> (Vec<u8>, InodeKind) {
    let size: usize = pieces
        .iter()
        .map(|piece| match piece {
            Piece::Noise(length) | Piece::Zeros(length) | Piece::Hole(length) => *length,
        })
        .sum();
    writer.begin(size as u64 * announced / 10).unwrap();
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Noise(length) => {
                let part = noise(*length, seed);
                writer.write(&part).unwrap();
                bytes.extend(part);
            }
            Piece::Zeros(length) => {
                writer.write(&vec![0; *length]).unwrap();
                bytes.resize(bytes.len() + length, 0);
            }
            Piece::Hole(length) => {
                writer.write_hole(*length as u64).unwrap();
                bytes.resize(bytes.len() + length, 0);
            }
        }
    }
    (bytes, InodeKind::File(writer.end().unwrap()))
}

fn check(nodes: &[Node], wide_times: bool, journal: bool) {
    let mut contents = Contents::new();
    let mut kept = None;
    let options = Options { journal: if journal { 4 << 20 } else { 0 }, ..options() };
    let image = build(options, |writer, tree| {
        plant(nodes, writer, tree, &mut contents);
        kept = Some(tree.clone());
    });
    let tree = kept.unwrap();
    assert_clean(&image.path);
    compare::with_reader(&image.path, &tree, &contents);
    if !wide_times {
        compare::with_ext4_view(&image.path, &tree, &contents);
    }
    if is_turn_of_kernel() && can_mount() {
        let mount = Mount::new(&image.path, "ro");
        compare::with_kernel(&mount.path(), &tree, &contents);
        mount.unmount();
    }
}

/// Usually few; `PROPTEST_CASES` says how many others.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(24)
}

/// Of many cases only some are mounted: that takes as long as all the rest.
fn is_turn_of_kernel() -> bool {
    static CASE: AtomicU32 = AtomicU32::new(0);
    CASE.fetch_add(1, Ordering::Relaxed).is_multiple_of(cases().div_ceil(100))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_are_seen_as_they_were_made(
        nodes in vec(node(false), 0..120),
        journal in any::<bool>(),
    ) {
        check(&nodes, false, journal);
    }

    #[test]
    fn random_trees_with_all_times_are_seen_as_they_were_made(nodes in vec(node(true), 0..120)) {
        check(&nodes, true, false);
    }
}
