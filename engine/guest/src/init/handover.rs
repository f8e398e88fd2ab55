//! From our init to the image's: which one it is, and what stays beside it.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, execve, pipe2, read, setsid};
use vmdeck_protocol::message::{Failure, FailureClass, Stage};
use vmdeck_protocol::settings::Settings;

use crate::agent::Agent;
use crate::command::{DEFAULT_PATH, is_executable};
use crate::{log, system};

use super::growth::GROWTH;
use super::power::{self, Supervisor};
use super::{other, small, systemd};

/// Where an image's init is looked for, in this order: what the kernel would try, and the places
/// of images that leave `/sbin/init` out.
const CANDIDATES: [&str; 7] = [
    "/sbin/init",
    "/usr/sbin/init",
    "/usr/lib/systemd/systemd",
    "/lib/systemd/systemd",
    "/etc/init",
    "/bin/init",
    "/usr/bin/init",
];

/// Pause before an agent that died is started again.
pub(super) const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// An init in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageInit {
    pub(super) path: PathBuf,
    pub(super) kind: InitKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InitKind {
    Systemd,
    /// Anything else: sysvinit, OpenRC, runit, s6, busybox with scripts to run.
    Other,
}

/// Leaves the agent running and becomes the image's init, or a small one of our own. The image's
/// root is `/`.
pub(super) fn run(agent: &mut Agent, settings: &Settings, home: &str) -> Result<Infallible, Failure> {
    agent.set_environment(settings.environment.clone());
    match find()? {
        Some(init) => hand_over(agent, settings, home, &init),
        None => {
            log::info("the image has no init of its own: staying as a small one");
            small::run(agent, settings, home)
        }
    }
}

fn hand_over(
    agent: &mut Agent,
    settings: &Settings,
    home: &str,
    init: &ImageInit,
) -> Result<Infallible, Failure> {
    log::info(&format!("handing over to `{}`", init.path.display()));
    if init.kind == InitKind::Systemd {
        systemd::prepare(settings);
    }
    // Closed by the exec: the agent says "ready" when the image's init runs, not before.
    let (executed, not_yet) = pipe2(OFlag::O_CLOEXEC).map_err(|error| other("a pipe", error))?;
    let Some(child) = system::fork().map_err(|error| other("the agent's process", error))? else {
        drop(not_yet);
        let _ = read(&executed, &mut [0]);
        drop(executed);
        log::leave_console();
        supervise(agent, home, init.kind);
    };
    let error = execute(&init.path);
    // The image's init cannot be run, but the machine can, and be looked into.
    log::warning(&format!("the image's init `{}` cannot be executed: {error}", init.path.display()));
    let _ = kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
    small::run(agent, settings, home)
}

/// Becomes the image's init. Returns why not.
fn execute(init: &Path) -> nix::Error {
    let Ok(path) = CString::new(init.as_os_str().as_encoded_bytes()) else { return Errno::EINVAL };
    // What the kernel gives an init, and a path for those that want one.
    let search = CString::new(format!("PATH={DEFAULT_PATH}")).unwrap_or_default();
    let environment = [c"HOME=/", c"TERM=linux", search.as_c_str()];
    console_as_standard_streams();
    system::prepare_exec();
    let Err(error) = execve(&path, &[&path], &environment);
    error
}

/// Keeps an agent running beside the image's init: in a child, and in another one should it die.
fn supervise(agent: &mut Agent, home: &str, kind: InitKind) -> ! {
    let _ = setsid();
    mark_as_survivor();
    detach_standard_streams();
    loop {
        match system::fork() {
            Ok(None) => {
                agent.set_power_switch(power::switch(Supervisor::Image(kind)));
                if kind == InitKind::Other {
                    spare_from_sysvinit();
                }
                serve(agent, home);
            }
            Ok(Some(child)) => {
                // The channels are the agent's; a port cannot be opened twice.
                agent.release();
                while let Err(Errno::EINTR) = waitpid(child, None) {}
                log::error("the agent ended and is started again");
            }
            Err(error) => log::error(&format!("the agent cannot be started: {error}")),
        }
        std::thread::sleep(RESTART_PAUSE);
        match agent.successor() {
            Ok(successor) => *agent = successor,
            Err(error) => log::error(&format!("the agent cannot be started: {error}")),
        }
    }
}

/// Runs the agent in its own process, for as long as the machine is up.
pub(super) fn serve(agent: &mut Agent, home: &str) -> ! {
    mark_as_survivor();
    detach_standard_streams();
    agent.reach(Stage::Agent);
    agent.reach(Stage::Ready);
    log::info("ready");
    let home = home.to_owned();
    // The file systems are grown when nobody waits for it any more.
    std::thread::spawn(move || GROWTH.run(&["/", &home]));
    loop {
        if let Err(error) = agent.turn(Duration::from_secs(3600)) {
            log::error(&format!("the agent cannot wait for work: {error}"));
            std::thread::sleep(RESTART_PAUSE);
        }
    }
}

