//! Grows file systems to the length of their disks, in the background.
//!
//! The kernel does it while they are in use, but what it has begun cannot be interrupted, and a disk
//! cannot be made safe meanwhile. So it is done in steps, and whoever switches the machine off stops
//! it between two of them.

use std::fs::{self, File};
use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::stat::{fstat, major, minor};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, fstatfs};

use crate::{log, system};

/// Bytes added in one step, at most: some groups of blocks, a fraction of a second's work.
const STEP: u64 = 1024 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Growth {
    /// Guards whether it goes on and may go on; held to look and to change, not during a step.
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    running: bool,
    stopped: bool,
}

/// The growth of this machine's disks: there is one, and switching off must find it.
pub(super) static GROWTH: Growth =
    Growth { state: Mutex::new(State { running: false, stopped: false }), changed: Condvar::new() };

impl Growth {
    /// Grows the ext4 file systems mounted at these paths; others are left alone.
    pub(super) fn run(&self, mount_points: &[&str]) {
        self.state().running = true;
        let mut done = Vec::new();
        for path in mount_points {
            let Ok(directory) = File::open(path) else { continue };
            let Ok(device) = fstat(&directory).map(|stat| stat.st_dev) else { continue };
            if done.contains(&device) {
                continue;
            }
            done.push(device);
            if let Err(error) = self.grow(&directory, device) {
                log::warning(&format!("the file system at `{path}` was not grown: {error}"));
            }
        }
        self.state().running = false;
        self.changed.notify_all();
    }

    /// Lets no further step begin, and waits for the one that has.
    pub(super) fn stop(&self, longest: Duration) {
        let mut state = self.state();
        state.stopped = true;
        let waited = self.changed.wait_timeout_while(state, longest, |state| state.running);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn grow(&self, directory: &File, device: u64) -> io::Result<()> {
        // In sectors of 512 bytes, whatever the device's own are.
        let sectors = fs::read_to_string(format!("/sys/dev/block/{}:{}/size", major(device), minor(device)))?;
        let sectors: u64 = sectors.trim_end().parse().map_err(io::Error::other)?;
        let status = fstatfs(directory)?;
        if status.filesystem_type() != EXT4_SUPER_MAGIC {
            return Ok(());
        }
        let block = u64::try_from(status.block_size()).map_err(io::Error::other)?.max(1024);
        let target = sectors * 512 / block;
        // `blocks()` leaves out what the file system uses for itself, some percent. A disk that is
        // not clearly larger is left alone: the call would find nothing to do, but it is not free.
        let mut blocks = status.blocks();
        if target <= blocks + blocks / 16 {
            return Ok(());
        }
        while blocks < target && !self.state().stopped {
            blocks = (blocks + (STEP / block).max(1)).min(target);
            match system::resize_ext4(directory, blocks) {
                Ok(()) => {}
                // A step that is less than what there is already.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && blocks < target => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
