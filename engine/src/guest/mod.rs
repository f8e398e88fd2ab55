//! The host's side of the guest channel.
//!
//! A machine has [`CHANNELS`] virtio-serial ports, each a unix socket `channel-<n>.sock` in its
//! folder. A socket takes one client, so a vmdeck process that wants to talk takes the lock
//! `channel-<n>.lock` of a free one; within a process one [`GuestChannel`] carries any number of
//! sessions. A guest is not trusted: what it sends is bounded and never names a path of the host.

mod connection;
mod exec;
pub mod settings;
mod socket;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vmdeck_protocol::message::{FailureClass, Grow, HostMessage, PowerOff, Stage};
use vmdeck_protocol::service::Serve;
pub use vmdeck_protocol::service::{CONNECTED, Service};
pub use vmdeck_protocol::stats::{self, Stats as GuestStats};

use crate::error::{Error, Result};
use crate::vm::record::BootFailureClass;
use connection::Connection;
use exec::UnknownRequest;
pub use exec::{
    ExecControl, ExecEnd, ExecInput, ExecOutput, ExecRequest, ExecSession, ExecStatus, WindowSize,
};

/// Ports per machine: so many vmdeck processes can talk to one guest at once.
pub const CHANNELS: usize = 8;

/// The static binary that is init and agent inside the machine.
pub const GUEST_BINARY: &[u8] = include_bytes!(env!("VMDECK_GUEST_BINARY"));

/// How far the guest has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GuestStage {
    /// Our init runs in the initramfs.
    Init,
    /// The root and work disks are mounted, the network is set.
    Root,
    /// Handed over to the image's init, or staying as the init itself; the agent answers.
    Agent,
    /// Commands can be run.
    Ready,
}

/// What the guest has told of its boot so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestProgress {
    /// Stages reached, with the time since the guest's kernel started.
    pub stages: Vec<(GuestStage, Duration)>,
    /// Set when the guest's init gave up: what it could not do.
    pub failure: Option<GuestFailure>,
    /// What the guest says `uname -r` is.
    pub release: Option<String>,
    /// What did not work and the machine does without. Text from a guest: show it escaped.
    pub warnings: Vec<String>,
}

/// Why the guest's init gave up. Text from a guest: show it escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFailure {
    pub class: BootFailureClass,
    pub message: String,
}

/// How long an agent that said it is ready may take to answer a request. Under TCG on a busy host
/// starting a process takes a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// As much as is kept of what the agent says to what it could not do.
const MAX_SAID: usize = 2000;

/// How long the services of a guest may take to stop before its power goes off regardless.
const POWER_OFF_GRACE: Duration = Duration::from_secs(10);

/// A connection to a machine's agent. Cheap to clone; closed when the last clone and the last part
/// of its [`ExecSession`]s is dropped.
#[derive(Clone, Debug)]
pub struct GuestChannel {
    connection: Arc<Connection>,
}

impl GuestChannel {
    /// Takes a free channel of the machine in `directory` and connects; waits when all are in use
    /// or the hypervisor has not made them yet. Does not wait for the guest to answer.
    pub async fn connect(directory: &Path, cancel: &CancellationToken) -> Result<Self> {
        let socket = socket::connect(directory, cancel).await?;
        Ok(Self { connection: Arc::new(Connection::start(socket)?) })
    }

    /// What the guest reports; changes as it boots. The sender goes when the connection breaks.
    pub fn progress(&self) -> watch::Receiver<GuestProgress> {
        self.connection.progress.clone()
    }

    /// Waits until commands can be run. Ends with an error when the guest's init gave up or the
    /// connection broke; how long a boot may take is for the caller to say.
    pub async fn ready(&self) -> Result<()> {
        let mut progress = self.progress();
        let settled =
            progress.wait_for(|progress| progress.failure.is_some() || progress.has(GuestStage::Ready)).await;
        match settled.as_deref() {
            Ok(GuestProgress { failure: Some(failure), .. }) => {
                Err(Error::failed(format!("the machine could not boot: {}", failure.message.escape_debug())))
            }
            Ok(_) => Ok(()),
            Err(_) => Err(self.connection.broken()),
        }
    }

    /// Starts a command, once the guest is ready. A command that cannot be started is an error that
    /// says why. Dropping the future hangs up what was started.
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecSession> {
        self.ready().await?;
        let starting = exec::start(&self.connection, request)?;
        match tokio::time::timeout(ANSWER_TIMEOUT, starting).await {
            Ok(started) => started,
            Err(_) => Err(silent("start the command")),
        }
    }

