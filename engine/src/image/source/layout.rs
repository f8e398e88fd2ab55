//! An OCI image layout (OCI image-spec, image-layout.md): as a folder, or within a tar file.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;

use super::archive::{FilePart, TarIndex};
use super::{
    DocumentKind, Documents, LayerBlob, OpenLayer, ResolvedImage, Source, SourceError, resolve_documents,
};
use crate::error::{Error, ErrorKind, Result};
use crate::image::digest::Digest;
use crate::image::manifest::{self, Descriptor, Document, LARGEST_MANIFEST, NO_REGISTRY, Platform};
use crate::image::text::printable;
use crate::regular_file;

/// The tag of an entry of `index.json` (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Where the layout's files lie.
#[derive(Debug)]
pub(crate) enum Files {
    Folder(PathBuf),
    Archive(TarIndex),
}

#[derive(Debug)]
pub(crate) struct LayoutSource {
    files: Files,
    tag: Option<String>,
}

impl LayoutSource {
    pub(crate) fn new(files: Files, tag: Option<String>) -> Self {
        Self { files, tag }
    }

    fn place(&self) -> &Path {
        match &self.files {
            Files::Folder(path) => path,
            Files::Archive(index) => index.path(),
        }
    }

    /// Opens a file of the layout. Blocking.
    fn open(&self, name: &str) -> Result<FilePart> {
        match &self.files {
            Files::Archive(index) => index.open(name),
            Files::Folder(folder) => {
                let path = folder.join(name);
                let (file, length) = regular_file::open(&path)
                    .map_err(|error| Error::io(format!("cannot open `{}`", path.display()), error))?;
                Ok(FilePart { file, start: 0, length })
            }
        }
    }

    /// What is wrong with the layout, which its own tool can make anew.
    fn placed(&self, error: Error) -> Error {
        let hint = match error.hint() {
            Some(hint) if hint != NO_REGISTRY => hint.to_owned(),
            _ => "have it written again, for example by `skopeo copy`".to_owned(),
        };
        let place = self.place().display();
        Error::new(error.kind(), format!("cannot take the image in `{place}`"))
            .with_source(error)
            .with_hint(hint)
    }

    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let part = self.open(name)?;
        if part.length > limit {
            return Err(Error::failed(format!(
                "`{name}` in `{}` has {} bytes; at most {limit} are taken",
                self.place().display(),
                part.length
            )));
        }
        let mut bytes = Vec::new();
        part.reader(0).and_then(|mut reader| reader.read_to_end(&mut bytes)).map_err(|error| {
            Error::io(format!("cannot read `{name}` in `{}`", self.place().display()), error)
        })?;
        Ok(bytes)
    }

    /// The part of `index.json` that the tag names, as an index of its own.
    fn index(&self, platform: &Platform) -> Result<Descriptor> {
        let no_layout = |error: Error| {
            let kind = if self.place().exists() { ErrorKind::Failed } else { ErrorKind::NotFound };
            Error::new(kind, format!("`{}` holds no OCI image layout", self.place().display()))
                .with_source(error)
                .with_hint("there must be the files `oci-layout` and `index.json`, and the folder `blobs`")
        };
        let bytes = self.read("index.json", LARGEST_MANIFEST).map_err(no_layout)?;
        let document = Document::parse(&bytes, None).map_err(|error| {
            self.placed(Error::failed("its `index.json` cannot be read").with_source(error))
        })?;
        let Document::Index(entries) = document else {
            return Err(self.placed(Error::failed("its `index.json` is no index")));
        };
        self.choose(&entries, platform)
    }

    fn choose(&self, entries: &[Descriptor], platform: &Platform) -> Result<Descriptor> {
        let place = self.place().display();
        let images = manifest::images(entries);
        let wanted = |entry: &&Descriptor| match &self.tag {
            None => true,
            Some(tag) => match tag.strip_prefix('@') {
                Some(digest) => entry.digest.to_string() == digest,
                None => tag_of(entry) == Some(tag),
            },
        };
        let matching: Vec<Descriptor> = images.iter().copied().filter(wanted).cloned().collect();
        if let (Some(tag), []) = (&self.tag, matching.as_slice()) {
            let (tag, there) = (printable(tag, 80), choices(&images));
            return Err(Error::not_found(format!("`{place}` has no image `{tag}`; it has {there}")));
        }
        if are_several(&matching) {
            return Err(Error::usage(format!("`{place}` holds several images: {}", choices(&images)))
                .with_hint(
                    "add the tag or the digest of one to the reference: oci:DIR:TAG, oci:DIR@sha256:DIGEST",
                ));
        }
        let chosen = manifest::candidates(&matching, platform).map_err(|error| self.placed(error))?;
        Ok(chosen[0].clone())
    }
}

