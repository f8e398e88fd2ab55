//! The editor: what it writes is there, and the image stays clean.

use std::fs::File;
use std::path::Path;

use ext4_view::Ext4;
use vmdeck_ext4::{Editor, ImageError, InodeNumber, Metadata, Options, Reader, Timestamp};

use crate::content::{CREATED, add_directory, add_file, build, metadata, noise, options};
use crate::foreign::{SHAPES, mke2fs, populate};
use crate::mount::{Mount, can_mount};
use crate::oracle::{assert_clean, debugfs};

const NOW: Timestamp = Timestamp { seconds: 1_800_000_000, nanoseconds: 7 };

fn edit(path: &Path, change: impl FnOnce(&mut Editor)) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut editor = Editor::open(file, NOW).unwrap();
    change(&mut editor);
    editor.commit().unwrap();
    assert_clean(path);
}

fn find(editor: &Editor, path: &str) -> InodeNumber {
    editor.reader().find(path.as_bytes()).unwrap()
}

fn inject_key(editor: &mut Editor) {
    let root = editor.reader().root();
    let owner = |mode| Metadata { uid: 1000, gid: 100_000, ..metadata(mode) };
    let ssh = editor.create_directory(root, b".ssh", &owner(0o700)).unwrap();
    editor.write_file(ssh, b"authorized_keys", &owner(0o600), b"ssh-ed25519 AAAA first\n").unwrap();
    editor.write_file(ssh, b"authorized_keys", &owner(0o600), b"ssh-ed25519 AAAA second\n").unwrap();
    assert_eq!(editor.ensure_directory(root, b".ssh", &owner(0o755)).unwrap(), ssh);
    editor.set_owner(root, 0o750, 1000, 100_000).unwrap();
}

fn check_key(path: &Path) {
    let reader = Reader::open(File::open(path).unwrap()).unwrap();
    let keys = reader.find(b"/.ssh/authorized_keys").unwrap();
    assert_eq!(reader.read(keys, 1000).unwrap(), b"ssh-ed25519 AAAA second\n");
    let stat = reader.stat(keys).unwrap();
    assert_eq!((stat.mode, stat.uid, stat.gid, stat.links), (0o600, 1000, 100_000, 1));
    let root = reader.stat(reader.root()).unwrap();
    assert_eq!((root.mode, root.uid, root.gid), (0o750, 1000, 100_000));
    let answer = debugfs(path, "cat /.ssh/authorized_keys").unwrap();
    assert_eq!(answer, "ssh-ed25519 AAAA second\n");
}

#[test]
fn a_key_is_injected_into_images_of_all_shapes() {
    let image = build(options(), |writer, tree| {
        add_file(writer, tree, tree.root(), "file", b"content");
    });
    edit(&image.path, inject_key);
    check_key(&image.path);
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    populate(&content);
    for (arguments, editable) in SHAPES {
        let Some(path) = mke2fs(folder.path(), arguments, Some(&content)) else { continue };
        if editable {
            edit(&path, inject_key);
            check_key(&path);
        } else {
            let file = File::options().read(true).write(true).open(&path).unwrap();
            assert!(matches!(Editor::open(file, NOW), Err(ImageError::Unsupported { .. })), "{arguments:?}");
        }
    }
}

#[test]
fn files_of_all_sizes_can_be_written_replaced_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    populate(&content);
    let ours = build(options(), |_, _| {});
    let mut images = vec![ours.path.clone()];
    for (arguments, _) in SHAPES.into_iter().filter(|(_, editable)| *editable) {
        images.extend(mke2fs(folder.path(), arguments, None));
    }
    for path in images {
        let xattrs = [(b"user.note".to_vec(), vec![5; 300]), (b"security.x".to_vec(), vec![6; 20])];
        let with_xattrs = Metadata { xattrs: xattrs.into(), ..metadata(0o644) };
        edit(&path, |editor| {
            let root = editor.reader().root();
            for (index, size) in [0, 1, 1024, 4096, 5000, 1_000_000].into_iter().enumerate() {
                let name = format!("file {index}");
                editor.write_file(root, name.as_bytes(), &with_xattrs, &noise(size, 9)).unwrap();
            }
            editor.write_symlink(root, b"link", &metadata(0o777), b"file 1").unwrap();
            editor.write_symlink(root, b"long", &metadata(0o777), &[b'x'; 200]).unwrap();
        });
        let reader = Reader::open(File::open(&path).unwrap()).unwrap();
        let file = reader.find(b"file 5").unwrap();
        assert!(reader.read(file, 1 << 30).unwrap() == noise(1_000_000, 9));
        assert_eq!(reader.xattrs(file).unwrap(), with_xattrs.xattrs);
        let long = reader.lookup(reader.root(), b"long").unwrap().unwrap();
        assert_eq!(reader.read_link(long).unwrap(), [b'x'; 200]);
        let free = reader.free().unwrap();
        drop(reader);
        edit(&path, |editor| {
            let root = editor.reader().root();
            editor.write_file(root, b"file 5", &metadata(0o644), b"short").unwrap();
            editor.remove(root, b"file 4").unwrap();
            editor.remove(root, b"long").unwrap();
            editor.remove(root, b"link").unwrap();
            assert!(matches!(editor.remove(root, b"link"), Err(ImageError::NotFound { .. })));
            assert!(matches!(
                editor.create_directory(root, b"file 1", &metadata(0o755)),
                Err(ImageError::Exists { .. })
            ));
            assert!(matches!(
                editor.write_file(root, b"lost+found", &metadata(0o644), b""),
                Err(ImageError::IsADirectory)
            ));
            assert!(matches!(
                editor.write_file(root, b"a/b", &metadata(0o644), b""),
                Err(ImageError::InvalidName)
            ));
        });
        let reader = Reader::open(File::open(&path).unwrap()).unwrap();
        assert!(reader.free().unwrap() > free + 950_000);
    }
}

