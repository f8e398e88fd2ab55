//! The boundary to the hypervisor: what the rest of the engine may ask of one, and nothing of how
//! QEMU does it.
//!
//! A machine's hypervisor is a process of its own session that outlives this one; every handle here
//! is only a connection to it and may be dropped at any time.

pub mod qcow2;
pub mod qemu;

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::lock::FileLock;
use crate::process::ProcessIdentity;
use crate::vm::record::PortForward;

/// How guest instructions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    Kvm,
    /// QEMU's translator: works everywhere, slow.
    Tcg,
}

/// Which accelerator to use, and the reason a user is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceleratorVerdict {
    pub accelerator: Accelerator,
    /// One sentence: why this one, and for TCG why not KVM.
    pub reason: String,
}

/// Everything a hypervisor needs to know of a machine.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// The machine's folder. Put here, mode 0600: `qmp.sock`, `channel-<n>.sock` (host ends of the
    /// virtio-serial ports, see [`crate::guest`]), `console.sock`, `console.log` (at most 16 MiB; what was before it is
    /// in `console.log.1`).
    pub directory: PathBuf,
    /// For the process title; has passed the check of names.
    pub name: String,
    pub accelerator: Accelerator,
    pub cpus: u32,
    pub memory_mib: u64,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub command_line: String,
    pub disks: Vec<Disk>,
    pub network: NetworkAttachment,
    pub lan: Option<LanAttachment>,
}

#[derive(Clone, Debug)]
pub struct Disk {
    pub path: PathBuf,
    pub format: DiskFormat,
    pub read_only: bool,
    /// virtio-blk serial: how the guest and the calls of [`Machine`] tell disks apart. At most 20
    /// ASCII letters, digits, `-`, `.` and `_`, beginning with a letter.
    pub serial: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    Raw,
    Qcow2,
}

#[derive(Clone, Debug)]
pub enum NetworkAttachment {
    None,
    /// The hypervisor's own user-mode network.
    User {
        network: UserNetwork,
        /// Only forwards lead in, and nothing leads out, not even to the host.
        isolated: bool,
        mac: String,
        forwards: Vec<PortForward>,
    },
    /// A tap that is there for as long as a descriptor of it is open: whoever launches closes this one
    /// once the hypervisor has its own.
    Tap {
        device: Arc<OwnedFd>,
        mac: String,
    },
}

/// A second network card, whose frames travel as datagrams between unix sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanAttachment {
    pub mac: String,
    /// Names within the machine's folder, made of letters, digits, `-` and `.`: where the hypervisor
    /// listens, and where it sends to.
    pub guest_socket: &'static str,
    pub switch_socket: &'static str,
}

/// Addresses of a user-mode network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserNetwork {
    /// Network address, `10.x.y.0`.
    pub network: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub resolver: Ipv4Addr,
    pub guest: Ipv4Addr,
}

/// A hypervisor.
pub trait Vmm: std::fmt::Debug + Send + Sync + 'static {
    /// Which accelerator this host really runs guests with. The proof is kept (by boot of the host,
    /// hypervisor version, CPU), so that only the first call takes long.
    fn accelerator<'a>(&'a self, cancel: &'a CancellationToken) -> BoxFuture<'a, Result<AcceleratorVerdict>>;

    /// Records that an accelerator failed to run a guest it was thought to run.
    fn distrust_accelerator(&self, accelerator: Accelerator, reason: &str) -> Result<()>;

    /// Starts the process in a session of its own. When this returns, the process answers on its
    /// control socket and the guest's CPUs run. When it fails, no process is left.
    ///
    /// `identity` is called with the process before the guest runs, so that it is on record before
    /// anything can go wrong.
    fn launch<'a>(
        &'a self,
        spec: &'a MachineSpec,
        identity: Box<dyn FnOnce(ProcessIdentity) -> BoxFuture<'static, Result<()>> + Send + 'a>,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Box<dyn Machine>>>;

    /// Connects to a process started earlier, perhaps by another vmdeck process.
    fn attach<'a>(
        &'a self,
        directory: &'a Path,
        process: &'a ProcessIdentity,
    ) -> BoxFuture<'a, Result<Box<dyn Machine>>>;

    /// How the last run of a machine ended, as its hypervisor wrote it down: known also when no
    /// vmdeck process was there to see it. Asked once the process is gone.
    fn ending(&self, directory: &Path) -> Ending;

    /// Whether a machine's guest stands still, as its hypervisor wrote it down; `None` when that
    /// cannot be told. Asked while the process runs.
    fn standing_still(&self, directory: &Path) -> Option<bool>;
}

