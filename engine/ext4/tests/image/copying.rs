//! Copies of whole file systems.

use std::fs::{self, File};
use std::path::Path;

use vmdeck_ext4::{CopyError, Formatter, Options, Reader, Tree, copy_tree};

use crate::compare::{self, Contents};
use crate::content::{add_directory, add_file, build, create, metadata, noise, options};
use crate::foreign::{SHAPES, mke2fs, populate};
use crate::oracle::assert_clean;

/// Copies an image with nothing to spare.
fn copy(source: &Path, target: &Path) -> Tree {
    let reader = Reader::open(File::open(source).unwrap()).unwrap();
    let formatter = Formatter::create(create(target), Options { free: 0, journal: 0, ..options() }).unwrap();
    let mut writer = formatter.data_writer();
    let mut copied = 0;
    let tree = copy_tree(&reader, &mut writer, |bytes| {
        copied += bytes;
        true
    })
    .unwrap();
    drop(writer);
    let (_, summary) = formatter.finish(&tree).unwrap();
    assert!(copied <= summary.used);
    assert_clean(target);
    tree
}

#[test]
fn a_copy_holds_the_same_in_less_room() {
    let folder = tempfile::tempdir().unwrap();
    let mut kept = None;
    let mut contents = Contents::new();
    let image = build(Options { size: 400 << 20, ..options() }, |writer, tree| {
        let directory = add_directory(tree, tree.root(), "directory");
        let file = add_file(writer, tree, directory, "file", &noise(3_000_001, 4));
        tree.link(tree.root(), b"also file", file).unwrap();
        tree.metadata_mut(file).xattrs.insert(b"user.x".to_vec(), noise(1000, 4));
        contents.insert(file, noise(3_000_001, 4));
        writer.begin(0).unwrap();
        writer.write_hole(5_000_000).unwrap();
        writer.write(b"end").unwrap();
        let kind = vmdeck_ext4::InodeKind::File(writer.end().unwrap());
        let sparse = tree.create(directory, b"sparse", metadata(0o600), kind).unwrap();
        contents.insert(sparse, [&vec![0; 5_000_000][..], b"end"].concat());
        let kind = vmdeck_ext4::InodeKind::BlockDevice { major: 7, minor: 300 };
        tree.create(directory, b"device", metadata(0o600), kind).unwrap();
        kept = Some(tree.clone());
    });
    let target = folder.path().join("copy");
    copy(&image.path, &target);
    compare::with_reader(&target, &kept.unwrap(), &contents);
    assert!(fs::metadata(&target).unwrap().len() < 5 << 20);
}

#[test]
fn images_of_mke2fs_can_be_copied() {
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    populate(&content);
    for (index, (arguments, _)) in SHAPES.into_iter().enumerate() {
        let Some(path) = mke2fs(folder.path(), arguments, Some(&content)) else { continue };
        let target = folder.path().join(format!("copy {index}"));
        copy(&path, &target);
        let reader = Reader::open(File::open(&target).unwrap()).unwrap();
        crate::reading::assert_same(&reader, reader.root(), &content);
    }
}

#[test]
fn a_copy_can_be_cancelled() {
    let image = build(options(), |writer, tree| {
        add_file(writer, tree, tree.root(), "file", &noise(5 << 20, 4));
    });
    let reader = Reader::open(File::open(&image.path).unwrap()).unwrap();
    let formatter = Formatter::create(tempfile::tempfile().unwrap(), options()).unwrap();
    let mut writer = formatter.data_writer();
    let mut copied = 0;
    let result = copy_tree(&reader, &mut writer, |bytes| {
        copied += bytes;
        copied < 2 << 20
    });
    assert!(matches!(result, Err(CopyError::Cancelled)));
}
