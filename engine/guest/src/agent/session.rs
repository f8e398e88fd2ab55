//! One command that an engine has started.
//!
//! ```text
//!  running ──(process ends)──▶ draining ──(all it wrote was sent)──▶ reported ─┬─▶ gone
//!     └──(engine lost)──▶ hung up: SIGHUP, after a grace SIGKILL ──────────────┘
//! ```
//! A reported session stays as long as processes of the command hold its pipes: what they write is
//! read and dropped, so that a service started by a command is not killed by its first line of log.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, read, tcgetpgrp, write};
use vmdeck_protocol::flow::{FlowError, ReceiveWindow, SendWindow};
use vmdeck_protocol::message::{ExitStatus, GuestMessage};

use crate::command::{Running, Streams};
use crate::system;

use super::port::Port;

/// How long a command whose engine went away may take to end before it is killed.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);

/// End of transmission, what a terminal takes for the end of input (`VEOF`, termios(3)).
const END_OF_TRANSMISSION: u8 = 0x04;

#[derive(Debug)]
pub(super) struct Session {
    /// Index of the port of its engine; `None` when that went away.
    pub(super) port: Option<usize>,
    pub(super) stream: u32,
    pid: Pid,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) ends: Ends,
    input: VecDeque<Vec<u8>>,
    /// Bytes of the first element of `input` that are written.
    written: usize,
    input_ended: bool,
    pub(super) input_writable: bool,
    receive: ReceiveWindow,
    send: SendWindow,
    status: Option<ExitStatus>,
    reported: bool,
    kill_at: Option<Instant>,
}

/// This side of the command's input and output.
#[derive(Debug)]
pub(super) enum Ends {
    Pipes { stdin: Option<OwnedFd>, outputs: [Output; 2] },
    Terminal(Output),
}

#[derive(Debug)]
pub(super) struct Output {
    pub(super) descriptor: Option<OwnedFd>,
    /// It may have something to read.
    pub(super) readable: bool,
}

impl Output {
    fn new(descriptor: OwnedFd) -> Self {
        Self { descriptor: Some(descriptor), readable: true }
    }

    fn is_drained(&self) -> bool {
        self.descriptor.is_none() || !self.readable
    }
}

impl Session {
    pub(super) fn new(port: usize, stream: u32, running: Running) -> Self {
        let ends = match running.streams {
            Streams::Pipes { stdin, stdout, stderr } => {
                Ends::Pipes { stdin: Some(stdin), outputs: [Output::new(stdout), Output::new(stderr)] }
            }
            Streams::Terminal(master) => Ends::Terminal(Output::new(master)),
        };
        Self {
            port: Some(port),
            stream,
            pid: running.pid,
            pidfd: Some(running.pidfd),
            ends,
            input: VecDeque::new(),
            written: 0,
            input_ended: false,
            input_writable: true,
            receive: ReceiveWindow::default(),
            send: SendWindow::default(),
            status: None,
            reported: false,
            kill_at: None,
        }
    }

    /// Queues data for the command's standard input. More than was granted is an error.
    pub(super) fn input(&mut self, data: Vec<u8>) -> Result<(), FlowError> {
        self.receive.receive(data.len())?;
        if !self.input_ended {
            self.input.push_back(data);
        }
        Ok(())
    }

    pub(super) fn end_input(&mut self) {
        if self.input_ended {
            return;
        }
        self.input_ended = true;
        if matches!(self.ends, Ends::Terminal(_)) {
            self.input.push_back(vec![END_OF_TRANSMISSION]);
        }
    }

    pub(super) fn grant(&mut self, bytes: u32) -> Result<(), FlowError> {
        self.send.grant(bytes)
    }

    pub(super) fn resize(&self, columns: u16, rows: u16) {
        if let Ends::Terminal(Output { descriptor: Some(master), .. }) = &self.ends {
            // A terminal whose program has just ended cannot be resized, and need not be.
            let _ = system::set_window_size(master.as_fd(), columns, rows);
        }
    }

    /// Sends a signal to the foreground process group of the terminal, or to the command's group.
    pub(super) fn signal(&self, signal: i32) {
        let foreground = match &self.ends {
            Ends::Terminal(Output { descriptor: Some(master), .. }) => tcgetpgrp(master).ok(),
            _ => None,
        };
        let group = foreground.filter(|group| group.as_raw() > 1).unwrap_or(self.pid);
        if self.status.is_none() && (1..=64).contains(&signal) {
            system::kill_group(group, signal);
        }
    }

    /// The engine is gone or has lost interest.
    pub(super) fn hang_up(&mut self) {
        self.port = None;
        self.input.clear();
        match &mut self.ends {
            Ends::Pipes { stdin, .. } => *stdin = None,
            // Closing it hangs up whatever has it as its terminal.
            Ends::Terminal(output) => output.descriptor = None,
        }
        if self.status.is_none() {
            system::kill_group(self.pid, libc::SIGHUP);
            // A stopped process would not see it.
            system::kill_group(self.pid, libc::SIGCONT);
            self.kill_at = Some(Instant::now() + HANG_UP_GRACE);
        }
    }

