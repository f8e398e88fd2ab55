//! A shell in a machine on the user's own terminal: bytes pass through both ways, untouched, until
//! the shell ends or `ctrl-]` is typed.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::Bytes;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use vmdeck_engine::guest::{ExecOutput, ExecRequest, WindowSize};
use vmdeck_engine::{Engine, Error, Result};

/// `ctrl-]`, as telnet has it.
const DETACH: u8 = 0x1d;

/// Chunks of typed bytes that may wait for the guest.
const WAITING: usize = 64;

/// Runs the shell. The terminal has been released by the console: it is in its ordinary mode.
pub(super) async fn shell(engine: Engine, name: String, size: (u16, u16)) -> Result<()> {
    say(&format!("vmdeck: shell in {}; ctrl-] comes back to the console\r\n", crate::text::clean(&name)));
    let request = ExecRequest {
        pty: Some(WindowSize { columns: size.0, rows: size.1 }),
        term: std::env::var("TERM").ok(),
        ..ExecRequest::default()
    };
    crossterm::terminal::enable_raw_mode().map_err(|error| Error::io("cannot drive the terminal", error))?;
    // A guard, so that no way out of here leaves the raw mode on.
    let raw = RawMode;
    let result = pass_through(&engine, &name, request).await;
    drop(raw);
    // Whatever modes the guest's programs left on: colours, cursor, paste, mouse, alternate screen.
    say(
        "\x1b[0m\x1b[?25h\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1l\x1b>\x1b[?1049l\r\n",
    );
    result
}

/// Carries bytes both ways.
async fn pass_through(engine: &Engine, name: &str, request: ExecRequest) -> Result<()> {
    let mut session = engine.vms().exec(name, request).await?;
    // Dropped last: the thread that reads is gone before the console reads again.
    let Keyboard { mut typed, stop: _stop } = Keyboard::start()?;
    let mut resized =
        signal(SignalKind::window_change()).map_err(|error| Error::io("cannot listen to signals", error))?;
    loop {
        tokio::select! {
            output = session.output.recv() => match output {
                Some(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes)) => {
                    let mut out = io::stdout().lock();
                    out.write_all(&bytes)
                        .and_then(|()| out.flush())
                        .map_err(|error| Error::io("cannot write to the terminal", error))?;
                }
                None => return Ok(()),
            },
            bytes = typed.recv() => match bytes {
                Some(bytes) => session.input.write(bytes).await?,
                // Detached, or the terminal is gone: dropping the session hangs the shell up.
                None => return Ok(()),
            },
            Some(()) = resized.recv() => {
                if let Ok((columns, rows)) = crossterm::terminal::size() {
                    session.control.resize(WindowSize { columns, rows }).await?;
                }
            }
        }
    }
}

struct RawMode;

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = crossterm::terminal::disable_raw_mode();
    }
}

fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A thread that reads what is typed, byte for byte, until it is told to stop.
struct Keyboard {
    /// Ends when the user detaches.
    typed: mpsc::Receiver<Bytes>,
    stop: StopReading,
}

/// Dropping it ends the thread: no key typed afterwards is taken from the console.
struct StopReading {
    wake: Arc<EventFd>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for StopReading {
    fn drop(&mut self) {
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Keyboard {
    fn start() -> Result<Self> {
        let fail = |error| Error::io("cannot read the terminal", error);
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(|error| fail(error.into()))?);
        let tty = io::stdin().as_fd().try_clone_to_owned().map_err(fail)?;
        let (sender, typed) = mpsc::channel(WAITING);
        let woken = Arc::clone(&wake);
        let thread = std::thread::Builder::new()
            .name("keyboard".into())
            .spawn(move || {
                let mut tty = std::fs::File::from(tty);
                let mut buffer = [0; 4096];
                loop {
                    let mut descriptors = [
                        PollFd::new(tty.as_fd(), PollFlags::POLLIN),
                        PollFd::new(woken.as_fd(), PollFlags::POLLIN),
                    ];
                    match poll(&mut descriptors, PollTimeout::NONE) {
                        Err(nix::errno::Errno::EINTR) => continue,
                        Err(_) => return,
                        Ok(_) => {}
                    }
                    let readable = |at: usize| descriptors[at].revents().is_some_and(|seen| !seen.is_empty());
                    if readable(1) {
                        return;
                    }
                    let length = match tty.read(&mut buffer) {
                        Ok(0) | Err(_) => return,
                        Ok(length) => length,
                    };
                    let detach = buffer[..length].iter().position(|byte| *byte == DETACH);
                    let bytes = Bytes::copy_from_slice(&buffer[..detach.unwrap_or(length)]);
                    if !bytes.is_empty() && sender.blocking_send(bytes).is_err() || detach.is_some() {
                        return;
                    }
                }
            })
            .map_err(fail)?;
        Ok(Self { typed, stop: StopReading { wake, thread: Some(thread) } })
    }
}
