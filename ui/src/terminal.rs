//! The terminal: taken over, and given back exactly as it was, whatever happens.
//!
//! One idempotent [`restore`] serves the end of the console, the panic hook and the signals. Raw mode
//! disables the signals of the keyboard (ISIG), and a plain SIGTERM would skip every destructor, so
//! none of the three can stand for the others.

use std::cell::Cell;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Whether the screen is ours at this moment, and whether the terminal is in raw mode.
static SCREEN: AtomicBool = AtomicBool::new(false);
static RAW: AtomicBool = AtomicBool::new(false);

/// Alternate screen, focus events, bracketed paste, hidden cursor (xterm, ctlseqs: DECSET).
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?1004h\x1b[?2004h\x1b[?25l\x1b[2J\x1b[H";

/// What [`ENTER`] and [`MOUSE_ON`] changed, undone in reverse, and the colours set back.
const LEAVE: &[u8] =
    b"\x1b[?2026l\x1b[0m\x1b[?1006l\x1b[?1002l\x1b[?1000l\x1b[?25h\x1b[?2004l\x1b[?1004l\x1b[?1049l";

/// Clicks, drags and the wheel, in SGR form. Not every motion: that would wake the program for nothing.
const MOUSE_ON: &[u8] = b"\x1b[?1000h\x1b[?1002h\x1b[?1006h";
const MOUSE_OFF: &[u8] = b"\x1b[?1006l\x1b[?1002l\x1b[?1000l";

/// What becomes of what was typed while somebody else had the terminal and did not read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    Kept,
    ThrownAway,
}

/// The terminal while the console has it; dropping it gives it back.
#[derive(Debug)]
pub struct TerminalGuard {
    mouse: bool,
}

impl TerminalGuard {
    /// Raw mode, alternate screen, bracketed paste, focus events and, if asked for, the mouse.
    pub fn take(mouse: bool) -> io::Result<Self> {
        enter(mouse)?;
        Ok(Self { mouse })
    }

    /// Gives the terminal back for a while, to the shell of a suspended program.
    pub fn release(&self) {
        restore();
    }

    /// Gives the screen away and keeps the raw mode, for a machine that gets every byte: what is typed
    /// in between must not be taken for the end of a line or a signal.
    pub fn lend(&self) {
        give_screen_back();
    }

    /// Takes it again after [`Self::release`] or [`Self::lend`].
    pub fn retake(&self, typed: Typed) -> io::Result<()> {
        if typed == Typed::ThrownAway {
            let _ = nix::sys::termios::tcflush(io::stdin(), nix::sys::termios::FlushArg::TCIFLUSH);
        }
        enter(self.mouse)
    }

    pub fn set_mouse(&mut self, on: bool) -> io::Result<()> {
        self.mouse = on;
        write_out(if on { MOUSE_ON } else { MOUSE_OFF })
    }
}

impl Drop for TerminalGuard {
    fn drop(&mut self) {
        restore();
    }
}

fn enter(mouse: bool) -> io::Result<()> {
    crossterm::terminal::enable_raw_mode()?;
    RAW.store(true, Ordering::SeqCst);
    SCREEN.store(true, Ordering::SeqCst);
    write_out(ENTER)?;
    if mouse { write_out(MOUSE_ON) } else { Ok(()) }
}

/// Gives the terminal back. Does nothing when it is not taken; never fails, never panics.
pub fn restore() {
    give_screen_back();
    if RAW.swap(false, Ordering::SeqCst) {
        let _ = crossterm::terminal::disable_raw_mode();
    }
}

fn give_screen_back() {
    if SCREEN.swap(false, Ordering::SeqCst) {
        let _ = write_out(LEAVE);
    }
}

/// Whether the console has the screen now.
pub fn is_taken() -> bool {
    SCREEN.load(Ordering::SeqCst)
}

fn write_out(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Calls `gone` once when the terminal disappears (its window closed, its connection broke).
///
/// With SIGHUP ignored nothing else tells: reads give end-of-file for ever, and an event library that
/// takes them for "try again" spins. `poll(2)` with no event asked for sleeps until POLLHUP.
/// `bound` after `gone` was called the process is ended, should it still be there.
pub fn watch_for_hangup(gone: impl FnOnce() + Send + 'static, bound: Duration) -> io::Result<HangupWatch> {
    let tty = io::stdin().as_fd().try_clone_to_owned()?;
    let (stop, stopped) = mpsc::channel::<()>();
    std::thread::Builder::new().name("hangup".into()).stack_size(64 * 1024).spawn(move || {
        loop {
            let mut descriptors = [PollFd::new(tty.as_fd(), PollFlags::empty())];
            match poll(&mut descriptors, PollTimeout::NONE) {
                Ok(_) => {
                    let seen = descriptors[0].revents().unwrap_or(PollFlags::empty());
                    if seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
                        break;
                    }
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return,
            }
        }
        gone();
        // The console ends by itself and drops the other end, unless something of it hangs.
        if stopped.recv_timeout(bound) == Err(mpsc::RecvTimeoutError::Timeout) {
            std::process::exit(129);
        }
    })?;
    Ok(HangupWatch { _stop: stop })
}

/// Dropping it says that the console has ended in good order.
#[derive(Debug)]
pub struct HangupWatch {
    _stop: mpsc::Sender<()>,
}

thread_local! {
    /// Whether a panic of this thread is caught where it happens.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs what catches its own panics: the terminal is kept, the panic goes to the log.
pub fn quietly<T>(run: impl FnOnce() -> T) -> T {
    let before = QUIET.replace(true);
    let result = run();
    QUIET.set(before);
    result
}

/// Has a panic of the thread that draws restore the terminal before its message is printed; one of
/// an engine task goes to the log, and the console goes on: the operation fails with an internal error.
pub fn install_panic_hook() {
    let ours = std::thread::current().id();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |information| {
        if QUIET.get() {
            tracing::error!("caught: {information}");
        } else if std::thread::current().id() == ours {
            restore();
            before(information);
        } else if is_taken() {
            tracing::error!("a task panicked: {information}");
        } else {
            before(information);
        }
    }));
}
