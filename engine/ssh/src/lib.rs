//! An SSH server in front of a machine's agent, for the user's own client.
//!
//! ```text
//! ssh ── ProxyCommand: `vmdeck vm ssh-proxy NAME` ── this ── guest channel ── agent ── shell
//! ```
//!
//! The server runs on the host, in the process that the client itself starts, so the image needs no
//! sshd, no keys and no network. Nothing listens anywhere: the connection is the client's own pipe,
//! and who can open it can run `vmdeck vm exec` as well, so it asks for no further proof. The client
//! does check the server: each machine has a host key of its own, pinned in its folder
//! ([`host_key`]), so that no prompt comes and no file of the user is changed.
//!
//! Served: shells and commands with or without a terminal, signals, window sizes, SFTP (by the agent),
//! and connections from the client to ports in the machine (`-L`, `-D`, `-J`, `-W`).

#![forbid(unsafe_code)]

pub mod host_key;
mod intake;
mod session;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use russh::server::{self, Auth, ChannelOpenHandle, Msg, Session};
use russh::{Channel, ChannelOpenFailure, MethodKind, MethodSet};
use tokio::io::{AsyncRead, AsyncWrite};
use vmdeck_engine::guest::{GuestChannel, Service};
use vmdeck_engine::{Error, Result};

use host_key::HostKey;
use intake::Intake;

/// Serves one client on a stream until it goes. The user it names is who its commands run as.
pub async fn serve<S>(stream: S, guest: GuestChannel, key: HostKey) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = server::Config {
        methods: MethodSet::from(&[MethodKind::None][..]),
        keys: vec![key.private],
        inactivity_timeout: None,
        auth_rejection_time: Duration::ZERO,
        ..server::Config::default()
    };
    let intake = Arc::new(Intake::default());
    let stream = intake.bounded(stream);
    let handler = Handler { guest, user: None, intake };
    let failed = |error: russh::Error| Error::failed("the SSH connection broke").with_source(error);
    let session = server::run_stream(Arc::new(config), stream, handler).await.map_err(failed)?;
    match session.await {
        Ok(()) | Err(russh::Error::Disconnect | russh::Error::HUP) => Ok(()),
        // The client is gone without a word: it was ended, or ended itself.
        Err(russh::Error::IO(error)) if error.kind() != std::io::ErrorKind::Other => {
            tracing::debug!(%error, "an SSH client went away");
            Ok(())
        }
        Err(error) => Err(failed(error)),
    }
}

struct Handler {
    guest: GuestChannel,
    user: Option<String>,
    intake: Arc<Intake>,
}

impl server::Handler for Handler {
    type Error = russh::Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Self::Error> {
        self.user = Some(user.to_owned());
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        let (guest, user, intake) = (self.guest.clone(), self.user.clone(), self.intake.clone());
        tokio::spawn(session::serve(channel, session.handle(), guest, user, intake));
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Ok(port) = u16::try_from(port) else {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        };
        let connect = Service::Connect { host: host.to_owned(), port };
        let (guest, handle, intake) = (self.guest.clone(), session.handle(), self.intake.clone());
        // A task of its own: waiting here, every other channel would wait too.
        tokio::spawn(async move {
            match session::connect(&guest, connect).await {
                Ok((started, first)) => {
                    reply.accept().await;
                    let _ = handle.data(channel.id(), first).await;
                    session::bridge(channel, &handle, started, session::Kind::Connection, &intake).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection into a machine was not made");
                    reply.reject(ChannelOpenFailure::ConnectFailed).await;
                }
            }
        });
        Ok(())
    }
}

/// What a command whose start failed ends with, and what is said of it.
fn not_started(error: &Error) -> (u32, Bytes) {
    use vmdeck_engine::ErrorKind;
    let status = match error.kind() {
        ErrorKind::NotFound => 127,
        ErrorKind::Conflict => 126,
        _ => 255,
    };
    (status, Bytes::from(format!("vmdeck: {}\r\n", error.full_message())))
}
