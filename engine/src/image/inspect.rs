//! What a file of this host is, told by its first bytes: before it is taken for a root file system
//! or a kernel.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmdeck_ext4::{ImageError, Reader};

use super::manifest::Platform;
use crate::error::{Error, ErrorKind, Result};
use crate::regular_file;

/// Place and value of ext4's magic number (kernel documentation, filesystems/ext4, "Super Block").
const SUPERBLOCK: u64 = 1024;
const MAGIC: [u8; 2] = 0xef53u16.to_le_bytes();
const INCOMPAT_64BIT: u32 = 0x80;
/// Bytes of the head that are looked at: to the end of btrfs' magic number, the farthest.
const HEAD: usize = 0x1_0048;

const KERNEL_HINT: &str = "name a bzImage (`/boot/vmlinuz-…`) or a vmlinux";

/// A file system of the ext family, as its superblock describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ext4 {
    /// Bytes.
    pub(crate) length: u64,
    pub(crate) used: u64,
}

/// What to say of a file that cannot be opened, or that [`regular_file::open`] does not take.
pub(crate) fn unopened(path: &Path, what: &str, error: io::Error) -> Error {
    let is = |kind: &str| Error::usage(format!("the {what} `{}` is {kind}", path.display()));
    match error.kind() {
        io::ErrorKind::NotFound => Error::not_found(format!("there is no {what} `{}`", path.display()))
            .with_hint("check the path: it is taken from the folder that vmdeck runs in"),
        io::ErrorKind::IsADirectory => is("a folder").with_hint("name a file"),
        io::ErrorKind::InvalidInput => is("no regular file").with_hint("name a file"),
        _ => Error::io(format!("cannot open the {what} `{}`", path.display()), error),
    }
}

/// Opens a regular file for a look at it.
fn open(path: &Path, what: &str) -> Result<(File, u64)> {
    regular_file::open(path).map_err(|error| {
        let error = unopened(path, what, error);
        if error.kind() != ErrorKind::Usage {
            return error;
        }
        error.with_hint(if what == "kernel" {
            KERNEL_HINT
        } else {
            "name a file, for example a raw ext4 image"
        })
    })
}

/// Checks that a file is an ext4 file system, whole by its length. Blocking, brief.
pub(crate) fn ext4(path: &Path, what: &str) -> Result<Ext4> {
    let (file, length) = open(path, what)?;
    let head = head(&file).map_err(|error| Error::io(format!("cannot read `{}`", path.display()), error))?;
    let found = superblock(&head).ok_or_else(|| {
        let (is, hint) = kind(&head);
        Error::usage(format!("the {what} `{}` is no ext4 file system: it is {is}", path.display()))
            .with_hint(hint)
    })?;
    if found.length > length {
        return Err(Error::usage(format!(
            "the {what} `{}` is cut short: its file system has {} bytes, the file {length}",
            path.display(),
            found.length
        )));
    }
    Ok(found)
}

/// Checks that a file system that [`ext4`] took can be read: its root folder, that is. Blocking, brief.
pub(crate) fn is_readable(path: &Path, what: &str) -> Result<()> {
    let (file, _) = open(path, what)?;
    let read = Reader::open(file).and_then(|reader| reader.entries(reader.root()).map(drop));
    read.map_err(|error| {
        let hint = match error {
            ImageError::Unsupported { .. } => "make the file system without that feature".to_owned(),
            _ => format!("check it by `e2fsck -f {}`", path.display()),
        };
        Error::usage(format!("the {what} `{}` cannot be read: {error}", path.display())).with_hint(hint)
    })
}

fn superblock(head: &[u8]) -> Option<Ext4> {
    let at = |offset: usize| {
        let start = usize::try_from(SUPERBLOCK).ok()? + offset;
        head.get(start..start + 4)?.try_into().ok().map(u32::from_le_bytes)
    };
    let start = usize::try_from(SUPERBLOCK).ok()?;
    if head.get(start + 0x38..start + 0x3a)? != MAGIC {
        return None;
    }
    let log_block = at(0x18)?;
    if log_block > 6 {
        return None;
    }
    let wide = at(0x60)? & INCOMPAT_64BIT != 0;
    let pair = |low: usize, high: usize| -> Option<u64> {
        Some(u64::from(at(low)?) | if wide { u64::from(at(high)?) << 32 } else { 0 })
    };
    let (blocks, free) = (pair(0x4, 0x150)?, pair(0xc, 0x158)?);
    let length = blocks.checked_mul(1024 << log_block)?;
    let used = blocks.saturating_sub(free).checked_mul(1024 << log_block)?;
    Some(Ext4 { length, used })
}

/// What else a file may be, and what to do about it.
fn kind(head: &[u8]) -> (&'static str, &'static str) {
    let is = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    let raw = "convert it to a raw ext4 image first";
    if head.is_empty() {
        ("empty", "name a file that holds a file system")
    } else if is(0, b"QFI\xfb") {
        ("a qcow2 disk", "convert it with `qemu-img convert -O raw`, and take its root partition out")
    } else if is(0, b"hsqs") {
        ("a squashfs", raw)
    } else if is(0, b"XFSB") {
        ("an XFS file system", raw)
    } else if is(0x1_0040, b"_BHRfS_M") {
        ("a btrfs file system", raw)
    } else if is(0x400, &0xe0f5_e1e2u32.to_le_bytes()) {
        ("an EROFS file system", raw)
    } else if is(0, &[0x1f, 0x8b]) || is(0, &[0x28, 0xb5, 0x2f, 0xfd]) || is(0, b"\xfd7zXZ") {
        ("a packed file", "unpack it first; for a container image or a bundle use `vmdeck image pull`")
    } else if is(257, b"ustar") {
        ("a tar archive", "for a container image in a tar file use `vmdeck image pull oci-archive:FILE`")
    } else if is(510, &[0x55, 0xaa]) {
        ("a disk with partitions", "take its root partition out into a file of its own")
    } else {
        ("something that is not known", raw)
    }
}

