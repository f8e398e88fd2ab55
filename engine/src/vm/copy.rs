//! Files and trees between this host and a running machine.
//!
//! The agent packs and unpacks by itself (crate `vmdeck-transfer`), so the image needs neither `tar`
//! nor a shell. What comes out of a machine is not trusted: it is unpacked below the target and
//! nowhere else, and nothing in it names a path of the host.

use std::ffi::OsStr;
use std::io::{self, BufReader, Read, Write};
use std::path::PathBuf;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;
use vmdeck_protocol::service::{STATUS_NOT_FOUND, STATUS_PARTLY, Service};
use vmdeck_transfer::{Policy, Target, TransferError, pack, unpack};

use crate::error::{Error, Result};
use crate::guest::{ExecOutput, ExecSession, ExecStatus, GuestChannel};
use crate::operation::Operation;
use crate::operation::progress::{ProgressState, ProgressUnit};

/// Pieces that wait between the channel and the disk; each has at most 32 KiB.
const QUEUE: usize = 16;

/// Warnings that are kept.
const MAX_WARNINGS: usize = 100;

/// Bytes kept of what the agent says beside the data.
const MAX_SAID: usize = 64 * 1024;

/// What a copy came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// Bytes of content.
    pub bytes: u64,
    /// What was left out and why, one line each, at most a hundred; in part text of the guest,
    /// escaped.
    pub warnings: Vec<String>,
    /// Whether something that should have been copied was not. Devices, sockets and pipes are only
    /// warned of.
    pub is_partial: bool,
}

/// The name that a copy of this path has in a folder that is there; `None` for a path that means the
/// content of a folder (`/`, `DIR/.`, `..`).
fn name_of(path: &str) -> Option<&str> {
    let path = path.trim_end_matches('/');
    match path.rsplit('/').next() {
        None | Some("" | "." | "..") => None,
        name => name,
    }
}

/// From the machine to this host.
pub(super) async fn out(
    channel: &GuestChannel,
    from: String,
    to: PathBuf,
    operation: &Operation,
) -> Result<Copied> {
    let from = in_machine(&from);
    let target = Target::resolve(&to, name_of(&from).map(OsStr::new)).map_err(local)?;
    let part = operation.progress().add(from.clone(), ProgressUnit::Bytes, 0);
    part.set_state(ProgressState::Active);
    let session = channel.serve(Service::Send { path: from }, None).await?;
    let ExecSession { input, mut output, control, mut end } = session;
    drop(input);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let counted = std::sync::Arc::clone(&part);
    let worker = tokio::task::spawn_blocking(move || {
        let mut warnings = Vec::new();
        let mut warn = |text: String| keep(&mut warnings, &text);
        let input = BufReader::with_capacity(128 << 10, Pieces { receiver, piece: Bytes::new() });
        let result =
            unpack(input, &target, Policy::Untrusted, &mut warn, &mut |bytes| counted.advance(bytes));
        (result, warnings)
    });
    let mut said = Vec::new();
    let carry = async {
        let mut sender = Some(sender);
        while let Some(piece) = output.recv().await {
            match piece {
                ExecOutput::Stdout(data) => {
                    // A worker that failed takes no more; how it failed is told below.
                    if let Some(open) = &sender
                        && open.send(data).await.is_err()
                    {
                        sender = None;
                        break;
                    }
                }
                ExecOutput::Stderr(data) => note(&mut said, &data),
            }
        }
        drop(sender);
    };
    let cancelled = tokio::select! {
        () = carry => false,
        () = operation.cancelled().cancelled() => true,
    };
    // The carrier is dropped by now, so the worker sees an end, and the agent a hang-up when it was
    // not done.
    drop((output, control));
    let (result, warnings) = worker
        .await
        .map_err(|error| Error::failed("the copy came to an unexpected end").with_source(error))?;
    if cancelled {
        return Err(Error::cancelled());
    }
    let summary = match result {
        Ok(summary) => summary,
        Err(TransferError::Cut) => {
            return Err(match end.status().await {
                Ok(status) => remote(status, &said),
                Err(error) => error,
            });
        }
        Err(error) => return Err(local(error)),
    };
    part.set_state(ProgressState::Done);
    Ok(Copied { bytes: summary.bytes, warnings, is_partial: summary.skipped > 0 })
}

