//! Packing an image into a bundle.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{BundleFile, BundleManifest, FORMAT, MANIFEST, VERSION};
use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::image::flatten::{INITRD, KERNEL, MODULES, ROOTFS, WORK_SEED};
use crate::image::record::Image;
use crate::operation::progress::{ProgressPart, ProgressState};

/// zstd's default: packs file systems to about 40 % at several hundred MB/s.
const LEVEL: i32 = 3;
const PIECE: usize = 1 << 20;

/// Writes an image as a bundle. Reads its files twice, once for the manifest that stands first.
/// Blocking.
pub(crate) fn write(
    image: &Image,
    output: &mut dyn Write,
    part: &ProgressPart,
    cancel: &CancellationToken,
) -> Result<BundleManifest> {
    let files = &image.files;
    let members: Vec<(&str, &Path)> = [
        (ROOTFS, Some(files.rootfs.as_path())),
        (WORK_SEED, files.work_seed.as_deref()),
        (KERNEL, files.kernel.as_deref()),
        (INITRD, files.initrd.as_deref()),
        (MODULES, files.modules.as_deref()),
    ]
    .into_iter()
    .filter_map(|(name, path)| path.map(|path| (name, path)))
    .collect();

    let mut described = BTreeMap::new();
    let mut opened = Vec::new();
    for (name, path) in members {
        let fail = |error| read_error(path, error, cancel);
        let file = File::open(path).map_err(fail)?;
        let size = file.metadata().map_err(fail)?.len();
        part.set_total(part.total() + 2 * size);
        opened.push((name, path, file, size));
    }
    part.set_state(ProgressState::Active);
    for (name, path, file, size) in &opened {
        let mut hasher = Sha256::new();
        let mut reader = Counted { inner: file.take(*size), part, cancel };
        let mut buffer = vec![0; PIECE];
        loop {
            match reader.read(&mut buffer).map_err(|error| read_error(path, error, cancel))? {
                0 => break,
                read => hasher.update(&buffer[..read]),
            }
        }
        let file = BundleFile { size: *size, sha256: Digest::finish(hasher) };
        described.insert((*name).to_owned(), file);
    }

    let manifest = BundleManifest {
        format: FORMAT.to_owned(),
        version: VERSION,
        name: image.name.clone(),
        architecture: image.architecture.clone(),
        origin: image.digest.clone(),
        config: image.config.clone(),
        layers: image.layers.clone(),
        used_bytes: image.used_bytes,
        files: described,
    };
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| Error::failed("cannot write the bundle's manifest").with_source(error))?;
    let fail = |error| {
        if cancel.is_cancelled() { Error::cancelled() } else { Error::io("cannot write the bundle", error) }
    };
    let mut encoder = zstd::Encoder::new(output, LEVEL).map_err(fail)?;
    // So that damage is found without the manifest.
    encoder.include_checksum(true).map_err(fail)?;
    let mut builder = tar::Builder::new(encoder);
    builder.append_data(&mut header(text.len() as u64), MANIFEST, text.as_slice()).map_err(fail)?;
    for (name, _, file, size) in &opened {
        io::Seek::rewind(&mut &*file).map_err(fail)?;
        let reader = Counted { inner: file.take(*size), part, cancel };
        builder.append_data(&mut header(*size), name, reader).map_err(fail)?;
    }
    builder.into_inner().and_then(zstd::Encoder::finish).map_err(fail)?;
    part.set_state(ProgressState::Done);
    Ok(manifest)
}

/// The same for everybody, so that the same image gives the same bundle.
fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}

fn read_error(path: &Path, error: io::Error, cancel: &CancellationToken) -> Error {
    if cancel.is_cancelled() {
        return Error::cancelled();
    }
    Error::io(format!("cannot read `{}`", path.display()), error)
}

/// Counts what is read, and ends when cancelled.
struct Counted<'a, R> {
    inner: R,
    part: &'a ProgressPart,
    cancel: &'a CancellationToken,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            // Not `Interrupted`: that one is tried again.
            return Err(io::Error::other("cancelled"));
        }
        let read = self.inner.read(buffer)?;
        self.part.advance(read as u64);
        Ok(read)
    }
}
