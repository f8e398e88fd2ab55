//! What a machine is, as the store keeps it and the screens show it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::pending::{Pending, StartedWith};
use crate::clock::Milliseconds;
use crate::identifier::{ImageId, VmId};
use crate::process::ProcessIdentity;
use crate::vmm::Accelerator;

/// ```text
///                          paused
///                           ▲ ▼
/// created ─▶ starting ─▶ running ─▶ stopping ─▶ stopped ─▶ starting …
///               └─▶ failed ◀─┘ (guest or hypervisor ended by itself with an error)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Reserved, never booted.
    Created,
    Starting,
    /// The agent answered once and the hypervisor runs.
    Running,
    /// The guest's CPUs stand still: somebody asked for it, or the host's disk is full.
    Paused,
    Stopping,
    Stopped,
    /// The last boot or run failed; the boot says why.
    Failed,
}

impl VmState {
    pub const ALL: [Self; 7] = [
        Self::Created,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Failed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether a hypervisor process belongs to this state.
    pub fn has_process(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused | Self::Stopping)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    pub id: VmId,
    pub name: String,
    pub state: VmState,
    pub image_id: ImageId,
    /// Name of that image now.
    pub image: String,
    /// What it runs with, if it runs; else that of its next start. So are the settings.
    pub kernel: String,
    pub created_at: Milliseconds,
    pub settings: VmSettings,
    /// What of these its next start changes, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    pub run: Option<VmRun>,
    /// Leased address of the guest.
    pub address: Option<Ipv4Addr>,
    /// The newest boot.
    pub boot: Option<Boot>,
    /// How the last run ended; none while one runs and before the first.
    #[serde(default)]
    pub ended: Option<VmEnd>,
    /// What was done before the first boot, and how long it took.
    #[serde(default)]
    pub creation: Option<Creation>,
    /// Set by the user, to tell machines apart by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSettings {
    pub cpus: u32,
    pub memory_mib: u64,
    /// Length of the root disk in bytes.
    pub disk_bytes: u64,
    pub network: NetworkMode,
    #[serde(default)]
    pub ports: Vec<PortForward>,
    /// Replaces the image's command when not empty.
    #[serde(default)]
    pub command: Vec<String>,
    /// `NAME=value`, added to the image's environment.
    #[serde(default)]
    pub environment: Vec<String>,
    /// Whether the machine has its work disk at the home of root. The disk is kept while it has not.
    #[serde(default = "yes")]
    pub work_disk: bool,
}

/// Machines had a work disk before there was a choice.
fn yes() -> bool {
    true
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// By the hypervisor, without root: out by its sockets, in by forwarded ports. What the guest
    /// sends to its gateway reaches this host's loopback interface.
    User,
    /// Forwarded ports lead in, and nothing leads out: neither to a network nor to this host.
    Isolated,
    /// As `User`, and a second network card that leads to the other machines of this mode.
    Lan,
    Bridge,
    None,
}

/// A port of the host's loopback interface that leads into the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForward {
    pub protocol: Protocol,
    pub host_address: Ipv4Addr,
    pub host_port: u16,
    pub guest_port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

/// The hypervisor process of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRun {
    pub process: ProcessIdentity,
    pub accelerator: Accelerator,
    pub started_at: Milliseconds,
    /// Where in `console.log` this run begins, in bytes.
    #[serde(default)]
    pub console_start: u64,
    /// The ports it was told to forward, last; they differ from the settings only while they are changed.
    /// Unknown of machines that an older vmdeck started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwards: Option<Vec<PortForward>>,
    /// Unknown likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_with: Option<StartedWith>,
}

/// How a run of a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmEnd {
    /// When it was noticed.
    pub at: Milliseconds,
    pub cause: VmEndCause,
    /// One sentence for a person.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmEndCause {
    /// vmdeck was asked to stop it, and the agent powered the guest off.
    StoppedByAgent,
    /// vmdeck was asked to stop it, and the guest obeyed the power button.
    StoppedByPowerButton,
    /// vmdeck was asked to stop it, and had to end the hypervisor.
    Killed,
    /// The guest powered itself off or rebooted.
    GuestEnded,
    GuestPanicked,
    /// The hypervisor ended without the guest having powered off.
    HypervisorEnded,
    /// The boot failed; it says why.
    BootFailed,
    BootCancelled,
    /// The vmdeck process that started it ended before there was a hypervisor.
    Abandoned,
    /// The host was restarted while the machine ran.
    HostRestarted,
    /// The process on record belongs to another data directory: this one is a copy.
    Elsewhere,
}

/// Times of what comes before a machine's first boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Creation {
    pub started_at: Milliseconds,
    pub resolve_ms: u64,
    pub reserve_ms: u64,
}

/// One boot: its phases with their times, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Number of the row in the store; 0 before it has one.
    #[serde(default)]
    pub id: i64,
    pub started_at: Milliseconds,
    pub accelerator: Option<Accelerator>,
    pub phases: Vec<BootPhase>,
    pub failure: Option<BootFailure>,
    /// What did not work and the machine does without, as this host found and its guest told until it was
    /// ready. In part text of the guest: show it escaped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Boot {
    /// Whether it came to a machine that was ready.
    pub fn succeeded(&self) -> bool {
        let ready =
            |phase: &BootPhase| phase.name == BootPhaseName::Ready && phase.status == BootPhaseStatus::Done;
        self.failure.is_none() && self.phases.iter().any(ready)
    }

    /// Why the image's command could not be run, where it could not.
    pub fn command_not_run(&self) -> Option<&str> {
        let warnings = self.warnings.iter();
        warnings.map(String::as_str).find(|text| text.starts_with(vmdeck_protocol::COMMAND_NOT_RUN))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootPhase {
    pub name: BootPhaseName,
    pub status: BootPhaseStatus,
    pub started_at: Option<Milliseconds>,
    pub duration_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootPhaseName {
    Resolve,
    Reserve,
    Disk,
    Network,
    Vmm,
    Kernel,
    Init,
    Agent,
    Ready,
}

impl BootPhaseName {
    pub const ALL: [Self; 9] = [
        Self::Resolve,
        Self::Reserve,
        Self::Disk,
        Self::Network,
        Self::Vmm,
        Self::Kernel,
        Self::Init,
        Self::Agent,
        Self::Ready,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Reserve => "reserve",
            Self::Disk => "disk",
            Self::Network => "network",
            Self::Vmm => "vmm",
            Self::Kernel => "kernel",
            Self::Init => "init",
            Self::Agent => "agent",
            Self::Ready => "ready",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootPhaseStatus {
    Pending,
    Active,
    Done,
    Failed,
    Skipped,
}

/// Why a boot failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFailure {
    pub class: BootFailureClass,
    pub message: String,
    pub hint: String,
    /// Last lines of the serial console, control characters taken out.
    pub console_tail: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootFailureClass {
    NoRootDevice,
    RootNotAFileSystem,
    NoInit,
    KernelPanic,
    WrongArchitecture,
    AcceleratorDied,
    OutOfMemory,
    Network,
    AgentSilent,
    HypervisorMissing,
    HypervisorExited,
    Stalled,
    Cancelled,
    /// This host could not do its part: its disk is full, a file is gone.
    Host,
    /// The vmdeck process that drove the boot ended before the machine was ready.
    Abandoned,
}
