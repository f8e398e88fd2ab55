//! One connection to an agent: a task that owns the socket, and what others share with it.
//!
//! All that goes out passes one queue, in order. What comes in is handed to the streams of
//! [`super::exec`], which have room for all that a guest may send by the rules of flow control; a
//! guest that breaks them loses the connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use vmdeck_protocol::flow::FlowError;
use vmdeck_protocol::frame::{Frame, MAX_STREAM};
use vmdeck_protocol::handshake::{GuestStream, Nonce, StreamError};
use vmdeck_protocol::message::{
    Failure, GuestMessage, HostMessage, MessageError, PowerOff, Reached, Refusal,
};
use vmdeck_protocol::stats::Stats;

use crate::error::{Error, Result};

use super::exec::Stream;
use super::socket::Socket;
use super::{GuestFailure, GuestProgress, boot_failure_class};

/// Bytes of requests and data that wait to be written.
const QUEUED_BYTES: usize = 1024 * 1024;

const READ_BUFFER: usize = 64 * 1024;

/// Warnings of a guest that are kept.
const MAX_WARNINGS: usize = 32;

/// Longest text of a guest that is kept.
const MAX_TEXT: usize = 4000;

/// The user's end of a connection; it is closed when this is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) progress: watch::Receiver<GuestProgress>,
    pub(super) core: Arc<Core>,
    powering_off: watch::Receiver<bool>,
    _close: DropGuard,
}

/// What the task and the streams share.
#[derive(Debug)]
pub(super) struct Core {
    /// Unbounded, as what must be sent when something is dropped cannot wait. It is bounded all the
    /// same: whoever sends requests or data takes [`Core::room`] first, and what needs none is, for
    /// each stream, one end of input, one hang-up, and one grant of credit per half a window that
    /// the guest has sent.
    outgoing: mpsc::UnboundedSender<Outgoing>,
    room: Arc<Semaphore>,
    /// Guards the streams that are open and why there can be no more. Held for a look-up.
    streams: Mutex<Streams>,
}

#[derive(Debug, Default)]
struct Streams {
    open: HashMap<u32, Stream>,
    /// Who waits for a reading of the guest's counters; removed by the answer, or by who gave up.
    readings: HashMap<u32, oneshot::Sender<Result<Stats, Refusal>>>,
    last: u32,
    /// Set when the connection has ended: why.
    ended: Option<String>,
}

#[derive(Debug)]
enum Outgoing {
    /// The permit is the room its bytes take, given back when they are written.
    Message(HostMessage, Option<OwnedSemaphorePermit>),
    Data(u32, Bytes, Option<OwnedSemaphorePermit>),
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the hypervisor closed it")]
    Closed,
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Flow(#[from] FlowError),
    #[error("its agent speaks version {0} of the protocol, this vmdeck speaks {version}", version = vmdeck_protocol::VERSION)]
    Version(u32),
}

impl Connection {
    /// Starts the task. Must be called within a tokio runtime.
    pub(super) fn start(socket: Socket) -> Result<Self> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)
            .map_err(|error| Error::failed("the system has no random numbers").with_source(error))?;
        let nonce = Nonce::new(random);
        let (outgoing, queue) = mpsc::unbounded_channel();
        let (progress_sender, progress) = watch::channel(GuestProgress::default());
        let (powering_off_sender, powering_off) = watch::channel(false);
        let core = Arc::new(Core {
            outgoing,
            room: Arc::new(Semaphore::new(QUEUED_BYTES)),
            streams: Mutex::new(Streams::default()),
        });
        let cancel = CancellationToken::new();
        let task =
            Task { core: Arc::clone(&core), progress: progress_sender, powering_off: powering_off_sender };
        tokio::spawn(task.run(socket, nonce, queue, cancel.clone()));
        Ok(Self { progress, core, powering_off, _close: cancel.drop_guard() })
    }

    pub(super) async fn power_off(&self, power_off: PowerOff) -> Result<()> {
        self.core.request(HostMessage::PowerOff { power_off }, 0).await?;
        let mut agreed = self.powering_off.clone();
        let agreed = agreed.wait_for(|agreed| *agreed).await.map(|_| ());
        agreed.map_err(|_| self.broken())
    }

    pub(super) async fn stats(&self) -> Result<Stats> {
        let (sender, receiver) = oneshot::channel();
        let stream = self.core.number(|streams, stream| {
            streams.readings.insert(stream, sender);
        })?;
        // Forgets the question however this ends.
        let _asked = Asked { core: &self.core, stream };
        self.core.request(HostMessage::Stats { stream }, 0).await?;
        match receiver.await {
            Ok(Ok(stats)) => Ok(stats),
            Ok(Err(refusal)) => Err(super::exec::refused(&refusal)),
            Err(_) => Err(self.broken()),
        }
    }

    pub(super) fn broken(&self) -> Error {
        self.core.broken()
    }
}

