//! Finds the machine's virtio-serial ports.
//!
//! The kernel learns a port's name by a message from the hypervisor, some time after the port
//! itself appeared, so the search is repeated: often at first, then ever more seldom.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmdeck_protocol::PORT_PREFIX;

const PORTS: &str = "/sys/class/virtio-ports";
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Ports that have not appeared by then were not given to the machine.
const GIVE_UP: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Discovery {
    began: Instant,
    pause: Duration,
    next: Option<Instant>,
    found: BTreeSet<PathBuf>,
}

impl Discovery {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { began: now, pause: FIRST_PAUSE, next: Some(now), found: BTreeSet::new() }
    }

    /// When [`scan`](Self::scan) is worth calling again.
    pub(super) fn next_scan(&self) -> Option<Instant> {
        self.next
    }

    /// Opens ports not seen before, if it is time to look.
    pub(super) fn scan(&mut self) -> Vec<OwnedFd> {
        let now = Instant::now();
        if self.next.is_none_or(|next| next > now) {
            return Vec::new();
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.next = (now.duration_since(self.began) < GIVE_UP).then(|| now + self.pause);
        let Ok(entries) = fs::read_dir(PORTS) else { return Vec::new() };
        let mut opened = Vec::new();
        for entry in entries.flatten() {
            let device = Path::new("/dev").join(entry.file_name());
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if !name.starts_with(PORT_PREFIX) || self.found.contains(&device) {
                continue;
            }
            let port = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&device);
            match port {
                Ok(port) => {
                    self.found.insert(device);
                    opened.push(OwnedFd::from(port));
                }
                // Its node may come a moment after its entry.
                Err(error) if now.duration_since(self.began) > LONGEST_PAUSE * 5 => {
                    crate::log::warning(&format!("`{}` cannot be opened: {error}", device.display()));
                }
                Err(_) => {}
            }
        }
        opened
    }
}
