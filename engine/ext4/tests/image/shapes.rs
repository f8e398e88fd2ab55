//! Particular shapes of file systems.

use ext4_view::Ext4;
use vmdeck_ext4::{InodeKind, Options};

use crate::content::{add_directory, add_file, build, metadata, noise, options};
use crate::oracle::{assert_clean, debugfs};

#[test]
fn an_empty_file_system_is_clean() {
    for journal in [0, 4 << 20] {
        let image = build(Options { journal, ..options() }, |_, _| {});
        assert_clean(&image.path);
    }
}

#[test]
fn a_tiny_image_has_one_mebibyte() {
    let image = build(Options { size: 1 << 20, free: 0, journal: 0, ..options() }, |writer, tree| {
        add_file(writer, tree, tree.root(), "binary", &noise(100_000, 1));
    });
    assert_eq!(image.summary.size, 1 << 20);
    assert_clean(&image.path);
}

#[test]
fn all_kinds_of_inodes_are_written() {
    let image = build(options(), |writer, tree| {
        let root = tree.root();
        let file = add_file(writer, tree, root, "file", b"hello");
        let directory = add_directory(tree, root, "directory");
        tree.link(directory, b"hard", file).unwrap();
        add_file(writer, tree, directory, "large", &noise(9 << 20, 3));
        add_file(writer, tree, directory, "empty", b"");
        let long = [b'x'; 300];
        for (name, kind) in [
            (&b"short"[..], InodeKind::Symlink(b"file"[..].into())),
            (b"fifty-nine", InodeKind::Symlink(long[..59].into())),
            (b"sixty", InodeKind::Symlink(long[..60].into())),
            (b"long", InodeKind::Symlink(long[..].into())),
            (b"null", InodeKind::CharacterDevice { major: 1, minor: 3 }),
            (b"disk", InodeKind::BlockDevice { major: 259, minor: 70_000 }),
            (b"fifo", InodeKind::Fifo),
            (b"socket", InodeKind::Socket),
        ] {
            tree.create(directory, name, metadata(0o600), kind).unwrap();
        }
    });
    assert_clean(&image.path);
    let ext4 = Ext4::load_from_path(&image.path).unwrap();
    assert_eq!(ext4.read("/directory/hard").unwrap(), b"hello");
    assert_eq!(ext4.read("/directory/large").unwrap(), noise(9 << 20, 3));
}

#[test]
fn a_directory_of_sixty_thousand_names_has_an_index() {
    let image = build(options(), |_, tree| {
        let directory = add_directory(tree, tree.root(), "d");
        for index in 0..60_000 {
            let name = format!("entry number {index}");
            tree.create(directory, name.as_bytes(), metadata(0o600), InodeKind::Fifo).unwrap();
        }
    });
    assert_clean(&image.path);
    if let Some(answer) = debugfs(&image.path, "htree_dump /d") {
        assert!(answer.contains("Hash Version: 1"), "{answer}");
    }
    let ext4 = Ext4::load_from_path(&image.path).unwrap();
    assert_eq!(ext4.read_dir("/d").unwrap().count(), 60_002);
    // Found through the index.
    for index in (0..60_000).step_by(997) {
        assert!(ext4.exists(format!("/d/entry number {index}").as_str()).unwrap());
    }
    assert!(!ext4.exists("/d/entry number 60000").unwrap());
}

#[test]
fn a_directory_of_long_names_has_two_levels_of_index() {
    let name = |index: u32| {
        let mut name = vec![0x80 | (index % 64) as u8; 255];
        name[..6].copy_from_slice(format!("{index:06}").as_bytes());
        name
    };
    let image = build(options(), |_, tree| {
        let directory = add_directory(tree, tree.root(), "d");
        for index in 0..12_000 {
            tree.create(directory, &name(index), metadata(0o600), InodeKind::Fifo).unwrap();
        }
    });
    assert_clean(&image.path);
    let ext4 = Ext4::load_from_path(&image.path).unwrap();
    for index in (0..12_000).step_by(97) {
        let path = [b"/d/", name(index).as_slice()].concat();
        assert!(ext4.exists(path.as_slice()).unwrap());
    }
}

