//! A pseudo-terminal with a program on it, and what it shows.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;

/// Longest that anything may take to be seen: a boot under an emulated processor beside another one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// Everything the program wrote.
struct Seen {
    parser: vt100::Parser,
    bytes: Vec<u8>,
}

/// The program and its terminal; dropping it ends the program.
pub(crate) struct Terminal {
    child: Child,
    master: Option<File>,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    reader: Option<std::thread::JoinHandle<()>>,
    /// Modes of the terminal before the program ran.
    pub(crate) before: Termios,
}

impl Terminal {
    /// Runs a command on a terminal of its own.
    pub(crate) fn run(mut command: Command, columns: u16, rows: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // A copy of the master in another test's program would keep the terminal alive.
        static OPENING: Mutex<()> = Mutex::new(());
        let opening = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        let pty = openpty(Some(&size), None).unwrap();
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        let before = tcgetattr(&pty.master).unwrap();
        let end = |slave: &OwnedFd| Stdio::from(slave.try_clone().unwrap());
        command.stdin(end(&pty.slave)).stdout(end(&pty.slave)).stderr(end(&pty.slave));
        let child = command.spawn().unwrap();
        drop(opening);
        drop((command, pty.slave));
        let seen =
            Arc::new(Mutex::new(Seen { parser: vt100::Parser::new(rows, columns, 0), bytes: Vec::new() }));
        let master = File::from(pty.master);
        let (mut from, into) = (master.try_clone().unwrap(), Arc::clone(&seen));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            // At its end when the last process on the other side has gone (EIO).
            while !stopped.load(Ordering::SeqCst) {
                let mut readable = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
                if !matches!(poll(&mut readable, PollTimeout::from(20u8)), Ok(1..)) {
                    continue;
                }
                let Ok(length @ 1..) = from.read(&mut buffer) else { break };
                let mut seen = into.lock().unwrap_or_else(PoisonError::into_inner);
                seen.parser.process(&buffer[..length]);
                seen.bytes.extend_from_slice(&buffer[..length]);
            }
        });
        Self { child, master: Some(master), stop, seen, reader: Some(reader), before }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Types, byte for byte.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.master.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// What the screen shows.
    pub(crate) fn screen(&self) -> String {
        self.seen.lock().unwrap().parser.screen().contents()
    }

    /// Whether the screen has a text.
    pub(crate) fn has(&self, text: &str) -> bool {
        self.screen().contains(text)
    }

    pub(crate) fn with_screen<T>(&self, look: impl FnOnce(&vt100::Screen) -> T) -> T {
        look(self.seen.lock().unwrap().parser.screen())
    }

    /// All bytes so far.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.seen.lock().unwrap().bytes.clone()
    }

    /// How many those are.
    pub(crate) fn written(&self) -> usize {
        self.seen.lock().unwrap().bytes.len()
    }

    /// The row with the cursor's mark at its head.
    pub(crate) fn cursor_row(&self) -> Option<u16> {
        self.with_screen(|screen| {
            (0..screen.size().0).find(|&row| screen.cell(row, 0).is_some_and(|cell| cell.contents() == "▌"))
        })
    }

    pub(crate) fn modes(&self) -> Termios {
        tcgetattr(self.master.as_ref().unwrap()).unwrap()
    }

    /// Waits until the screen is as wanted; fails with what it shows instead.
    #[track_caller]
    pub(crate) fn wait(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> Duration {
        let begun = Instant::now();
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                return begun.elapsed();
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the program has ended ({status}) before {what}; the screen:\n{screen}");
            }
            assert!(begun.elapsed() < PATIENCE, "not seen: {what}; the screen:\n{screen}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the screen has a text.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) -> Duration {
        self.wait(text, |screen| screen.contains(text))
    }

    /// Waits until nothing was written for a moment.
    pub(crate) fn settle(&self) {
        let mut length = usize::MAX;
        loop {
            let now = self.seen.lock().unwrap().bytes.len();
            if now == length {
                return;
            }
            length = now;
            std::thread::sleep(Duration::from_millis(400));
        }
    }

    /// Waits for the program's end; at most `bound`.
    #[track_caller]
    pub(crate) fn end(&mut self, bound: Duration) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, begun.elapsed());
            }
            assert!(begun.elapsed() < bound, "no end within {bound:?}; the screen:\n{}", self.screen());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Takes the terminal away from under the program; how it ended, within `bound`.
    #[track_caller]
    pub(crate) fn hang_up(&mut self, bound: Duration) -> (ExitStatus, Duration) {
        self.stop_reading();
        self.master = None;
        self.end(bound)
    }

    fn stop_reading(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.stop_reading();
    }
}
