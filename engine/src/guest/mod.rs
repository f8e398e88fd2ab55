//! The host's side of the guest channel.
//!
//! A machine has [`CHANNELS`] virtio-serial ports, each a unix socket `channel-<n>.sock` in its
//! folder. A socket takes one client, so a vmdeck process that wants to talk takes the lock
//! `channel-<n>.lock` of a free one; within a process one [`GuestChannel`] carries any number of
//! sessions. A guest is not trusted: what it sends is bounded and never names a path of the host.

pub mod settings;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

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
}

/// Why the guest's init gave up. Text from a guest: show it escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFailure {
    pub class: crate::vm::record::BootFailureClass,
    pub message: String,
}

/// A connection to a machine's agent. Cheap to clone; closed when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct GuestChannel {}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    pub columns: u16,
    pub rows: u16,
}

/// A command to run in the guest.
#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    /// Program and arguments; empty for the user's login shell.
    pub command: Vec<String>,
    /// `NAME=value`, added to the environment of the image.
    pub environment: Vec<String>,
    pub working_directory: Option<String>,
    /// As in the image config: `user`, `uid`, `user:group`; root by default.
    pub user: Option<String>,
    /// A pty of this size instead of pipes.
    pub pty: Option<WindowSize>,
    /// `TERM` for a pty.
    pub term: Option<String>,
}

/// What a command writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutput {
    /// Standard output, or everything when it has a pty.
    Stdout(Bytes),
    Stderr(Bytes),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecStatus {
    Exited(u8),
    Signalled(i32),
}

/// A command running in the guest. Dropping all of it hangs it up.
#[derive(Debug)]
pub struct ExecSession {
    /// Dropping it closes the command's standard input.
    pub input: ExecInput,
    /// Bounded: not reading it stops the command's writes, nobody else's. Ends with the command.
    pub output: mpsc::Receiver<ExecOutput>,
    pub control: ExecControl,
    pub end: ExecEnd,
}

/// The end of a command, to be waited for.
#[derive(Clone, Debug)]
pub struct ExecEnd {
    status: watch::Receiver<Option<ExecStatus>>,
}

/// Standard input of a command.
#[derive(Debug)]
pub struct ExecInput {}

/// Signals and window sizes for a command.
#[derive(Clone, Debug)]
pub struct ExecControl {}

impl GuestChannel {
    /// Takes a free channel of the machine in `directory` and connects; waits when all are in use.
    /// Does not wait for the guest to answer.
    pub async fn connect(_directory: &Path, _cancel: &CancellationToken) -> Result<Self> {
        Err(Error::failed("the guest channel is being written"))
    }

    /// What the guest reports; changes as it boots. The sender goes when the connection breaks.
    pub fn progress(&self) -> watch::Receiver<GuestProgress> {
        watch::channel(GuestProgress::default()).1
    }

    /// Waits until commands can be run.
    pub async fn ready(&self) -> Result<()> {
        Err(Error::failed("the guest channel is being written"))
    }

    /// Starts a command. A command that cannot be started is an error that says why.
    pub async fn exec(&self, _request: ExecRequest) -> Result<ExecSession> {
        Err(Error::failed("the guest channel is being written"))
    }

    /// Asks the agent to stop the services, sync the disks and power off. Returns when it agreed.
    pub async fn power_off(&self) -> Result<()> {
        Err(Error::failed("the guest channel is being written"))
    }
}

impl ExecEnd {
    /// Waits for the end of the command.
    pub async fn status(&mut self) -> Result<ExecStatus> {
        let status = self.status.wait_for(Option::is_some).await;
        status
            .ok()
            .and_then(|status| *status)
            .ok_or_else(|| Error::failed("the connection to the guest broke"))
    }
}

impl ExecInput {
    /// Waits while the command does not read.
    pub async fn write(&mut self, _bytes: Bytes) -> Result<()> {
        Err(Error::failed("the guest channel is being written"))
    }
}

impl ExecControl {
    /// Sends a signal (Linux number) to the command's process group.
    pub async fn signal(&self, _signal: i32) -> Result<()> {
        Err(Error::failed("the guest channel is being written"))
    }

    pub async fn resize(&self, _size: WindowSize) -> Result<()> {
        Err(Error::failed("the guest channel is being written"))
    }
}
