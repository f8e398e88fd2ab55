//! Starting a process that outlives this one, without a moment in which it runs unrecorded.
//!
//! ```text
//! this process     fork ────────── pid ──▶ record its identity ── go ──▶
//! the child        setsid, umask ── pid ─▶ waits ─────────────────── go ▶ exec
//! ```
//!
//! The child waits between fork and exec until its identity is on record, so a crash at any point
//! leaves either nothing or a process that the record leads to.
#![allow(unsafe_code)]

use std::future::Future;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal, setsid};
use tokio::sync::{oneshot, watch};

use super::{PidFd, ProcessIdentity};
use crate::error::{Error, Result};
use crate::network::bridge::rights;

/// A started process. Dropping this leaves it running; it is reaped when it ends while this process
/// lives, and by the host's init otherwise.
#[derive(Debug)]
pub struct Detached {
    identity: ProcessIdentity,
    process: Arc<PidFd>,
    /// `Some` when it has ended; [`Option::None`] inside when its status could not be had.
    ended: watch::Receiver<Option<Option<ExitStatus>>>,
}

impl Detached {
    pub fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    pub fn kill(&self) -> io::Result<()> {
        self.process.kill()
    }

    /// Waits until it has ended and is reaped.
    pub async fn wait(&self) -> Option<ExitStatus> {
        let mut ended = self.ended.clone();
        // An error means that the reaper is gone, which it is only together with the runtime.
        ended.wait_for(Option::is_some).await.ok().and_then(|status| *status).flatten()
    }
}

/// Starts `command` in a session of its own, with umask 077 and no descriptor of this process but
/// the three standard ones and `kept`, which keep their numbers.
///
/// `record` is called with the process before it executes `command`; when it fails, the command is
/// never executed. When the returned future is dropped before it is done, the command is not executed
/// either, or killed.
pub async fn spawn<F>(
    mut command: Command,
    kept: Vec<OwnedFd>,
    record: impl FnOnce(ProcessIdentity) -> F + Send,
) -> Result<Detached>
where
    F: Future<Output = Result<()>> + Send,
{
    let program = command.get_program().to_string_lossy().into_owned();
    let fail = |error| Error::io(format!("cannot start `{program}`"), error);
    let (ours, theirs) = UnixStream::pair().map_err(fail)?;
    ours.set_nonblocking(true).map_err(fail)?;
    let ours = Gate(tokio::net::UnixStream::from_std(ours).map_err(fail)?);
    prepare(&mut command, kept, ours.0.as_raw_fd(), theirs);
    // `Command::spawn` returns when the command is executed, which is after the record is made.
    // Dropping `command` inside closes this process's copy of the other end.
    let spawning = tokio::task::spawn_blocking(move || {
        let child = command.spawn();
        drop(command);
        child
    });
    let identity = match read_pid(&ours.0).await {
        Ok(pid) => ProcessIdentity::of(pid).map_err(fail)?,
        // It never came as far as telling its pid: spawning says why.
        Err(error) => {
            return match spawning.await {
                Ok(Err(error)) => Err(fail(error)),
                _ => Err(fail(error)),
            };
        }
    };
    let process =
        PidFd::open(&identity).map_err(fail)?.ok_or_else(|| fail(io::ErrorKind::BrokenPipe.into()))?;
    let process = Arc::new(process);
    record(identity.clone()).await?;
    ours.0.writable().await.map_err(fail)?;
    let undone = KillOnDrop(Some(Arc::clone(&process)));
    ours.0.try_write(b"g").map_err(fail)?;
    let (started, starting) = oneshot::channel();
    let (sender, ended) = watch::channel(None);
    let reaped = Arc::clone(&process);
    // A task of its own reaps it also when nobody waits for the start any more.
    tokio::spawn(async move {
        let mut child = match spawning.await.map_err(io::Error::other).flatten() {
            Ok(child) => child,
            Err(error) => {
                let _ = started.send(Err(error));
                return;
            }
        };
        let _ = started.send(Ok(()));
        if let Err(error) = reaped.wait().await {
            tracing::warn!(pid = child.id(), %error, "the end of a process cannot be waited for");
        }
        let _ = sender.send(Some(child.wait().ok()));
    });
    starting.await.map_err(io::Error::other).flatten().map_err(fail)?;
    undone.disarm();
    Ok(Detached { identity, process, ended })
}

