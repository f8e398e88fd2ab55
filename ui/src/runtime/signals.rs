//! Signals of the process, and the same news from other threads.

use std::io;

use tokio::signal::unix::{self, SignalKind};
use tokio::sync::mpsc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// The program has to end, by the signal of this number.
    End(i32),
    /// Somebody asks it to stop (SIGTSTP).
    Stop,
    /// It was stopped, and goes on (SIGCONT).
    Continue,
}

/// All the signals the console listens to.
pub(super) struct Signals {
    terminate: unix::Signal,
    hangup: unix::Signal,
    interrupt: unix::Signal,
    stop: unix::Signal,
    resume: unix::Signal,
    sender: mpsc::UnboundedSender<Signal>,
    told: mpsc::UnboundedReceiver<Signal>,
}

/// Tells the console of a signal from another thread.
#[derive(Clone)]
pub(super) struct SignalSender(mpsc::UnboundedSender<Signal>);

impl SignalSender {
    pub(super) fn tell(&self, signal: Signal) {
        let _ = self.0.send(signal);
    }
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        // Bounded by its one use: the thread that watches for hang-ups sends once.
        let (sender, told) = mpsc::unbounded_channel();
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            hangup: unix::signal(SignalKind::hangup())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
            stop: unix::signal(SignalKind::from_raw(nix::libc::SIGTSTP))?,
            resume: unix::signal(SignalKind::from_raw(nix::libc::SIGCONT))?,
            sender,
            told,
        })
    }

    pub(super) fn sender(&self) -> SignalSender {
        SignalSender(self.sender.clone())
    }

    /// The next one. Cancel-safe.
    pub(super) async fn next(&mut self) -> Signal {
        let Self { terminate, hangup, interrupt, stop, resume, told, .. } = self;
        tokio::select! {
            biased;
            Some(()) = terminate.recv() => Signal::End(nix::libc::SIGTERM),
            Some(()) = hangup.recv() => Signal::End(nix::libc::SIGHUP),
            Some(()) = interrupt.recv() => Signal::End(nix::libc::SIGINT),
            Some(signal) = told.recv() => signal,
            Some(()) = stop.recv() => Signal::Stop,
            Some(()) = resume.recv() => Signal::Continue,
            else => std::future::pending().await,
        }
    }

    /// The SIGCONT that ended a stop of our own is no news.
    pub(super) fn forget_continue(&mut self) {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        while let std::task::Poll::Ready(Some(())) = self.resume.poll_recv(&mut context) {}
    }
}
