//! Commands in a guest.
//!
//! For each command a small task carries its output from the connection to the receiver that the
//! user reads, and grants the guest credit for what was taken. So a reader that stalls stops its own
//! command, and neither the connection nor other commands.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use vmdeck_protocol::flow::{FlowError, ReceiveWindow, SendWindow};
use vmdeck_protocol::frame::MAX_PAYLOAD;
use vmdeck_protocol::handshake::chunk;
use vmdeck_protocol::message::{Exec, ExitStatus, HostMessage, Refusal, RefusalReason, Terminal};
use vmdeck_protocol::service::Serve;

use crate::error::{Error, Result};

use super::connection::{Connection, Core};

/// Pieces of output that wait for the user beside what the window holds.
const OUTPUT_QUEUE: usize = 4;

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    pub columns: u16,
    pub rows: u16,
}

/// A command to run in the guest.
#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    /// Program and arguments; empty for the user's login shell.
    pub command: Vec<String>,
    /// `NAME=value`, added to the environment of the image.
    pub environment: Vec<String>,
    pub working_directory: Option<String>,
    /// As in the image config: `user`, `uid`, `user:group`; root by default.
    pub user: Option<String>,
    /// A pty of this size instead of pipes.
    pub pty: Option<WindowSize>,
    /// `TERM` for a pty.
    pub term: Option<String>,
}

/// What a command writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutput {
    /// Standard output, or everything when it has a pty.
    Stdout(Bytes),
    Stderr(Bytes),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecStatus {
    Exited(u8),
    Signalled(i32),
}

/// A command running in the guest. Dropping all of it hangs it up: SIGHUP, and after some seconds
/// SIGKILL.
#[derive(Debug)]
pub struct ExecSession {
    /// Dropping it closes the command's standard input.
    pub input: ExecInput,
    /// Bounded: not reading it stops the command's writes, nobody else's. Ends with the command.
    /// Once it is dropped, or closed, output is thrown away and the command goes on.
    pub output: mpsc::Receiver<ExecOutput>,
    pub control: ExecControl,
    pub end: ExecEnd,
}

/// Standard input of a command.
#[derive(Debug)]
pub struct ExecInput {
    handle: Arc<Handle>,
}

/// Signals and window sizes for a command.
#[derive(Clone, Debug)]
pub struct ExecControl {
    handle: Arc<Handle>,
}

/// The end of a command, to be waited for.
#[derive(Clone, Debug)]
pub struct ExecEnd {
    handle: Arc<Handle>,
    status: watch::Receiver<Option<ExecStatus>>,
}

/// What the parts of a session have in common. The command is hung up when it is dropped.
#[derive(Debug)]
struct Handle {
    connection: Arc<Connection>,
    stream: u32,
    input: Arc<InputWindow>,
    _abandon: DropGuard,
}

/// Credit for a command's input.
#[derive(Debug, Default)]
struct InputWindow {
    /// Guards the credit, `None` when the command has ended. Held for a few instructions.
    window: Mutex<Option<SendWindow>>,
    changed: Notify,
}

/// The connection's end of a command.
#[derive(Debug)]
pub(super) struct Stream {
    started: Option<oneshot::Sender<std::result::Result<(), Refusal>>>,
    /// Unbounded in itself; what a guest can put into it is bounded by `window`.
    output: mpsc::UnboundedSender<ExecOutput>,
    window: Arc<Mutex<ReceiveWindow>>,
    input: Arc<InputWindow>,
    status: watch::Sender<Option<ExecStatus>>,
}

/// Sends the request; the future waits for the answer.
pub(super) fn start(
    connection: &Arc<Connection>,
    request: ExecRequest,
) -> Result<impl Future<Output = Result<ExecSession>>> {
    let exec = Exec {
        command: request.command,
        environment: request.environment,
        working_directory: request.working_directory,
        user: request.user,
        terminal: request.pty.map(|size| Terminal {
            columns: size.columns,
            rows: size.rows,
            term: request.term,
        }),
    };
    // In JSON a byte takes six at most, and each string has quotes and a comma.
    let texts = exec.command.iter().chain(&exec.environment).chain(&exec.working_directory).chain(&exec.user);
    let length: usize = 256 + texts.map(|text| text.len() + 3).sum::<usize>();
    let mut wire = Vec::new();
    if (HostMessage::Exec { stream: 0, exec: exec.clone() }).encode(&mut wire).is_err() {
        return Err(Error::usage(format!(
            "the command and its environment take {length} bytes, more than the {MAX_PAYLOAD} that can be sent"
        ))
        .with_hint("send long data through the command's standard input"));
    }
    begin(connection, wire.len(), |stream| HostMessage::Exec { stream, exec })
}