    /// When [`expire`](Self::expire) is to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.kill_at
    }

    pub(super) fn expire(&mut self, now: Instant) {
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            if self.status.is_none() {
                system::kill_group(self.pid, libc::SIGKILL);
            }
        }
    }

    /// The pidfd is readable: takes the exit status.
    pub(super) fn reap(&mut self) {
        // It was taken before. The event comes again while a child that was just forked has a copy of the
        // descriptor, until it executes its program.
        if self.status.is_some() {
            return;
        }
        let status = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => {
                ExitStatus::Exited(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                ExitStatus::Signalled(u8::try_from(signal as i32).unwrap_or_default())
            }
            Ok(_) | Err(Errno::EINTR) => return,
            // Real-time signals are not in nix's list.
            Err(Errno::EINVAL) => ExitStatus::Signalled(u8::MAX),
            // Somebody else has reaped it.
            Err(_) => ExitStatus::Exited(u8::MAX),
        };
        self.status = Some(status);
        self.pidfd = None;
        self.kill_at = None;
        // What it wrote before it ended is there now, whatever was seen before.
        for output in self.outputs() {
            output.readable = true;
        }
    }

    /// Moves what can be moved. Returns whether more could be at once.
    pub(super) fn pump(&mut self, port: Option<&mut Port>, buffer: &mut [u8]) -> bool {
        let mut port = port.filter(|_| self.port.is_some() && !self.reported);
        let mut more = false;
        if let Some(port) = port.as_deref_mut() {
            self.write_input(port);
        }
        let stream = self.stream;
        let (is_terminal, outputs): (bool, &mut [Output]) = match &mut self.ends {
            Ends::Pipes { outputs, .. } => (false, outputs),
            Ends::Terminal(output) => (true, std::slice::from_mut(output)),
        };
        for (number, output) in outputs.iter_mut().enumerate() {
            let limit = match port.as_deref() {
                Some(port) if port.is_congested() => 0,
                Some(_) => self.send.available(),
                // Nobody listens: read and drop.
                None => buffer.len(),
            };
            let Some(descriptor) = output.descriptor.as_ref().filter(|_| output.readable && limit > 0) else {
                continue;
            };
            match read(descriptor, &mut buffer[..limit]) {
                Ok(0) => output.descriptor = None,
                Ok(length) => {
                    more = true;
                    if let Some(port) = port.as_deref_mut() {
                        self.send.spend(length);
                        let data = buffer[..length].to_vec();
                        port.send(&match number {
                            0 => GuestMessage::Stdout { stream, data },
                            _ => GuestMessage::Stderr { stream, data },
                        });
                    }
                }
                Err(Errno::EINTR) => more = true,
                Err(Errno::EAGAIN) => output.readable = false,
                // A terminal that nobody has open any more says EIO. It may be opened again while
                // the command lives.
                Err(Errno::EIO) if is_terminal && self.status.is_none() => output.readable = false,
                Err(_) => output.descriptor = None,
            }
        }
        if let (Some(status), Some(port)) = (self.status, port)
            && outputs.iter().all(Output::is_drained)
        {
            port.send(&GuestMessage::Exited { stream, status });
            port.sessions.remove(&stream);
            self.report();
        }
        more
    }

    /// Whether nothing is left of it.
    pub(super) fn is_gone(&self) -> bool {
        let silent = match &self.ends {
            Ends::Pipes { outputs, .. } => outputs.iter().all(|output| output.descriptor.is_none()),
            Ends::Terminal(_) => true,
        };
        self.status.is_some() && silent && (self.reported || self.port.is_none())
    }

    pub(super) fn outputs(&mut self) -> &mut [Output] {
        match &mut self.ends {
            Ends::Pipes { outputs, .. } => outputs,
            Ends::Terminal(output) => std::slice::from_mut(output),
        }
    }

    fn report(&mut self) {
        self.reported = true;
        self.port = None;
        self.input.clear();
        match &mut self.ends {
            Ends::Pipes { stdin, .. } => *stdin = None,
            Ends::Terminal(output) => output.descriptor = None,
        }
    }

    fn write_input(&mut self, port: &mut Port) {
        let descriptor = match &self.ends {
            Ends::Pipes { stdin, .. } => stdin.as_ref(),
            Ends::Terminal(output) => output.descriptor.as_ref(),
        };
        let mut closed = descriptor.is_none();
        while let Some(data) = self.input.front() {
            // Nobody reads it any more, but the engine must not wait for ever either.
            if let Some(descriptor) = descriptor.filter(|_| !closed) {
                if !self.input_writable {
                    break;
                }
                match write(descriptor, &data[self.written..]) {
                    Ok(length) => self.written += length,
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => self.input_writable = false,
                    Err(_) => closed = true,
                }
                if !closed && self.written < data.len() {
                    continue;
                }
            }
            let length = data.len();
            self.input.pop_front();
            self.written = 0;
            // After its end no more input comes, and what stands for it on a terminal was not sent.
            if !self.input_ended
                && let Some(bytes) = self.receive.consume(length)
            {
                port.send(&GuestMessage::Credit { stream: self.stream, bytes });
            }
        }
        if let Ends::Pipes { stdin, .. } = &mut self.ends
            && (closed || (self.input_ended && self.input.is_empty()))
        {
            *stdin = None;
        }
    }
}
