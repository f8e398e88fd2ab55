//! Starting a command of the image: as whom, where, with which environment and terminal.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, unlockpt};
use nix::unistd::{Gid, Pid, Uid, fchown, geteuid, pipe2};
use vmdeck_protocol::message::{Exec, Refusal, RefusalReason};

use crate::accounts::{Account, Accounts};
use crate::system::{self, Identity};

/// Where programs are looked for when neither the image nor the request says.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that runs, and this side of its input and output. All descriptors are non-blocking.
#[derive(Debug)]
pub struct Running {
    pub pid: Pid,
    /// Readable when the command has ended.
    pub pidfd: OwnedFd,
    pub streams: Streams,
}

#[derive(Debug)]
pub enum Streams {
    Pipes { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
    Terminal(OwnedFd),
}

/// Starts a command as the engine asked for it. `environment` is that of the image.
pub fn start(exec: &Exec, environment: &[String]) -> Result<Running, Refusal> {
    let account = account(exec.user.as_deref().unwrap_or(""))?;
    let mut command = prepare(exec, &account, environment)?;
    match &exec.terminal {
        Some(terminal) => {
            let (master, slave) = open_terminal(&account, terminal.columns, terminal.rows)
                .map_err(|error| failed(format!("no terminal can be opened: {error}")))?;
            let copy = |slave: &OwnedFd| slave.try_clone().map(Stdio::from);
            let (stdout, stderr) = copy(&slave)
                .and_then(|out| Ok((out, copy(&slave)?)))
                .map_err(|error| failed(format!("no terminal can be opened: {error}")))?;
            command.stdin(slave).stdout(stdout).stderr(stderr);
            let pid = spawn(&mut command, &account, true, exec)?;
            running(pid, Streams::Terminal(master))
        }
        None => {
            let no_pipe = |error: nix::errno::Errno| failed(format!("no pipe can be opened: {error}"));
            let (stdin_reader, stdin) = pipe2(OFlag::O_CLOEXEC).map_err(no_pipe)?;
            let (stdout, stdout_writer) = pipe2(OFlag::O_CLOEXEC).map_err(no_pipe)?;
            let (stderr, stderr_writer) = pipe2(OFlag::O_CLOEXEC).map_err(no_pipe)?;
            // Each end has an open file description of its own: the command's stay blocking.
            for ours in [&stdin, &stdout, &stderr] {
                set_nonblocking(ours).map_err(no_pipe)?;
            }
            command.stdin(stdin_reader).stdout(stdout_writer).stderr(stderr_writer);
            let pid = spawn(&mut command, &account, false, exec)?;
            running(pid, Streams::Pipes { stdin, stdout, stderr })
        }
    }
}

/// Starts a command with the given standard streams, and nothing of it is kept: for the image's
/// entrypoint.
pub fn start_detached(
    exec: &Exec,
    environment: &[String],
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
) -> Result<(Pid, OwnedFd), Refusal> {
    let account = account(exec.user.as_deref().unwrap_or(""))?;
    if let Some(directory) = &exec.working_directory {
        // The runtimes make it when it is missing; if this fails the command's start says so.
        let _ = std::fs::create_dir_all(directory);
    }
    let mut command = prepare(exec, &account, environment)?;
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    let pid = spawn(&mut command, &account, false, exec)?;
    let pidfd = system::open_pidfd(pid).map_err(|error| failed(format!("no pidfd: {error}")))?;
    Ok((pid, pidfd))
}

pub(crate) fn set_nonblocking(descriptor: impl AsFd) -> nix::Result<()> {
    let descriptor = descriptor.as_fd();
    let flags = OFlag::from_bits_retain(nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_GETFL)?);
    nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn running(pid: Pid, streams: Streams) -> Result<Running, Refusal> {
    let pidfd = system::open_pidfd(pid).map_err(|error| failed(format!("no pidfd: {error}")))?;
    Ok(Running { pid, pidfd, streams })
}

fn account(user: &str) -> Result<Account, Refusal> {
    let read = |path: &str| std::fs::read(path).unwrap_or_default();
    Accounts::new(&read("/etc/passwd"), &read("/etc/group"))
        .find(user)
        .map_err(|error| refusal(RefusalReason::Invalid, error.to_string()))
}

fn prepare(exec: &Exec, account: &Account, image: &[String]) -> Result<Command, Refusal> {
    let shell;
    let (program, arguments, name) = match exec.command.split_first() {
        Some((program, arguments)) => (program.as_str(), arguments, None),
        None => {
            shell = login_shell(account)?;
            let base = shell.rsplit('/').next().unwrap_or("sh");
            (shell.as_str(), &[][..], Some(format!("-{base}")))
        }
    };
    let text = [program].into_iter().chain(arguments.iter().map(String::as_str));
    if text.chain(exec.environment.iter().map(String::as_str)).any(|part| part.contains('\0')) {
        return Err(refusal(RefusalReason::Invalid, "the command has a zero byte in it".to_owned()));
    }
    if program.is_empty() {
        return Err(refusal(RefusalReason::NotFound, "the command is an empty word".to_owned()));
    }
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    if let Some(name) = name {
        command.arg0(name);
    }
    command.env("PATH", DEFAULT_PATH).env("HOME", &account.home);
    if !account.name.is_empty() {
        command.env("USER", &account.name).env("LOGNAME", &account.name);
    }
    if let Some(terminal) = &exec.terminal {
        command.env("TERM", terminal.term.as_deref().unwrap_or("xterm"));
    }
    for variable in image.iter().chain(&exec.environment) {
        // One without `=` would remove a variable in some runtimes; nobody means that.
        let Some((name, value)) = variable.split_once('=') else { continue };
        if !name.is_empty() && !value.contains('\0') {
            command.env(name, value);
        }
    }
    // The home may not exist, and that is no reason not to run anything.
    let directory = match &exec.working_directory {
        Some(directory) if Path::new(directory).is_dir() => directory.as_str(),
        Some(directory) => {
            let message = format!("the working directory `{}` does not exist", directory.escape_debug());
            return Err(refusal(RefusalReason::Invalid, message));
        }
        None if Path::new(&account.home).is_dir() => account.home.as_str(),
        None => "/",
    };
    command.current_dir(directory);
    Ok(command)
}

fn login_shell(account: &Account) -> Result<String, Refusal> {
    [account.shell.as_str(), "/bin/bash", "/bin/sh", "/bin/ash"]
        .into_iter()
        .find(|shell| !shell.is_empty() && Path::new(shell).is_file())
        .map(str::to_owned)
        .ok_or_else(|| refusal(RefusalReason::NotFound, "the image has no shell".to_owned()))
}

fn spawn(command: &mut Command, account: &Account, terminal: bool, exec: &Exec) -> Result<Pid, Refusal> {
    // Without the privilege to become somebody else, being oneself is all there is.
    let identity = (geteuid().is_root()).then(|| Identity {
        uid: account.uid,
        gid: account.gid,
        groups: account.groups.clone(),
    });
    let child = system::spawn(command, identity, terminal).map_err(|error| {
        let shown = exec.command.first().map_or("the login shell", String::as_str);
        not_started(shown, &error)
    })?;
    // The caller reaps it by its number.
    i32::try_from(child.id()).map(Pid::from_raw).map_err(|error| failed(error.to_string()))
}

fn not_started(program: &str, error: &io::Error) -> Refusal {
    let program = program.escape_debug();
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => refusal(
            RefusalReason::NotFound,
            format!("`{program}` was not found in the machine, or its interpreter or loader was not"),
        ),
        Some(libc::ENOEXEC) => refusal(
            RefusalReason::NotExecutable,
            format!("`{program}` is no program of the machine's architecture"),
        ),
        Some(libc::EACCES | libc::EISDIR | libc::EPERM) => {
            refusal(RefusalReason::NotExecutable, format!("`{program}` cannot be executed: {error}"))
        }
        _ => failed(format!("`{program}` could not be started: {error}")),
    }
}

