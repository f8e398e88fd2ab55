//! An image as an OCI archive: its root file system read from the ext4 image and packed as one layer.
//!
//! Formats: OCI image-spec (image-layout.md, manifest.md, config.md, layer.md) and the pax archive
//! (POSIX.1-2017, pax, "pax Interchange Format"), with extended attributes in `SCHILY.xattr.*` as
//! every container engine reads them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use vmdeck_ext4::{FileKind, ImageError, InodeNumber, Reader, Stat, Timestamp};

use super::digest::Digest;
use super::manifest::{OCI_INDEX, OCI_MANIFEST, Platform};
use super::record::{Image, ImageConfig};
use super::seed::HOME;
use super::source::archive::nameless;
use crate::error::{Error, Result};
use crate::operation::progress::{ProgressPart, ProgressState};

/// Longest name and link target that a header holds by itself.
const SHORT: usize = 100;
/// Largest numbers of a header's fields: seven octal digits, and eleven.
const LARGEST_ID: u32 = 0o7_777_777;
const LARGEST_SIZE: u64 = 0o77_777_777_777;
const LATEST: i64 = 0o77_777_777_777;
const STEP: usize = 1 << 20;

/// Writes the archive; the layer is packed into a nameless file in `scratch` first, as its digest
/// stands before it. Blocking.
pub(crate) fn write(
    image: &Image,
    host: &Platform,
    output: &mut dyn Write,
    scratch: &Path,
    part: &ProgressPart,
    cancel: &CancellationToken,
) -> Result<()> {
    let fail = |error: io::Error| {
        if cancel.is_cancelled() { Error::cancelled() } else { Error::io("cannot write the archive", error) }
    };
    part.set_total(image.used_bytes);
    part.set_state(ProgressState::Active);
    let root = open(&image.files.rootfs)?;
    let home = image.files.work_seed.as_deref().map(open).transpose()?;

    let packed = Hashing::new(nameless(scratch).map_err(fail)?);
    let plain = Hashing::new(GzEncoder::new(packed, Compression::default()));
    let mut builder = tar::Builder::new(plain);
    let mut pack = |(system, path): &(Reader, &Path), branch: Branch<'_>| {
        let mut layer = Layer { reader: system, builder: &mut builder, part, cancel, named: HashMap::new() };
        layer.write_all(branch).map_err(|error| match error {
            LayerError::Image(error) => unreadable(path, error),
            LayerError::Io(error) => fail(error),
        })
    };
    // Machines have the work seed's content where the root file system has the home of root.
    let home_of_root = folder(&root.0, HOME).map_err(|error| unreadable(root.1, error))?;
    // Where it may be a link to a folder elsewhere (ostree), the link stays.
    let place = root.0.canonical(HOME).map_err(|error| unreadable(root.1, error))?;
    match home.as_ref().zip(home_of_root).zip(place) {
        Some(((home, stat), place)) => {
            pack(&root, Branch { without: Some(&place), ..Branch::default() })?;
            // Made for a key alone, which does not go along: the home is as it was before.
            let keys = [&place, b"/.ssh".as_slice()].concat();
            let untouched =
                holds_no_key(&home.0) && folder(&root.0, &keys).is_ok_and(|found| found.is_none());
            pack(
                home,
                Branch {
                    place: &[&place, b"/".as_slice()].concat(),
                    without: untouched.then_some(&keys),
                    modified: untouched.then_some(stat.modified),
                },
            )?;
        }
        None => pack(&root, Branch::default())?,
    }
    let (encoder, diff_id) = builder.into_inner().map_err(fail)?.finish();
    let (mut packed, digest) = encoder.finish().map_err(fail)?.finish();
    let size = packed.stream_position().map_err(fail)?;
    packed.rewind().map_err(fail)?;

    let architecture = image.architecture.as_ref().unwrap_or(&host.architecture);
    let config = json!({
        "architecture": architecture, "os": "linux", "config": run(&image.config),
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "vmdeck image export"}],
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(&config), "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size,
        }],
    });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [{
            "mediaType": OCI_MANIFEST, "digest": Digest::of(&manifest), "size": manifest.len(),
            "platform": {"architecture": architecture, "os": "linux"},
            "annotations": {"org.opencontainers.image.ref.name": image.name},
        }],
    });
    let mut archive = tar::Builder::new(output);
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let mut add = |name: &str, length: u64, content: &mut dyn Read| {
        let mut header = tar::Header::new_ustar();
        header.set_size(length);
        header.set_mode(0o644);
        header.set_mtime(0);
        archive.append_data(&mut header, name, content).map_err(fail)
    };
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    let index = index.to_string().into_bytes();
    add("oci-layout", layout.len() as u64, &mut layout.as_slice())?;
    add("index.json", index.len() as u64, &mut index.as_slice())?;
    add(&blob(&Digest::of(&manifest)), manifest.len() as u64, &mut manifest.as_slice())?;
    add(&blob(&Digest::of(&config)), config.len() as u64, &mut config.as_slice())?;
    add(&blob(&digest), size, &mut packed)?;
    archive.finish().map_err(fail)?;
    part.set_done(part.total());
    part.set_state(ProgressState::Done);
    Ok(())
}

