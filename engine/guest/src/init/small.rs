//! Our own small init, for images without one: runs the image's entrypoint, reaps what is left over.
//!
//! The first process only waits: the agent, a child, starts the entrypoint and serves the channels.
//! Should the agent ever die, it is started again.

use std::convert::Infallible;
use std::os::fd::AsFd;
use std::process::Stdio;

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::RebootMode;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use vmdeck_protocol::COMMAND_NOT_RUN;
use vmdeck_protocol::message::{Exec, Failure};
use vmdeck_protocol::settings::Settings;

use crate::agent::Agent;
use crate::{command, log, system};

use super::power::{self, Entrypoint, Supervisor};
use super::{handover, other};

/// Stays as the first process.
pub(super) fn run(agent: &mut Agent, settings: &Settings, home: &str) -> Result<Infallible, Failure> {
    control_groups();
    // Blocked before the first child, so that no end of one is missed.
    let signals = watched_signals();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None).map_err(|error| other("signals", error))?;
    let mut child = fork_agent(agent, settings, home, true)?;
    // The ports are the agent's now; a port cannot be opened twice.
    agent.release();
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if reap(child) {
                    log::error("the agent ended and is started again");
                    std::thread::sleep(handover::RESTART_PAUSE);
                    *agent = agent.successor().map_err(|error| other("the agent", error))?;
                    child = fork_agent(agent, settings, home, false)?;
                    agent.release();
                }
            }
            // What `reboot`, `poweroff` and `halt` of busybox and sysvinit tell an init.
            Ok(Signal::SIGTERM | Signal::SIGINT) => power::off(None, RebootMode::RB_AUTOBOOT),
            Ok(_) => power::off(None, RebootMode::RB_POWER_OFF),
            Err(error) => log::error(&format!("init cannot wait for signals: {error}")),
        }
    }
}

fn watched_signals() -> SigSet {
    let mut signals = SigSet::empty();
    for signal in
        [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPWR]
    {
        signals.add(signal);
    }
    signals
}

/// Takes the status of all children that ended. Returns whether the agent is among them.
fn reap(agent: Pid) -> bool {
    let mut agent_ended = false;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return agent_ended,
            Ok(status) => agent_ended |= status.pid() == Some(agent),
            // The rest of a real-time signal that nix has no name for: reaped all the same.
            Err(nix::errno::Errno::EINVAL) => {}
            Err(_) => return agent_ended,
        }
    }
}

fn fork_agent(agent: &mut Agent, settings: &Settings, home: &str, first: bool) -> Result<Pid, Failure> {
    if let Some(child) = system::fork().map_err(|error| other("the agent's process", error))? {
        return Ok(child);
    }
    // Its children must not inherit the first process's mask.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    let entrypoint = Entrypoint::default();
    let stop_signal = settings.stop_signal.as_deref().and_then(command::signal_number);
    agent.set_power_switch(power::switch(Supervisor::Small {
        entrypoint: entrypoint.clone(),
        stop_signal: stop_signal.unwrap_or(libc::SIGTERM),
    }));
    if first {
        start_entrypoint(settings, &entrypoint);
    }
    log::leave_console();
    let _ = nix::unistd::setsid();
    handover::serve(agent, home)
}

fn start_entrypoint(settings: &Settings, entrypoint: &Entrypoint) {
    if settings.entrypoint.is_empty() {
        return log::info("the image has no command either: the machine waits for `vmdeck vm exec`");
    }
    let console = || match nix::fcntl::open(
        "/dev/console",
        OFlag::O_WRONLY | OFlag::O_NOCTTY | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    ) {
        Ok(console) => Stdio::from(console),
        Err(_) => Stdio::null(),
    };
    let exec = Exec {
        command: settings.entrypoint.clone(),
        working_directory: settings.working_directory.clone().filter(|directory| !directory.is_empty()),
        user: settings.user.clone(),
        ..Exec::default()
    };
    let started = command::start_detached(&exec, &settings.environment, Stdio::null(), console(), console());
    match started {
        Ok((pid, pidfd)) => {
            log::info(&format!("running the image's command as process {pid}"));
            entrypoint.set(pid);
            let entrypoint = entrypoint.clone();
            std::thread::spawn(move || {
                let mut poll = [nix::poll::PollFd::new(pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
                while nix::poll::poll(&mut poll, nix::poll::PollTimeout::NONE).is_err() {}
                let ended = match waitpid(pid, None) {
                    Ok(WaitStatus::Exited(_, code)) => format!("ended with {code}"),
                    Ok(WaitStatus::Signaled(_, signal, _)) => format!("was ended by {signal}"),
                    Ok(_) | Err(_) => "ended".to_owned(),
                };
                if entrypoint.clear() {
                    log::error(&format!("the image's command {ended}; the machine stays up"));
                }
            });
        }
        Err(refusal) => {
            log::warning(&format!("{COMMAND_NOT_RUN}: {}", refusal.message));
        }
    }
}

/// Programs that limit what they start look for control groups; an init of the image would mount
/// them its own way.
fn control_groups() {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounted = mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), flags, Some("nsdelegate"));
    if let Err(error) = mounted {
        log::warning(&format!("control groups cannot be mounted: {error}"));
    }
}