/// As [`start`], for a service of the agent's own.
pub(super) fn serve(
    connection: &Arc<Connection>,
    serve: Serve,
) -> Result<impl Future<Output = Result<ExecSession>>> {
    let mut wire = Vec::new();
    if (HostMessage::Serve { stream: 0, serve: serve.clone() }).encode(&mut wire).is_err() {
        return Err(Error::usage("the path is too long"));
    }
    begin(connection, wire.len(), |stream| HostMessage::Serve { stream, serve })
}

/// As [`start`], for what the agent is asked to do by a message of its own.
pub(super) fn ask<Request: FnOnce(u32) -> HostMessage>(
    connection: &Arc<Connection>,
    request: Request,
) -> Result<impl Future<Output = Result<ExecSession>> + use<Request>> {
    begin(connection, 64, request)
}

fn begin<Request: FnOnce(u32) -> HostMessage>(
    connection: &Arc<Connection>,
    length: usize,
    request: Request,
) -> Result<impl Future<Output = Result<ExecSession>> + use<Request>> {
    let (started_sender, started) = oneshot::channel();
    let (arrived_sender, arrived) = mpsc::unbounded_channel();
    let (output_sender, output) = mpsc::channel(OUTPUT_QUEUE);
    let (status_sender, status) = watch::channel(None);
    let window = Arc::new(Mutex::new(ReceiveWindow::default()));
    let input =
        Arc::new(InputWindow { window: Mutex::new(Some(SendWindow::default())), ..Default::default() });
    let stream = connection.core.open(Stream {
        started: Some(started_sender),
        output: arrived_sender,
        window: Arc::clone(&window),
        input: Arc::clone(&input),
        status: status_sender,
    })?;
    let abandoned = CancellationToken::new();
    let carrier =
        Carrier { core: Arc::clone(&connection.core), stream, window, abandoned: abandoned.clone() };
    tokio::spawn(carrier.run(arrived, output_sender));
    let handle = Arc::new(Handle {
        connection: Arc::clone(connection),
        stream,
        input,
        _abandon: abandoned.drop_guard(),
    });

    let request = request(stream);
    Ok(async move {
        handle.connection.core.request(request, length).await?;
        match started.await {
            Ok(Ok(())) => Ok(ExecSession {
                input: ExecInput { handle: Arc::clone(&handle) },
                output,
                control: ExecControl { handle: Arc::clone(&handle) },
                end: ExecEnd { handle, status },
            }),
            Ok(Err(refusal)) => Err(refused(&refusal)),
            Err(_) => Err(handle.connection.broken()),
        }
    })
}

/// The agent is older than the request.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("it was started with an older agent")]
pub(super) struct UnknownRequest;

pub(super) fn refused(refusal: &Refusal) -> Error {
    let message = refusal.message.escape_debug();
    match refusal.reason {
        RefusalReason::Invalid => {
            let error = Error::usage(message.to_string());
            match next_step(&refusal.message) {
                Some(hint) => error.with_hint(hint),
                None => error,
            }
        }
        RefusalReason::Unknown => Error::failed(message.to_string())
            .with_source(UnknownRequest)
            .with_hint("the machine was started by an older vmdeck: restart it"),
        RefusalReason::NotFound => Error::not_found(message.to_string()),
        // It is there, and its mode or its kind forbids it.
        RefusalReason::NotExecutable => Error::conflict(message.to_string()),
        RefusalReason::Failed => Error::failed(message.to_string()),
    }
}

/// What helps against a request that makes no sense in this machine, as its agent puts it.
fn next_step(message: &str) -> Option<&'static str> {
    if message.starts_with("the image has no user") {
        Some("name one of its /etc/passwd, or a number, which needs no entry there (65534 is nobody's)")
    } else if message.starts_with("the image has no group") {
        Some("name one of its /etc/group, or a number, which needs no entry there")
    } else if message.starts_with("the working directory") {
        Some("name a folder that is there; without one the command begins in its user's home")
    } else {
        None
    }
}

impl ExecEnd {
    /// Waits for the end of the command.
    pub async fn status(&mut self) -> Result<ExecStatus> {
        let status = self.status.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        status.ok_or_else(|| self.handle.connection.broken())
    }
}