fn open(path: &Path) -> Result<(Reader, &Path)> {
    let file =
        File::open(path).map_err(|error| Error::io(format!("cannot open `{}`", path.display()), error))?;
    Ok((Reader::open(file).map_err(|error| unreadable(path, error))?, path))
}

/// A folder of a file system, where there is one.
fn folder(reader: &Reader, path: &[u8]) -> std::result::Result<Option<Stat>, ImageError> {
    let Some(found) = reader.resolve(path)? else { return Ok(None) };
    Ok(Some(reader.stat(found)?).filter(|stat| stat.kind == FileKind::Directory))
}

/// Whether all that is in `.ssh` of a work seed is an empty list of keys.
fn holds_no_key(home: &Reader) -> bool {
    let empty = || -> std::result::Result<bool, ImageError> {
        let Some(folder) = home.resolve(b".ssh")? else { return Ok(false) };
        let entries = home.entries(folder)?;
        let [(name, keys)] = entries.as_slice() else { return Ok(false) };
        Ok(name == b"authorized_keys" && home.stat(*keys)?.size == 0)
    };
    empty().unwrap_or(false)
}

fn unreadable(path: &Path, error: ImageError) -> Error {
    Error::failed(format!("the file system in `{}` cannot be read", path.display())).with_source(error)
}

/// The part of a config that says how to start (config.md, "config").
fn run(config: &ImageConfig) -> serde_json::Value {
    let ports: serde_json::Map<_, _> =
        config.exposed_ports.iter().map(|port| (port.clone(), json!({}))).collect();
    let mut run = serde_json::Map::new();
    let mut put = |name: &str, value: serde_json::Value| {
        let empty = value.is_null()
            || value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(serde_json::Map::is_empty);
        if !empty {
            run.insert(name.to_owned(), value);
        }
    };
    put("Entrypoint", json!(config.entrypoint));
    put("Cmd", json!(config.command));
    put("Env", json!(config.environment));
    put("WorkingDir", json!(config.working_directory));
    put("User", json!(config.user));
    put("ExposedPorts", ports.into());
    put("StopSignal", json!(config.stop_signal));
    put("Labels", json!(config.labels));
    run.into()
}

/// Passes on what is written, and takes its digest.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new() }
    }

    fn finish(self) -> (W, Digest) {
        (self.inner, Digest::finish(self.hasher))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

enum LayerError {
    Image(ImageError),
    Io(io::Error),
}

impl From<ImageError> for LayerError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<io::Error> for LayerError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What becomes of a file system in the archive.
#[derive(Clone, Copy, Default)]
struct Branch<'a> {
    /// Where its root folder goes, with a slash at the end.
    place: &'a [u8],
    /// Something that is left out, by its path in the archive.
    without: Option<&'a [u8]>,
    /// Time of its root folder, if not its own.
    modified: Option<Timestamp>,
}

