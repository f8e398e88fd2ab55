//! A process held by a descriptor: a signal sent through it can hit no other process, whatever
//! becomes of the pid (pidfd_open(2), Linux 5.3).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::ProcessIdentity;
use crate::readiness::Readable;

/// A process that ran when it was opened, and is told apart from all later ones.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens that very process; `None` when it does not run any more (a zombie does not run).
    pub fn open(identity: &ProcessIdentity) -> io::Result<Option<Self>> {
        let pid = Pid::from_raw(identity.pid).ok_or(io::ErrorKind::InvalidInput)?;
        let descriptor = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(descriptor) => descriptor,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Looked at after opening: when it is the right process now, then no other can have had
        // this pid before.
        Ok(identity.is_alive().then_some(Self(descriptor)))
    }

    /// Sends SIGKILL. A process that has already ended is no error.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.0, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process has ended; its files are closed and its locks are free by then. Must
    /// be called within a tokio runtime.
    pub async fn wait(&self) -> io::Result<()> {
        Readable::new(self)?.wait().await
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_end_is_noticed_and_only_the_right_process_is_opened() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let identity = ProcessIdentity::of(i32::try_from(child.id()).unwrap()).unwrap();
        let other = ProcessIdentity { start_time: identity.start_time + 1, ..identity.clone() };
        assert!(PidFd::open(&other).unwrap().is_none());
        let process = PidFd::open(&identity).unwrap().unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), process.wait()).await.is_err());
        process.kill().unwrap();
        tokio::time::timeout(Duration::from_secs(45), process.wait()).await.unwrap().unwrap();
        assert!(PidFd::open(&identity).unwrap().is_none(), "a zombie does not run");
        child.wait().unwrap();
        process.kill().unwrap();
    }
}
