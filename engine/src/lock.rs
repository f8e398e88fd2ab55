//! Locks that hold across processes, and across the tasks of one process.
//!
//! A [`FileLock`] is an advisory lock on an open file (flock(2)): the kernel drops it with the
//! process, so a killed holder leaves nothing behind. [`KeyedLocks`] puts a queue of this process's
//! own tasks before it, so that they wait without polling and in order.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// An exclusive lock on a file, released when dropped.
#[derive(Debug)]
pub struct FileLock {
    file: File,
}

impl FileLock {
    /// Takes the lock if nobody holds it. Creates the file, not its folder.
    pub fn try_acquire(path: &Path) -> std::io::Result<Option<Self>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The locked file: what its holder tells of itself can be written there.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Waits for the lock; `cancel` ends the wait with [`crate::ErrorKind::Cancelled`].
    ///
    /// flock(2) has no waiting that can be cancelled, so another process's lock is polled for, at
    /// 5 ms first and 100 ms at most.
    pub async fn acquire(path: &Path, cancel: &CancellationToken) -> Result<Self> {
        let mut pause = Duration::from_millis(5);
        loop {
            match Self::try_acquire(path) {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) => {}
                Err(error) => return Err(Error::io(format!("cannot lock `{}`", path.display()), error)),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = cancel.cancelled() => return Err(Error::cancelled()),
            }
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread has just forked has a copy of the
        // descriptor until it executes its program, and with it the lock.
        let _ = self.file.unlock();
    }
}

/// One lock per key, among tasks and among processes.
#[derive(Debug)]
pub struct KeyedLocks {
    directory: PathBuf,
    layout: Layout,
    /// Guards the table of keys somebody of this process holds or waits for; never held across an
    /// await.
    held: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// Where the lock files are.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// `<directory>/<prefix>-<key>`.
    Prefixed(&'static str),
    /// `<directory>/<key>/<name>`.
    InFolder(&'static str),
}

/// Holds one key of [`KeyedLocks`]. The file lock goes before this process's next waiter is let in.
#[derive(Debug)]
pub struct KeyedGuard {
    file: FileLock,
    _queue: OwnedMutexGuard<()>,
}

impl KeyedGuard {
    pub fn file(&self) -> &File {
        self.file.file()
    }
}

impl KeyedLocks {
    /// Lock files are `<directory>/<prefix>-<key>`.
    pub fn new(directory: PathBuf, prefix: &'static str) -> Self {
        Self { directory, layout: Layout::Prefixed(prefix), held: Mutex::new(HashMap::new()) }
    }

    /// Lock files are `<directory>/<key>/<name>`: they go with the folder of the thing they guard,
    /// so a holder has to make sure that the thing is still there.
    pub fn in_folders(directory: PathBuf, name: &'static str) -> Self {
        Self { directory, layout: Layout::InFolder(name), held: Mutex::new(HashMap::new()) }
    }

    /// Waits for the key. `key` must be safe as part of a file name.
    pub async fn acquire(&self, key: &str, cancel: &CancellationToken) -> Result<KeyedGuard> {
        let queue = self.queue(key);
        let queue = tokio::select! {
            guard = queue.lock_owned() => guard,
            () = cancel.cancelled() => return Err(Error::cancelled()),
        };
        let file = FileLock::acquire(&self.path(key), cancel).await?;
        Ok(KeyedGuard { file, _queue: queue })
    }

    /// Takes the key if nobody holds it.
    pub fn try_acquire(&self, key: &str) -> Result<Option<KeyedGuard>> {
        let Ok(queue) = self.queue(key).try_lock_owned() else { return Ok(None) };
        let path = self.path(key);
        let file = FileLock::try_acquire(&path)
            .map_err(|error| Error::io(format!("cannot lock `{}`", path.display()), error))?;
        Ok(file.map(|file| KeyedGuard { file, _queue: queue }))
    }

    /// The lock file of a key.
    pub fn path(&self, key: &str) -> PathBuf {
        match self.layout {
            Layout::Prefixed(prefix) => self.directory.join(format!("{prefix}-{key}")),
            Layout::InFolder(name) => self.directory.join(key).join(name),
        }
    }

    fn queue(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = held.get(key).and_then(Weak::upgrade) {
            return queue;
        }
        held.retain(|_, queue| queue.strong_count() > 0);
        let queue = Arc::new(tokio::sync::Mutex::new(()));
        held.insert(key.to_owned(), Arc::downgrade(&queue));
        queue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_held_once_and_other_keys_do_not_wait() {
        let folder = tempfile::tempdir().unwrap();
        let locks = KeyedLocks::new(folder.path().into(), "image");
        let cancel = CancellationToken::new();
        let first = locks.acquire("a", &cancel).await.unwrap();
        let _other = locks.acquire("b", &cancel).await.unwrap();
        assert!(locks.try_acquire("a").unwrap().is_none());
        drop(first);
        assert!(locks.try_acquire("a").unwrap().is_some());
    }

    #[tokio::test]
    async fn a_wait_for_another_process_can_be_cancelled() {
        let folder = tempfile::tempdir().unwrap();
        // A second table stands for a second process: it shares nothing but the file.
        let here = KeyedLocks::new(folder.path().into(), "image");
        let there = KeyedLocks::new(folder.path().into(), "image");
        let cancel = CancellationToken::new();
        let _held = there.acquire("a", &cancel).await.unwrap();
        let waiting = here.acquire("a", &cancel);
        cancel.cancel();
        assert!(waiting.await.unwrap_err().is_cancelled());
    }
}