#[test]
fn more_subdirectories_than_links_can_count() {
    let image = build(options(), |_, tree| {
        let directory = add_directory(tree, tree.root(), "d");
        for index in 0..65_100 {
            add_directory(tree, directory, &index.to_string());
        }
    });
    assert_clean(&image.path);
}

#[test]
fn a_file_of_thousands_of_fragments_reads_back() {
    let mut expected = Vec::new();
    let image = build(options(), |writer, tree| {
        writer.begin(0).unwrap();
        for index in 0..4_000 {
            let block = noise(4096, index + 1);
            writer.write(&block).unwrap();
            writer.write_hole(4096).unwrap();
            expected.extend(block);
            expected.extend([0; 4096]);
        }
        let data = writer.end().unwrap();
        assert_eq!(data.extents.len(), 4_000);
        tree.create(tree.root(), b"holes", metadata(0o644), InodeKind::File(data)).unwrap();
    });
    assert_clean(&image.path);
    let ext4 = Ext4::load_from_path(&image.path).unwrap();
    assert!(ext4.read("/holes").unwrap() == expected);
}

#[test]
fn extended_attributes_are_kept_in_both_places() {
    let image = build(options(), |writer, tree| {
        let root = tree.root();
        let file = add_file(writer, tree, root, "file", b"x");
        let mut acl = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in [
            (1u16, 6u16, u32::MAX),
            (2, 7, 70_000),
            (4, 4, u32::MAX),
            (0x10, 7, u32::MAX),
            (0x20, 4, u32::MAX),
        ] {
            acl.extend([&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat());
        }
        for (name, value) in [
            ("security.capability", vec![1; 20]),
            ("system.posix_acl_access", acl),
            ("trusted.overlay.opaque", b"y".to_vec()),
            ("user.empty", Vec::new()),
            ("user.long", noise(3000, 9)),
            ("user.unaligned\u{e4}", b"abcde".to_vec()),
        ] {
            tree.metadata_mut(file).xattrs.insert(name.into(), value);
        }
    });
    assert_clean(&image.path);
    if let Some(answer) = debugfs(&image.path, "ea_list /file") {
        for name in [
            "security.capability (20)",
            "trusted.overlay.opaque (1) = \"y\"",
            "user.long (3000)",
            "user.empty (0)",
        ] {
            assert!(answer.contains(name), "{name} in\n{answer}");
        }
    }
}

#[test]
fn an_image_of_several_groups_is_clean() {
    let image = build(Options { size: 3 << 30, journal: 64 << 20, ..options() }, |writer, tree| {
        add_file(writer, tree, tree.root(), "a", &noise(200 << 20, 3));
        writer.begin(10 << 30).unwrap();
        writer.write(b"begin").unwrap();
        writer.write_hole((10 << 30) - 8).unwrap();
        writer.write(b"end").unwrap();
        let data = writer.end().unwrap();
        tree.create(tree.root(), b"sparse", metadata(0o644), InodeKind::File(data)).unwrap();
    });
    assert_eq!(image.summary.size, 3 << 30);
    assert_clean(&image.path);
}

#[test]
fn the_features_are_those_of_mke2fs() {
    let image = build(Options { size: 1 << 30, ..options() }, |_, _| {});
    let Some(statistics) = debugfs(&image.path, "stats -h") else { return };
    for line in [
        "Filesystem features:      has_journal ext_attr resize_inode dir_index filetype extent 64bit \
         flex_bg sparse_super large_file huge_file dir_nlink extra_isize metadata_csum",
        "Filesystem volume name:   test",
        "Filesystem state:         clean",
        "Block size:               4096",
        "Reserved GDT blocks:      255",
        "Inode size:\t          256",
        "Required extra isize:     32",
        "Default directory hash:   half_md4",
        "Default mount options:    user_xattr acl",
        "Checksum type:            crc32c",
    ] {
        assert!(statistics.contains(line), "{line} in\n{statistics}");
    }
}