fn tag_of(entry: &Descriptor) -> Option<&str> {
    entry.annotations.get(REF_NAME).map(String::as_str)
}

/// What a user may write behind the path to choose one of them.
fn choices(images: &[&Descriptor]) -> String {
    let name = |entry: &&Descriptor| match tag_of(entry) {
        Some(tag) => format!("`:{}`", printable(tag, 80)),
        None => format!("`@{}`", entry.digest),
    };
    let names: BTreeSet<String> = images.iter().map(name).take(20).collect();
    if names.is_empty() { "none".to_owned() } else { names.into_iter().collect::<Vec<_>>().join(", ") }
}

/// Whether these are different images: not one under several tags, and not one for several platforms,
/// whose entries say which and differ in nothing else.
fn are_several(entries: &[Descriptor]) -> bool {
    entries.iter().enumerate().any(|(index, entry)| {
        entries[..index].iter().any(|other| {
            other.digest != entry.digest
                && (tag_of(other) != tag_of(entry)
                    || other.platform == entry.platform
                    || other.platform.is_none()
                    || entry.platform.is_none())
        })
    })
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl Documents for LayoutSource {
    fn document<'a>(
        &'a self,
        kind: DocumentKind,
        descriptor: &'a Descriptor,
        limit: u64,
    ) -> BoxFuture<'a, Result<Vec<u8>>> {
        // A few kilobytes of a local file.
        Box::pin(async move {
            self.read(&blob_name(&descriptor.digest), limit).map_err(|error| {
                let what = match kind {
                    DocumentKind::Manifest => "manifest",
                    DocumentKind::Config => "config",
                };
                Error::new(error.kind(), format!("its {what} {} cannot be had", descriptor.digest.short()))
                    .with_source(error)
            })
        })
    }
}

impl Source for LayoutSource {
    fn describe(&self) -> String {
        format!("`{}`", self.place().display())
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn resolve<'a>(&'a self, platform: &'a Platform) -> BoxFuture<'a, Result<ResolvedImage>> {
        Box::pin(async move {
            let entry = self.index(platform)?;
            let resolved = async {
                let bytes = self.document(DocumentKind::Manifest, &entry, LARGEST_MANIFEST).await?;
                let found = Digest::of(&bytes);
                if found != entry.digest {
                    return Err(Error::failed(format!(
                        "its manifest is damaged: {} expected, {found} found",
                        entry.digest
                    )));
                }
                resolve_documents(self, bytes, Some(&entry.media_type), platform).await
            };
            resolved.await.map_err(|error| self.placed(error))
        })
    }

    fn open_layer<'a>(
        &'a self,
        layer: &'a LayerBlob,
        offset: u64,
    ) -> BoxFuture<'a, Result<OpenLayer, SourceError>> {
        Box::pin(async move {
            let digest = layer.digest.ok_or_else(|| Error::failed("a layout's layers have digests"))?;
            let part = self.open(&blob_name(&digest)).map_err(|error| {
                let missing = format!("its layer {} cannot be had", layer.label());
                self.placed(Error::new(error.kind(), missing).with_source(error))
            })?;
            if part.length != layer.size {
                return Err(self
                    .placed(Error::failed(format!(
                        "its layer {} has {} bytes by the manifest, and {} here",
                        layer.label(),
                        layer.size,
                        part.length
                    )))
                    .into());
            }
            Ok(part.stream(offset, self.describe())?)
        })
    }
}
