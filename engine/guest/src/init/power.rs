//! Switching the machine off: the services first, then the disks, then the power.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};
use vmdeck_protocol::message::PowerOff;

use crate::agent::PowerSwitch;
use crate::command::{DEFAULT_PATH, is_executable};
use crate::{log, system};

use super::growth::GROWTH;
use super::handover::InitKind;

/// What systemd takes for "start poweroff.target" (systemd(1), signals): SIGRTMIN+4, counted from
/// libc's first real-time signal.
const SYSTEMD_POWER_OFF: i32 = 34 + 4;

/// What busybox and sysvinit take for "power off" (init(8)).
const INIT_POWER_OFF: i32 = libc::SIGUSR2;

/// How long the program that tells the image's init may take to say that it cannot.
const ASK_GRACE: Duration = Duration::from_secs(2);

/// How long the growth of a file system may take to come to a point where it can stop.
const STEP_GRACE: Duration = Duration::from_secs(3);

/// Longest time between SIGTERM to all that is left and SIGKILL.
const TERMINATE_GRACE: Duration = Duration::from_secs(2);

const PAUSE: Duration = Duration::from_millis(10);

/// Who starts and stops the machine's services.
#[derive(Clone, Debug)]
pub(super) enum Supervisor {
    /// The image's own init.
    Image(InitKind),
    /// Nobody: there is only the image's command.
    Small { entrypoint: Entrypoint, stop_signal: i32 },
}

/// The process of the image's command, while it runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Entrypoint {
    /// 0 when there is none.
    pid: Arc<AtomicI32>,
    stopping: Arc<AtomicBool>,
}

impl Entrypoint {
    pub(super) fn set(&self, pid: Pid) {
        self.pid.store(pid.as_raw(), Ordering::Release);
    }

    /// It ended. Returns whether it did so by itself.
    pub(super) fn clear(&self) -> bool {
        self.pid.store(0, Ordering::Release);
        !self.stopping.load(Ordering::Acquire)
    }

    fn get(&self) -> Option<Pid> {
        Some(self.pid.load(Ordering::Acquire)).filter(|pid| *pid > 0).map(Pid::from_raw)
    }
}

/// What the agent does when an engine asks for the power to be switched off. It is done by a thread:
/// the agent goes on serving, and a second request changes nothing.
pub(super) fn switch(supervisor: Supervisor) -> PowerSwitch {
    let begun = Arc::new(AtomicBool::new(false));
    Box::new(move |request: &PowerOff| {
        if begun.swap(true, Ordering::SeqCst) {
            return;
        }
        let grace = Duration::from_millis(request.grace_milliseconds).min(Duration::from_secs(3600));
        let supervisor = supervisor.clone();
        log::info("switching off, as the engine asks");
        std::thread::spawn(move || match supervisor {
            Supervisor::Image(kind) => {
                let end = Instant::now() + grace;
                GROWTH.stop(STEP_GRACE);
                ask_init(kind);
                // When the image's init does it there is nobody to come back to.
                std::thread::sleep(end.saturating_duration_since(Instant::now()));
                log::error("the services did not stop in time: switching off without them");
                off(None, RebootMode::RB_POWER_OFF)
            }
            Supervisor::Small { entrypoint, stop_signal } => {
                let stop = entrypoint.get().map(|pid| Stop { pid, signal: stop_signal, grace, entrypoint });
                off(stop, RebootMode::RB_POWER_OFF)
            }
        });
    })
}

/// A command that gets its own signal and time before everything else ends.
#[derive(Debug)]
pub(super) struct Stop {
    pid: Pid,
    signal: i32,
    grace: Duration,
    entrypoint: Entrypoint,
}

/// Ends all processes, makes the disks safe, and switches off or restarts.
pub(super) fn off(stop: Option<Stop>, how: RebootMode) -> ! {
    if let Some(stop) = stop {
        stop.entrypoint.stopping.store(true, Ordering::Release);
        system::kill_group(stop.pid, stop.signal);
        until(stop.grace, || stop.entrypoint.get().is_none());
    }
    GROWTH.stop(STEP_GRACE);
    let everybody = Pid::from_raw(-1);
    let _ = kill(everybody, Signal::SIGTERM);
    let _ = kill(everybody, Signal::SIGCONT);
    until(TERMINATE_GRACE, || !others_run());
    let _ = kill(everybody, Signal::SIGKILL);
    sync();
    make_safe();
    let _ = reboot(how);
    // Where that does not work, ending the first process ends the machine as well.
    std::process::exit(0)
}

/// Tells the image's init to go down.
fn ask_init(kind: InitKind) {
    if kind == InitKind::Systemd && system::kill_process(Pid::from_raw(1), SYSTEMD_POWER_OFF).is_ok() {
        return;
    }
    // Each init knows its own way; the program that comes with it knows it too. It may wait for the
    // end itself, so only its failure is waited for.
    let program = DEFAULT_PATH.split(':').map(|folder| format!("{folder}/poweroff"));
    let started = program.into_iter().find(|program| is_executable(program)).and_then(|program| {
        Command::new(program)
            .env_clear()
            .env("PATH", DEFAULT_PATH)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()
    });
    let failed = match started {
        Some(mut child) => {
            let mut ended = None;
            until(ASK_GRACE, || {
                ended = child.try_wait().ok().flatten();
                ended.is_some()
            });
            ended.is_some_and(|status| !status.success())
        }
        None => true,
    };
    if failed {
        let _ = system::kill_process(Pid::from_raw(1), INIT_POWER_OFF);
    }
}

/// Whether there are processes beside the first, this one and the kernel's threads.
fn others_run() -> bool {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return false };
    entries.flatten().any(|entry| {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            return false;
        };
        // The kernel's threads, and what has ended already, have no command line.
        pid != 1 && pid != own && fs::read(entry.path().join("cmdline")).is_ok_and(|line| !line.is_empty())
    })
}

/// Writes everything out and leaves no file system that needs its journal. The deepest mounts are
/// the last of the list.
fn make_safe() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut disks: Vec<&str> = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        if let (Some(device), Some(path)) = (fields.next(), fields.next())
            && (device.starts_with("/dev/") || path == "/")
        {
            disks.push(path);
        }
    }
    for path in disks.iter().rev() {
        // Paths with spaces are escaped in the list; such a mount is remounted with the rest below.
        if *path != "/" && umount2(*path, MntFlags::empty()).is_ok() {
            continue;
        }
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let _ = mount(None::<&str>, *path, None::<&str>, flags, None::<&str>);
    }
    sync();
}

fn until(longest: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + longest;
    while !done() && Instant::now() < end {
        std::thread::sleep(PAUSE);
    }
}
