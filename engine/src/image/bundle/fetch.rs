//! Getting a bundle from a file or over HTTP: unpacked and verified as it comes.
//!
//! What has come of one whose digest is known is kept in the blob cache until all of it is here, so that the
//! next pull goes on there: its digest tells whether the parts belong together. Of others nothing would.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::BundleManifest;
use super::read::unpack;
use crate::error::{Error, Result};
use crate::image::blobs::{BlobCache, Claim, PartialBlob};
use crate::image::digest::Digest;
use crate::image::flatten::blocking;
use crate::image::reference::BundleLocation;
use crate::image::registry::Patience;
use crate::image::registry::download::{Download, stream};
use crate::operation::Operation;
use crate::operation::progress::{Counted, ProgressPart, ProgressState, ProgressUnit};
use crate::pieces::Pieces;
use crate::regular_file;
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
    pub cache: BlobCache,
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
    let part = request.operation.progress().add("bundle", ProgressUnit::Bytes, 0);
    request.operation.phase("download").await;
    let unpacking = Unpacking {
        folder: request.folder.clone(),
        digest: request.digest,
        budget: space::free(&request.folder)?,
        cancel: request.operation.cancelled().clone(),
    };
    match &request.location {
        BundleLocation::File(path) => {
            let path = path.clone();
            blocking(move || {
                let file = open(&path, &part)?;
                let place = path.display().to_string();
                unpacking.run(Counted { inner: file, part }).map_err(|error| name_it(error, &place))
            })
            .await
        }
        BundleLocation::Url(url) => {
            let mut kept = claim(&request).await?;
            let known = kept.as_ref().map_or(0, |kept| kept.length);
            let got = download(&request, url, &part, unpacking.clone(), kept.as_ref()).await;
            if !matches!(got, Err(Got::Refused(_))) || known == 0 {
                return settle(got, kept, url);
            }
            // What was kept may be of another file that was there before, or damaged.
            request.operation.log("what an earlier pull left does not fit: beginning anew").await;
            kept.take().map_or(Ok(()), PartialBlob::discard)?;
            let folder = request.folder.clone();
            blocking(move || empty(&folder)).await?;
            part.set_done(0);
            let kept = claim(&request).await?;
            let got = download(&request, url, &part, unpacking, kept.as_ref()).await;
            settle(got, kept, url)
        }
    }
}

/// The content that a bundle's file announces, where its head tells ([`FetchedBundle::content`]). Blocking,
/// brief.
pub(crate) fn announced(path: &Path) -> Result<Option<Digest>> {
    let opened = regular_file::open(path);
    let (file, _) = opened.map_err(|error| super::super::inspect::unopened(path, "bundle", error))?;
    Ok(super::read::announced(io::BufReader::new(file)))
}

/// Why there is no bundle.
enum Got {
    /// What has come so far may be gone on with.
    Broken(Error),
    /// All of it came, or as much as was needed to see that it is none.
    Refused(Error),
}

/// The place for what comes of a bundle whose digest is known.
async fn claim(request: &FetchBundle) -> Result<Option<PartialBlob>> {
    let Some(digest) = &request.digest else { return Ok(None) };
    loop {
        match request.cache.claim(digest, None, request.operation.cancelled()).await? {
            Claim::Partial(partial) => return Ok(Some(partial)),
            // Bundles are not kept whole: it is a layer, which is no bundle.
            Claim::Cached(blob) => blob.discard()?,
        }
    }
}

async fn download(
    request: &FetchBundle,
    url: &str,
    part: &Arc<ProgressPart>,
    unpacking: Unpacking,
    kept: Option<&PartialBlob>,
) -> Result<FetchedBundle, Got> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let pieces = Pieces::new(receiver);
    let known = kept.map_or(0, |kept| kept.length);
    let source: Box<dyn Read + Send> = match kept {
        None => Box::new(pieces),
        Some(kept) => {
            let file = kept.file.try_clone();
            let file = file.map_err(|error| Got::Broken(Error::io("cannot use the blob cache", error)))?;
            Box::new(Kept { file, known, position: 0, pieces })
        }
    };
    let cancel = unpacking.cancel.clone();
    let reader = Counted { inner: source, part: Arc::clone(part) };
    let unpacked = tokio::spawn(blocking(move || unpacking.run(reader)));
    let download = Download {
        url,
        known,
        plain_http: request.plain_http,
        patience: &request.patience,
        part,
        cancel: &cancel,
    };
    let streamed = stream(download, sender).await;
    let unpacked = unpacked
        .await
        .map_err(|error| Got::Broken(Error::failed("the bundle's thread ended").with_source(error)))?;
    // A download that broke is why the bundle seems cut short; one that went on until nobody
    // took its bytes is not why the unpacker gave up.
    streamed.map_err(Got::Broken)?;
    unpacked.map_err(|error| if error.is_cancelled() { Got::Broken(error) } else { Got::Refused(error) })
}

/// Only what can be gone on with stays in the cache.
fn settle(got: Result<FetchedBundle, Got>, kept: Option<PartialBlob>, url: &str) -> Result<FetchedBundle> {
    if !matches!(got, Err(Got::Broken(_))) {
        kept.map_or(Ok(()), PartialBlob::discard)?;
    }
    got.map_err(|got| match got {
        Got::Broken(error) => error,
        Got::Refused(error) => name_it(error, url),
    })
}

/// Removes what is in a folder.
fn empty(folder: &Path) -> Result<()> {
    let remove = || -> io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            std::fs::remove_file(entry?.path())?;
        }
        Ok(())
    };
    remove().map_err(|error| Error::io(format!("cannot empty `{}`", folder.display()), error))
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
    let opened = regular_file::open(path);
    let (file, length) = opened.map_err(|error| super::super::inspect::unopened(path, "bundle", error))?;
    part.set_total(length);
    part.set_state(ProgressState::Active);
    Ok(file)
}

#[derive(Clone)]
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

/// What is kept of a download, and what still comes, which is kept as well.
struct Kept {
    file: File,
    /// Bytes that were kept.
    known: u64,
    position: u64,
    pieces: Pieces,
}

impl Read for Kept {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.known.saturating_sub(self.position);
        let read = if left > 0 {
            let length = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            self.file.read_at(&mut buffer[..length], self.position)?
        } else {
            let read = self.pieces.read(buffer)?;
            self.file.write_all_at(&buffer[..read], self.position)?;
            read
        };
        self.position += read as u64;
        Ok(read)
    }
}
