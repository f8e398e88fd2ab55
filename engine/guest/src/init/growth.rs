//! Grows file systems to the length of their disks, in the background.
//!
//! The kernel does it while they are in use, but what it has begun cannot be interrupted, and a disk
//! cannot be made safe meanwhile. So it is done in steps, and whoever switches the machine off stops
//! it between two of them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::stat::{fstat, major, minor};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, fstatfs};

use crate::{log, system};

/// Bytes added in one step, at most: some groups of blocks, a fraction of a second's work.
const STEP: u64 = 1024 * 1024 * 1024;

/// Bytes that are worth growing by, at least.
const LEAST: u64 = 16 * 1024 * 1024;

/// How long the kernel may take to hear of a disk's new length.
const HEARD_OF: Duration = Duration::from_secs(10);

/// How long somebody else may grow the same file system.
const BUSY: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(crate) struct Growth {
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
pub(crate) static GROWTH: Growth =
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

    /// Grows the one mounted at this path, once its disk has this length: the kernel may be about to
    /// hear of it. For a process that nobody has to stop but by ending it.
    pub(crate) fn run_for(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let directory = File::open(path)?;
        let device = fstat(&directory)?.st_dev;
        let end = Instant::now() + HEARD_OF;
        while length(device)? < bytes {
            if Instant::now() > end {
                return Err(io::Error::other(format!("its disk is not {bytes} bytes long")));
            }
            std::thread::sleep(PAUSE);
        }
        self.grow(&directory, device)
    }

    /// Lets no further step begin, and waits for the one that has.
    pub(super) fn stop(&self, longest: Duration) {
        let mut state = self.state();
        state.stopped = true;
        let waited = self.changed.wait_timeout_while(state, longest, |state| state.running);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn grow(&self, directory: &File, device: u64) -> io::Result<()> {
        let status = fstatfs(directory)?;
        if status.filesystem_type() != EXT4_SUPER_MAGIC {
            return Ok(());
        }
        let block = u64::try_from(status.block_size()).map_err(io::Error::other)?.max(1024);
        let target = length(device)? / block;
        let mut blocks = blocks(device)?;
        // A rest that is not worth a group of blocks may not be usable: the call would find nothing to
        // do, but it is not free.
        if target <= blocks + LEAST / block {
            return Ok(());
        }
        let end = Instant::now() + BUSY;
        while blocks < target && !self.state().stopped {
            let next = (blocks + (STEP / block).max(1)).min(target);
            match system::resize_ext4(directory, next) {
                Ok(()) => blocks = next,
                // Somebody else grows it: the growth of the boot, or another request.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                    std::thread::sleep(PAUSE);
                    blocks = self::blocks(device)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Length of a block device in bytes.
fn length(device: u64) -> io::Result<u64> {
    // In sectors of 512 bytes, whatever the device's own are.
    let sectors = fs::read_to_string(format!("/sys/dev/block/{}:{}/size", major(device), minor(device)))?;
    let sectors: u64 = sectors.trim_end().parse().map_err(io::Error::other)?;
    Ok(sectors * 512)
}

/// Blocks of the mounted ext4 file system on a device, all of them: statfs(2) leaves out what it uses
/// for itself. The kernel keeps the superblock that is in use where the device is read from
/// (`filesystems/ext4/globals.rst`: `s_blocks_count`).
fn blocks(device: u64) -> io::Result<u64> {
    let event = fs::read_to_string(format!("/sys/dev/block/{}:{}/uevent", major(device), minor(device)))?;
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| io::Error::other("its device has no name"))?;
    let mut superblock = [0; 1024];
    File::open(Path::new("/dev").join(name))?.read_exact_at(&mut superblock, 1024)?;
    blocks_of(&superblock).ok_or_else(|| io::Error::other("its superblock makes no sense"))
}

fn blocks_of(superblock: &[u8; 1024]) -> Option<u64> {
    const MAGIC: [u8; 2] = [0x53, 0xef];
    const INCOMPAT_64BIT: u32 = 0x80;
    let word = |at: usize| superblock.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let high = if word(0x60)? & INCOMPAT_64BIT != 0 { word(0x150)? } else { 0 };
    (superblock[0x38..0x3a] == MAGIC).then_some(u64::from(high) << 32 | u64::from(word(0x4)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_those_of_the_superblock() {
        let mut superblock = [0; 1024];
        assert_eq!(blocks_of(&superblock), None);
        superblock[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        superblock[0x4..0x8].copy_from_slice(&7_u32.to_le_bytes());
        superblock[0x150] = 1;
        assert_eq!(blocks_of(&superblock), Some(7));
        superblock[0x60] = 0x80;
        assert_eq!(blocks_of(&superblock), Some((1 << 32) + 7));
    }
}
