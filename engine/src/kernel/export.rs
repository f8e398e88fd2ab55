//! A kernel as an OCI image: one layer with `boot/` and `lib/modules/`, as a package has them.
//!
//! What `kernel pull` reads back; and what registries, `skopeo` and others take for an image like any
//! other (OCI image-spec 1.1, image-layout.md, manifest.md, config.md).

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use vmdeck_ext4::{FileKind, InodeNumber, Reader};

use super::assemble::CONFIGURATION;
use super::modules::depmod;
use super::record::Kernel;
use super::{Shared, unknown};
use crate::error::{Error, Result};
use crate::image::flatten::blocking;
use crate::image::output::Output;
use crate::image::{Digest, ImageReference};
use crate::operation::Operation;
use crate::operation::progress::{ProgressPart, ProgressState, ProgressUnit};
use crate::staging::Staging;
use crate::store;

/// What the image is, for those who want to tell it from others.
const ARTIFACT_TYPE: &str = "application/vnd.vmdeck.kernel.v1";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Modules shrink to a third; higher levels take much longer for little.
const ZSTD_LEVEL: i32 = 6;

/// What to export.
#[derive(Clone, Debug)]
pub struct ExportKernel {
    pub name: String,
    /// `oci-archive:FILE[:TAG]`; the file must not be there yet. The tag is the release by default.
    pub to: String,
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportedKernel {
    pub name: String,
    pub path: PathBuf,
    pub tag: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Length of the file in bytes.
    pub bytes: u64,
}

pub(super) async fn export(
    shared: &Shared,
    request: ExportKernel,
    operation: &Operation,
) -> Result<ExportedKernel> {
    let Ok(ImageReference::OciArchive { file, tag }) = request.to.parse() else {
        return Err(Error::usage(format!(
            "`{}` is nothing a kernel can be exported to",
            crate::image::text::printable(&request.to, 200)
        ))
        .with_hint("write oci-archive:FILE[:TAG]"));
    };
    let (root, name) = (shared.data.root().to_owned(), request.name.clone());
    let found =
        shared.store.read(move |connection| store::kernels::by_name(connection, &root, &name)).await?;
    let kernel = found.ok_or_else(|| unknown(&request.name))?;
    // `+` and `~` are in releases of Debian, and not allowed in a tag.
    let tag = tag.unwrap_or_else(|| kernel.release.replace(['+', '~'], "-"));
    let staging = Staging::create(&shared.data, operation.id()).await?;

    operation.phase("write").await;
    let part = operation.progress().add(kernel.name.clone(), ProgressUnit::Bytes, 0);
    part.set_state(ProgressState::Active);
    let (cancel, scratch, counted) =
        (operation.cancelled().clone(), staging.path().join("layer"), Arc::clone(&part));
    let result = blocking(move || {
        let export = Export { kernel: &kernel, tag: &tag, part: &counted, cancel: &cancel };
        export.write(&file, &scratch)
    })
    .await;
    part.set_state(if result.is_ok() { ProgressState::Done } else { ProgressState::Failed });
    result
}

struct Export<'a> {
    kernel: &'a Kernel,
    tag: &'a str,
    part: &'a ProgressPart,
    cancel: &'a CancellationToken,
}

/// A blob of the archive.
struct Blob {
    digest: Digest,
    size: u64,
}

