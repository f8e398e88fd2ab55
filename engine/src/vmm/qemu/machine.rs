//! A running QEMU: commands to it, and its end.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::super::{Console, DiskOverlay, Machine, MachineStatus};
use super::command::{CONSOLE_SOCKET, CONTROL_SOCKET, NETDEV, host_side};
use super::qmp::{Qmp, QmpError};
use super::recorder;
use crate::error::{Error, Result};
use crate::lock::FileLock;
use crate::process::detached::Detached;
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
    /// Where this process started it.
    launched: Option<Detached>,
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
        let (directory, identity) = (directory.to_owned(), identity.clone());
        Ok(Self { directory, folder, identity, process, launched: None })
    }

    /// The same for a process that this one has started.
    pub(super) fn of(directory: &Path, launched: Detached) -> Result<Self, Detached> {
        match Self::open(directory, launched.identity()) {
            Ok(machine) => Ok(Self { launched: Some(launched), ..machine }),
            Err(_) => Err(launched),
        }
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
        let result = async {
            let stream = self.connect(CONTROL_SOCKET).await?;
            work(&mut Qmp::negotiate(stream).await?).await
        };
        result.await.map_err(|error| self.error(error))
    }

    async fn blocks(&self) -> Result<Value> {
        self.control(async |qmp| qmp.execute("query-block", json!({})).await).await
    }

    /// Connects to a socket in the machine's folder.
    async fn connect(&self, socket: &str) -> Result<UnixStream, QmpError> {
        let path = format!("/proc/self/fd/{}/{socket}", self.folder.as_raw_fd());
        UnixStream::connect(path).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => QmpError::Closed,
            _ => QmpError::Io(error),
        })
    }

    fn error(&self, error: QmpError) -> Error {
        let directory = self.directory.display();
        if !self.identity.is_alive() {
            return Error::not_found(format!("the hypervisor of `{directory}` has ended"));
        }
        Error::failed(format!("the hypervisor of `{directory}` cannot be controlled"))
            .with_source(error)
            .with_hint("`vmdeck vm stop NAME` stops the machine, by force if need be")
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
            match tokio::time::timeout(QUIT_TIMEOUT, ended).await {
                Ok(result) => result.map_err(fail)?,
                Err(_) => {
                    self.process.kill().map_err(fail)?;
                    self.process.wait().await.map_err(fail)?;
                }
            }
            recorder::drained(&self.directory).await;
            Ok(())
        })
    }

    fn wait(&self) -> BoxFuture<'_, Result<Option<ExitStatus>>> {
        Box::pin(async {
            let fail = |error| Error::io(format!("cannot wait for process {}", self.identity.pid), error);
            self.process.wait().await.map_err(fail)?;
            let status = match &self.launched {
                Some(launched) => launched.wait().await,
                None => None,
            };
            recorder::drained(&self.directory).await;
            Ok(status)
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

    fn pause(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { self.control(async |qmp| qmp.execute("stop", json!({})).await.map(drop)).await })
    }

    fn resume(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { self.control(async |qmp| qmp.execute("cont", json!({})).await.map(drop)).await })
    }

    fn grow_disk<'a>(&'a self, serial: &'a str, bytes: u64) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let blocks = self.blocks().await?;
            let (node, length) = find_disk(&blocks, serial)?;
            if bytes < length {
                return Err(Error::usage(format!(
                    "the disk `{serial}` is {length} bytes long and cannot be made shorter"
                )));
            }
            let arguments = json!({"node-name": node, "size": bytes});
            self.control(async |qmp| qmp.execute("block_resize", arguments).await.map(drop)).await
        })
    }

    fn disk_file<'a>(&'a self, serial: &'a str) -> BoxFuture<'a, Result<Option<String>>> {
        Box::pin(async move {
            let blocks = self.blocks().await?;
            Ok(find_inserted(&blocks, serial)
                .and_then(|inserted| inserted["image"]["filename"].as_str())
                .map(str::to_owned))
        })
    }

    fn snapshot_disks<'a>(&'a self, overlays: &'a [DiskOverlay]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let blocks = self.blocks().await?;
            let mut disks = Vec::new();
            for overlay in overlays {
                let path = overlay.path.strip_prefix(&self.directory).unwrap_or(&overlay.path);
                let path = path.to_str().ok_or_else(|| {
                    Error::usage(format!("the path of the disk `{}` is no UTF-8", overlay.path.display()))
                })?;
                disks.push((find_disk(&blocks, &overlay.serial)?.0, path.to_owned()));
            }
            self.control(async |qmp| snapshot(qmp, &disks).await).await
        })
    }

    fn console(&self) -> BoxFuture<'_, Result<Console>> {
        Box::pin(async {
            let lock = self.directory.join("console.lock");
            let turn = FileLock::try_acquire(&lock)
                .map_err(|error| Error::io(format!("cannot lock `{}`", lock.display()), error))?
                .ok_or_else(|| {
                    Error::conflict(format!(
                        "another terminal is attached to the console of `{}`",
                        self.directory.display()
                    ))
                    .with_hint("detach there first, or read along with `vmdeck vm logs --follow`")
                })?;
            let stream = self.connect(CONSOLE_SOCKET).await.map_err(|error| self.error(error))?;
            Ok(Console::new(stream, turn))
        })
    }
}

