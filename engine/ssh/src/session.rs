//! One channel of an SSH connection, and the command of the guest behind it (RFC 4254, section 6).

use std::sync::Arc;

use bytes::Bytes;
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelId, ChannelMsg, Sig};
use tokio::sync::mpsc;
use vmdeck_engine::guest::{
    CONNECTED, ExecOutput, ExecRequest, ExecSession, ExecStatus, GuestChannel, Service, WindowSize,
};
use vmdeck_engine::{Error, ErrorKind, Result};

use crate::intake::{Held, Intake};

/// `SSH_EXTENDED_DATA_STDERR`
const STDERR: u32 = 1;

/// Variables that a client may set, and how many.
const MAX_VARIABLES: usize = 64;

/// Signals and window sizes that wait for the machine to take them.
const PENDING_ORDERS: usize = 16;

/// What is behind a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Command,
    /// It has neither an exit status nor a standard error.
    Connection,
}

/// What a client tells a command beside its input.
enum Order {
    Resize(WindowSize),
    Signal(i32),
}

/// Serves a session channel: first the requests that prepare a command, then the command.
pub(crate) async fn serve(
    mut channel: Channel<Msg>,
    handle: Handle,
    guest: GuestChannel,
    user: Option<String>,
    intake: Arc<Intake>,
) {
    let id = channel.id();
    let mut request = ExecRequest { user: user.clone(), ..ExecRequest::default() };
    let started = loop {
        match channel.wait().await {
            None | Some(ChannelMsg::Close) => return,
            Some(ChannelMsg::RequestPty { term, col_width, row_height, .. }) => {
                request.pty = Some(window(col_width, row_height));
                request.term = Some(term);
                let _ = handle.channel_success(id).await;
            }
            Some(ChannelMsg::SetEnv { variable_name, variable_value, .. }) => {
                // As sshd is set up in Debian: what tells the language, and nothing that could change
                // how programs are loaded.
                let wanted = variable_name == "LANG" || variable_name.starts_with("LC_");
                if wanted && request.environment.len() < MAX_VARIABLES {
                    request.environment.push(format!("{variable_name}={variable_value}"));
                    let _ = handle.channel_success(id).await;
                } else {
                    let _ = handle.channel_failure(id).await;
                }
            }
            Some(ChannelMsg::WindowChange { col_width, row_height, .. }) => {
                request.pty = request.pty.map(|_| window(col_width, row_height));
            }
            Some(ChannelMsg::RequestShell { .. }) => break guest.exec(request).await,
            Some(ChannelMsg::Exec { command, .. }) => {
                let command = String::from_utf8_lossy(&command).into_owned();
                break run(&guest, request, &command).await;
            }
            Some(ChannelMsg::RequestSubsystem { name, .. }) if name == "sftp" => {
                break guest.serve(Service::Sftp, user).await;
            }
            Some(
                ChannelMsg::RequestSubsystem { .. }
                | ChannelMsg::RequestX11 { .. }
                | ChannelMsg::AgentForward { .. },
            ) => {
                let _ = handle.channel_failure(id).await;
            }
            Some(_) => {}
        }
    };
    let _ = handle.channel_success(id).await;
    match started {
        Ok(session) => bridge(channel, &handle, session, Kind::Command, &intake).await,
        Err(error) => {
            let (status, said) = crate::not_started(&error);
            let _ = handle.extended_data(id, STDERR, said).await;
            let _ = handle.exit_status_request(id, status).await;
            let _ = handle.eof(id).await;
            let _ = handle.close(id).await;
        }
    }
}

/// By the shell, as sshd does it; in an image without one, the words of the command as they are.
async fn run(guest: &GuestChannel, request: ExecRequest, command: &str) -> Result<ExecSession> {
    let by_shell = vec!["/bin/sh".to_owned(), "-c".to_owned(), command.to_owned()];
    let tried = guest.exec(ExecRequest { command: by_shell, ..request.clone() }).await;
    match tried {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
            if words.is_empty() {
                return Err(error);
            }
            guest.exec(ExecRequest { command: words, ..request }).await
        }
        tried => tried,
    }
}

/// Starts a connection service and waits until its connection stands; also gives what came with the
/// news of it.
pub(crate) async fn connect(guest: &GuestChannel, connect: Service) -> Result<(ExecSession, Bytes)> {
    let mut session = guest.serve(connect, None).await?;
    match session.output.recv().await {
        Some(ExecOutput::Stdout(mut first)) if first.first() == Some(&CONNECTED) => {
            Ok((session, first.split_off(1)))
        }
        Some(ExecOutput::Stderr(said)) => {
            Err(Error::failed(String::from_utf8_lossy(&said).trim_end().escape_debug().to_string()))
        }
        _ => Err(Error::failed("the machine's agent made no connection")),
    }
}

