//! Getting a bundle from a file or over HTTP: unpacked and verified as it comes, kept nowhere packed.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::BundleManifest;
use super::read::unpack;
use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::image::flatten::blocking;
use crate::image::reference::BundleLocation;
use crate::image::registry::Patience;
use crate::image::registry::download::{Download, stream};
use crate::operation::Operation;
use crate::operation::progress::{ProgressPart, ProgressState, ProgressUnit};
use crate::pieces::Pieces;
use crate::space;

/// Pieces of a download that wait for the unpacker.
const PIECES: usize = 16;

/// A bundle to get.
#[derive(Clone, Debug)]
pub struct FetchBundle {
    pub location: BundleLocation,
    /// Digest of the packed file, where it is known.
    pub digest: Option<Digest>,
    pub plain_http: bool,
    /// Folder that gets the members.
    pub folder: PathBuf,
    pub patience: Patience,
    /// Its progress and its cancellation.
    pub operation: Operation,
}

/// A bundle that was unpacked and verified.
#[derive(Clone, Debug)]
pub struct FetchedBundle {
    pub manifest: BundleManifest,
    /// Digest of the manifest's text: it stands for all members.
    pub content: Digest,
}

/// Gets and unpacks.
pub(crate) async fn fetch(request: FetchBundle) -> Result<FetchedBundle> {
    let cancel = request.operation.cancelled().clone();
    let part = request.operation.progress().add("bundle", ProgressUnit::Bytes, 0);
    request.operation.phase("download").await;
    let budget = space::free(&request.folder)?;
    let unpacking = Unpacking { folder: request.folder.clone(), digest: request.digest, budget, cancel };
    match request.location {
        BundleLocation::File(path) => {
            blocking(move || {
                let file = open(&path, &part)?;
                let place = path.display().to_string();
                unpacking.run(Counted { inner: file, part }).map_err(|error| name_it(error, &place))
            })
            .await
        }
        BundleLocation::Url(url) => {
            let (sender, receiver) = mpsc::channel(PIECES);
            let cancel = unpacking.cancel.clone();
            let reader = Counted { inner: Pieces::new(receiver), part: Arc::clone(&part) };
            let unpacked = tokio::spawn(blocking(move || unpacking.run(reader)));
            let download = Download {
                url: &url,
                plain_http: request.plain_http,
                patience: &request.patience,
                part: &part,
                cancel: &cancel,
            };
            let streamed = stream(download, sender).await;
            let unpacked = unpacked
                .await
                .map_err(|error| Error::failed("the bundle's thread ended").with_source(error))?;
            // A download that broke is why the bundle seems cut short; one that went on until nobody
            // took its bytes is not why the unpacker gave up.
            streamed?;
            unpacked.map_err(|error| name_it(error, &url))
        }
    }
}

fn name_it(error: Error, place: &str) -> Error {
    if error.is_cancelled() {
        return error;
    }
    let place = crate::image::text::printable(place, 200);
    let hint = error.hint().map(str::to_owned);
    let named = Error::new(error.kind(), format!("the bundle `{place}` was refused")).with_source(error);
    match hint {
        Some(hint) => named.with_hint(hint),
        None => named,
    }
}

fn open(path: &Path, part: &ProgressPart) -> Result<File> {
    let fail = |error| super::super::inspect::unopened(path, "bundle", error);
    if !std::fs::metadata(path).map_err(fail)?.is_file() {
        return Err(Error::usage(format!("`{}` is no regular file", path.display())));
    }
    let file = File::open(path).map_err(fail)?;
    part.set_total(file.metadata().map_err(fail)?.len());
    part.set_state(ProgressState::Active);
    Ok(file)
}

struct Unpacking {
    folder: PathBuf,
    digest: Option<Digest>,
    budget: u64,
    cancel: CancellationToken,
}

impl Unpacking {
    fn run(self, reader: Counted<impl Read>) -> Result<FetchedBundle> {
        let part = Arc::clone(&reader.part);
        let mut reader = Hashed { inner: reader, hasher: Sha256::new() };
        let unpacked = unpack(&mut reader, &self.folder, self.budget, &self.cancel);
        if let (Some(expected), Ok(_)) = (&self.digest, &unpacked) {
            io::copy(&mut reader, &mut io::sink())
                .map_err(|error| Error::io("cannot read the bundle", error))?;
            let found = Digest::finish(reader.hasher);
            if found != *expected {
                return Err(Error::failed(format!(
                    "the bundle does not have the promised digest: {expected} expected, {found} found"
                ))
                .with_hint(
                    "it is damaged, it was replaced, or somebody tampers with it; nothing of it was kept",
                ));
            }
        }
        let (manifest, content) = unpacked?;
        part.set_state(ProgressState::Done);
        Ok(FetchedBundle { manifest, content })
    }
}

/// Digest of all that is read.
struct Hashed<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

/// Progress of all that is read.
struct Counted<R> {
    inner: R,
    part: Arc<ProgressPart>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.part.advance(read as u64);
        Ok(read)
    }
}
