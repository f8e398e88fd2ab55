//! How much of what a client sends may wait for the machine.
//!
//! SSH's own flow control does not serve: russh opens a channel's window again when data has come,
//! not when it was used. So everything is taken as it comes, counted until the machine has it, and
//! above a limit the connection itself is not read. One thing must be read even then: while we wait
//! to send, the client's leave to send (its window) comes behind the data that waits.

use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Sending that takes so long waits for the client's leave.
const STARVED: Duration = Duration::from_millis(50);

/// Bytes that may wait while nothing waits to be sent.
const LIMIT: usize = 4 << 20;

/// Bytes that may wait at all: a client that sends for ever to a command that reads nothing and
/// writes for ever is cut off.
const MOST: usize = 64 << 20;

/// What is between a connection and the commands behind it. Shared by its channels.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    waiting: AtomicUsize,
    starved: AtomicUsize,
    /// Guards who waits for the numbers above to fall, or rise. Held for a few instructions.
    reader: Mutex<Option<Waker>>,
}

impl Intake {
    /// Counts it until it is dropped.
    pub(crate) fn hold(&self, data: Bytes) -> Held<'_> {
        self.waiting.fetch_add(data.len(), Ordering::AcqRel);
        Held { intake: self, data }
    }

    /// Awaits what sends to the client; while that takes long, the client is read in any case.
    pub(crate) async fn while_starved<F: Future>(&self, sending: F) -> F::Output {
        let mut sending = pin!(sending);
        if let Ok(sent) = tokio::time::timeout(STARVED, &mut sending).await {
            return sent;
        }
        let _starved = self.starved();
        sending.await
    }

    fn starved(&self) -> Starved<'_> {
        self.starved.fetch_add(1, Ordering::AcqRel);
        self.wake();
        Starved { intake: self }
    }

    /// The stream, read only as fast as the commands take what comes.
    pub(crate) fn bounded<S>(self: &Arc<Self>, stream: S) -> Bounded<S> {
        Bounded { intake: self.clone(), stream }
    }

    fn is_open(&self) -> bool {
        self.waiting.load(Ordering::Acquire) <= LIMIT || self.starved.load(Ordering::Acquire) > 0
    }

    fn wake(&self) {
        if let Some(waker) = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
    }
}

/// Data that a command has not taken yet.
#[derive(Debug)]
pub(crate) struct Held<'intake> {
    intake: &'intake Intake,
    data: Bytes,
}

impl Held<'_> {
    pub(crate) fn bytes(&self) -> Bytes {
        self.data.clone()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.intake.waiting.fetch_sub(self.data.len(), Ordering::AcqRel);
        self.intake.wake();
    }
}

/// Something cannot be sent before the client says so.
struct Starved<'intake> {
    intake: &'intake Intake,
}

impl Drop for Starved<'_> {
    fn drop(&mut self) {
        self.intake.starved.fetch_sub(1, Ordering::AcqRel);
    }
}

/// See [`Intake::bounded`].
#[derive(Debug)]
pub(crate) struct Bounded<S> {
    intake: Arc<Intake>,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.intake.is_open() {
            let mut reader = self.intake.reader.lock().unwrap_or_else(PoisonError::into_inner);
            *reader = Some(context.waker().clone());
            drop(reader);
            // It may have changed before the waker was there to be woken.
            if !self.intake.is_open() {
                return Poll::Pending;
            }
        }
        if self.intake.waiting.load(Ordering::Acquire) > MOST {
            return Poll::Ready(Err(io::Error::other("the client sends, and the machine does not take it")));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_client_is_read_while_little_waits_or_something_is_sent() {
        let intake = Arc::new(Intake::default());
        let (mut client, server) = duplex(64);
        let mut server = intake.bounded(server);
        client.write_all(b"one two three").await.unwrap();
        let mut piece = [0; 4];
        server.read_exact(&mut piece).await.unwrap();

        let held = intake.hold(Bytes::from(vec![0; LIMIT + 1]));
        assert!(timeout(SOON, server.read_exact(&mut piece)).await.is_err());
        let starved = intake.starved();
        server.read_exact(&mut piece).await.unwrap();
        drop(starved);
        assert!(timeout(SOON, server.read_exact(&mut piece)).await.is_err());
        // Who waits already goes on when the command takes what was held.
        let reading = tokio::spawn(async move {
            server.read_exact(&mut piece).await.unwrap();
            piece
        });
        tokio::task::yield_now().await;
        drop(held);
        assert_eq!(&timeout(Duration::from_secs(10), reading).await.unwrap().unwrap(), b"thre");
    }

    #[tokio::test]
    async fn what_waits_has_an_end() {
        let intake = Arc::new(Intake::default());
        let (mut client, server) = duplex(64);
        client.write_all(b"more").await.unwrap();
        let _held = intake.hold(Bytes::from(vec![0; MOST + 1]));
        let _starved = intake.starved();
        let error = intake.bounded(server).read_u8().await.unwrap_err();
        assert!(error.to_string().contains("does not take it"), "{error}");
    }
}
