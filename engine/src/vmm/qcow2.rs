//! qcow2 overlays, written by hand: `qemu-img` is a package of its own that most hosts lack.
//!
//! The format is the one of QEMU's `docs/interop/qcow2.txt`, version 3. What is written here has
//! one layout: header, refcount table, one refcount block, and an L1 table large enough for
//! [`MAX_BYTES`], so that growing a disk later is a change of one field. All of it is a few hundred
//! bytes on disk; the rest are holes.

mod flatten;
mod header;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use flatten::flatten;
pub use header::{Header, HeaderError};

use super::DiskFormat;
use crate::error::{Error, Result};

/// Longest disk: what the L1 table of [`create_overlay`] covers.
pub const MAX_BYTES: u64 = 64 << 40;

/// Cluster of 64 KiB, QEMU's default.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// One L1 entry leads to one cluster of L2 entries of 8 bytes, each for one cluster: 512 MiB.
const BYTES_PER_L1_ENTRY: u64 = CLUSTER / 8 * CLUSTER;
const L1_ENTRIES: u64 = MAX_BYTES / BYTES_PER_L1_ENTRY;
const L1_CLUSTERS: u64 = L1_ENTRIES * 8 / CLUSTER;
const REFCOUNT_TABLE: u64 = CLUSTER;
const REFCOUNT_BLOCK: u64 = 2 * CLUSTER;
const L1_TABLE: u64 = 3 * CLUSTER;
const METADATA_CLUSTERS: u64 = 3 + L1_CLUSTERS;

/// Creates an overlay of `bytes` length over a backing file. `backing` is put into the header as
/// given: make it relative to the overlay's folder, or absolute.
///
/// A backing file shorter than the overlay reads as zeros beyond its end. Fails when the overlay
/// exists, and leaves no file when it fails for another reason. The content is synced.
pub fn create_overlay(overlay: &Path, backing: &Path, format: DiskFormat, bytes: u64) -> Result<()> {
    create(overlay, Some((backing, format)), bytes)
}

/// Creates an empty disk without a backing file.
pub fn create_empty(disk: &Path, bytes: u64) -> Result<()> {
    create(disk, None, bytes)
}

/// Length of a disk, as the guest sees it, in bytes.
pub fn virtual_size(path: &Path, format: DiskFormat) -> Result<u64> {
    match format {
        DiskFormat::Raw => std::fs::metadata(path)
            .map(|metadata| metadata.len())
            .map_err(|error| Error::io(format!("cannot read the disk `{}`", path.display()), error)),
        DiskFormat::Qcow2 => Ok(read_header(path)?.virtual_size),
    }
}

/// Reads and checks the header of a qcow2 file.
pub fn read_header(path: &Path) -> Result<Header> {
    let fail = |error| Error::io(format!("cannot read the disk `{}`", path.display()), error);
    let file = File::open(path).map_err(fail)?;
    Header::read(&file).map_err(|error| {
        Error::failed(format!("`{}` is no usable qcow2 disk", path.display())).with_source(error)
    })
}

/// Makes a disk longer. No machine may have it open. The new end reads as zeros, unless the disk was
/// shorter than its backing file: then as what that holds.
pub fn grow(path: &Path, bytes: u64) -> Result<()> {
    let fail = |error| Error::io(format!("cannot grow the disk `{}`", path.display()), error);
    let header = read_header(path)?;
    if bytes < header.virtual_size {
        return Err(Error::usage(format!(
            "the disk `{}` is {} bytes long and cannot be made shorter",
            path.display(),
            header.virtual_size
        )));
    }
    check_size(path, bytes)?;
    if u64::from(header.l1_entries).saturating_mul(header.bytes_per_l1_entry()) < bytes {
        return Err(Error::failed(format!(
            "the disk `{}` was not made by vmdeck and its table of clusters is full",
            path.display()
        ))
        .with_hint("grow it with `qemu-img resize`"));
    }
    let file = OpenOptions::new().write(true).open(path).map_err(fail)?;
    file.write_all_at(&bytes.to_be_bytes(), header::SIZE_OFFSET).map_err(fail)?;
    file.sync_data().map_err(fail)
}

fn check_size(path: &Path, bytes: u64) -> Result<()> {
    if bytes == 0 || bytes > MAX_BYTES || !bytes.is_multiple_of(512) {
        return Err(Error::usage(format!(
            "the disk `{}` cannot be {bytes} bytes long: a multiple of 512 up to 64 TiB is needed",
            path.display()
        )));
    }
    Ok(())
}

