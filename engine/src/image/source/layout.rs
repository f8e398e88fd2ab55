//! An OCI image layout (OCI image-spec, image-layout.md): as a folder, or within a tar file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;

use super::archive::{FilePart, TarIndex};
use super::{
    DocumentKind, Documents, LayerBlob, OpenLayer, ResolvedImage, Source, SourceError, resolve_documents,
};
use crate::error::{Error, ErrorKind, Result};
use crate::image::digest::Digest;
use crate::image::manifest::{Descriptor, Document, LARGEST_MANIFEST, Platform};
use crate::image::text::printable;

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
                let fail = |error| Error::io(format!("cannot open `{}`", path.display()), error);
                let file = File::open(&path).map_err(fail)?;
                let metadata = file.metadata().map_err(fail)?;
                if !metadata.is_file() {
                    return Err(Error::failed(format!("`{}` is no regular file", path.display())));
                }
                Ok(FilePart { file, start: 0, length: metadata.len() })
            }
        }
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
        let Document::Index(entries) = Document::parse(&bytes, None)? else {
            return Err(Error::failed(format!("`index.json` in `{}` is no index", self.place().display())));
        };
        self.choose(&entries, platform).cloned()
    }

    fn choose<'a>(&self, entries: &'a [Descriptor], platform: &Platform) -> Result<&'a Descriptor> {
        let tag_of = |entry: &'a Descriptor| entry.annotations.get(REF_NAME).map(String::as_str);
        let tags = || {
            let tags: Vec<String> = entries
                .iter()
                .filter_map(tag_of)
                .take(20)
                .map(|tag| format!("`{}`", printable(tag, 80)))
                .collect();
            if tags.is_empty() { "no tags".to_owned() } else { format!("the tags {}", tags.join(", ")) }
        };
        let Some(tag) = &self.tag else {
            let mut tagged: Vec<&str> = entries.iter().filter_map(tag_of).collect();
            tagged.dedup();
            if tagged.len() > 1 {
                return Err(Error::usage(format!(
                    "`{}` holds several images; it has {}",
                    self.place().display(),
                    tags()
                ))
                .with_hint("add the tag to the reference: oci:DIR:TAG"));
            }
            return crate::image::manifest::select(entries, platform);
        };
        let matching: Vec<&Descriptor> =
            entries.iter().filter(|entry| tag_of(entry) == Some(tag.as_str())).collect();
        match matching.as_slice() {
            [] => Err(Error::not_found(format!(
                "`{}` has no image with the tag `{}`; it has {}",
                self.place().display(),
                printable(tag, 80),
                tags()
            ))),
            [one] => Ok(one),
            // One tag for several platforms.
            several => several
                .iter()
                .copied()
                .find(|entry| crate::image::manifest::select(std::slice::from_ref(*entry), platform).is_ok())
                .ok_or_else(|| {
                    Error::failed(format!("no image with the tag `{}` is for {platform}", printable(tag, 80)))
                }),
        }
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl Documents for LayoutSource {
    fn document<'a>(
        &'a self,
        _kind: DocumentKind,
        descriptor: &'a Descriptor,
        limit: u64,
    ) -> BoxFuture<'a, Result<Vec<u8>>> {
        // A few kilobytes of a local file.
        Box::pin(async move { self.read(&blob_name(&descriptor.digest), limit) })
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
            let bytes = self.read(&blob_name(&entry.digest), LARGEST_MANIFEST)?;
            let found = Digest::of(&bytes);
            if found != entry.digest {
                return Err(Error::failed(format!(
                    "the manifest in {} is damaged: {} expected, {found} found",
                    self.describe(),
                    entry.digest
                )));
            }
            resolve_documents(self, bytes, Some(&entry.media_type), platform).await
        })
    }

    fn open_layer<'a>(
        &'a self,
        layer: &'a LayerBlob,
        offset: u64,
    ) -> BoxFuture<'a, Result<OpenLayer, SourceError>> {
        Box::pin(async move {
            let digest = layer.digest.ok_or_else(|| Error::failed("a layout's layers have digests"))?;
            let part = self.open(&blob_name(&digest))?;
            if part.length != layer.size {
                return Err(Error::failed(format!(
                    "layer {} has {} bytes by the manifest, and {} in {}",
                    layer.label(),
                    layer.size,
                    part.length,
                    self.describe()
                ))
                .into());
            }
            Ok(part.stream(offset, self.describe())?)
        })
    }
}
