//! Images in use: written to by the kernel, and grown.

use std::fs::{self, File};
use std::process::Command;

use vmdeck_ext4::Options;

use crate::compare::{self, Contents};
use crate::content::{Image, add_directory, add_file, build, noise, options};
use crate::mount::{Mount, can_mount};
use crate::oracle::{assert_clean, debugfs, tool};

fn populated() -> Image {
    build(Options { free: 200 << 20, ..options() }, |writer, tree| {
        let directory = add_directory(tree, tree.root(), "directory");
        for index in 0..2000 {
            add_file(writer, tree, directory, &format!("file {index}"), &noise(3000, index + 1));
        }
    })
}

fn churn(mount: &Mount) {
    let directory = mount.path().join("directory");
    for index in 0..2000 {
        let path = directory.join(format!("file {index}"));
        if index % 3 == 0 {
            fs::remove_file(path).unwrap();
        } else {
            assert!(fs::read(path).unwrap() == noise(3000, index + 1));
        }
    }
    for index in 0..3000 {
        fs::write(directory.join(format!("new {index}")), noise(2000, index + 1)).unwrap();
    }
    for index in 0..300 {
        fs::create_dir(mount.path().join(format!("new directory {index}"))).unwrap();
    }
    fs::write(mount.path().join("large"), noise(30 << 20, 5)).unwrap();
}

#[test]
fn a_mounted_image_can_be_written_to() {
    if !can_mount() {
        return;
    }
    let image = populated();
    let mount = Mount::new(&image.path, "rw");
    churn(&mount);
    mount.unmount();
    assert_clean(&image.path);
}

#[test]
fn an_image_can_be_grown_while_it_is_not_mounted() {
    for gigabytes in [1, 50, 300] {
        let image = populated();
        let size = gigabytes << 30;
        File::options().write(true).open(&image.path).unwrap().set_len(size).unwrap();
        let Some(output) = tool("resize2fs", &[], &image.path) else { return };
        assert!(output.status.success(), "{output:?}");
        assert_clean(&image.path);
        // Grown by means of the reserved descriptors alone: no block of the content had to move.
        let statistics = debugfs(&image.path, "stats -h").unwrap();
        assert!(statistics.contains("resize_inode"), "{statistics}");
        assert!(statistics.contains(&format!("Block count:              {}", size / 4096)), "{statistics}");
    }
}

#[test]
fn an_image_can_be_grown_while_it_is_mounted() {
    if !can_mount() {
        return;
    }
    for gigabytes in [1, 30] {
        let image = populated();
        File::options().write(true).open(&image.path).unwrap().set_len(gigabytes << 30).unwrap();
        let mount = Mount::new(&image.path, "rw");
        let source = Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(mount.path()).output().unwrap();
        let device = String::from_utf8_lossy(&source.stdout).trim().to_owned();
        let Some(output) = tool("resize2fs", &[], device.as_ref()) else { return };
        let answer = String::from_utf8_lossy(&output.stderr).into_owned();
        if answer.contains("Permission denied") {
            eprintln!("skipped growing a mounted image: it needs CAP_SYS_RESOURCE, which this root has not");
            return;
        }
        assert!(output.status.success(), "{answer}");
        churn(&mount);
        mount.unmount();
        assert_clean(&image.path);
        let statistics = debugfs(&image.path, "stats -h").unwrap();
        let blocks = (gigabytes << 30) / 4096;
        assert!(statistics.contains(&format!("Block count:              {blocks}")), "{statistics}");
    }
}

#[test]
fn an_image_of_sixteen_tebibytes_is_sparse() {
    let folder = tempfile::tempdir().unwrap();
    let probe = File::create(folder.path().join("probe")).unwrap();
    if let Err(error) = probe.set_len(16 << 40) {
        eprintln!("skipped a file system of 16 TiB: {error}");
        return;
    }
    let image = build(Options { size: 16 << 40, ..options() }, |writer, tree| {
        add_file(writer, tree, tree.root(), "file", b"content");
    });
    assert_eq!(image.summary.size, 16 << 40);
    let statistics = debugfs(&image.path, "stats -h").unwrap();
    assert!(statistics.contains("Block count:              4294967296"), "{statistics}");
}

/// An access control list in the form of system calls.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend([&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    list
}

#[test]
fn access_control_lists_and_capabilities_are_those_of_the_kernel() {
    if !can_mount() {
        return;
    }
    const NONE: u32 = u32::MAX;
    let list =
        acl(&[(1, 7, NONE), (2, 5, 70_000), (4, 5, NONE), (8, 4, 12), (0x10, 5, NONE), (0x20, 0, NONE)]);
    // Version 2 with the effective bit: net_bind_service is permitted.
    let capability = [&0x0200_0001u32.to_le_bytes()[..], &(1u32 << 10).to_le_bytes(), &[0; 12]].concat();
    let mut kept = None;
    let mut contents = Contents::new();
    let image = build(options(), |writer, tree| {
        let root = tree.root();
        let directory = add_directory(tree, root, "directory");
        let file = add_file(writer, tree, root, "file", b"x");
        contents.insert(file, b"x".to_vec());
        // The group bits of a file with a mask are the mask.
        tree.metadata_mut(directory).mode = 0o750;
        tree.metadata_mut(file).mode = 0o750;
        for (inode, name, value) in [
            (directory, "system.posix_acl_access", &list),
            (directory, "system.posix_acl_default", &list),
            (file, "system.posix_acl_access", &list),
            (file, "security.capability", &capability),
            (file, "user.note", &noise(2000, 3)),
        ] {
            tree.metadata_mut(inode).xattrs.insert(name.into(), value.clone());
        }
        kept = Some(tree.clone());
    });
    let tree = kept.unwrap();
    assert_clean(&image.path);
    compare::with_reader(&image.path, &tree, &contents);
    let mount = Mount::new(&image.path, "ro");
    compare::with_kernel(&mount.path(), &tree, &contents);
    mount.unmount();
}