#[test]
fn a_directory_grows_beyond_its_blocks_and_its_index() {
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    populate(&content);
    let ours = build(options(), |_, tree| {
        let directory = add_directory(tree, tree.root(), "many");
        for index in 0..700 {
            let name = format!("a rather long file name {index:04}");
            let kind = vmdeck_ext4::InodeKind::Fifo;
            tree.create(directory, name.as_bytes(), metadata(0o644), kind).unwrap();
        }
    });
    let mut images = vec![ours.path.clone()];
    for (arguments, _) in SHAPES.into_iter().filter(|(_, editable)| *editable) {
        images.extend(mke2fs(folder.path(), arguments, Some(&content)));
    }
    for path in images {
        edit(&path, |editor| {
            let many = find(editor, "many");
            // A few find room in the blocks their hashes belong to; with many the index is given up.
            for index in 0..3 {
                let name = format!("added {index}");
                editor.write_file(many, name.as_bytes(), &metadata(0o644), b"").unwrap();
            }
        });
        // This reader knows no inodes of 128 bytes, and looks names up through an index where there is one.
        let ext4 = Ext4::load_from_path(&path).ok();
        if let Some(ext4) = ext4.filter(|ext4| ext4.exists("/many").is_ok()) {
            assert!(ext4.exists("/many/added 2").unwrap());
        }
        edit(&path, |editor| {
            let many = find(editor, "many");
            for index in 3..800 {
                let name = format!("added {index}");
                editor.write_file(many, name.as_bytes(), &metadata(0o644), b"").unwrap();
            }
            let deep = editor.create_directory(many, b"deep", &metadata(0o755)).unwrap();
            editor.write_file(deep, b"file", &metadata(0o644), b"content").unwrap();
        });
        let reader = Reader::open(File::open(&path).unwrap()).unwrap();
        assert_eq!(reader.entries(reader.find(b"many").unwrap()).unwrap().len(), 700 + 800 + 1);
        if can_mount() {
            let mount = Mount::new(&path, "rw");
            assert_eq!(std::fs::read(mount.path().join("many/deep/file")).unwrap(), b"content");
            std::fs::write(mount.path().join("many/by the kernel"), b"x").unwrap();
            std::fs::remove_file(mount.path().join("many/added 500")).unwrap();
            mount.unmount();
            assert_clean(&path);
        }
    }
}

#[test]
fn a_nested_home_is_lifted_out() {
    let image = build(options(), |writer, tree| {
        let root = tree.root();
        let nested = add_directory(tree, root, "root");
        add_file(writer, tree, nested, ".profile", b"profile");
        let config = add_directory(tree, nested, ".config");
        add_file(writer, tree, config, "x", b"x");
    });
    edit(&image.path, |editor| {
        let root = editor.reader().root();
        let nested = find(editor, "root");
        let config = find(editor, "root/.config");
        assert!(matches!(editor.rename(root, b"root", config, b"y"), Err(ImageError::IntoItself)));
        assert!(matches!(editor.remove(root, b"root"), Err(ImageError::NotEmpty)));
        for (name, _) in editor.reader().entries(nested).unwrap() {
            editor.rename(nested, &name, root, &name).unwrap();
        }
        editor.remove(root, b"root").unwrap();
    });
    let reader = Reader::open(File::open(&image.path).unwrap()).unwrap();
    assert!(reader.resolve(b"root").unwrap().is_none());
    assert_eq!(reader.read(reader.find(b".config/x").unwrap(), 10).unwrap(), b"x");
    assert_eq!(reader.read(reader.find(b".profile").unwrap(), 10).unwrap(), b"profile");
    let ext4 = Ext4::load_from_path(&image.path).unwrap();
    assert_eq!(ext4.read("/.config/../.config/x").unwrap(), b"x");
}

#[test]
fn a_change_that_fails_leaves_nothing_behind() {
    let image = build(Options { size: 1 << 20, free: 0, journal: 0, ..options() }, |_, _| {});
    edit(&image.path, |editor| {
        let root = editor.reader().root();
        editor.write_file(root, b"kept", &metadata(0o644), b"kept").unwrap();
        let large = noise(2 << 20, 1);
        assert!(matches!(
            editor.write_file(root, b"large", &metadata(0o644), &large),
            Err(ImageError::NoSpace)
        ));
        let bad = Metadata { xattrs: [(b"x".to_vec(), vec![])].into(), ..metadata(0o644) };
        assert!(matches!(editor.write_file(root, b"kept", &bad, b"lost"), Err(ImageError::Xattr(_))));
        // Until there are no inodes either.
        let mut count = 0;
        let error = loop {
            match editor.write_file(root, format!("{count}").as_bytes(), &metadata(0o644), b"") {
                Ok(_) => count += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ImageError::NoInodes | ImageError::NoSpace), "{error}");
    });
    let reader = Reader::open(File::open(&image.path).unwrap()).unwrap();
    assert_eq!(reader.read(reader.find(b"kept").unwrap(), 10).unwrap(), b"kept");
    let _ = CREATED;
}
