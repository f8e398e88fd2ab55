//! The reader, on images of all shapes, dirty ones, and damaged ones.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use proptest::collection::vec;
use proptest::prelude::*;
use vmdeck_ext4::{Editor, FileKind, ImageError, InodeNumber, Options, Reader};

use crate::content::{CREATED, add_directory, add_file, build, metadata, noise, options};
use crate::foreign::{SHAPES, mke2fs, populate};
use crate::mount::{Mount, can_mount};
use crate::oracle::assert_clean;

fn open(path: &Path) -> Reader {
    Reader::open(File::open(path).unwrap()).unwrap()
}

/// Compares a directory of an image with a folder of this host.
pub(crate) fn assert_same(reader: &Reader, directory: InodeNumber, folder: &Path) {
    let mut entries = reader.entries(directory).unwrap();
    entries.retain(|(name, _)| name != b"lost+found");
    assert_eq!(entries.len(), fs::read_dir(folder).unwrap().count(), "{}", folder.display());
    for (name, inode) in entries {
        let path = folder.join(String::from_utf8(name).unwrap());
        match reader.stat(inode).unwrap().kind {
            FileKind::Directory => assert_same(reader, inode, &path),
            FileKind::File => {
                assert!(
                    reader.read(inode, 1 << 30).unwrap() == fs::read(&path).unwrap(),
                    "{}",
                    path.display()
                );
            }
            FileKind::Symlink => {
                let target = fs::read_link(&path).unwrap();
                assert_eq!(reader.read_link(inode).unwrap(), target.as_os_str().as_encoded_bytes());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn images_of_mke2fs_are_read_in_all_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    populate(&content);
    for (arguments, _) in SHAPES {
        let Some(path) = mke2fs(folder.path(), arguments, Some(&content)) else { continue };
        let reader = open(&path);
        assert!(!reader.was_dirty());
        assert_same(&reader, reader.root(), &content);
        assert_eq!(reader.size(), 48 << 20, "{arguments:?}");
        let large = reader.find(b"/long link").unwrap();
        assert_eq!(reader.stat(large).unwrap().size, 3_000_000);
        let expected = noise(3_000_000, 3_000_001);
        let mut part = vec![0; 10_000];
        assert_eq!(reader.read_at(large, 1_234_567, &mut part).unwrap(), 10_000);
        assert!(part == expected[1_234_567..1_244_567]);
        assert_eq!(reader.read_at(large, 2_999_990, &mut part).unwrap(), 10);
        assert!(matches!(reader.resolve(b"loop/x"), Err(ImageError::TooManySymlinks)));
        assert_eq!(reader.resolve(b"absolute link/../a/b/c/../small").unwrap(), None);
        assert_eq!(
            reader.resolve(b"../absolute link/../a/b/../small").unwrap(),
            reader.resolve(b"short link").unwrap()
        );
        assert!(reader.resolve(b"short link").unwrap().is_some());
        assert!(matches!(reader.read(large, 1000), Err(ImageError::TooLarge { limit: 1000 })));
    }
}

#[test]
fn what_is_no_ext4_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    for content in [vec![], vec![0; 5000], noise(100_000, 7)] {
        fs::write(&path, content).unwrap();
        assert!(matches!(Reader::open(File::open(&path).unwrap()), Err(ImageError::NotExt4)));
    }
    let image = build(options(), |_, _| {});
    File::options().write(true).open(&image.path).unwrap().set_len(1 << 20).unwrap();
    let error = Reader::open(File::open(&image.path).unwrap()).unwrap_err();
    assert!(error.to_string().contains("longer than the image file"), "{error}");
    // A bit of the label: only the checksum can tell.
    let image = build(options(), |_, _| {});
    File::options().write(true).open(&image.path).unwrap().write_all_at(b"T", 1024 + 0x78).unwrap();
    let error = Reader::open(File::open(&image.path).unwrap()).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
}

/// A copy of an image taken while the kernel has it mounted and its journal is not empty.
fn crashed(folder: &Path, image: &Path) -> std::path::PathBuf {
    let mount = Mount::new(image, "rw,data=journal");
    let kept = mount.path().join("kept");
    for index in 0..50 {
        fs::create_dir_all(kept.join(format!("directory {index}"))).unwrap();
        fs::write(kept.join(format!("file {index}")), noise(5000, index + 1)).unwrap();
        if index % 3 == 0 {
            fs::remove_file(kept.join(format!("file {index}"))).unwrap();
        }
    }
    // Deleted and still open, as in most machines that crash: the next mount is to free it.
    fs::write(kept.join("open"), noise(5000, 77)).unwrap();
    let open = File::open(kept.join("open")).unwrap();
    fs::remove_file(kept.join("open")).unwrap();
    // A block that begins like one of the journal is escaped there.
    fs::write(kept.join("escaped"), [&0xC03B_3998u32.to_be_bytes()[..], &[7; 4092]].concat()).unwrap();
    // Everything, not these files alone: a commit that comes while the image is copied would be in
    // one half of the copy.
    nix::unistd::syncfs(File::open(&kept).unwrap()).unwrap();
    let copy = folder.join("crashed.img");
    fs::copy(image, &copy).unwrap();
    drop(open);
    mount.unmount();
    copy
}

/// Whether e2fsck finds nothing in a copy that it would ask somebody about.
fn preened(image: &Path) -> bool {
    let copy = image.with_extension("preened");
    fs::copy(image, &copy).unwrap();
    let status = Command::new("/usr/sbin/e2fsck").arg("-fp").arg(&copy).output().unwrap().status;
    fs::remove_file(&copy).unwrap();
    // 1: something was put right.
    matches!(status.code(), Some(0 | 1))
}

#[test]
fn a_dirty_journal_is_replayed() {
    if !can_mount() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ours = build(options(), |writer, tree| {
        add_file(writer, tree, tree.root(), "before", b"before");
    });
    let mut images = vec![ours.path.clone()];
    for (arguments, _) in [SHAPES[0], SHAPES[3], SHAPES[5]] {
        images.extend(mke2fs(folder.path(), arguments, None));
    }
    for image in images {
        let copy = crashed(folder.path(), &image);
        let reader = open(&copy);
        assert!(reader.was_dirty(), "the journal of {} is empty", image.display());
        let kept = reader.find(b"/kept").unwrap();
        assert_eq!(reader.entries(kept).unwrap().len(), 50 + 33 + 1);
        for index in (0..50).filter(|index| index % 3 != 0) {
            let file = reader.find(format!("/kept/file {index}").as_bytes()).unwrap();
            assert!(reader.read(file, 1 << 20).unwrap() == noise(5000, index + 1));
        }
        let escaped = reader.find(b"/kept/escaped").unwrap();
        assert_eq!(reader.read(escaped, 1 << 20).unwrap()[..8], [0xC0, 0x3B, 0x39, 0x98, 7, 7, 7, 7]);

        // An editor writes the replayed blocks home and leaves an empty journal.
        let file = File::options().read(true).write(true).open(&copy).unwrap();
        let mut editor = Editor::open(file, CREATED).unwrap();
        let kept = editor.reader().find(b"/kept").unwrap();
        editor.write_file(kept, b"added", &metadata(0o600), b"added").unwrap();
        editor.commit().unwrap();
        assert!(!open(&copy).was_dirty());
        // Sound but for the inode that waits to be freed; the check at the end is a strict one.
        assert!(preened(&copy), "{}", image.display());
        let mount = Mount::new(&copy, "rw");
        assert_eq!(fs::read(mount.path().join("kept/added")).unwrap(), b"added");
        assert!(fs::read(mount.path().join("kept/file 1")).unwrap() == noise(5000, 2));
        fs::write(mount.path().join("kept/more"), noise(100_000, 4)).unwrap();
        mount.unmount();
        assert_clean(&copy);
    }
}

/// Reads everything there is, as far as it can be read.
fn walk(reader: &Reader) {
    let mut pending = vec![(reader.root(), 0)];
    let mut steps = 0;
    let _ = (reader.label(), reader.free());
    while let Some((inode, depth)) = pending.pop() {
        steps += 1;
        if steps > 2000 {
            return;
        }
        let _ = reader.stat(inode);
        let _ = reader.xattrs(inode);
        let _ = reader.read_link(inode);
        let mut buffer = vec![0; 20_000];
        for offset in [0, 5000, 1 << 30, 1 << 43] {
            let _ = reader.read_at(inode, offset, &mut buffer);
        }
        let _ = reader.for_each_entry(inode, |_, child| {
            if depth < 6 && pending.len() < 5000 {
                pending.push((child, depth + 1));
            }
            Ok(ControlFlow::Continue(()))
        });
    }
}

/// Small images to damage: with checksums, where damage is mostly found by them, and without.
fn victims() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    populate(&content);
    let mut victims = Vec::new();
    for arguments in [
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum", "-J", "size=1"][..],
        &["-t", "ext4", "-b", "4096", "-O", "^metadata_csum,^has_journal"],
        &["-t", "ext3", "-b", "1024", "-J", "size=1"],
    ] {
        victims.extend(mke2fs(folder.path(), arguments, Some(&content)).map(|path| fs::read(path).unwrap()));
    }
    let image = build(Options { size: 2 << 20, free: 0, journal: 0, ..options() }, |writer, tree| {
        let directory = add_directory(tree, tree.root(), "d");
        for index in 0..300 {
            add_file(writer, tree, directory, &format!("a file with a name {index}"), b"x");
        }
    });
    victims.push(fs::read(&image.path).unwrap());
    victims
}

/// Where there is something to damage: bytes of blocks that are not all zeros.
fn interesting(image: &[u8]) -> Vec<usize> {
    let blocks = image.chunks(1024).enumerate();
    // Content of files is of no interest: what is like noise is left out.
    let is_metadata = |block: &[u8]| {
        block.iter().any(|byte| *byte != 0) && block.iter().filter(|byte| **byte == 0).count() > 100
    };
    blocks.filter(|(_, block)| is_metadata(block)).map(|(index, _)| index * 1024).collect()
}

#[test]
fn damaged_images_never_bring_it_down() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged");
    for image in victims() {
        let places = interesting(&image);
        let damage = vec(
            (
                any::<prop::sample::Index>(),
                0..1024usize,
                prop_oneof![
                    any::<u8>().boxed(),
                    prop::sample::select(vec![0u8, 1, 2, 4, 0x7f, 0x80, 0xff]).boxed()
                ],
            ),
            1..40,
        );
        // Half of the damage goes to the first blocks, where the superblock and the root are.
        let near = vec((0..64usize * 1024, any::<u8>()), 0..3);
        let config = ProptestConfig { cases: 50, failure_persistence: None, ..ProptestConfig::default() };
        fs::write(&path, &image).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        proptest!(config, |(damage in damage, near in near)| {
            let mut touched = Vec::new();
            for (block, offset, value) in damage {
                touched.push((places[block.index(places.len())] + offset, value));
            }
            touched.extend(near);
            for (place, value) in &touched {
                file.write_all_at(&[*value], *place as u64).unwrap();
            }
            if let Ok(reader) = Reader::open(file.try_clone().unwrap()) {
                walk(&reader);
            }
            if let Ok(mut editor) = Editor::open(file.try_clone().unwrap(), CREATED) {
                let root = editor.reader().root();
                let _ = editor.create_directory(root, b"new", &metadata(0o755));
                let _ = editor.write_file(root, b"file", &metadata(0o755), &noise(20_000, 3));
                if let Ok(Some(directory)) = editor.reader().resolve(b"a") {
                    let _ = editor.remove(directory, b"large");
                    let _ = editor.rename(root, b"many", directory, b"moved");
                    let _ = editor.write_file(directory, b"small", &metadata(0o755), b"x");
                }
                // Not committed: the next case needs the image as it was.
            }
            for (place, _) in &touched {
                file.write_all_at(&image[*place..=*place], *place as u64).unwrap();
            }
        });
    }
}