/// A file system on its way into a tar archive.
struct Layer<'a, W: Write> {
    reader: &'a Reader,
    builder: &'a mut tar::Builder<W>,
    part: &'a ProgressPart,
    cancel: &'a CancellationToken,
    /// The first name of each inode that has several.
    named: HashMap<InodeNumber, Vec<u8>>,
}

impl<W: Write> Layer<'_, W> {
    /// All of it. Folders before what is in them, names in order: the same file system gives the same
    /// layer.
    fn write_all(&mut self, Branch { place, without, modified }: Branch<'_>) -> Result<(), LayerError> {
        let root = self.reader.root();
        let top = if place.is_empty() { b"./" } else { place };
        let mut stat = self.reader.stat(root)?;
        stat.modified = modified.unwrap_or(stat.modified);
        self.member(top, root, &stat)?;
        let mut folders = vec![(place.to_vec(), root)];
        while let Some((path, folder)) = folders.pop() {
            let mut entries = self.reader.entries(folder)?;
            entries.sort();
            let mut below = Vec::new();
            for (name, inode) in entries {
                let mut member = path.clone();
                member.extend(&name);
                if path == place && name == b"lost+found" || without == Some(member.as_slice()) {
                    continue;
                }
                let stat = self.reader.stat(inode)?;
                if stat.kind == FileKind::Directory {
                    member.push(b'/');
                    below.push((member.clone(), inode));
                }
                self.member(&member, inode, &stat)?;
            }
            folders.extend(below.into_iter().rev());
        }
        Ok(())
    }

    fn member(&mut self, path: &[u8], inode: InodeNumber, stat: &Stat) -> Result<(), LayerError> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled").into());
        }
        if let Some(first) = self.named.get(&inode) {
            let first = first.clone();
            return self.header(path, tar::EntryType::Link, stat, Some(&first), None, 0);
        }
        if stat.links > 1 && stat.kind != FileKind::Directory {
            self.named.insert(inode, path.to_vec());
        }
        match stat.kind {
            // The processes that would answer are gone (layer.md has no word for them either).
            FileKind::Socket => Ok(()),
            FileKind::Directory => self.with_attributes(path, inode, tar::EntryType::Directory, stat, None),
            FileKind::Fifo => self.with_attributes(path, inode, tar::EntryType::Fifo, stat, None),
            FileKind::CharacterDevice { .. } => {
                self.with_attributes(path, inode, tar::EntryType::Char, stat, None)
            }
            FileKind::BlockDevice { .. } => {
                self.with_attributes(path, inode, tar::EntryType::Block, stat, None)
            }
            FileKind::Symlink => {
                let target = self.reader.read_link(inode)?;
                self.with_attributes(path, inode, tar::EntryType::Symlink, stat, Some(&target))
            }
            FileKind::File => {
                self.with_attributes(path, inode, tar::EntryType::Regular, stat, None)?;
                self.content(inode, stat)
            }
        }
    }

    fn with_attributes(
        &mut self,
        path: &[u8],
        inode: InodeNumber,
        kind: tar::EntryType,
        stat: &Stat,
        target: Option<&[u8]>,
    ) -> Result<(), LayerError> {
        let size = if kind == tar::EntryType::Regular { stat.size } else { 0 };
        self.header(path, kind, stat, target, Some(inode), size)
    }

    /// Writes the header of a member, and before it what does not fit in one. `attributes` are those
    /// of this inode.
    fn header(
        &mut self,
        path: &[u8],
        kind: tar::EntryType,
        stat: &Stat,
        target: Option<&[u8]>,
        attributes: Option<InodeNumber>,
        size: u64,
    ) -> Result<(), LayerError> {
        let mut header = tar::Header::new_ustar();
        let mut extended: Vec<(String, Vec<u8>)> = Vec::new();
        let mut put = |key: &str, value: Vec<u8>| extended.push((key.to_owned(), value));
        {
            let fields = header.as_old_mut();
            let short = &path[..path.len().min(SHORT)];
            fields.name[..short.len()].copy_from_slice(short);
            if path.len() > SHORT {
                put("path", path.to_vec());
            }
            if let Some(target) = target {
                let short = &target[..target.len().min(SHORT)];
                fields.linkname[..short.len()].copy_from_slice(short);
                if target.len() > SHORT {
                    put("linkpath", target.to_vec());
                }
            }
        }
        header.set_entry_type(kind);
        header.set_mode(stat.mode.into());
        let mut id = |key: &str, value: u32| {
            if value > LARGEST_ID {
                put(key, value.to_string().into_bytes());
            }
            value.min(LARGEST_ID).into()
        };
        header.set_uid(id("uid", stat.uid));
        header.set_gid(id("gid", stat.gid));
        let time = stat.modified;
        if time.nanoseconds != 0 || !(0..=LATEST).contains(&time.seconds) {
            put("mtime", pax_time(time.seconds, time.nanoseconds).into_bytes());
        }
        header.set_mtime(u64::try_from(time.seconds.clamp(0, LATEST)).unwrap_or_default());
        if size > LARGEST_SIZE {
            put("size", size.to_string().into_bytes());
        }
        header.set_size(if size > LARGEST_SIZE { 0 } else { size });
        if let FileKind::CharacterDevice { major, minor } | FileKind::BlockDevice { major, minor } = stat.kind
        {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        if let Some(inode) = attributes {
            for (name, value) in self.reader.xattrs(inode)? {
                if let Ok(name) = String::from_utf8(name) {
                    put(&format!("SCHILY.xattr.{name}"), value);
                }
            }
        }
        header.set_cksum();
        if !extended.is_empty() {
            let pairs = extended.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            self.builder.append_pax_extensions(pairs)?;
        }
        self.builder.get_mut().write_all(header.as_bytes())?;
        Ok(())
    }

    fn content(&mut self, inode: InodeNumber, stat: &Stat) -> Result<(), LayerError> {
        // Holes are no work that is there to be done, as the total has it.
        let (size, mut stored) = (stat.size, stat.allocated);
        let mut buffer = vec![0; STEP.min(usize::try_from(size).unwrap_or(STEP).max(1))];
        let mut position = 0;
        while position < size {
            if self.cancel.is_cancelled() {
                return Err(io::Error::other("cancelled").into());
            }
            let count = self.reader.read_at(inode, position, &mut buffer)?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            self.builder.get_mut().write_all(&buffer[..count])?;
            position += count as u64;
            let counted = stored.min(count as u64);
            stored -= counted;
            self.part.advance(counted);
        }
        // Members begin at multiples of 512 bytes.
        let padding = (512 - size % 512) % 512;
        self.builder.get_mut().write_all(&[0; 512][..usize::try_from(padding).unwrap_or_default()])?;
        Ok(())
    }
}

/// Seconds with their fraction; below zero the fraction counts backwards in the text.
fn pax_time(seconds: i64, nanoseconds: u32) -> String {
    if seconds >= 0 || nanoseconds == 0 {
        return format!("{seconds}.{nanoseconds:09}");
    }
    format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_keep_their_fraction() {
        assert_eq!(pax_time(5, 1), "5.000000001");
        assert_eq!(pax_time(-5, 0), "-5.000000000");
        // Half a second before the epoch is second -1, and half a second on from there.
        assert_eq!(pax_time(-1, 500_000_000), "-0.500000000");
        assert_eq!(pax_time(-2, 250_000_000), "-1.750000000");
    }
}