impl ExecInput {
    /// Waits while the command does not read.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            // Before the look: a grant in between must not be missed.
            let changed = self.handle.input.changed.notified();
            let length = {
                let mut window = self.handle.input.window();
                let Some(window) = window.as_mut() else {
                    return Err(Error::failed("the command has ended and takes no more input"));
                };
                let length = chunk(&bytes[..bytes.len().min(window.available())]);
                if length > 0 {
                    window.spend(length);
                }
                length
            };
            if length == 0 {
                changed.await;
                continue;
            }
            self.handle.connection.core.data(self.handle.stream, bytes.split_to(length)).await?;
        }
        Ok(())
    }
}

impl Drop for ExecInput {
    fn drop(&mut self) {
        self.handle.connection.core.tell(HostMessage::StdinEnd { stream: self.handle.stream });
    }
}

impl ExecControl {
    /// Sends a signal (Linux number) to the command's process group, or to the foreground group of
    /// its terminal.
    pub async fn signal(&self, signal: i32) -> Result<()> {
        let message = HostMessage::Signal { stream: self.handle.stream, signal };
        self.handle.connection.core.request(message, 0).await
    }

    pub async fn resize(&self, size: WindowSize) -> Result<()> {
        let message =
            HostMessage::Resize { stream: self.handle.stream, columns: size.columns, rows: size.rows };
        self.handle.connection.core.request(message, 0).await
    }
}

impl InputWindow {
    fn window(&self) -> MutexGuard<'_, Option<SendWindow>> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    pub(super) fn started(&mut self) -> std::result::Result<(), FlowError> {
        self.answer(Ok(()))
    }

    pub(super) fn refused(&mut self, refusal: Refusal) -> std::result::Result<(), FlowError> {
        self.answer(Err(refusal))
    }

    fn answer(&mut self, answer: std::result::Result<(), Refusal>) -> std::result::Result<(), FlowError> {
        if let Some(started) = self.started.take() {
            // Nobody may be waiting any more.
            let _ = started.send(answer);
        }
        Ok(())
    }

    pub(super) fn output(&mut self, is_stderr: bool, data: Bytes) -> std::result::Result<(), FlowError> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).receive(data.len())?;
        // The carrier may be gone when everybody lost interest.
        let _ = self.output.send(if is_stderr { ExecOutput::Stderr(data) } else { ExecOutput::Stdout(data) });
        Ok(())
    }

    pub(super) fn grant(&mut self, bytes: u32) -> std::result::Result<(), FlowError> {
        if let Some(window) = self.input.window().as_mut() {
            window.grant(bytes)?;
        }
        self.input.changed.notify_one();
        Ok(())
    }

    pub(super) fn exited(&mut self, status: ExitStatus) -> std::result::Result<(), FlowError> {
        self.status.send_replace(Some(match status {
            ExitStatus::Exited(code) => ExecStatus::Exited(code),
            ExitStatus::Signalled(signal) => ExecStatus::Signalled(signal.into()),
        }));
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        *self.input.window() = None;
        self.input.changed.notify_one();
    }
}

/// Carries a command's output to its reader.
struct Carrier {
    core: Arc<Core>,
    stream: u32,
    window: Arc<Mutex<ReceiveWindow>>,
    abandoned: CancellationToken,
}

impl Carrier {
    async fn run(self, mut arrived: mpsc::UnboundedReceiver<ExecOutput>, output: mpsc::Sender<ExecOutput>) {
        let everybody_gone = async {
            self.abandoned.cancelled().await;
            output.closed().await;
        };
        tokio::select! {
            () = self.carry(&mut arrived, &output) => {}
            () = everybody_gone => {
                self.core.forget(self.stream);
                self.core.tell(HostMessage::HangUp { stream: self.stream });
            }
        }
    }

    async fn carry(
        &self,
        arrived: &mut mpsc::UnboundedReceiver<ExecOutput>,
        output: &mpsc::Sender<ExecOutput>,
    ) {
        while let Some(piece) = arrived.recv().await {
            let (ExecOutput::Stdout(data) | ExecOutput::Stderr(data)) = &piece;
            let length = data.len();
            // Without a reader it is thrown away.
            let _ = output.send(piece).await;
            let credit = self.window.lock().unwrap_or_else(PoisonError::into_inner).consume(length);
            if let Some(bytes) = credit {
                self.core.tell(HostMessage::Credit { stream: self.stream, bytes });
            }
        }
    }
}