/// A question that waits for its answer.
struct Asked<'a> {
    core: &'a Core,
    stream: u32,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.core.streams().readings.remove(&self.stream);
    }
}

impl Core {
    /// Why nothing can be sent any more.
    pub(super) fn broken(&self) -> Error {
        let why = self.streams().ended.clone();
        Error::failed(match why {
            Some(why) => format!("the connection to the machine's agent broke: {why}"),
            None => "the connection to the machine's agent broke".to_owned(),
        })
    }

    /// Queues a request of about `length` bytes, when there is room.
    pub(super) async fn request(&self, message: HostMessage, length: usize) -> Result<()> {
        let permit = self.room(length + 64).await?;
        self.outgoing.send(Outgoing::Message(message, Some(permit))).map_err(|_| self.broken())
    }

    /// Queues data for a command, when there is room.
    pub(super) async fn data(&self, stream: u32, data: Bytes) -> Result<()> {
        let permit = self.room(data.len()).await?;
        self.outgoing.send(Outgoing::Data(stream, data, Some(permit))).map_err(|_| self.broken())
    }

    /// Queues what follows from a stream's own life; see [`Core::outgoing`] for what bounds it.
    pub(super) fn tell(&self, message: HostMessage) {
        // When the connection has ended the guest has forgotten the stream.
        let _ = self.outgoing.send(Outgoing::Message(message, None));
    }

    /// Adds a stream under a number of its own.
    pub(super) fn open(&self, stream: Stream) -> Result<u32> {
        self.number(|streams, number| {
            streams.open.insert(number, stream);
        })
    }

    fn number(&self, add: impl FnOnce(&mut Streams, u32)) -> Result<u32> {
        let mut streams = self.streams();
        if streams.ended.is_some() || streams.last >= MAX_STREAM {
            drop(streams);
            return Err(self.broken());
        }
        streams.last += 1;
        let number = streams.last;
        add(&mut streams, number);
        Ok(number)
    }

    pub(super) fn forget(&self, stream: u32) {
        let forgotten = self.streams().open.remove(&stream);
        drop(forgotten);
    }

    async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes.min(QUEUED_BYTES)).unwrap_or(u32::MAX);
        Arc::clone(&self.room).acquire_many_owned(bytes).await.map_err(|_| self.broken())
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, why: &Broken) {
        let mut streams = self.streams();
        streams.ended = Some(why.to_string());
        let waiting = (std::mem::take(&mut streams.open), std::mem::take(&mut streams.readings));
        drop(streams);
        // Wakes everybody who waits for them.
        drop(waiting);
        self.room.close();
    }
}

/// The task that owns the socket.
struct Task {
    core: Arc<Core>,
    progress: watch::Sender<GuestProgress>,
    powering_off: watch::Sender<bool>,
}

impl Task {
    async fn run(
        self,
        socket: Socket,
        nonce: Nonce,
        queue: mpsc::UnboundedReceiver<Outgoing>,
        cancel: CancellationToken,
    ) {
        let Socket { stream, lock } = socket;
        let (reader, writer) = stream.into_split();
        let why = tokio::select! {
            result = self.receive(reader, nonce) => result.err(),
            result = send(writer, nonce, queue) => result.err().map(Broken::Io),
            () = cancel.cancelled() => None,
        };
        let why = why.unwrap_or(Broken::Closed);
        tracing::debug!(%why, "a guest channel ended");
        self.core.end(&why);
        drop(lock);
    }

    async fn receive(&self, mut reader: OwnedReadHalf, nonce: Nonce) -> Result<(), Broken> {
        let mut frames = GuestStream::new(nonce);
        let mut buffer = vec![0; READ_BUFFER];
        loop {
            let length = reader.read(&mut buffer).await?;
            if length == 0 {
                return Err(Broken::Closed);
            }
            let mut input = &buffer[..length];
            while let Some(frame) = frames.next(&mut input)? {
                self.handle(frame)?;
            }
            // A guest that never stops sending must not keep a worker for itself.
            tokio::task::consume_budget().await;
        }
    }

