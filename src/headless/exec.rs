//! A guest command at this process's standard streams: pipes, or a terminal in raw mode.

use std::io::{self, IsTerminal, Read, Write};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use vmdeck_engine::guest::{ExecControl, ExecInput, ExecOutput, ExecRequest, ExecStatus, WindowSize};
use vmdeck_engine::{Error, ErrorKind, Result};

use super::terminal::RawMode;
use super::{Context, Outcome};
use crate::cli::vm::TerminalArguments;

/// Statuses of a command that could not be run, as shells have them.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs the command; its exit status is the result, 128 + signal when one ended it.
pub(super) async fn run(
    context: &Context,
    name: &str,
    mut request: ExecRequest,
    terminal: TerminalArguments,
) -> Outcome {
    let has_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let wants_pty = !terminal.no_tty && !terminal.no_stdin && (terminal.tty || has_terminal);
    if wants_pty {
        request.pty = Some(window_size());
        request.term = std::env::var("TERM").ok();
    }
    // Before the command starts: no signal may be missed.
    let mut signals = Signals::new()?;
    let channel = context.engine.vms().channel(name).await?;
    let mut session = match channel.exec(request).await {
        Ok(session) => session,
        Err(error) => {
            let status = match error.kind() {
                ErrorKind::NotFound => NOT_FOUND,
                ErrorKind::Conflict => NOT_EXECUTABLE,
                _ => return Err(error),
            };
            context.output.error(&error);
            return Ok(status);
        }
    };
    let _raw = if wants_pty && has_terminal { Some(RawMode::enter()?) } else { None };
    let control = session.control.clone();
    let input = tokio::spawn(copy_input(session.input, !terminal.no_stdin));
    loop {
        tokio::select! {
            output = session.output.recv() => match output {
                Some(output) => print(output).await?,
                None => break,
            },
            event = signals.next() => forward(&control, event).await,
        }
    }
    input.abort();
    let status = session.end.status().await?;
    Ok(match status {
        ExecStatus::Exited(status) => status,
        ExecStatus::Signalled(signal) => u8::try_from(128 + signal).unwrap_or(255),
    })
}

async fn print(output: ExecOutput) -> Result<()> {
    // Standard output may be a pipe that nobody reads for a while: that must not hold a worker.
    tokio::task::block_in_place(|| {
        let written = match &output {
            ExecOutput::Stdout(bytes) => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes).and_then(|()| stdout.flush())
            }
            ExecOutput::Stderr(bytes) => io::stderr().lock().write_all(bytes),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(141),
            written => written.map_err(|error| Error::io("cannot write the command's output", error)),
        }
    })
}

/// Copies standard input until it or the command ends.
async fn copy_input(mut input: ExecInput, wanted: bool) {
    if !wanted {
        return;
    }
    // Standard input cannot be read without blocking in all its forms: a thread reads it.
    let (sender, mut receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 32 << 10];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if sender.blocking_send(bytes::Bytes::copy_from_slice(&buffer[..count])).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    while let Some(bytes) = receiver.recv().await {
        if input.write(bytes).await.is_err() {
            return;
        }
    }
}

enum Event {
    Resize,
    Signal(i32),
}

struct Signals {
    resize: Signal,
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let open = |kind| signal(kind).map_err(|error| Error::io("cannot listen for signals", error));
        Ok(Self {
            resize: open(SignalKind::window_change())?,
            interrupt: open(SignalKind::interrupt())?,
            terminate: open(SignalKind::terminate())?,
            hangup: open(SignalKind::hangup())?,
            quit: open(SignalKind::quit())?,
        })
    }

    async fn next(&mut self) -> Event {
        let kind = tokio::select! {
            _ = self.resize.recv() => return Event::Resize,
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
            _ = self.quit.recv() => SignalKind::quit(),
        };
        Event::Signal(kind.as_raw_value())
    }
}

async fn forward(control: &ExecControl, event: Event) {
    let result = match event {
        Event::Resize => control.resize(window_size()).await,
        Event::Signal(signal) => control.signal(signal).await,
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a signal did not reach the guest");
    }
}

fn window_size() -> WindowSize {
    let (columns, rows) = crossterm::terminal::size().unwrap_or((80, 24));
    WindowSize { columns, rows }
}
