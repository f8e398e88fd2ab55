//! Images that mke2fs made, in the shapes it can make.

use std::fs;
use std::path::{Path, PathBuf};

use crate::content::noise;
use crate::oracle::tool;

/// Arguments of mke2fs, and whether an editor is to take the image.
pub(crate) const SHAPES: [(&[&str], bool); 14] = [
    (&["-t", "ext4"], true),
    (&["-t", "ext4", "-b", "4096"], true),
    (&["-t", "ext4", "-b", "2048", "-O", "^metadata_csum"], true),
    (&["-t", "ext4", "-O", "^metadata_csum,uninit_bg", "-g", "1024"], true),
    (&["-t", "ext4", "-O", "^metadata_csum,^64bit,^huge_file,^flex_bg"], true),
    (&["-t", "ext4", "-O", "^64bit"], true),
    (&["-t", "ext4", "-I", "128", "-O", "^extra_isize"], true),
    (&["-t", "ext4", "-I", "512", "-b", "4096"], true),
    (&["-t", "ext4", "-O", "^has_journal,^dir_index,^filetype"], true),
    (&["-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024", "-g", "512"], true),
    (&["-t", "ext4", "-O", "metadata_csum_seed"], true),
    (&["-t", "ext3"], false),
    (&["-t", "ext2", "-b", "4096"], false),
    (&["-t", "ext4", "-O", "sparse_super2"], false),
];

/// A folder to make images from, with files of many sizes and a directory with an index.
pub(crate) fn populate(folder: &Path) {
    fs::create_dir_all(folder.join("a/b/c")).unwrap();
    for (name, length) in [("empty", 0), ("small", 100), ("block", 4096), ("large", 3_000_000)] {
        fs::write(folder.join("a").join(name), noise(length, length as u64 + 1)).unwrap();
    }
    fs::create_dir(folder.join("many")).unwrap();
    for index in 0..700 {
        fs::write(folder.join("many").join(format!("a rather long file name {index:04}")), b"x").unwrap();
    }
    std::os::unix::fs::symlink("a/small", folder.join("short link")).unwrap();
    std::os::unix::fs::symlink("./".repeat(60) + "a/large", folder.join("long link")).unwrap();
    std::os::unix::fs::symlink("/a/b/../../many", folder.join("absolute link")).unwrap();
    std::os::unix::fs::symlink("loop", folder.join("loop")).unwrap();
}

/// An image by mke2fs; `None` where it is not installed or does not know the feature.
pub(crate) fn mke2fs(folder: &Path, arguments: &[&str], content: Option<&Path>) -> Option<PathBuf> {
    let path = folder.join(format!("{}.img", arguments.join("")));
    fs::File::create(&path).unwrap().set_len(48 << 20).unwrap();
    let mut all = vec!["-q", "-F"];
    all.extend(arguments);
    if let Some(content) = content {
        all.extend(["-d", content.to_str().unwrap()]);
    }
    let output = tool("mke2fs", &all, &path)?;
    if !output.status.success() {
        eprintln!("skipped {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    // Makes the indexes that mke2fs leaves out.
    tool("e2fsck", &["-fyD"], &path)?;
    Some(path)
}