    fn handle(&self, frame: Frame) -> Result<(), Broken> {
        let message = match GuestMessage::decode(frame) {
            Ok(message) => message,
            // A newer agent may tell what this side does not know.
            Err(MessageError::Unknown { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match message {
            GuestMessage::Hello { hello } => {
                if hello.version != vmdeck_protocol::VERSION {
                    return Err(Broken::Version(hello.version));
                }
                self.progress.send_modify(|progress| progress.release = Some(cut(hello.release)));
                hello.warnings.into_iter().for_each(|text| self.warned(text));
                hello.stages.into_iter().for_each(|reached| self.reached(reached));
                if let Some(failure) = hello.failure {
                    self.failed(failure);
                }
            }
            GuestMessage::Reached { reached } => self.reached(reached),
            GuestMessage::Failed { failure } => self.failed(failure),
            GuestMessage::Warned { text } => self.warned(text),
            GuestMessage::PoweringOff => {
                self.powering_off.send_replace(true);
            }
            GuestMessage::Stats { stream, stats } => {
                if let Some(reading) = self.reading(stream) {
                    let _ = reading.send(Ok(stats));
                }
            }
            GuestMessage::Pong { .. } => {}
            GuestMessage::Started { stream, .. } => {
                self.stream(stream, |stream| stream.started(), false)?;
            }
            GuestMessage::Refused { stream, mut refusal } => {
                refusal.message = cut(refusal.message);
                if let Some(reading) = self.reading(stream) {
                    // Nobody may be waiting any more.
                    let _ = reading.send(Err(refusal));
                    return Ok(());
                }
                self.stream(stream, |stream| stream.refused(refusal), true)?;
            }
            GuestMessage::Stdout { stream, data } => {
                self.stream(stream, |stream| stream.output(false, data.into()), false)?;
            }
            GuestMessage::Stderr { stream, data } => {
                self.stream(stream, |stream| stream.output(true, data.into()), false)?;
            }
            GuestMessage::Credit { stream, bytes } => {
                self.stream(stream, |stream| stream.grant(bytes), false)?;
            }
            GuestMessage::Exited { stream, status } => {
                self.stream(stream, |stream| stream.exited(status), true)?;
            }
        }
        Ok(())
    }

    fn reading(&self, stream: u32) -> Option<oneshot::Sender<Result<Stats, Refusal>>> {
        self.core.streams().readings.remove(&stream)
    }

    /// Does something with a stream; what is for one that has gone is dropped.
    fn stream(
        &self,
        number: u32,
        act: impl FnOnce(&mut Stream) -> Result<(), FlowError>,
        ends: bool,
    ) -> Result<(), FlowError> {
        let mut streams = self.core.streams();
        let Some(stream) = streams.open.get_mut(&number) else { return Ok(()) };
        act(stream)?;
        let ended = if ends { streams.open.remove(&number) } else { None };
        drop(streams);
        drop(ended);
        Ok(())
    }

    fn reached(&self, reached: Reached) {
        let (stage, time) = (reached.stage.into(), Duration::from_nanos(reached.nanoseconds));
        self.progress.send_if_modified(|progress| {
            // Each stage once: a guest cannot make the list grow.
            let new = progress.stages.iter().all(|(known, _)| *known != stage);
            if new {
                progress.stages.push((stage, time));
            }
            new
        });
    }

    fn warned(&self, text: String) {
        self.progress.send_if_modified(|progress| {
            let text = cut(text);
            let new = progress.warnings.len() < MAX_WARNINGS && !progress.warnings.contains(&text);
            if new {
                progress.warnings.push(text);
            }
            new
        });
    }

    fn failed(&self, failure: Failure) {
        self.progress.send_if_modified(|progress| {
            let new = progress.failure.is_none();
            if new {
                let class = boot_failure_class(failure.class);
                progress.failure = Some(GuestFailure { class, message: cut(failure.message) });
            }
            new
        });
    }
}

async fn send(
    mut writer: OwnedWriteHalf,
    nonce: Nonce,
    mut queue: mpsc::UnboundedReceiver<Outgoing>,
) -> std::io::Result<()> {
    writer.write_all(&nonce.preamble()).await?;
    let mut wire = Vec::new();
    while let Some(next) = queue.recv().await {
        wire.clear();
        let (encoded, _permit) = match next {
            Outgoing::Message(message, permit) => (message.encode(&mut wire), permit),
            Outgoing::Data(stream, data, permit) => {
                (HostMessage::Stdin { stream, data: data.into() }.encode(&mut wire), permit)
            }
        };
        encoded.map_err(std::io::Error::other)?;
        writer.write_all(&wire).await?;
    }
    Ok(())
}

fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(end);
    }
    text
}