fn create(path: &Path, backing: Option<(&Path, DiskFormat)>, bytes: u64) -> Result<()> {
    check_size(path, bytes)?;
    let fail = |error| Error::io(format!("cannot create the disk `{}`", path.display()), error);
    let backing = match backing {
        None => None,
        Some((backing, format)) => {
            let name = backing_name(backing);
            if name.as_os_str().len() > header::MAX_BACKING_NAME {
                return Err(Error::failed(format!(
                    "the path of the backing file `{}` is longer than qcow2 allows ({} bytes)",
                    backing.display(),
                    header::MAX_BACKING_NAME
                ))
                .with_hint("use a data directory with a shorter path"));
            }
            Some((name, format))
        }
    };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
    write_metadata(&file, backing.as_ref().map(|(name, format)| (name.as_path(), *format)), bytes)
        .inspect_err(|_| {
            let _ = std::fs::remove_file(path);
        })
        .map_err(fail)
}

/// QEMU takes what stands before a colon in the first part of a relative name for a protocol
/// (`path_has_protocol` in block.c).
fn backing_name(backing: &Path) -> PathBuf {
    let bytes = backing.as_os_str().as_bytes();
    let first_part = bytes.split(|&byte| byte == b'/').next().unwrap_or_default();
    if first_part.contains(&b':') { Path::new(".").join(backing) } else { backing.to_owned() }
}

fn write_metadata(mut file: &File, backing: Option<(&Path, DiskFormat)>, bytes: u64) -> io::Result<()> {
    file.write_all(&header::encode(backing, bytes))?;
    file.write_all_at(&REFCOUNT_BLOCK.to_be_bytes(), REFCOUNT_TABLE)?;
    // Refcounts have 16 bits; each cluster of metadata is used once.
    let refcounts: Vec<u8> = (0..METADATA_CLUSTERS).flat_map(|_| 1_u16.to_be_bytes()).collect();
    file.write_all_at(&refcounts, REFCOUNT_BLOCK)?;
    file.set_len(METADATA_CLUSTERS * CLUSTER)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::*;

    /// Runs qemu-img; `None`, with a notice, where there is none.
    pub(super) fn qemu_img(folder: &Path, arguments: &[&str]) -> Option<String> {
        let Ok(output) = Command::new("qemu-img").args(arguments).current_dir(folder).output() else {
            eprintln!("skipped what `qemu-img {}` would have checked: it is not installed", arguments[0]);
            return None;
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        Some(text)
    }

    #[test]
    fn overlays_of_every_size_are_what_qemu_takes_them_for() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("base.raw"), vec![7; 1 << 20]).unwrap();
        for bytes in [512, 1 << 20, (8 << 30) + 512, 4 << 40, MAX_BYTES] {
            let disk = folder.path().join("disk");
            create_overlay(&disk, Path::new("base.raw"), DiskFormat::Raw, bytes).unwrap();
            assert!(std::fs::metadata(&disk).unwrap().blocks() <= 64, "it is sparse");
            assert_eq!(virtual_size(&disk, DiskFormat::Qcow2).unwrap(), bytes);
            if let Some(text) = qemu_img(folder.path(), &["info", "--output=json", "disk"]) {
                let info: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(info["virtual-size"], bytes);
                assert_eq!(info["backing-filename"], "base.raw");
                assert_eq!(info["backing-filename-format"], "raw");
                assert_eq!(info["format-specific"]["data"]["compat"], "1.1");
                qemu_img(folder.path(), &["check", "-q", "disk"]);
            }
            std::fs::remove_file(&disk).unwrap();
        }
    }

    #[test]
    fn a_disk_grows_to_the_limit_and_never_shrinks() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        create_empty(&disk, 1 << 20).unwrap();
        grow(&disk, MAX_BYTES).unwrap();
        assert_eq!(virtual_size(&disk, DiskFormat::Qcow2).unwrap(), MAX_BYTES);
        qemu_img(folder.path(), &["check", "-q", "disk"]);
        assert!(grow(&disk, 1 << 20).is_err());
        assert!(grow(&disk, MAX_BYTES + 512).is_err());
    }

    #[test]
    fn an_existing_file_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        std::fs::write(&disk, "mine").unwrap();
        assert!(create_empty(&disk, 512).is_err());
        assert_eq!(std::fs::read(&disk).unwrap(), b"mine");
    }

    #[test]
    fn a_colon_in_a_name_is_no_protocol() {
        assert_eq!(backing_name(Path::new("a:b/c")), Path::new("./a:b/c"));
        assert_eq!(backing_name(Path::new("/a:b/c")), Path::new("/a:b/c"));
        assert_eq!(backing_name(Path::new("a/b:c")), Path::new("a/b:c"));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("fat:base"), vec![0; 512]).unwrap();
        let disk = folder.path().join("disk");
        create_overlay(&disk, Path::new("fat:base"), DiskFormat::Raw, 512).unwrap();
        // `map` opens the chain, `info` does not.
        qemu_img(folder.path(), &["map", "disk"]);
    }
}