/// systemd-shutdown spares processes whose command line begins with `@` (systemd's documentation,
/// ROOT_STORAGE_DAEMONS), and so do others: the agent is what switches the power off when they fail.
/// The kernel, out of memory, takes others first.
fn mark_as_survivor() {
    let _ = fs::write("/proc/self/comm", "vmdeck-agent");
    let _ = fs::write("/proc/self/oom_score_adj", "-900");
    let Ok(stat) = fs::read_to_string("/proc/self/stat") else { return };
    // The name, in parentheses, may hold anything; what follows it are numbers. `arg_start` is
    // field 48 (proc(5)), the state after the name is field 3.
    let Some((_, fields)) = stat.rsplit_once(')') else { return };
    let Some(start) = fields.split_whitespace().nth(48 - 3).and_then(|field| field.parse::<u64>().ok())
    else {
        return;
    };
    if let Ok(memory) = fs::OpenOptions::new().write(true).open("/proc/self/mem") {
        // Our own argument vector; the first byte of `/init` becomes the mark.
        let _ = std::os::unix::fs::FileExt::write_at(&memory, b"@", start);
    }
}

/// The scripts of sysvinit end all processes but those named here (Debian's `/etc/init.d/sendsigs`).
fn spare_from_sysvinit() {
    let folder = "/run/sendsigs.omit.d";
    let processes = format!("{}\n{}\n", std::os::unix::process::parent_id(), std::process::id());
    // Where it is not wanted nobody reads it.
    let _ = fs::create_dir_all(folder).and_then(|()| fs::write(format!("{folder}/vmdeck-agent"), processes));
}

/// The standard streams of an init are the console.
pub(super) fn console_as_standard_streams() {
    if let Ok(console) = open("/dev/console", OFlag::O_RDWR | OFlag::O_NOCTTY, Mode::empty()) {
        as_standard_streams(console.as_fd());
    }
}

fn detach_standard_streams() {
    if let Ok(null) = open("/dev/null", OFlag::O_RDWR, Mode::empty()) {
        as_standard_streams(null.as_fd());
    }
}

fn as_standard_streams(descriptor: std::os::fd::BorrowedFd<'_>) {
    let _ = dup2_stdin(descriptor);
    let _ = dup2_stdout(descriptor);
    let _ = dup2_stderr(descriptor);
}

/// The image's init, when it has one that does something.
fn find() -> Result<Option<ImageInit>, Failure> {
    for candidate in CANDIDATES {
        let Ok(real) = fs::canonicalize(candidate) else { continue };
        if !is_executable(&real) || !does_something(&real) {
            continue;
        }
        if let Some(machine) = foreign_architecture(&real) {
            let message = format!(
                "the image's init `{candidate}` is a program for {machine}, and this machine is {}",
                std::env::consts::ARCH
            );
            return Err(Failure { class: FailureClass::WrongArchitecture, message });
        }
        let is_systemd = real.file_name().is_some_and(|name| name == "systemd");
        let kind = if is_systemd { InitKind::Systemd } else { InitKind::Other };
        return Ok(Some(ImageInit { path: PathBuf::from(candidate), kind }));
    }
    Ok(None)
}

/// Busybox brings an `init` to every image it is in; it is meant to be one only where there is
/// something for it to start. The same goes for what containers use to reap their processes.
fn does_something(init: &Path) -> bool {
    let name = init.file_name().unwrap_or_default().to_string_lossy();
    match &*name {
        "busybox" | "busybox.static" | "toybox" => {
            is_executable("/sbin/openrc") || is_executable("/etc/init.d/rcS") || is_executable("/etc/rc")
        }
        "tini" | "tini-static" | "dumb-init" | "catatonit" | "docker-init" => false,
        _ => true,
    }
}

/// Names the architecture of an ELF program that cannot run here (ELF specification, `e_machine`).
pub(super) fn foreign_architecture(program: &Path) -> Option<String> {
    let mut header = [0; 20];
    fs::File::open(program).ok()?.read_exact(&mut header).ok()?;
    if !header.starts_with(b"\x7fELF") {
        return None;
    }
    let machine = match header[5] {
        2 => u16::from_be_bytes([header[18], header[19]]),
        _ => u16::from_le_bytes([header[18], header[19]]),
    };
    let native: &[u16] = match std::env::consts::ARCH {
        // 32-bit programs run too.
        "x86_64" => &[62, 3],
        "aarch64" => &[183, 40],
        _ => return None,
    };
    if native.contains(&machine) {
        return None;
    }
    Some(match machine {
        3 => "i386".to_owned(),
        40 => "arm".to_owned(),
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        243 => "riscv".to_owned(),
        21 => "ppc64".to_owned(),
        22 => "s390x".to_owned(),
        other => format!("another architecture (ELF machine {other})"),
    })
}
