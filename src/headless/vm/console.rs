//! `vmdeck vm console`: this terminal at the machine's serial port, bytes as they are.
//!
//! `ctrl-]` typed at a terminal leaves, as it does in telnet and `virsh console`; so do the end of
//! the input, a signal, and the end of the machine. Whatever modes the guest's programs left the
//! terminal in are taken back.

use std::io::{self, IsTerminal, Read, Write};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use vmdeck_engine::{Error, Result};

use crate::headless::interrupt::Interrupt;
use crate::headless::terminal::RawMode;
use crate::headless::{Context, Outcome};

/// `ctrl-]`, the group separator of ASCII.
const LEAVE: u8 = 0x1d;

pub(super) async fn run(context: &Context, name: &str) -> Outcome {
    let (input_is_terminal, output_is_terminal) = (io::stdin().is_terminal(), io::stdout().is_terminal());
    let mut interrupt = Interrupt::new()?;
    let mut console = context.engine.vms().console(name).await?;
    let (mut from_guest, mut to_guest) = console.stream.split();
    let leave = if input_is_terminal { "ctrl-] leaves" } else { "the end of the input leaves" };
    context.output.message(&format!("attached to the console of {name}; {leave}"));
    let _raw = if input_is_terminal { Some(RawMode::enter()?) } else { None };
    let mut modes = Modes { restore: output_is_terminal, alternate_screen: false };
    let mut input = read_input();
    let mut buffer = vec![0; 16 << 10];
    let end = loop {
        tokio::select! {
            count = from_guest.read(&mut buffer) => match count {
                Ok(0) => break End::Machine,
                Ok(count) => print(&buffer[..count], &mut modes)?,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break End::Machine,
                Err(error) => return Err(Error::io(format!("the console of `{name}` broke"), error)),
            },
            typed = input.recv() => {
                let Some(mut typed) = typed else { break End::Left };
                let left = input_is_terminal.then(|| typed.iter().position(|&byte| byte == LEAVE)).flatten();
                typed.truncate(left.unwrap_or(typed.len()));
                if to_guest.write_all(&typed).await.is_err() {
                    break End::Machine;
                }
                if left.is_some() {
                    break End::Left;
                }
            }
            _ = interrupt.next() => break End::Left,
        }
    };
    drop(modes);
    drop(_raw);
    context.output.message(match end {
        End::Left => "\nleft the console; the machine goes on",
        End::Machine => "\nthe machine ended",
    });
    Ok(0)
}

enum End {
    Left,
    Machine,
}

/// A thread reads standard input, which cannot be read without blocking in all its forms.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 4 << 10];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) if sender.blocking_send(buffer[..count].to_vec()).is_err() => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}

fn print(bytes: &[u8], modes: &mut Modes) -> Result<()> {
    modes.watch(bytes);
    // Standard output may be a pipe that nobody reads for a while: that must not hold a worker.
    tokio::task::block_in_place(|| {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(141),
            written => written.map_err(|error| Error::io("cannot write to standard output", error)),
        }
    })
}

/// What the guest's programs may leave a terminal in, taken back when this goes.
struct Modes {
    restore: bool,
    alternate_screen: bool,
}

impl Modes {
    /// Leaving a screen that was never entered would move the cursor: so entering is looked out for.
    fn watch(&mut self, bytes: &[u8]) {
        const ENTER: &[u8] = b"\x1b[?1049h";
        self.alternate_screen |= bytes.windows(ENTER.len()).any(|window| window == ENTER);
    }
}

impl Drop for Modes {
    fn drop(&mut self) {
        if !self.restore {
            return;
        }
        let mut stdout = io::stdout().lock();
        // Colours, cursor, cursor keys, keypad, mouse, pasting (xterm's ctlseqs).
        let reset = "\x1b[0m\x1b[?25h\x1b[?1l\x1b>\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l";
        let screen = if self.alternate_screen { "\x1b[?1049l" } else { "" };
        let _ = write!(stdout, "{screen}{reset}").and_then(|()| stdout.flush());
    }
}
