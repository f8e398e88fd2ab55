//! A shell in a machine on the user's own terminal: bytes pass through both ways, untouched, until
//! the shell ends or `ctrl-]` is typed.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossterm::event::{Event, KeyEventKind};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use vmdeck_engine::guest::{ExecOutput, ExecRequest, WindowSize};
use vmdeck_engine::{Engine, Error, Result};

use crate::keymap::Key;
use crate::message::Handover;
use crate::model::console::{encode, encode_paste};

/// `ctrl-]`, as telnet has it.
const DETACH: u8 = 0x1d;

/// How long the event library may take to hand over what it has read.
const AHEAD: Duration = Duration::from_millis(2);

/// Bytes of one chunk at most.
const MOST: usize = 4096;

/// Chunks of typed bytes that may wait for the guest.
const WAITING: usize = 64;

/// Keys that the event library has read and nobody has taken yet, as the bytes they were typed as.
pub(super) fn typed_ahead() -> Vec<u8> {
    let mut typed = Vec::new();
    while crossterm::event::poll(AHEAD).unwrap_or(false) {
        match crossterm::event::read() {
            Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                typed.extend(encode(Key::from(key), false));
            }
            Ok(Event::Paste(text)) => typed.extend(encode_paste(&text, false)),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    typed
}

/// Gives a machine the terminal, which has been lent: it is in raw mode, its screen the shell's.
pub(super) async fn hand_over(
    engine: Engine,
    handover: Handover,
    size: (u16, u16),
    typed: Vec<u8>,
) -> Result<()> {
    let (what, name) = match &handover {
        Handover::Shell(name) => ("shell in", name),
        Handover::Console(name) => ("console of", name),
    };
    say(&format!("vmdeck: {what} {}; ctrl-] comes back to the list\r\n", crate::text::clean(name)));
    let result = match &handover {
        Handover::Shell(name) => Box::pin(shell(&engine, name, size, typed)).await,
        Handover::Console(name) => Box::pin(console(&engine, name, typed)).await,
    };
    // Whatever modes the guest's programs left on: colours, cursor, paste, mouse, alternate screen. The
    // latter by 1047: 1049 would also put the cursor back to where it was before all this, and the next
    // shell's words over this one's.
    say(
        "\x1b[0m\x1b[?25h\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1l\x1b>\x1b[?1047l\r\n",
    );
    result
}

/// Carries bytes to and from a shell.
async fn shell(engine: &Engine, name: &str, size: (u16, u16), typed: Vec<u8>) -> Result<()> {
    let request = ExecRequest {
        pty: Some(WindowSize { columns: size.0, rows: size.1 }),
        term: std::env::var("TERM").ok(),
        ..ExecRequest::default()
    };
    // Read from the beginning: what is typed while the shell starts is for the shell, and ctrl-]
    // gives up waiting for it.
    let mut keyboard = Keyboard::start()?;
    let mut waiting = typed;
    let start = engine.vms().exec(name, request);
    tokio::pin!(start);
    let mut session = loop {
        tokio::select! {
            session = &mut start => break session?,
            bytes = keyboard.typed.recv() => match bytes {
                Some(bytes) => waiting.extend_from_slice(&bytes),
                None => return Ok(()),
            },
        }
    };
    if !waiting.is_empty() {
        session.input.write(waiting.into()).await?;
    }
    let mut resized =
        signal(SignalKind::window_change()).map_err(|error| Error::io("cannot listen to signals", error))?;
    loop {
        tokio::select! {
            output = session.output.recv() => match output {
                Some(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes)) => write_out(&bytes)?,
                None => return Ok(()),
            },
            bytes = keyboard.typed.recv() => match bytes {
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

/// Carries bytes to and from a serial console.
async fn console(engine: &Engine, name: &str, typed: Vec<u8>) -> Result<()> {
    let mut console = engine.vms().console(name).await?;
    let mut keyboard = Keyboard::start()?;
    let gone = |error| Error::io("the machine's console is gone", error);
    console.stream.write_all(&typed).await.map_err(gone)?;
    let mut buffer = vec![0; 16 << 10];
    loop {
        tokio::select! {
            read = console.stream.read(&mut buffer) => match read.map_err(gone)? {
                0 => return Ok(()),
                length => write_out(&buffer[..length])?,
            },
            bytes = keyboard.typed.recv() => match bytes {
                Some(bytes) => console.stream.write_all(&bytes).await.map_err(gone)?,
                None => return Ok(()),
            },
        }
    }
}

fn write_out(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| Error::io("cannot write to the terminal", error))
}

fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A thread that reads what is typed, byte for byte, until it is told to stop.
struct Keyboard {
    /// Ends when the user detaches.
    typed: mpsc::Receiver<Bytes>,
    _stop: StopReading,
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
                let mut byte = [0];
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
                    // Byte by byte, so that what follows ctrl-] is left for the console.
                    let (mut bytes, mut detach) = (Vec::new(), false);
                    while !detach && bytes.len() < MOST {
                        match tty.read(&mut byte) {
                            Ok(0) | Err(_) => return,
                            Ok(_) if byte[0] == DETACH => detach = true,
                            Ok(_) => bytes.push(byte[0]),
                        }
                        let mut more = [PollFd::new(tty.as_fd(), PollFlags::POLLIN)];
                        if !matches!(poll(&mut more, PollTimeout::ZERO), Ok(1..)) {
                            break;
                        }
                    }
                    if !bytes.is_empty() && sender.blocking_send(bytes.into()).is_err() || detach {
                        return;
                    }
                }
            })
            .map_err(fail)?;
        Ok(Self { typed, _stop: StopReading { wake, thread: Some(thread) } })
    }
}
