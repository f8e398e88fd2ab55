//! Unpacking a bundle: into a folder, verified, holes kept.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{BundleFile, BundleManifest, FORMAT, MANIFEST, MEMBERS, VERSION};
use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::image::flatten::ROOTFS;
use crate::image::inspect;
use crate::image::text::{bytes, printable};

/// Longest manifest taken.
const LONGEST_MANIFEST: u64 = 4 << 20;
/// Longest file system taken, holes included.
const LARGEST: u64 = 1 << 40;
/// zstd's window is this at most, 2^n bytes: what `zstd --ultra` uses without `--long`.
const WINDOW: u32 = 27;
const PIECE: usize = 1 << 20;
/// A piece of zeros of this length becomes a hole: a block of ext4 as vmdeck makes it.
const BLOCK: usize = 4096;

/// Unpacks all of `reader` into `folder`. At most `budget` bytes of data are written. Blocking.
///
/// Returns the manifest and the digest of its text, which stands for the whole content.
pub(super) fn unpack(
    reader: &mut dyn Read,
    folder: &Path,
    budget: u64,
    cancel: &CancellationToken,
) -> Result<(BundleManifest, Digest)> {
    let damaged = |error: io::Error| {
        if cancel.is_cancelled() {
            return Error::cancelled();
        }
        Error::io("the bundle is damaged, cut short, or no tar file packed by zstd", error)
            .with_hint("get it again; `vmdeck image export` writes such files")
    };
    let mut decoder = zstd::Decoder::new(&mut *reader).map_err(damaged)?;
    decoder.window_log_max(WINDOW).map_err(damaged)?;
    let mut archive = tar::Archive::new(decoder);
    let mut manifest: Option<(BundleManifest, Digest)> = None;
    let mut files: BTreeMap<String, BundleFile> = BTreeMap::new();
    let mut budget = budget;
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let name = entry.path_bytes().into_owned();
        let name = String::from_utf8_lossy(name.strip_prefix(b"./").unwrap_or(&name)).into_owned();
        let refuse =
            |why: &str| Error::failed(format!("the member `{}` of the bundle {why}", printable(&name, 100)));
        if !entry.header().entry_type().is_file() {
            // A folder `./` comes with an archive that was made by `tar -c .`.
            if entry.header().entry_type().is_dir() && matches!(name.as_str(), "" | "." | "./") {
                continue;
            }
            return Err(refuse("is no regular file"));
        }
        if name == MANIFEST {
            if manifest.is_some() {
                return Err(refuse("is there twice"));
            }
            if entry.size() > LONGEST_MANIFEST {
                return Err(refuse("is too long"));
            }
            let mut text = Vec::new();
            entry.read_to_end(&mut text).map_err(damaged)?;
            manifest = Some((parse(&text)?, Digest::of(&text)));
            continue;
        }
        if !MEMBERS.contains(&name.as_str()) {
            return Err(refuse("has no place in a bundle"));
        }
        if files.contains_key(&name) {
            return Err(refuse("is there twice"));
        }
        if entry.size() > LARGEST {
            return Err(refuse("is longer than any that is taken"));
        }
        let size = entry.size();
        let sha256 = write_member(&mut entry, &folder.join(&name), size, &mut budget, cancel, &damaged)?;
        files.insert(name, BundleFile { size, sha256 });
    }
    // To the end of the packed stream, whose checksum stands there.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(damaged)?;
    let (manifest, digest) =
        manifest.ok_or_else(|| Error::failed(format!("the bundle has no `{MANIFEST}`")))?;
    compare(&manifest.files, &files)?;
    for name in [crate::image::flatten::ROOTFS, crate::image::flatten::WORK_SEED] {
        if files.contains_key(name) {
            inspect::ext4(&folder.join(name), "bundle's member")?;
        }
    }
    Ok((manifest, digest))
}

/// What [`unpack`] would give as the digest, read from the head of a bundle whose manifest is the first of
/// its members; `None` for any other. Nothing is verified but that manifest. Blocking, brief.
pub(super) fn announced(reader: impl Read) -> Option<Digest> {
    let mut decoder = zstd::Decoder::new(reader).ok()?;
    decoder.window_log_max(WINDOW).ok()?;
    let mut archive = tar::Archive::new(decoder);
    let mut first = archive.entries().ok()?.next()?.ok()?;
    if first.path_bytes().as_ref() != MANIFEST.as_bytes() || first.size() > LONGEST_MANIFEST {
        return None;
    }
    let mut text = Vec::new();
    first.read_to_end(&mut text).ok()?;
    parse(&text).ok()?;
    Some(Digest::of(&text))
}

fn parse(text: &[u8]) -> Result<BundleManifest> {
    let malformed =
        |error| Error::failed(format!("the bundle's `{MANIFEST}` is malformed")).with_source(error);
    let value: serde_json::Value = serde_json::from_slice(text).map_err(malformed)?;
    if value.get("format").and_then(serde_json::Value::as_str) != Some(FORMAT) {
        return Err(Error::failed(format!("`{MANIFEST}` in the file is none of a bundle of vmdeck")));
    }
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(VERSION.into()) {
        return Err(Error::failed("the bundle was made by a later version of vmdeck")
            .with_hint("use that version to read it"));
    }
    serde_json::from_value(value).map_err(malformed)
}

fn compare(expected: &BTreeMap<String, BundleFile>, found: &BTreeMap<String, BundleFile>) -> Result<()> {
    if !found.contains_key(ROOTFS) {
        return Err(Error::failed(format!("the bundle has no `{ROOTFS}`")));
    }
    for (name, file) in expected {
        match found.get(name) {
            None => {
                return Err(Error::failed(format!("the bundle lacks `{}`", printable(name, 100))));
            }
            Some(other) if other != file => {
                return Err(Error::failed(format!(
                    "`{name}` in the bundle is not what its manifest says: {} with {} expected, {} with {} found",
                    bytes(file.size),
                    file.sha256,
                    bytes(other.size),
                    other.sha256
                ))
                .with_hint("the bundle is damaged, or somebody tampers with it; nothing of it was kept"));
            }
            Some(_) => {}
        }
    }
    match found.keys().find(|name| !expected.contains_key(*name)) {
        Some(name) => Err(Error::failed(format!("`{name}` in the bundle is not in its manifest"))),
        None => Ok(()),
    }
}

fn write_member(
    reader: &mut dyn Read,
    path: &Path,
    size: u64,
    budget: &mut u64,
    cancel: &CancellationToken,
    damaged: &dyn Fn(io::Error) -> Error,
) -> Result<Digest> {
    let fail = |error| Error::io(format!("cannot write `{}`", path.display()), error);
    let file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
    file.set_len(size).map_err(fail)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; PIECE];
    let mut position = 0u64;
    while position < size {
        if cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        let wanted = usize::try_from(size - position).unwrap_or(PIECE).min(PIECE);
        reader.read_exact(&mut buffer[..wanted]).map_err(damaged)?;
        hasher.update(&buffer[..wanted]);
        for (index, block) in buffer[..wanted].chunks(BLOCK).enumerate() {
            if block.iter().all(|&byte| byte == 0) {
                continue;
            }
            *budget = budget.checked_sub(block.len() as u64).ok_or_else(|| {
                Error::failed("the bundle needs more space than this disk has")
                    .with_hint("free some space: `vmdeck df` shows what vmdeck holds")
            })?;
            file.write_all_at(block, position + (index * BLOCK) as u64).map_err(fail)?;
        }
        position += wanted as u64;
    }
    Ok(Digest::finish(hasher))
}
