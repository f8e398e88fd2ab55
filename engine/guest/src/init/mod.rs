//! The first process: from the initramfs to a machine that runs its image.
//!
//! ```text
//!  mounts ─▶ modules ─▶ settings ─▶ root ─▶ network ─▶ work, modules ─▶ files ─▶ switch root ─▶ hand over
//! ```
//! Stages are told to the engine as they are reached, and lines on the console say the same. What is
//! needed and missing ends the machine ([`Failure`]); what can be done without is a warning.

mod clock;
mod disks;
mod files;
pub(crate) mod growth;
mod handover;
mod modules;
mod mounts;
mod netlink;
mod network;
mod power;
mod small;
mod systemd;

use std::convert::Infallible;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::reboot::{RebootMode, reboot};
use vmdeck_protocol::message::{Failure, FailureClass, Stage};
use vmdeck_protocol::settings::{self, Settings};

use crate::agent::Agent;
use crate::jail::Jail;
use crate::log;

/// Where the image's root is mounted until it becomes `/`.
const NEW_ROOT: &str = "/sysroot";

/// How long a machine that cannot go on waits for the engine to hear of it.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Runs the machine. Never returns: the first process must not end.
pub fn run() -> ! {
    std::panic::set_hook(Box::new(|panic| log::error(&format!("init has a bug: {panic}"))));
    let mut agent = None;
    let Err(failure) = boot(&mut agent);
    log::error(&format!("cannot boot [{}]: {}", failure.class.as_str(), failure.message));
    if let Some(agent) = &mut agent {
        agent.fail(failure);
        let end = Instant::now() + LAST_WORDS;
        while !agent.has_told() && Instant::now() < end {
            if agent.turn(Duration::from_millis(50)).is_err() {
                break;
            }
        }
    }
    nix::unistd::sync();
    // Where the power cannot be switched off this returns, and the end of the first process is a
    // panic, which ends the hypervisor as well.
    let _ = reboot(RebootMode::RB_POWER_OFF);
    std::process::exit(1)
}

fn boot(agent: &mut Option<Agent>) -> Result<Infallible, Failure> {
    mounts::first().map_err(|error| other("the file systems of the kernel", error))?;
    let agent = agent.insert(Agent::new().map_err(|error| other("the agent", error))?);
    agent.reach(Stage::Init);
    log::info("init");
    agent.discover();
    modules::load();
    look(agent);

    let settings = read_settings()?;
    clock::set(settings.time);
    let root = disks::wait(settings::ROOT_SERIAL, || look(agent)).ok_or_else(|| Failure {
        class: FailureClass::NoRootDevice,
        message: disks::missing(settings::ROOT_SERIAL),
    })?;
    mounts::root(&root, Path::new(NEW_ROOT))?;
    let jail = Jail::new(Path::new(NEW_ROOT)).map_err(|error| other("the root of the image", error))?;
    log::info("root mounted");
    look(agent);

    network::set_up(&settings);
    look(agent);
    let home = files::home(&jail);
    mounts::extra_disks(&jail, &settings, &home);
    mounts::move_into(&jail).map_err(|error| other("the root of the image", error))?;
    files::write(&jail, &settings, &home);
    look(agent);

    mounts::switch_root(jail).map_err(|error| other("the change to the root of the image", error))?;
    agent.reach(Stage::Root);
    look(agent);
    handover::run(agent, &settings, &home)
}

/// Lets the agent answer those who have connected meanwhile.
fn look(agent: &mut Agent) {
    if let Err(error) = agent.turn(Duration::ZERO) {
        log::warning(&format!("the channels cannot be served: {error}"));
    }
}

fn read_settings() -> Result<Settings, Failure> {
    let path = Path::new("/").join(settings::PATH);
    let failure = |what: String| Failure {
        class: FailureClass::Settings,
        message: format!("the machine's settings {what}: its initrd is not one that vmdeck has made"),
    };
    let json = std::fs::read(&path).map_err(|error| failure(format!("cannot be read ({error})")))?;
    serde_json::from_slice(&json).map_err(|error| failure(format!("make no sense ({error})")))
}

fn other(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure { class: FailureClass::Other, message: format!("{what} could not be set up: {error}") }
}