/// Makes each node the backing file of a new one, all or none.
async fn snapshot(qmp: &mut Qmp, disks: &[(String, String)]) -> Result<(), QmpError> {
    let (mut added, mut actions) = (Vec::new(), Vec::new());
    let result = async {
        for (node, path) in disks {
            // Names of nodes are taken for good; the file's name is new with each snapshot, but may
            // be long, so that only what tells it apart is used.
            let name = overlay_node(path);
            let block = json!({
                "driver": "qcow2", "node-name": name, "discard": "unmap", "backing": null,
                "file": {"driver": "file", "filename": path, "discard": "unmap"},
            });
            qmp.execute("blockdev-add", block).await?;
            actions.push(json!({"type": "blockdev-snapshot", "data": {"node": node, "overlay": name}}));
            added.push(name);
        }
        qmp.execute("transaction", json!({"actions": actions})).await.map(drop)
    }
    .await;
    if result.is_err() {
        for name in added {
            if let Err(error) = qmp.execute("blockdev-del", json!({"node-name": name})).await {
                tracing::warn!(name, %error, "an unused disk stays open in the hypervisor");
            }
        }
    }
    result
}

/// A node name for an overlay: at most 31 bytes, told apart by a checksum of the path.
fn overlay_node(path: &str) -> String {
    format!("overlay-{:08x}", crc32fast::hash(path.as_bytes()))
}

/// Node in use and length of the disk with this serial, from what `query-block` answers. After a
/// snapshot the node is another one.
fn find_disk(blocks: &Value, serial: &str) -> Result<(String, u64)> {
    let found = find_inserted(blocks, serial).and_then(|inserted| {
        Some((inserted["node-name"].as_str()?.to_owned(), inserted["image"]["virtual-size"].as_u64()?))
    });
    found.ok_or_else(|| Error::not_found(format!("the machine has no disk `{serial}`")))
}

/// What `query-block` says of the medium of the disk with this serial.
fn find_inserted<'a>(blocks: &'a Value, serial: &str) -> Option<&'a Value> {
    // `/machine/peripheral/<id>/virtio-backend`
    let is_it = |block: &&Value| {
        block["qdev"].as_str().is_some_and(|path| path.split('/').any(|part| part == serial))
    };
    blocks.as_array().and_then(|blocks| blocks.iter().find(is_it)).map(|block| &block["inserted"])
}

/// `RunState` of QEMU's qapi/run-state.json.
fn status(name: &str) -> MachineStatus {
    match name {
        "running" => MachineStatus::Running,
        "shutdown" => MachineStatus::Shutdown,
        "guest-panicked" | "internal-error" => MachineStatus::Broken,
        "io-error" => MachineStatus::IoError,
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
