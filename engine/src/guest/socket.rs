//! Taking one of a machine's channels.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::lock::FileLock;

use super::CHANNELS;

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// A connected channel. The lock goes after the socket, so that the next holder finds it free.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) stream: UnixStream,
    pub(super) lock: FileLock,
}

/// Takes a free channel and connects to it. Tries again while all are taken, or while there is
/// nobody to connect to: a hypervisor makes its sockets some time after its start.
pub(super) async fn connect(directory: &Path, cancel: &CancellationToken) -> Result<Socket> {
    let folder = open(directory, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|error| Error::io(format!("cannot open `{}`", directory.display()), error.into()))?;
    let mut pause = FIRST_PAUSE;
    loop {
        for number in 0..CHANNELS {
            let path = directory.join(format!("channel-{number}.lock"));
            let lock = FileLock::try_acquire(&path)
                .map_err(|error| Error::io(format!("cannot lock `{}`", path.display()), error))?;
            let Some(lock) = lock else { continue };
            match connect_one(&folder, number).await {
                Ok(stream) => return Ok(Socket { stream, lock }),
                Err(error) if is_temporary(&error) => {}
                Err(error) => {
                    return Err(Error::io(
                        format!(
                            "cannot connect to channel {number} of the machine in `{}`",
                            directory.display()
                        ),
                        error,
                    ));
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancel.cancelled() => return Err(Error::cancelled()),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// By way of the open folder: the path of a socket is limited to 108 bytes, a data directory's is
/// not.
async fn connect_one(folder: &OwnedFd, number: usize) -> io::Result<UnixStream> {
    UnixStream::connect(format!("/proc/self/fd/{}/channel-{number}.sock", folder.as_raw_fd())).await
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            // The queue of a listener is full: its one client is still there.
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::Interrupted
    )
}