    /// Starts a service of the agent's own, as a user of the machine (root when there is none): it
    /// needs no program of the image. Dropping the future hangs up what was started.
    pub async fn serve(&self, service: Service, user: Option<String>) -> Result<ExecSession> {
        self.ready().await?;
        let starting = exec::serve(&self.connection, Serve { service, user })?;
        match tokio::time::timeout(ANSWER_TIMEOUT, starting).await {
            Ok(started) => started,
            Err(_) => Err(silent("start a service")),
        }
    }

    /// Reads what the machine is doing: processors, memory, disks, network. Names in it are the
    /// guest's: show them escaped.
    pub async fn stats(&self) -> Result<GuestStats> {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.connection.stats()).await {
            Ok(stats) => stats,
            Err(_) => Err(silent("tell what the machine is doing")),
        }
    }

    /// Has the guest write out what the file systems of its disks hold in memory.
    pub async fn sync(&self) -> Result<()> {
        self.have_done(|stream| HostMessage::Sync { stream }).await
    }

    /// Has the guest grow its file systems to disks that have this length now.
    pub async fn grow(&self, bytes: u64) -> Result<()> {
        self.have_done(|stream| HostMessage::Grow { stream, grow: Grow { bytes } }).await
    }

    /// Asks for something and waits until it is done. An agent that is older and does not know the
    /// request is an error that [`is_unknown`] tells. How long it may take is for the caller to say.
    async fn have_done(&self, request: impl FnOnce(u32) -> HostMessage) -> Result<()> {
        self.ready().await?;
        let starting = exec::ask(&self.connection, request)?;
        let started = tokio::time::timeout(ANSWER_TIMEOUT, starting).await;
        let mut session = started.map_err(|_| silent("do as it was asked"))??;
        drop(session.input);
        let mut said = Vec::new();
        while let Some(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes)) = session.output.recv().await {
            let room = MAX_SAID.saturating_sub(said.len());
            said.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
        match session.end.status().await? {
            ExecStatus::Exited(0) => Ok(()),
            _ => Err(Error::failed(String::from_utf8_lossy(&said).trim().escape_debug().to_string())),
        }
    }

    /// Asks the agent to stop the services, sync the disks and power off. Returns when it agreed.
    pub async fn power_off(&self) -> Result<()> {
        let grace_milliseconds = u64::try_from(POWER_OFF_GRACE.as_millis()).unwrap_or(u64::MAX);
        let agreed = self.connection.power_off(PowerOff { grace_milliseconds });
        match tokio::time::timeout(ANSWER_TIMEOUT, agreed).await {
            Ok(agreed) => agreed,
            Err(_) => Err(silent("power off")),
        }
    }
}

impl GuestProgress {
    /// Whether this stage or a later one was reached.
    pub fn has(&self, stage: GuestStage) -> bool {
        self.stages.iter().any(|(reached, _)| *reached >= stage)
    }
}

/// Whether an error means that the machine's agent is older than what it was asked for.
pub fn is_unknown(error: &Error) -> bool {
    let refusal = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<UnknownRequest>());
    refusal.is_some()
}

fn silent(what: &str) -> Error {
    Error::failed(format!("the machine's agent did not {what} within {} seconds", ANSWER_TIMEOUT.as_secs()))
        .with_hint("`vmdeck vm logs` shows the machine's console; `vmdeck vm stop --force` ends it")
}

impl From<Stage> for GuestStage {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Init => Self::Init,
            Stage::Root => Self::Root,
            Stage::Agent => Self::Agent,
            Stage::Ready => Self::Ready,
        }
    }
}

/// The class a boot that ended in the guest's init is shown as.
fn boot_failure_class(class: FailureClass) -> BootFailureClass {
    match class {
        FailureClass::NoRootDevice => BootFailureClass::NoRootDevice,
        FailureClass::RootNotAFileSystem => BootFailureClass::RootNotAFileSystem,
        FailureClass::WrongArchitecture => BootFailureClass::WrongArchitecture,
        FailureClass::Network => BootFailureClass::Network,
        FailureClass::NoInit | FailureClass::Settings | FailureClass::Other => BootFailureClass::NoInit,
    }
}
