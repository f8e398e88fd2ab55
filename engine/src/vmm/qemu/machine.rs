//! A running QEMU: commands to it, and its end.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustix::fs::{Mode, OFlags};
use serde_json::json;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::super::{Machine, MachineStatus};
use super::command::{CONTROL_SOCKET, NETDEV, host_side};
use super::qmp::{Qmp, QmpError};
use crate::error::{Error, Result};
use crate::lock::FileLock;
use crate::process::{PidFd, ProcessIdentity};
use crate::vm::record::PortForward;

/// How long a command waits for other vmdeck processes to be done with theirs.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long QEMU may take to quit by itself.
const QUIT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to one QEMU process. Holds no lock and no socket between commands.
#[derive(Debug)]
pub(super) struct QemuMachine {
    directory: PathBuf,
    /// The machine's folder: its socket is reached by it, however long the folder's path is.
    folder: OwnedFd,
    identity: ProcessIdentity,
    process: PidFd,
}

impl QemuMachine {
    /// Takes hold of that very process. Fails with [`crate::ErrorKind::NotFound`] when it has ended
    /// or is not the hypervisor of this folder.
    pub(super) fn open(directory: &Path, identity: &ProcessIdentity) -> Result<Self> {
        let gone = |what: &str| {
            Error::not_found(format!(
                "process {} {what} the hypervisor of `{}`",
                identity.pid,
                directory.display()
            ))
        };
        let fail = |error| Error::io(format!("cannot look at process {}", identity.pid), error);
        let folder = open_folder(directory)?;
        let process = PidFd::open(identity).map_err(fail)?.ok_or_else(|| gone("is no more"))?;
        // Its working directory is the machine's folder since it was started.
        let theirs = match rustix::fs::stat(format!("/proc/{}/cwd", identity.pid)) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH) => return Err(gone("is no more")),
            Err(error) => return Err(fail(error.into())),
        };
        let ours = rustix::fs::fstat(&folder).map_err(|error| fail(error.into()))?;
        if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino) {
            return Err(gone("is not"));
        }
        Ok(Self { directory: directory.to_owned(), folder, identity: identity.clone(), process })
    }

    /// Runs commands on the control socket, which serves one client at a time.
    async fn control<T>(&self, work: impl AsyncFnOnce(&mut Qmp) -> Result<T, QmpError>) -> Result<T> {
        let (lock, never) = (self.directory.join("qmp.lock"), CancellationToken::new());
        let turn = tokio::time::timeout(TURN_TIMEOUT, FileLock::acquire(&lock, &never)).await;
        let _turn = turn.map_err(|_| {
            Error::conflict(format!(
                "another vmdeck process has been talking to the hypervisor of `{}` for more than {} s",
                self.directory.display(),
                TURN_TIMEOUT.as_secs()
            ))
        })??;
        let path = format!("/proc/self/fd/{}/{CONTROL_SOCKET}", self.folder.as_raw_fd());
        let result = async {
            let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => QmpError::Closed,
                _ => QmpError::Io(error),
            })?;
            work(&mut Qmp::negotiate(stream).await?).await
        };
        result.await.map_err(|error| self.error(error))
    }

    fn error(&self, error: QmpError) -> Error {
        let directory = self.directory.display();
        if !self.identity.is_alive() {
            return Error::not_found(format!("the hypervisor of `{directory}` has ended"));
        }
        Error::failed(format!("the hypervisor of `{directory}` cannot be controlled")).with_source(error)
    }
}

impl Machine for QemuMachine {
    fn process(&self) -> &ProcessIdentity {
        &self.identity
    }

    fn status(&self) -> BoxFuture<'_, Result<MachineStatus>> {
        Box::pin(async {
            let answer = self.control(async |qmp| qmp.execute("query-status", json!({})).await).await?;
            Ok(status(answer["status"].as_str().unwrap_or_default()))
        })
    }

    fn press_power_button(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.control(async |qmp| qmp.execute("system_powerdown", json!({})).await.map(drop)).await
        })
    }

    fn terminate(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let fail = |error| Error::io(format!("cannot end process {}", self.identity.pid), error);
            let ended = async {
                // QEMU may close its socket before it has answered, which is as good.
                match self.control(async |qmp| qmp.execute("quit", json!({})).await.map(drop)).await {
                    Ok(()) => {}
                    Err(error) => tracing::debug!(%error, "a hypervisor did not take the order to quit"),
                }
                self.process.wait().await
            };
            if let Ok(result) = tokio::time::timeout(QUIT_TIMEOUT, ended).await {
                return result.map_err(fail);
            }
            self.process.kill().map_err(fail)?;
            self.process.wait().await.map_err(fail)
        })
    }

    fn wait(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let fail = |error| Error::io(format!("cannot wait for process {}", self.identity.pid), error);
            self.process.wait().await.map_err(fail)
        })
    }

    fn add_forward<'a>(&'a self, forward: &'a PortForward) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let rule = host_side(forward);
            let line = format!("hostfwd_add {NETDEV} {rule}-:{}", forward.guest_port);
            match self.control(async |qmp| qmp.human(&line).await).await? {
                said if said.is_empty() => Ok(()),
                said if said.contains("Could not set up host forwarding rule") => {
                    Err(Error::conflict(format!("the host's port {rule} is in use"))
                        .with_hint("choose another one, or end what listens there (`ss -ltnup` shows it)"))
                }
                said => Err(Error::failed(format!("the forward {rule} cannot be added: {said}"))),
            }
        })
    }

    fn remove_forward<'a>(&'a self, forward: &'a PortForward) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let rule = host_side(forward);
            let line = format!("hostfwd_remove {NETDEV} {rule}");
            match self.control(async |qmp| qmp.human(&line).await).await? {
                said if said.ends_with("removed") => Ok(()),
                said if said.ends_with("not found") => {
                    Err(Error::not_found(format!("there is no forward {rule}")))
                }
                said => Err(Error::failed(format!("the forward {rule} cannot be removed: {said}"))),
            }
        })
    }
}

/// `RunState` of QEMU's qapi/run-state.json.
fn status(name: &str) -> MachineStatus {
    match name {
        "running" => MachineStatus::Running,
        "shutdown" => MachineStatus::Shutdown,
        "guest-panicked" | "internal-error" | "io-error" => MachineStatus::Broken,
        _ => MachineStatus::Paused,
    }
}

/// Opens the machine's folder as a place to find its sockets from.
pub(super) fn open_folder(directory: &Path) -> Result<OwnedFd> {
    rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(
        |error| {
            Error::io(format!("cannot open the machine's folder `{}`", directory.display()), error.into())
        },
    )
}