/// Checks that a file is a kernel for this host's architecture. Blocking, brief.
pub(crate) fn kernel(path: &Path, host: &Platform) -> Result<()> {
    let (file, _) = open(path, "kernel")?;
    let head = head(&file).map_err(|error| Error::io(format!("cannot read `{}`", path.display()), error))?;
    let Some(architecture) = kernel_architecture(&head) else {
        return Err(
            Error::usage(format!("`{}` is no kernel that is known", path.display())).with_hint(KERNEL_HINT)
        );
    };
    if architecture != host.architecture {
        return Err(Error::usage(format!(
            "the kernel `{}` is for {architecture}; this host runs {}",
            path.display(),
            host.architecture
        )));
    }
    Ok(())
}

/// Architecture of a kernel, in OCI's words (kernel documentation: arch/x86/boot.rst,
/// arch/arm64/booting.rst, arch/riscv/boot-image-header.rst; ELF's e_machine).
fn kernel_architecture(head: &[u8]) -> Option<&'static str> {
    let half = |offset: usize| {
        head.get(offset..offset + 2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_le_bytes)
    };
    if head.starts_with(b"\x7fELF") {
        return match half(18)? {
            3 => Some("386"),
            62 => Some("amd64"),
            40 => Some("arm"),
            183 => Some("arm64"),
            243 => Some("riscv64"),
            _ => Some("another architecture"),
        };
    }
    match head.get(56..60) {
        Some(b"ARM\x64") => return Some("arm64"),
        Some(b"RSC\x05") => return Some("riscv64"),
        _ => {}
    }
    if head.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    // xloadflags (protocol 2.12): bit 0 says that there is a 64-bit entry.
    let is_64_bit = half(0x206)? < 0x20c || half(0x236)? & 1 != 0;
    Some(if is_64_bit { "amd64" } else { "386" })
}

/// Checks that a file is there and not empty. Blocking, brief.
pub(crate) fn readable(path: &Path, what: &str) -> Result<()> {
    let (_, length) = open(path, what)?;
    if length == 0 {
        return Err(Error::usage(format!("the {what} `{}` is empty", path.display())));
    }
    Ok(())
}

fn head(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD];
    let mut filled = 0;
    while filled < head.len() {
        match file.read_at(&mut head[filled..], filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    head.truncate(filled);
    Ok(head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_that_is_no_file_system_is_named_for_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let check = |content: &[u8], expected: &str| {
            std::fs::write(&path, content).unwrap();
            let error = ext4(&path, "root file system").unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(error.kind(), crate::ErrorKind::Usage);
        };
        check(b"", "empty");
        check(b"QFI\xfb123", "a qcow2 disk");
        check(b"hsqs", "a squashfs");
        check(&[0x1f, 0x8b, 8], "a packed file");
        check(&[0; 5000], "not known");
        let error = ext4(folder.path(), "root file system").unwrap_err();
        assert!(error.to_string().contains("is a folder"), "{error}");
        let error = ext4(&folder.path().join("none"), "root file system").unwrap_err();
        assert!(error.to_string().contains("there is no root file system"), "{error}");
        // A superblock of 100 blocks of 4 KiB in a file that ends before.
        let mut cut = vec![0u8; 8192];
        cut[1024 + 4] = 100;
        cut[1024 + 0x18] = 2;
        cut[1024 + 0x38..1024 + 0x3a].copy_from_slice(&MAGIC);
        check(&cut, "cut short: its file system has 409600 bytes, the file 8192");
    }

    #[test]
    fn mke2fs_and_the_superblock_agree() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let made = std::process::Command::new("/usr/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-b", "4096"])
            .arg(&path)
            .arg("16M")
            .status();
        match made {
            Ok(status) => assert!(status.success()),
            Err(error) => return eprintln!("skipped: mke2fs cannot be run: {error}"),
        }
        let found = ext4(&path, "root file system").unwrap();
        assert_eq!(found.length, 16 << 20);
        assert!((1 << 20..16 << 20).contains(&found.used), "{}", found.used);
    }

    #[test]
    fn kernels_are_told_apart_by_architecture() {
        let mut bzimage = vec![0u8; 0x300];
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        bzimage[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        assert_eq!(kernel_architecture(&bzimage), Some("386"));
        bzimage[0x236] = 1;
        assert_eq!(kernel_architecture(&bzimage), Some("amd64"));
        let mut elf = b"\x7fELF".to_vec();
        elf.resize(64, 0);
        elf[18] = 183;
        assert_eq!(kernel_architecture(&elf), Some("arm64"));
        assert_eq!(kernel_architecture(b"#!/bin/sh"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
            superblock(&bytes);
            kind(&bytes);
            kernel_architecture(&bytes);
        }
    }
}
