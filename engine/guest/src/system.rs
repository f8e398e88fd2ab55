//! The system calls that no safe wrapper exists for. All the unsafe code of this crate is here.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::unistd::{ForkResult, Pid};

/// Forks this process. Returns the child's id in the parent and `None` in the child.
///
/// Only for a process with a single thread: in the child no other thread exists, and a lock that
/// one held would stay locked.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the init is single-threaded until after its last fork (it starts no thread; the agent
    // starts some only in the forked child), so no lock or allocator state is left half-way.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// A descriptor that becomes readable when the process ends (pidfd_open(2)).
pub(crate) fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the call succeeded, so the descriptor is open and nobody else has it. The kernel sets
    // close-on-exec on it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Who a new process is to be.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// Starts a command in a session of its own, as `identity` when there is one (which needs the
/// privilege to change), with its standard input as the controlling terminal if `terminal`.
pub(crate) fn spawn(command: &mut Command, identity: Option<Identity>, terminal: bool) -> io::Result<Child> {
    let prepare = move || {
        // SAFETY: setsid touches no memory.
        if unsafe { libc::setsid() } < 0 {
            return Err(io::Error::last_os_error());
        }
        reset_process();
        if terminal {
            // SAFETY: with an integer argument TIOCSCTTY touches no memory; 0 is standard input.
            if unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        if let Some(identity) = &identity {
            // SAFETY: the pointer and the length are those of a live slice; the other calls take
            // integers. Groups first: after setuid there is no right to change them.
            let failed = unsafe {
                libc::setgroups(identity.groups.len(), identity.groups.as_ptr()) < 0
                    || libc::setgid(identity.gid) < 0
                    || libc::setuid(identity.uid) < 0
            };
            if failed {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: it neither allocates nor
    // takes locks (`last_os_error` reads errno into a value without heap), so it is sound even when
    // the parent has several threads.
    unsafe { command.pre_exec(prepare) }.spawn()
}

/// Undoes what this process has set for itself and a new program must not inherit: ignored signals,
/// and its own protection from the kernel's out-of-memory killer. For use between fork and exec.
fn reset_process() {
    for signal in 1..=64 {
        // SAFETY: the default action installs no handler; for signals that cannot be changed the call
        // fails and changes nothing.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let (path, value) = (c"/proc/self/oom_score_adj", b"0");
    // SAFETY: the pointers are those of literals that live for ever, with their right lengths; the
    // descriptor is the one that was just opened.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, value.as_ptr().cast(), value.len());
            libc::close(file);
        }
    }
}

/// Sets the size of a terminal; its foreground process group gets SIGWINCH.
pub(crate) fn set_window_size(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives through the call.
    if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The other end of a pty, without going through its path (ioctl_tty(2), `TIOCGPTPEER`).
pub(crate) fn open_pty_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags as an integer and touches no memory.
    let descriptor = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the descriptor is open and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

mod ext4 {
    // EXT4_IOC_RESIZE_FS of fs/ext4/ext4.h.
    nix::ioctl_write_ptr!(resize, b'f', 16, u64);
}

/// Grows a mounted ext4 file system to so many blocks. `directory` is any directory on it.
pub(crate) fn resize_ext4(directory: impl AsFd, blocks: u64) -> io::Result<()> {
    // SAFETY: EXT4_IOC_RESIZE_FS reads one u64, which lives through the call; other file systems
    // answer ENOTTY.
    unsafe { ext4::resize(directory.as_fd().as_raw_fd(), &raw const blocks) }?;
    Ok(())
}

/// Sends any signal, real-time ones too, to a process group. That it has ended is no error.
pub(crate) fn kill_group(group: Pid, signal: i32) {
    // SAFETY: kill takes two integers and touches no memory.
    unsafe { libc::kill(-group.as_raw(), signal) };
}

/// Sends any signal, real-time ones too, to a process.
pub(crate) fn kill_process(process: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two integers and touches no memory.
    if unsafe { libc::kill(process.as_raw(), signal) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes this process as the kernel would have started it, before it becomes another program.
pub(crate) fn prepare_exec() {
    reset_process();
}
