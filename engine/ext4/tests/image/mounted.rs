//! Images in use: written to by the kernel, and grown.

use std::fs::{self, File};
use std::process::Command;

use vmdeck_ext4::Options;

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