/// Joins a channel with what was started for it, until either ends.
///
/// What the client sends is taken off the channel at once, whatever the command does with it: the
/// session of russh waits for a channel that is full, and with it every other one. How much may pile
/// up is bounded by the connection's [`Intake`].
pub(crate) async fn bridge(
    channel: Channel<Msg>,
    handle: &Handle,
    session: ExecSession,
    kind: Kind,
    intake: &Intake,
) {
    let id = channel.id();
    let (mut from_client, to_client) = channel.split();
    let ExecSession { mut input, mut output, control, mut end } = session;
    let (queue, mut queued) = mpsc::unbounded_channel::<Held<'_>>();
    let (orders, mut ordered) = mpsc::channel::<Order>(PENDING_ORDERS);

    let taking = async move {
        let mut queue = Some(queue);
        while let Some(message) = from_client.wait().await {
            match message {
                ChannelMsg::Data { data } => {
                    // A command that closed its input does not hold up the client.
                    if let Some(open) = &queue
                        && open.send(intake.hold(data)).is_err()
                    {
                        queue = None;
                    }
                }
                ChannelMsg::Eof => queue = None,
                // Ahead of what was typed before, as a signal of a terminal is; more of them than the
                // machine takes are worth nothing.
                ChannelMsg::WindowChange { col_width, row_height, .. } => {
                    let _ = orders.try_send(Order::Resize(window(col_width, row_height)));
                }
                ChannelMsg::Signal { signal } => {
                    if let Some(number) = number(&signal) {
                        let _ = orders.try_send(Order::Signal(number));
                    }
                }
                ChannelMsg::Close => break,
                _ => {}
            }
        }
    };
    let feeding = async move {
        while let Some(held) = queued.recv().await {
            if input.write(held.bytes()).await.is_err() {
                break;
            }
        }
        // Dropped here, the input closes: the command reads its end.
        drop((queued, input));
    };
    let steering = async move {
        while let Some(order) = ordered.recv().await {
            let _ = match order {
                Order::Resize(size) => control.resize(size).await,
                Order::Signal(number) => control.signal(number).await,
            };
        }
    };
    let giving = async {
        while let Some(piece) = output.recv().await {
            // Waits for the client's window, and so stops the command, and nobody else.
            let sending = async {
                match (piece, kind) {
                    (ExecOutput::Stdout(data), _) => to_client.data_bytes(data).await,
                    (ExecOutput::Stderr(data), Kind::Command) => {
                        to_client.extended_data_bytes(STDERR, data).await
                    }
                    (ExecOutput::Stderr(_), Kind::Connection) => Ok(()),
                }
            };
            if intake.while_starved(sending).await.is_err() {
                return;
            }
        }
        finish(handle, id, kind, end.status().await).await;
    };
    // The feeder may end long before the client goes.
    let beside = async { tokio::join!(feeding, steering, std::future::pending::<()>()) };
    tokio::select! {
        // What the command wrote last goes before the client's leaving is looked at.
        biased;
        () = giving => {}
        // The client is gone: with the parts of the session the command is hung up.
        () = taking => {}
        _ = beside => {}
    }
}

/// Tells the client how what it started has ended, and closes the channel.
async fn finish(handle: &Handle, id: ChannelId, kind: Kind, status: Result<ExecStatus>) {
    let _ = handle.eof(id).await;
    if kind == Kind::Command {
        match status {
            Ok(ExecStatus::Exited(status)) => {
                let _ = handle.exit_status_request(id, status.into()).await;
            }
            Ok(ExecStatus::Signalled(signal)) => {
                let _ =
                    handle.exit_signal_request(id, name(signal), false, String::new(), String::new()).await;
            }
            Err(error) => {
                let (status, said) = crate::not_started(&error);
                let _ = handle.extended_data(id, STDERR, said).await;
                let _ = handle.exit_status_request(id, status).await;
            }
        }
    }
    let _ = handle.close(id).await;
}

fn window(columns: u32, rows: u32) -> WindowSize {
    let cut = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    WindowSize { columns: cut(columns), rows: cut(rows) }
}

/// Linux numbers of the signals that the protocol has names for (RFC 4254, section 6.10).
fn number(signal: &Sig) -> Option<i32> {
    Some(match signal {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        Sig::Custom(name) if name == "USR2" => 12,
        Sig::Custom(_) => return None,
    })
}

fn name(signal: i32) -> Sig {
    let known = [
        Sig::HUP,
        Sig::INT,
        Sig::QUIT,
        Sig::ILL,
        Sig::ABRT,
        Sig::FPE,
        Sig::KILL,
        Sig::USR1,
        Sig::SEGV,
        Sig::PIPE,
        Sig::ALRM,
        Sig::TERM,
    ];
    let found = known.into_iter().find(|known| number(known) == Some(signal));
    found.unwrap_or_else(|| Sig::Custom(format!("{signal}@vmdeck")))
}
