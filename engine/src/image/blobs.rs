//! The blob cache: verified blobs under their digest, and beside them what is still coming.
//!
//! ```text
//! absent ─▶ <hex>.partial, locked by its one downloader ─▶ (digest verified) ─▶ <hex>
//!                 └─ its process ends: lock gone, bytes kept ─▶ the next one goes on there
//! ```
//!
//! Blobs are not synced to the disk: each is verified again whenever it is read, so that one damaged
//! by a power cut is found and fetched anew.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::digest::Digest;
use crate::error::{Error, Result};

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct BlobCache {
    folder: PathBuf,
}

/// What the cache has of a blob.
#[derive(Debug)]
pub(crate) enum Claim {
    /// All of it, by its length; the digest is yet to be verified.
    Cached(CachedBlob),
    /// A part, perhaps nothing, and the right to go on with it.
    Partial(PartialBlob),
}

#[derive(Debug)]
pub(crate) struct CachedBlob {
    path: PathBuf,
    pub(crate) file: File,
    pub(crate) length: u64,
}

/// The locked `.partial` of a blob.
#[derive(Debug)]
pub(crate) struct PartialBlob {
    path: PathBuf,
    target: PathBuf,
    /// Holds the lock, together with its clones.
    pub(crate) file: File,
    pub(crate) length: u64,
}

impl BlobCache {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Bytes of a blob that are here already.
    pub(crate) fn present(&self, digest: &Digest) -> u64 {
        let length = |path: PathBuf| fs::metadata(path).map(|metadata| metadata.len()).ok();
        length(self.path(digest)).or_else(|| length(self.partial_path(digest))).unwrap_or(0)
    }

    /// Waits until nobody else downloads the blob, then tells what there is of it. `size` is its length, where
    /// that is known.
    pub(crate) async fn claim(
        &self,
        digest: &Digest,
        size: Option<u64>,
        cancel: &CancellationToken,
    ) -> Result<Claim> {
        let mut pause = Duration::from_millis(5);
        loop {
            let claimed = self.try_claim(digest, size).map_err(|error| {
                Error::io(format!("cannot use the blob cache `{}`", self.folder.display()), error)
            })?;
            if let Some(claim) = claimed {
                return Ok(claim);
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = cancel.cancelled() => return Err(Error::cancelled()),
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    fn try_claim(&self, digest: &Digest, size: Option<u64>) -> io::Result<Option<Claim>> {
        let (target, path) = (self.path(digest), self.partial_path(digest));
        loop {
            match File::open(&target) {
                Ok(file) => {
                    let length = file.metadata()?.len();
                    if size.is_none_or(|size| size == length) {
                        return Ok(Some(Claim::Cached(CachedBlob { path: target, file, length })));
                    }
                    // Cut short by a power failure.
                    remove(&target)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Its last holder may have renamed or removed it between the opening and the locking.
            let metadata = file.metadata()?;
            let current = fs::metadata(&path);
            if !current
                .is_ok_and(|current| (current.dev(), current.ino()) == (metadata.dev(), metadata.ino()))
            {
                continue;
            }
            if target.exists() {
                remove(&path)?;
                continue;
            }
            let mut length = metadata.len();
            if size.is_some_and(|size| length > size) {
                file.set_len(0)?;
                length = 0;
            }
            return Ok(Some(Claim::Partial(PartialBlob { path, target, file, length })));
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{}.partial", digest.hex()))
    }
}

impl CachedBlob {
    /// Takes the blob out of the cache: it is not what its name says.
    pub(crate) fn discard(self) -> Result<()> {
        discard(&self.path)
    }
}

impl PartialBlob {
    /// All bytes are there and verified: the blob gets its name. Blocking, brief.
    pub(crate) fn complete(self) -> Result<()> {
        fs::rename(&self.path, &self.target)
            .map_err(|error| Error::io(format!("cannot name the blob `{}`", self.target.display()), error))
    }

    /// The bytes are wrong: nobody shall go on with them.
    pub(crate) fn discard(self) -> Result<()> {
        discard(&self.path)
    }
}

fn discard(path: &Path) -> Result<()> {
    remove(path).map_err(|error| Error::io(format!("cannot remove the blob `{}`", path.display()), error))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn partial(claim: Claim) -> PartialBlob {
        match claim {
            Claim::Partial(partial) => partial,
            Claim::Cached(_) => panic!("cached"),
        }
    }

    #[tokio::test]
    async fn one_downloader_at_a_time_and_the_next_finds_the_blob() {
        let folder = tempfile::tempdir().unwrap();
        let cache = BlobCache::new(folder.path().into());
        let cancel = CancellationToken::new();
        let digest = Digest::of(b"hello");
        let mut first = partial(cache.claim(&digest, Some(5), &cancel).await.unwrap());
        let waiter = tokio::spawn({
            let (cache, cancel) = (cache.clone(), cancel.clone());
            async move { cache.claim(&digest, Some(5), &cancel).await }
        });
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(!waiter.is_finished());
        first.file.write_all(b"hello").unwrap();
        first.complete().unwrap();
        assert!(matches!(waiter.await.unwrap().unwrap(), Claim::Cached(_)));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(cache.present(&digest), 5);
    }

    #[tokio::test]
    async fn what_a_dead_downloader_left_is_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let cache = BlobCache::new(folder.path().into());
        let cancel = CancellationToken::new();
        let digest = Digest::of(b"hello");
        let mut first = partial(cache.claim(&digest, Some(5), &cancel).await.unwrap());
        first.file.write_all(b"hel").unwrap();
        drop(first);
        let second = partial(cache.claim(&digest, Some(5), &cancel).await.unwrap());
        assert_eq!(second.length, 3);
        // Somebody waits while the partial is found to be wrong: it starts anew, and alone.
        let waiter = tokio::spawn({
            let (cache, cancel) = (cache.clone(), cancel.clone());
            async move { cache.claim(&digest, Some(5), &cancel).await }
        });
        tokio::time::sleep(Duration::from_millis(30)).await;
        second.discard().unwrap();
        assert_eq!(partial(waiter.await.unwrap().unwrap()).length, 0);
    }

    #[tokio::test]
    async fn a_wait_ends_when_cancelled_and_a_cut_blob_is_no_blob() {
        let folder = tempfile::tempdir().unwrap();
        let cache = BlobCache::new(folder.path().into());
        let cancel = CancellationToken::new();
        let digest = Digest::of(b"hello");
        fs::write(folder.path().join(digest.hex()), b"he").unwrap();
        let held = partial(cache.claim(&digest, Some(5), &cancel).await.unwrap());
        assert_eq!(held.length, 0);
        let waiting = cache.claim(&digest, Some(5), &cancel);
        cancel.cancel();
        assert!(waiting.await.unwrap_err().is_cancelled());
    }
}