fn open_terminal(account: &Account, columns: u16, rows: u16) -> io::Result<(OwnedFd, OwnedFd)> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = system::open_pty_peer(master.as_fd())?;
    system::set_window_size(slave.as_fd(), columns, rows)?;
    if geteuid().is_root() {
        // So that the user can open it again by its name, as su(1) and tmux do.
        let owner = (Some(Uid::from_raw(account.uid)), None::<Gid>);
        fchown(&slave, owner.0, owner.1)?;
    }
    Ok((OwnedFd::from(master), slave))
}

fn refusal(reason: RefusalReason, message: String) -> Refusal {
    Refusal { reason, message }
}

fn failed(message: String) -> Refusal {
    refusal(RefusalReason::Failed, message)
}

/// Number of a signal given as in an image config: `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3`.
pub fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        // The kernel's first two are taken by libc.
        return offset.parse::<i32>().ok().map(|offset| 34 + offset).filter(|number| *number <= 64);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

/// Whether a path leads to a file that can be executed; for looking around in the image.
pub fn is_executable(path: impl AsRef<OsStr>) -> bool {
    let path = Path::new(path.as_ref());
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok() && path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, expected) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGNOTHING", None),
            ("0", None),
            ("SIGRTMIN+99", None),
        ] {
            assert_eq!(signal_number(text), expected, "{text}");
        }
    }
}
