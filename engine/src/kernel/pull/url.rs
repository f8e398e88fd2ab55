//! A kernel from a URL: a package, an archive, a bzImage or a vmlinux, known by its digest.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{Claim, Request, claim};
use crate::error::{Error, Result};
use crate::image::Digest;
use crate::image::flatten::blocking;
use crate::image::registry::download::{Download, stream};
use crate::kernel::Shared;
use crate::kernel::create::make;
use crate::kernel::record::Kernel;
use crate::kernel::source::Source;
use crate::operation::Operation;
use crate::operation::progress::{ProgressState, ProgressUnit};
use crate::pieces::Pieces;
use crate::staging::Staging;

/// Pieces of a download that wait to be written.
const PIECES: usize = 16;
/// The largest file that is taken, in bytes. Packages of kernels have at most some 100 MB.
const LARGEST: u64 = 2 << 30;

/// `URL@sha256:DIGEST`: nobody else vouches for a file from somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::kernel) struct PinnedUrl {
    url: String,
    digest: Digest,
}

impl PinnedUrl {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let pinned = text.rsplit_once('@').and_then(|(url, digest)| Some((url, digest.parse().ok()?)));
        let (url, digest) = pinned.ok_or_else(|| {
            Error::usage(format!(
                "`{}` is a kernel from a URL without its digest",
                crate::image::text::printable(text, 200)
            ))
            .with_hint("add the digest of the file, as its maker publishes it: URL@sha256:DIGEST")
        })?;
        Ok(Self { url: url.to_owned(), digest })
    }
}

pub(super) async fn pull(
    shared: &Shared,
    request: &Request,
    url: &PinnedUrl,
    staging: &Staging,
    operation: &Operation,
) -> Result<Kernel> {
    let source = format!("{}@{}", url.url, url.digest);
    let _one_at_a_time = match claim(shared, request, &source, operation).await? {
        Claim::Here(kernel) => return Ok(*kernel),
        Claim::Ours(guard) => guard,
    };
    operation.phase("download").await;
    let path = download(shared, request, url, staging, operation).await?;
    let file = blocking(move || Source::of_file(path)).await?;
    make(shared, file, request.wanted(source), staging, operation).await
}

async fn download(
    shared: &Shared,
    request: &Request,
    url: &PinnedUrl,
    staging: &Staging,
    operation: &Operation,
) -> Result<PathBuf> {
    let path = staging.path().join("download");
    let name = url.url.rsplit('/').next().unwrap_or_default();
    let part = operation.progress().add(crate::image::text::printable(name, 80), ProgressUnit::Bytes, 0);
    let (sender, receiver) = mpsc::channel(PIECES);
    let (target, counted) = (path.clone(), std::sync::Arc::clone(&part));
    let writer = tokio::spawn(blocking(move || {
        let fail = |error| Error::io(format!("cannot write `{}`", target.display()), error);
        let mut file = File::create_new(&target).map_err(fail)?;
        let mut hasher = Sha256::new();
        let mut pieces = Pieces::new(receiver).take(LARGEST + 1);
        let mut buffer = vec![0; 128 << 10];
        let mut length = 0;
        loop {
            let read = pieces.read(&mut buffer).map_err(fail)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            file.write_all(&buffer[..read]).map_err(fail)?;
            length += read as u64;
            counted.advance(read as u64);
        }
        if length > LARGEST {
            return Err(too_large());
        }
        Ok(Digest::finish(hasher))
    }));
    let download = Download {
        url: &url.url,
        known: 0,
        plain_http: request.plain_http,
        patience: &shared.settings.patience,
        part: &part,
        cancel: operation.cancelled(),
    };
    let streamed = stream(download, sender).await;
    let written = writer.await.map_err(|error| {
        Error::failed("the thread that writes the download ended").with_source(io::Error::other(error))
    })?;
    if streamed.is_err() || written.is_err() {
        part.set_state(ProgressState::Failed);
    }
    streamed?;
    let found = written?;
    if found != url.digest {
        part.set_state(ProgressState::Failed);
        let shown = crate::image::text::printable(&url.url, 200);
        return Err(Error::failed(format!(
            "`{shown}` does not have the promised digest: {} expected, {found} found",
            url.digest
        ))
        .with_hint("it was replaced or damaged, or the digest is of another file; nothing of it was kept"));
    }
    part.set_state(ProgressState::Done);
    Ok(path)
}

fn too_large() -> Error {
    Error::failed(format!("the file is larger than {} MiB, which no kernel is", LARGEST >> 20))
}
