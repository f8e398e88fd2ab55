//! Waiting, in a task, until a file descriptor can be read. Unsafe code of the engine is here,
//! in [`crate::process::detached`] and where taps are made.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A file descriptor registered with the runtime's reactor, and what owns it.
#[derive(Debug)]
pub struct Readable<T> {
    descriptor: AsyncFd<Registered>,
    owner: T,
}

/// A duplicate that this module alone owns, so that it stays open as long as it is registered.
#[derive(Debug)]
struct Registered(OwnedFd);

impl AsRawFd for Registered {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl<T: AsFd> Readable<T> {
    /// Must be called within a tokio runtime. Reads must not block (`O_NONBLOCK`).
    pub fn new(owner: T) -> io::Result<Self> {
        let registered = Registered(owner.as_fd().try_clone_to_owned()?);
        // SAFETY: `Registered` owns its descriptor, gives the same one for as long as it lives, and
        // nothing but its drop closes it; the `AsyncFd` deregisters it before that.
        let descriptor = unsafe { AsyncFd::register_with_interest(registered, Interest::READABLE) }?;
        Ok(Self { descriptor, owner })
    }

    pub fn get_ref(&self) -> &T {
        &self.owner
    }

    /// Runs `read` when the descriptor is readable, again and again until it gives something other
    /// than [`io::ErrorKind::WouldBlock`].
    pub async fn read<R>(&self, mut read: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        loop {
            let mut ready = self.descriptor.readable().await?;
            match read(&self.owner) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                result => return result,
            }
        }
    }

    /// Waits until the descriptor is readable, and reads nothing.
    pub async fn wait(&self) -> io::Result<()> {
        self.descriptor.readable().await.map(drop)
    }
}
