//! SIGINT, SIGTERM and SIGHUP as something to await.

use tokio::signal::unix::{Signal, SignalKind, signal};
use vmdeck_engine::{Error, Result};

pub(crate) struct Interrupt {
    signals: [Signal; 3],
    times: u32,
}

impl Interrupt {
    /// From now on these signals no longer end the process.
    pub(crate) fn new() -> Result<Self> {
        let open = |kind| signal(kind).map_err(|error| Error::io("cannot listen for signals", error));
        Ok(Self {
            signals: [
                open(SignalKind::interrupt())?,
                open(SignalKind::terminate())?,
                open(SignalKind::hangup())?,
            ],
            times: 0,
        })
    }

    /// Waits for the next one; returns how many there were. Cancel-safe.
    pub(crate) async fn next(&mut self) -> u32 {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        self.times += 1;
        self.times
    }
}