/// This process's end of what a child waits at until it may execute its program.
///
/// Shut down when dropped, and not closed only: other children that wait have copies of it, and two whose
/// starts are both given up would wait for each other for ever.
struct Gate(tokio::net::UnixStream);

impl Drop for Gate {
    fn drop(&mut self) {
        // It fails where the child is gone already.
        let _ = nix::sys::socket::shutdown(self.0.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
}

/// Kills the process when dropped, unless it was told that it need not.
struct KillOnDrop(Option<Arc<PidFd>>);

impl KillOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(process) = &self.0
            && let Err(error) = process.kill()
        {
            tracing::error!(%error, "a process that was not wanted any more could not be killed");
        }
    }
}

/// Reads the pid that the child writes.
async fn read_pid(stream: &tokio::net::UnixStream) -> io::Result<i32> {
    let mut pid = [0; 4];
    let mut filled = 0;
    while filled < pid.len() {
        stream.readable().await?;
        match stream.try_read(&mut pid[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(i32::from_ne_bytes(pid))
}

/// Installs what the child does between fork and exec.
fn prepare(command: &mut Command, kept: Vec<OwnedFd>, ours: RawFd, mut theirs: UnixStream) {
    let parent = rustix::process::getpid();
    let in_child = move || -> io::Result<()> {
        // SAFETY: the fork has its own copy of this descriptor, which nothing uses before exec. Were
        // it open, the child would never see that this process has closed its end.
        unsafe { rustix::io::close(ours) };
        setsid()?;
        rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
        // While it waits it dies with this process.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(parent) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        theirs.write_all(&Pid::as_raw(Some(rustix::process::getpid())).to_ne_bytes())?;
        let mut go = [0];
        theirs.read_exact(&mut go)?;
        set_parent_process_death_signal(None)?;
        close_on_exec(&kept)
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. `in_child` makes
    // system calls and nothing else: it takes no lock and does not allocate (the errors it returns
    // are of kinds and codes, which std passes on as a number).
    unsafe { command.pre_exec(in_child) };
}

/// Has the program of a command run with the right to administer the network, if this process has it.
pub(crate) fn pass_on_network_rights(command: &mut Command) {
    // SAFETY: as in `prepare`.
    unsafe { command.pre_exec(rights::pass_on) };
}

/// Has the program of a command run without the right to administer the network, also as root.
pub(crate) fn give_up_network_rights(command: &mut Command) {
    // SAFETY: as in `prepare`.
    unsafe { command.pre_exec(rights::give_up) };
}

/// Ties a command to this process: it is killed when the thread that starts it ends. It gets `kept`
/// and no other descriptor above the standard ones.
pub(super) fn tether(command: &mut Command, kept: Vec<OwnedFd>) {
    let parent = rustix::process::getpid();
    let in_child = move || -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(parent) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        close_on_exec(&kept)
    };
    // SAFETY: as in `prepare`.
    unsafe { command.pre_exec(in_child) };
}

/// Marks every descriptor above the standard ones to be closed by exec, but `kept`. Whoever started
/// this process may have left it descriptors, locks among them, that must not outlive it.
fn close_on_exec(kept: &[OwnedFd]) -> io::Result<()> {
    // SAFETY: the call takes numbers only, and closes nothing in this process: it sets a flag on
    // descriptors of the child, which executes another program next.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result != 0 {
        // Linux before 5.11. Descriptors of this program are close-on-exec already.
        let error = io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) {
            return Err(error);
        }
    }
    for descriptor in kept {
        let flags = fcntl_getfd(descriptor.as_fd())?;
        fcntl_setfd(descriptor.as_fd(), flags.difference(FdFlags::CLOEXEC))?;
    }
    Ok(())
}

/// The number a descriptor has here and, when kept, in the child.
pub fn number(descriptor: &OwnedFd) -> i32 {
    descriptor.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use std::task::Poll;
    use std::time::Duration;

    use super::*;

    async fn recorded(_: ProcessIdentity) -> Result<()> {
        Ok(())
    }

    async fn gone(pid: i32) {
        tokio::time::timeout(Duration::from_secs(45), async {
            while std::path::Path::new(&format!("/proc/{pid}")).exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn a_process_has_its_own_session_and_no_descriptor_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let inherited = std::fs::File::create(folder.path().join("inherited")).unwrap();
        fcntl_setfd(inherited.as_fd(), FdFlags::empty()).unwrap();
        let (kept, _peer) = UnixStream::pair().unwrap();
        let kept = OwnedFd::from(kept);
        let number = number(&kept);
        let mut command = Command::new("sh");
        command.args(["-c", "ls /proc/self/fd | tr '\\n' ' ' > open; umask > umask; ps -o sid= -p $$ > session; echo $$ > pid"]);
        command.current_dir(folder.path());
        let process = spawn(command, vec![kept], recorded).await.unwrap();
        assert!(process.wait().await.unwrap().success());
        let read = |name| std::fs::read_to_string(folder.path().join(name)).unwrap().trim().to_owned();
        // `ls` has one more of its own, on the folder it lists.
        let mut open: Vec<i32> = read("open").split(' ').map(|number| number.parse().unwrap()).collect();
        open.retain(|&open| open > 2 && open != number);
        assert!(open.len() <= 1, "{open:?}");
        assert_eq!(read("umask"), "0077");
        assert_eq!(read("session"), read("pid"));
        assert_eq!(read("pid"), process.identity().pid.to_string());
    }

    #[tokio::test]
    async fn what_could_not_be_recorded_is_never_executed() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("touch");
        command.arg("executed").current_dir(folder.path());
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let result = spawn(command, vec![], |identity| async {
            sender.send(identity).unwrap();
            Err(Error::failed("the store is full"))
        })
        .await;
        assert_eq!(result.unwrap_err().to_string(), "the store is full");
        let identity = receiver.await.unwrap();
        gone(identity.pid).await;
        assert!(!folder.path().join("executed").exists());
    }

    #[tokio::test]
    async fn a_start_dropped_at_any_moment_leaves_no_process() {
        for moments in 0..12 {
            let known = std::sync::Mutex::new(None);
            let mut command = Command::new("sleep");
            command.arg("600");
            let mut start = Box::pin(spawn(command, vec![], |identity| async {
                *known.lock().unwrap() = Some(identity);
                tokio::task::yield_now().await;
                Ok(())
            }));
            let mut done = None;
            for _ in 0..moments {
                if let Poll::Ready(process) = futures_util::poll!(start.as_mut()) {
                    done = Some(process.unwrap());
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(start);
            if let Some(process) = done {
                // This host is done after fewer moments.
                process.kill().unwrap();
                process.wait().await;
                return;
            }
            let Some(identity) = known.into_inner().unwrap() else { continue };
            gone(identity.pid).await;
        }
    }

    #[tokio::test]
    async fn an_ended_process_is_reaped_though_nobody_waits() {
        let process = spawn(Command::new("true"), vec![], recorded).await.unwrap();
        let pid = process.identity().pid;
        drop(process);
        gone(pid).await;
    }

    #[tokio::test]
    async fn a_missing_program_is_said_to_be_missing() {
        let error = spawn(Command::new("/nowhere/qemu"), vec![], recorded).await.unwrap_err();
        assert!(error.full_message().contains("No such file"), "{}", error.full_message());
    }
}