impl Export<'_> {
    fn write(&self, target: &Path, scratch: &Path) -> Result<ExportedKernel> {
        let mut output = Output::create(target)?;
        let fail = |error| match error {
            ExportError::Cancelled => Error::cancelled(),
            error => {
                Error::failed(format!("cannot export the kernel `{}`", self.kernel.name)).with_source(error)
            }
        };
        let digest = self.write_archive(output.file(), scratch).map_err(fail)?;
        let bytes = output.file().metadata().map_err(|error| fail(error.into()))?.len();
        Ok(ExportedKernel {
            name: self.kernel.name.clone(),
            path: output.publish()?,
            tag: self.tag.to_owned(),
            digest: digest.to_string(),
            bytes,
        })
    }

    fn write_archive(&self, output: &mut File, scratch: &Path) -> Result<Digest, ExportError> {
        let (mut layer_file, layer, diff_id) = self.write_layer(scratch)?;
        let release = &self.kernel.release;
        let config = serde_json::to_vec(&json!({
            "architecture": self.kernel.architecture,
            "os": "linux",
            "config": { "Labels": { "org.opencontainers.image.version": release } },
            "rootfs": { "type": "layers", "diff_ids": [diff_id.to_string()] },
            "history": [{ "created_by": "vmdeck kernel export", "comment": self.kernel.source }],
        }))?;
        let config_blob = Blob { digest: Digest::of(&config), size: config.len() as u64 };
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ARTIFACT_TYPE,
            "config": config_blob.descriptor(CONFIG),
            "layers": [layer.descriptor(LAYER)],
            "annotations": {
                "org.opencontainers.image.title": format!("Linux {release}"),
                "org.opencontainers.image.version": release,
            },
        }))?;
        let manifest_blob = Blob { digest: Digest::of(&manifest), size: manifest.len() as u64 };
        let mut entry = manifest_blob.descriptor(MANIFEST);
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": self.tag });
        entry["platform"] = json!({ "architecture": self.kernel.architecture, "os": "linux" });
        let index = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        }))?;

        let mut archive = tar::Builder::new(BufWriter::with_capacity(1 << 20, output));
        append(&mut archive, "oci-layout", 30, &mut &br#"{"imageLayoutVersion":"1.0.0"}"#[..])?;
        append(&mut archive, "index.json", index.len() as u64, &mut index.as_slice())?;
        for (blob, content) in [(&manifest_blob, &manifest), (&config_blob, &config)] {
            append(&mut archive, &blob.path(), blob.size, &mut content.as_slice())?;
        }
        layer_file.rewind()?;
        append(&mut archive, &layer.path(), layer.size, &mut layer_file)?;
        archive.into_inner()?.flush()?;
        Ok(manifest_blob.digest)
    }

    /// Writes the layer to `scratch`: its digest must be known before it goes into the archive.
    fn write_layer(&self, scratch: &Path) -> Result<(File, Blob, Digest), ExportError> {
        let file = File::options().read(true).write(true).create_new(true).open(scratch)?;
        let packed =
            Hashed { inner: BufWriter::with_capacity(256 << 10, file), hasher: Sha256::new(), length: 0 };
        let plain = Hashed {
            inner: zstd::stream::write::Encoder::new(packed, ZSTD_LEVEL)?,
            hasher: Sha256::new(),
            length: 0,
        };
        let mut builder = tar::Builder::new(plain);
        self.write_tree(&mut builder)?;
        let plain = builder.into_inner()?;
        let packed = plain.inner.finish()?;
        let file = packed.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
        let blob = Blob { digest: Digest::finish(packed.hasher), size: packed.length };
        Ok((file, blob, Digest::finish(plain.hasher)))
    }

    fn write_tree(&self, builder: &mut tar::Builder<impl Write>) -> Result<(), ExportError> {
        let Kernel { release, vmlinux, modules, .. } = self.kernel;
        let modules =
            modules.as_ref().map(|path| Reader::open(File::open(path)?).map_err(ExportError::Modules));
        let modules = modules.transpose()?;
        let mut image = File::open(vmlinux)?;
        let size = image.metadata()?.len();
        let used = modules.as_ref().map_or(Ok(0), |modules| Ok(modules.size() - modules.free()?));
        self.part.set_total(size + used.map_err(ExportError::Modules)?);

        append(builder, &format!("boot/vmlinuz-{release}"), size, &mut self.counted(&mut image))?;
        let configuration = vmlinux.with_file_name(CONFIGURATION);
        if let Ok(mut file) = File::open(&configuration) {
            let size = file.metadata()?.len();
            append(builder, &format!("boot/config-{release}"), size, &mut file)?;
        }
        let Some(modules) = modules else { return Ok(()) };
        let mut folders = vec![(format!("lib/modules/{release}"), modules.root())];
        while let Some((path, folder)) = folders.pop() {
            let mut entries = modules.entries(folder).map_err(ExportError::Modules)?;
            entries.sort();
            for (name, inode) in entries {
                let name = String::from_utf8(name).map_err(|_| ExportError::Name)?;
                let stat = modules.stat(inode).map_err(ExportError::Modules)?;
                let path = format!("{path}/{name}");
                match stat.kind {
                    FileKind::Directory if name != "lost+found" => folders.push((path, inode)),
                    FileKind::File if !depmod::GENERATED.contains(&name.as_str()) => {
                        let mut content = Content { modules: &modules, inode, offset: 0 };
                        append(builder, &path, stat.size, &mut self.counted(&mut content))?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn counted<'b, R: Read>(&'b self, inner: &'b mut R) -> Counted<'b, R> {
        Counted { inner, part: self.part, cancel: self.cancel }
    }
}

#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("the file cannot be written")]
    Io(#[source] io::Error),
    #[error("the image of its modules cannot be read")]
    Modules(#[source] vmdeck_ext4::ImageError),
    #[error("the image of its modules holds a name that is no text")]
    Name,
    #[error("its description cannot be written")]
    Json(#[from] serde_json::Error),
    #[error("cancelled")]
    Cancelled,
}

impl From<io::Error> for ExportError {
    fn from(error: io::Error) -> Self {
        match error.get_ref() {
            Some(inner) if inner.is::<CancelledError>() => Self::Cancelled,
            _ => Self::Io(error),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cancelled")]
struct CancelledError;

impl Blob {
    fn descriptor(&self, media_type: &str) -> serde_json::Value {
        json!({ "mediaType": media_type, "digest": self.digest.to_string(), "size": self.size })
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest.hex())
    }
}

/// Adds a file of root's. Times are left out, so that the same kernel gives the same digest.
fn append(
    builder: &mut tar::Builder<impl Write>,
    path: &str,
    size: u64,
    content: &mut impl Read,
) -> Result<(), ExportError> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(size);
    Ok(builder.append_data(&mut header, path, content)?)
}

/// Digest and length of what is written.
struct Hashed<W> {
    inner: W,
    hasher: Sha256,
    length: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The content of a file in the image of the modules.
struct Content<'a> {
    modules: &'a Reader,
    inode: InodeNumber,
    offset: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.modules.read_at(self.inode, self.offset, buffer).map_err(io::Error::other)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// Progress and cancellation of what is read.
struct Counted<'a, R> {
    inner: &'a mut R,
    part: &'a ProgressPart,
    cancel: &'a CancellationToken,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other(CancelledError));
        }
        let read = self.inner.read(buffer)?;
        self.part.advance(read as u64);
        Ok(read)
    }
}