/// How a run ended, as far as the hypervisor knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest asked for a reset; machines are not reset in place, so this ended it.
    Reset,
    /// The guest's kernel panicked (told only where the guest has the driver for it; otherwise a
    /// panic looks like [`Self::Reset`]).
    Panicked,
    /// This engine had the hypervisor quit.
    Quit,
    /// The hypervisor got a signal that it could obey.
    Signal,
    /// It still runs, or was killed, or crashed.
    Unknown,
}

/// A running hypervisor process.
pub trait Machine: Send + Sync {
    fn process(&self) -> &ProcessIdentity;

    fn status(&self) -> BoxFuture<'_, Result<MachineStatus>>;

    /// Presses the ACPI power button.
    fn press_power_button(&self) -> BoxFuture<'_, Result<()>>;

    /// Ends the process: asks it to quit, and kills it when it does not within a second.
    fn terminate(&self) -> BoxFuture<'_, Result<()>>;

    /// Waits until the process is gone (by pidfd, without polling) and what the guest printed last is
    /// in `console.log`. Gives its exit status, which is known only to the vmdeck process that launched it.
    fn wait(&self) -> BoxFuture<'_, Result<Option<ExitStatus>>>;

    fn add_forward<'a>(&'a self, forward: &'a PortForward) -> BoxFuture<'a, Result<()>>;

    fn remove_forward<'a>(&'a self, forward: &'a PortForward) -> BoxFuture<'a, Result<()>>;

    /// Stops the guest's CPUs where they are. No error when they stand still already.
    fn pause(&self) -> BoxFuture<'_, Result<()>>;

    /// Lets the guest's CPUs go on, also after [`MachineStatus::IoError`].
    fn resume(&self) -> BoxFuture<'_, Result<()>>;

    /// Makes the disk with this serial longer; the guest sees it at once. The new end reads as zeros.
    fn grow_disk<'a>(&'a self, serial: &'a str, bytes: u64) -> BoxFuture<'a, Result<()>>;

    /// File of the disk with this serial as the hypervisor names it: a path, or text that holds one.
    /// `None` when the machine has no such disk.
    fn disk_file<'a>(&'a self, serial: &'a str) -> BoxFuture<'a, Result<Option<String>>>;

    /// Puts new overlays on disks, all at the same moment: from then on the guest writes into the
    /// overlays, and the files below them are a snapshot. Each overlay was made by
    /// [`qcow2::create_overlay`] over the disk's file, with the disk's length. When this fails, the
    /// disks are as they were.
    ///
    /// What a guest holds in memory is not in the snapshot: have its file systems synced or frozen.
    fn snapshot_disks<'a>(&'a self, overlays: &'a [DiskOverlay]) -> BoxFuture<'a, Result<()>>;

    /// Connects to the guest's serial console, which one client at a time has; another one is a
    /// [`crate::ErrorKind::Conflict`]. What the guest prints goes into `console.log` all the same.
    fn console(&self) -> BoxFuture<'_, Result<Console>>;
}

/// A new overlay for a disk of a running machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOverlay {
    pub serial: String,
    /// The overlay's file, qcow2.
    pub path: PathBuf,
}

/// A connection to a serial console: bytes from the guest and to it. A client that does not read
/// makes the guest wait.
#[derive(Debug)]
pub struct Console {
    pub stream: UnixStream,
    _turn: FileLock,
}

impl Console {
    /// `turn` is held for as long as the client is connected.
    fn new(stream: UnixStream, turn: FileLock) -> Self {
        Self { stream, _turn: turn }
    }
}

/// What the hypervisor says of its guest (QMP `query-status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineStatus {
    Running,
    Paused,
    /// The guest powered itself off or asked for it.
    Shutdown,
    /// Guest panicked, or the accelerator hit an internal error.
    Broken,
    /// The host's disk is full (or failed): the guest stands still, unharmed, and can be resumed
    /// when there is room again.
    IoError,
}
