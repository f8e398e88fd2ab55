//! Connections to guests that are kept a little longer than they are used.
//!
//! A guest has few channels, and every vmdeck process that talks to it takes one: so one is shared by
//! all sessions of this process, and given back soon after the last began.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::guest::GuestChannel;
use crate::identifier::VmId;
use crate::process::ProcessIdentity;

/// How long a connection is kept after a session was begun on it. Sessions under way keep it open.
pub(super) const KEPT: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Channels {
    /// Guards the table; never held across an await.
    open: Mutex<HashMap<VmId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    channel: GuestChannel,
    /// The run it leads to: the next run of the same machine has other channels.
    process: ProcessIdentity,
    used: Instant,
}

impl Channels {
    /// The connection to this run of a machine, if there is one that works.
    pub(super) fn get(&self, id: &VmId, process: &ProcessIdentity) -> Option<GuestChannel> {
        let mut open = self.lock();
        let entry = open.get_mut(id).filter(|entry| entry.process == *process)?;
        // The sender of progress goes when the connection breaks.
        if entry.channel.progress().has_changed().is_err() {
            open.remove(id);
            return None;
        }
        entry.used = Instant::now();
        Some(entry.channel.clone())
    }

    pub(super) fn put(&self, id: &VmId, process: &ProcessIdentity, channel: GuestChannel) {
        let entry = Entry { channel, process: process.clone(), used: Instant::now() };
        self.lock().insert(id.clone(), entry);
    }

    pub(super) fn forget(&self, id: &VmId) {
        self.lock().remove(id);
    }

    /// Gives back what was not used for [`KEPT`]; returns whether any are left.
    pub(super) fn purge(&self) -> bool {
        let mut open = self.lock();
        open.retain(|_, entry| entry.used.elapsed() < KEPT);
        !open.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
