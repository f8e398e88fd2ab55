//! The first root file system: our init, and the modules it needs to reach the root disk.
//!
//! `/vmdeck/modules` lists the modules, one path a line, in the order in which to load them.

use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use crate::cpio::{self, Archive, CpioError};
use crate::guest::GUEST_BINARY;

/// Folder of the modules in the initrd.
const MODULES: &str = "vmdeck/modules.d";

/// A module for the initrd, uncompressed.
#[derive(Debug)]
pub(super) struct InitrdModule {
    /// Name of the file, for example `virtio_blk.ko`.
    pub file: String,
    pub content: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum InitrdError {
    #[error("the initrd cannot be written")]
    Write(#[from] CpioError),
    #[error("the initrd is damaged")]
    Damaged,
}

/// What the guest binary of this vmdeck is known by.
pub(super) fn guest_digest() -> &'static str {
    static DIGEST: OnceLock<String> = OnceLock::new();
    DIGEST.get_or_init(|| {
        let hex: String = Sha256::digest(GUEST_BINARY).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    })
}

/// Writes an initrd. `modules` are in the order in which they are to be loaded.
pub(super) fn build(modules: &[InitrdModule]) -> Result<Vec<u8>, InitrdError> {
    let mut archive = Archive::new();
    for folder in ["dev", "proc", "sys", "newroot", "vmdeck", MODULES] {
        archive.directory(folder, 0o755)?;
    }
    // The kernel opens it for init before anything is mounted.
    archive.character_device("dev/console", 0o600, 5, 1)?;
    archive.file("init", 0o755, GUEST_BINARY)?;
    let mut list = String::new();
    for module in modules {
        let path = format!("{MODULES}/{}", module.file);
        archive.file(&path, 0o644, &module.content)?;
        list.push_str(&format!("/{path}\n"));
    }
    archive.file("vmdeck/modules", 0o644, list.as_bytes())?;
    Ok(archive.finish())
}

/// The initrd of an earlier vmdeck with the guest binary of this one.
pub(super) fn renew(initrd: &[u8]) -> Result<Vec<u8>, InitrdError> {
    let mut list = "";
    let mut files = Vec::new();
    for entry in cpio::entries(initrd) {
        let entry = entry.map_err(|_| InitrdError::Damaged)?;
        if entry.name == "vmdeck/modules" {
            list = std::str::from_utf8(entry.content).map_err(|_| InitrdError::Damaged)?;
        } else if let Some(file) = entry.name.strip_prefix(MODULES).and_then(|rest| rest.strip_prefix('/')) {
            files.push((file, entry.content));
        }
    }
    let modules = list
        .lines()
        .map(|path| {
            let name = path.rsplit('/').next()?;
            let (file, content) = files.iter().find(|(file, _)| *file == name)?;
            Some(InitrdModule { file: (*file).to_owned(), content: content.to_vec() })
        })
        .collect::<Option<Vec<_>>>()
        .ok_or(InitrdError::Damaged)?;
    build(&modules)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(file: &str) -> InitrdModule {
        InitrdModule { file: file.into(), content: file.as_bytes().to_vec() }
    }

    #[test]
    fn a_renewed_initrd_has_the_same_modules_in_the_same_order() {
        let initrd = build(&[module("virtio.ko"), module("a.ko")]).unwrap();
        assert_eq!(renew(&initrd).unwrap(), initrd);
        let init = cpio::entries(&initrd).map(Result::unwrap).find(|entry| entry.name == "init").unwrap();
        assert_eq!(init.content, GUEST_BINARY);
        let list = cpio::entries(&initrd).map(Result::unwrap).find(|entry| entry.name == "vmdeck/modules");
        assert_eq!(list.unwrap().content, b"/vmdeck/modules.d/virtio.ko\n/vmdeck/modules.d/a.ko\n");
    }

    #[test]
    fn a_damaged_initrd_is_an_error() {
        let initrd = build(&[module("virtio.ko")]).unwrap();
        assert!(renew(&initrd[..600]).is_err());
    }
}