/// From this host to the machine. Owners are root's there.
pub(super) async fn into(
    channel: &GuestChannel,
    from: PathBuf,
    to: String,
    operation: &Operation,
) -> Result<Copied> {
    let name = name_of(&from.to_string_lossy()).map(str::to_owned);
    // Before anything is asked of the machine.
    std::fs::metadata(&from).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::not_found(format!("there is no `{}`", from.display())),
        _ => Error::io(format!("cannot read `{}`", from.display()), error),
    })?;
    let part = operation.progress().add(from.display().to_string(), ProgressUnit::Bytes, 0);
    part.set_state(ProgressState::Active);
    let service = Service::Receive { path: in_machine(&to), name };
    let ExecSession { mut input, mut output, control, mut end } = channel.serve(service, None).await?;
    let (sender, mut receiver) = mpsc::channel::<Bytes>(QUEUE);
    let counted = std::sync::Arc::clone(&part);
    let worker = tokio::task::spawn_blocking(move || {
        let mut bytes = 0;
        let mut sent = |count: u64| {
            counted.advance(count);
            bytes += count;
        };
        let result = pack(&from, Sender { sender }, &mut sent);
        (result, bytes)
    });
    let mut said = Vec::new();
    let carry = async {
        while let Some(piece) = receiver.recv().await {
            // The agent has ended, and says why.
            if input.write(piece).await.is_err() {
                break;
            }
        }
        drop((receiver, input));
    };
    let listen = async {
        while let Some(piece) = output.recv().await {
            if let ExecOutput::Stderr(data) = piece {
                note(&mut said, &data);
            }
        }
    };
    let cancelled = tokio::select! {
        _ = async { tokio::join!(carry, listen) } => false,
        () = operation.cancelled().cancelled() => true,
    };
    drop((output, control));
    let (result, bytes) = worker
        .await
        .map_err(|error| Error::failed("the copy came to an unexpected end").with_source(error))?;
    if cancelled {
        return Err(Error::cancelled());
    }
    // What was wrong here comes before what the agent says of a stream that was cut for it.
    match result {
        Err(TransferError::Stream(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => return Err(local(error)),
        Ok(()) => {}
    }
    let status = end.status().await?;
    let is_partial = match status {
        ExecStatus::Exited(0) => false,
        ExecStatus::Exited(STATUS_PARTLY) => true,
        status => return Err(remote(status, &said)),
    };
    part.set_state(ProgressState::Done);
    let mut warnings = Vec::new();
    String::from_utf8_lossy(&said).lines().for_each(|line| keep(&mut warnings, line));
    Ok(Copied { bytes, warnings, is_partial })
}

/// A path as the agent takes it. Its services run in the home of root, where paths begin that do not
/// begin at `/`, as for scp: no path at all is that home, and so is `~`.
fn in_machine(path: &str) -> String {
    let path = match path.strip_prefix('~') {
        Some("") => "",
        Some(below) if below.starts_with('/') => below.trim_start_matches('/'),
        _ => path,
    };
    if path.is_empty() { ".".to_owned() } else { path.to_owned() }
}

fn keep(warnings: &mut Vec<String>, text: &str) {
    match warnings.len() {
        0..MAX_WARNINGS => {
            let cut: String = text.chars().take(500).collect();
            warnings.push(cut.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\""));
        }
        MAX_WARNINGS => warnings.push("and more".to_owned()),
        _ => {}
    }
}

fn note(said: &mut Vec<u8>, data: &[u8]) {
    let room = MAX_SAID.saturating_sub(said.len());
    said.extend(&data[..data.len().min(room)]);
}

fn local(error: TransferError) -> Error {
    match error {
        TransferError::File { path, source } => Error::io(format!("cannot copy `{path}`"), source),
        TransferError::Malformed(_) => {
            Error::failed("the machine's agent sent what is no copy of files").with_source(error).with_hint(
                "it may be of another vmdeck than this one: `vmdeck vm restart` gives the machine this one's",
            )
        }
        TransferError::Target(text) => Error::conflict(text),
        TransferError::NoFolder(_) => Error::not_found(format!("{error} on this host"))
            .with_hint("make it first; the last name on the path may be one that is not there yet"),
        error => Error::failed("the copy failed").with_source(error),
    }
}

/// What the agent said of a service that failed.
fn remote(status: ExecStatus, said: &[u8]) -> Error {
    let said = String::from_utf8_lossy(said);
    let line = said.lines().last().unwrap_or("the agent's copy ended without a word");
    let line: String = line.chars().take(1000).collect();
    let line = line.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"");
    match status {
        ExecStatus::Exited(STATUS_NOT_FOUND) => Error::not_found(line),
        _ => Error::failed(format!("in the machine: {line}")),
    }
}

/// Pieces from a channel, to be read by a thread.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

/// The other way.
struct Sender {
    sender: mpsc::Sender<Bytes>,
}

impl Write for Sender {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(buffer);
        self.sender.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_a_machine_begin_at_its_root_or_in_the_home_of_root() {
        for (path, expected) in [
            ("/etc", "/etc"),
            ("etc", "etc"),
            ("./etc/", "./etc/"),
            ("", "."),
            ("~", "."),
            ("~/", "."),
            ("~/a/b", "a/b"),
            ("~//etc", "etc"),
            ("~other/x", "~other/x"),
        ] {
            assert_eq!(in_machine(path), expected, "{path}");
        }
        assert_eq!(name_of(&in_machine("~")), None);
    }

    #[test]
    fn names_are_the_last_ones_unless_content_is_meant() {
        for (path, expected) in [
            ("/etc/hosts", Some("hosts")),
            ("/etc/", Some("etc")),
            ("etc", Some("etc")),
            ("/etc/.", None),
            ("/", None),
            ("..", None),
            (".", None),
        ] {
            assert_eq!(name_of(path), expected, "{path}");
        }
    }
}
