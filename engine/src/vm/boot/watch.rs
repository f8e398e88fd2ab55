//! Watching a guest come up: its own reports, its console, its process.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::classify::Trouble;
use super::console::LogTail;
use super::recorder::Recorder;
use super::stall::{Bounds, Sample, StallMeter, process_times};
use crate::error::Result;
use crate::guest::{GuestChannel, GuestFailure, GuestProgress, GuestStage};
use crate::vm::record::BootPhaseName;
use crate::vmm::{Accelerator, Machine, MachineStatus};

/// How often the console and the process are looked at. The guest's own reports are not waited for
/// by looking: they arrive.
const PERIOD: Duration = Duration::from_millis(250);
/// Every so many looks the hypervisor is asked whether its guest still runs.
const STATUS_EVERY: u32 = 4;

/// How long a channel may take to give what lies in it after its machine ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How the watch ended.
#[derive(Debug)]
pub(in crate::vm) enum Outcome {
    /// Commands can be run, through this.
    Ready(GuestChannel),
    Trouble(Trouble),
    Cancelled,
}

/// Watches until the machine is ready, fails, or the token is cancelled; advances the record.
pub(in crate::vm) async fn watch(
    machine: &dyn Machine,
    directory: &Path,
    accelerator: Accelerator,
    console: &mut LogTail,
    recorder: &mut Recorder,
    cancel: &CancellationToken,
) -> Result<Outcome> {
    let pid = machine.process().pid;
    let started = Instant::now();
    let sample = || {
        let (cpu, starved) = process_times(pid);
        Sample { wall: started.elapsed(), cpu, starved }
    };
    let mut meter = StallMeter::new(Bounds::of(accelerator), sample());
    let mut connection = Connection::None;
    let mut looks = 0u32;
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ended = machine.wait();
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(Outcome::Cancelled),
            // Before the end of the process: what it reported last may say why it ended.
            progress = connection.changed() => {
                let Some(progress) = progress else {
                    connection = Connection::None;
                    continue;
                };
                if let Some(failure) = progress.failure {
                    return Ok(Outcome::Trouble(Trouble::Guest(failure)));
                }
                for (stage, _) in &progress.stages {
                    if *stage == GuestStage::Ready && let Connection::Open(channel, _) = connection {
                        return Ok(Outcome::Ready(channel));
                    }
                    let before = recorder.active();
                    recorder.phase(phase_after(*stage)).await?;
                    if recorder.active() != before {
                        meter.stage(sample());
                    }
                }
            }
            result = &mut ended => {
                let status = result?;
                return Ok(Outcome::Trouble(match connection.last_words().await {
                    Some(failure) => Trouble::Guest(failure),
                    None => Trouble::Ended(status),
                }));
            }
            _ = ticks.tick() => {
                looks += 1;
                connection.renew(directory, cancel).await;
                let now = sample();
                if console.grew() {
                    meter.sign(now);
                }
                if let Some(stall) = meter.verdict(now) {
                    return Ok(Outcome::Trouble(Trouble::Stalled(stall)));
                }
                // An error means a process that is just ending, which is heard of by itself.
                if looks.is_multiple_of(STATUS_EVERY)
                    && let Ok(MachineStatus::Broken) = machine.status().await
                {
                    return Ok(Outcome::Trouble(Trouble::Broken));
                }
            }
        }
    }
}

/// The phase that begins when the guest has reached a stage.
fn phase_after(stage: GuestStage) -> BootPhaseName {
    match stage {
        GuestStage::Init => BootPhaseName::Init,
        GuestStage::Root => BootPhaseName::Agent,
        GuestStage::Agent | GuestStage::Ready => BootPhaseName::Ready,
    }
}

/// The connection to the guest, which may break and is made anew then.
#[derive(Debug)]
enum Connection {
    None,
    Open(GuestChannel, watch::Receiver<GuestProgress>),
}

impl Connection {
    /// The next report; `None` when the connection broke. Waits for ever where there is none.
    async fn changed(&mut self) -> Option<GuestProgress> {
        match self {
            Self::None => std::future::pending().await,
            Self::Open(_, progress) => {
                progress.changed().await.ok()?;
                Some(progress.borrow_and_update().clone())
            }
        }
    }

    /// Why the guest gave up, from what it had sent before its machine ended and nobody had read yet.
    async fn last_words(&mut self) -> Option<GuestFailure> {
        let read = async {
            while let Some(progress) = self.changed().await {
                if progress.failure.is_some() {
                    return progress.failure;
                }
            }
            None
        };
        tokio::time::timeout(LAST_WORDS, read).await.ok().flatten()
    }

    async fn renew(&mut self, directory: &Path, cancel: &CancellationToken) {
        if let Self::Open(..) = self {
            return;
        }
        // Not all channels can be taken by others at this time, so this does not wait.
        let connecting = GuestChannel::connect(directory, cancel);
        match tokio::time::timeout(PERIOD, connecting).await {
            Ok(Ok(channel)) => {
                let mut progress = channel.progress();
                // What was reported before is news to this watch.
                progress.mark_changed();
                *self = Self::Open(channel, progress);
            }
            Ok(Err(error)) => tracing::debug!(%error, "no channel to the guest yet"),
            Err(_) => {}
        }
    }
}
