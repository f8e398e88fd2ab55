//! One channel to an engine: a virtio-serial port, or a socket in tests.
//!
//! A port outlives the engines that connect to it. That one went away is seen by reads that say "end"
//! for a while, and at once, should another have connected, by the preamble of the new one.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{read, write};
use vmdeck_protocol::handshake::{HostEvent, HostStream, Nonce};
use vmdeck_protocol::message::GuestMessage;

/// Bytes queued for a port above which sessions do not add data.
const CONGESTED: usize = 256 * 1024;

/// Most that Linux takes in one write to a virtio-serial port.
const WRITE_CHUNK: usize = 32 * 1024;

/// Reads of one port before others get their turn.
const READS_PER_TURN: usize = 8;

/// How long a port may say that nobody is at its other end before that is believed.
///
/// A new engine's bytes and the news of its connection reach the guest by two queues, and the kernel
/// reads the second in a worker of its own: for a moment the port says of an engine whose preamble is
/// here that it is not there yet, or that the one before it has gone. Whoever believes that waits for
/// ever for the rest of the conversation, as the engine does for the answer.
const HANG_UP: Duration = Duration::from_secs(1);

/// What a port does when its engine goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// It waits for the next one (virtio-serial).
    Reconnects,
    /// It is gone (a socket).
    Once,
}

/// What happened on a port.
#[derive(Debug)]
pub(super) enum PortEvent {
    Opened,
    Frame(vmdeck_protocol::frame::Frame),
    /// The engine went away, or what it sends makes no sense.
    Closed,
}

#[derive(Debug)]
pub(super) struct Port {
    pub(super) descriptor: OwnedFd,
    lifetime: Lifetime,
    incoming: HostStream,
    outgoing: VecDeque<u8>,
    /// Whether an engine has introduced itself.
    pub(super) open: bool,
    /// The descriptor may have something to read.
    pub(super) readable: bool,
    /// Since when the port says that nobody is at its other end.
    hung_up: Option<Instant>,
    /// Whether the port has ended for good.
    pub(super) dead: bool,
    /// Numbers of the agent's sessions by their streams.
    pub(super) sessions: BTreeMap<u32, u32>,
}

impl Port {
    pub(super) fn new(descriptor: OwnedFd, lifetime: Lifetime) -> Self {
        Self {
            descriptor,
            lifetime,
            incoming: HostStream::new(),
            outgoing: VecDeque::new(),
            open: false,
            readable: true,
            hung_up: None,
            dead: false,
            sessions: BTreeMap::new(),
        }
    }

    /// Whether sessions should wait before they add data.
    pub(super) fn is_congested(&self) -> bool {
        self.outgoing.len() >= CONGESTED
    }

    pub(super) fn has_output(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Queues a message; without an engine there is nobody to tell.
    pub(super) fn send(&mut self, message: &GuestMessage) {
        if !self.open {
            return;
        }
        let mut frame = Vec::new();
        match message.encode(&mut frame) {
            Ok(()) => self.outgoing.extend(frame),
            // Ours are far shorter; texts are cut before they come here.
            Err(error) => crate::log::warning(&format!("a message was not sent: {error}")),
        }
    }

    /// Writes what is queued until the port takes no more.
    pub(super) fn flush(&mut self) {
        while self.open && !self.outgoing.is_empty() {
            let (front, _) = self.outgoing.as_slices();
            match write(&self.descriptor, &front[..front.len().min(WRITE_CHUNK)]) {
                Ok(written) => {
                    self.outgoing.drain(..written);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // The read side finds out why.
                Err(_) => {
                    self.readable = true;
                    return;
                }
            }
        }
        if self.outgoing.is_empty() {
            self.outgoing.shrink_to(CONGESTED);
        }
    }

    /// Reads what is there, up to a share; `readable` stays set when there may be more.
    pub(super) fn receive(&mut self, buffer: &mut [u8], events: &mut Vec<PortEvent>) {
        for _ in 0..READS_PER_TURN {
            match read(&self.descriptor, buffer) {
                Ok(0) => {
                    self.readable = false;
                    self.dead = self.lifetime == Lifetime::Once;
                    if self.dead {
                        self.hang_up(events);
                    } else if self.hung_up.is_none() {
                        self.hung_up = Some(Instant::now());
                    }
                    return;
                }
                Ok(length) => self.decode(&buffer[..length], events),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    self.readable = false;
                    // Somebody is there.
                    self.hung_up = None;
                    return;
                }
                Err(error) => {
                    crate::log::warning(&format!("reading a channel failed: {error}"));
                    self.readable = false;
                    self.dead = self.lifetime == Lifetime::Once || error == Errno::ENODEV;
                    self.close();
                    events.push(PortEvent::Closed);
                    return;
                }
            }
        }
    }

    /// When [`expire`](Self::expire) is to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.hung_up.map(|since| since + HANG_UP)
    }

    /// Believes that the engine has gone, if that has been said for long enough.
    pub(super) fn expire(&mut self, now: Instant, events: &mut Vec<PortEvent>) {
        if self.deadline().is_some_and(|at| at <= now) {
            self.hang_up(events);
        }
    }

    fn hang_up(&mut self, events: &mut Vec<PortEvent>) {
        self.hung_up = None;
        if self.open || self.dead {
            self.close();
            events.push(PortEvent::Closed);
        }
        self.incoming.reset();
    }

    fn decode(&mut self, bytes: &[u8], events: &mut Vec<PortEvent>) {
        let (open, outgoing) = (&mut self.open, &mut self.outgoing);
        self.incoming.push(bytes, |event| match event {
            HostEvent::Opened(nonce) => {
                if *open {
                    events.push(PortEvent::Closed);
                }
                *open = true;
                answer(outgoing, nonce);
                events.push(PortEvent::Opened);
            }
            HostEvent::Frame(frame) => events.push(PortEvent::Frame(frame)),
            HostEvent::Broken(error) => {
                crate::log::warning(&format!("what arrives on a channel makes no sense: {error}"));
                *open = false;
                outgoing.clear();
                events.push(PortEvent::Closed);
            }
        });
    }

    fn close(&mut self) {
        self.open = false;
        self.outgoing = VecDeque::new();
    }
}

/// The new engine skips what is left of the messages for the one before; what is queued here need
/// not even be sent.
fn answer(outgoing: &mut VecDeque<u8>, nonce: Nonce) {
    outgoing.clear();
    outgoing.extend(nonce.preamble());
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::{Path, PathBuf};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    /// A FIFO reads as a virtio-serial port does: 0 when nobody is at the other end, and EAGAIN when
    /// somebody is who says nothing.
    struct Bench {
        _folder: tempfile::TempDir,
        path: PathBuf,
        port: Port,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("port");
            mkfifo(&path, Mode::S_IRWXU).unwrap();
            let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
            Self { _folder: folder, path, port: Port::new(reader.into(), Lifetime::Reconnects) }
        }

        /// What happened, in short.
        fn receive(&mut self) -> String {
            let mut events = Vec::new();
            self.port.receive(&mut [0; 4096], &mut events);
            shown(&events)
        }

        fn expire(&mut self, later: Duration) -> String {
            let mut events = Vec::new();
            self.port.expire(Instant::now() + later, &mut events);
            shown(&events)
        }
    }

    fn shown(events: &[PortEvent]) -> String {
        let letter = |event: &PortEvent| match event {
            PortEvent::Opened => 'o',
            PortEvent::Frame(_) => 'f',
            PortEvent::Closed => 'c',
        };
        events.iter().map(letter).collect()
    }

    fn connect(path: &Path, nonce: u8) -> File {
        let mut engine = OpenOptions::new().write(true).open(path).unwrap();
        engine.write_all(&Nonce::new([nonce; 16]).preamble()).unwrap();
        engine
    }

    fn ping() -> Vec<u8> {
        let mut wire = Vec::new();
        vmdeck_protocol::message::HostMessage::Ping { number: 1 }.encode(&mut wire).unwrap();
        wire
    }

    #[test]
    fn an_engine_that_is_here_is_not_lost_to_late_news_of_the_one_before() {
        let mut bench = Bench::new();
        let first = connect(&bench.path, 1);
        assert_eq!(bench.receive(), "o");
        // Its preamble and half a frame are here when the port says that nobody is.
        drop(first);
        let mut second = connect(&bench.path, 2);
        second.write_all(&ping()[..5]).unwrap();
        drop(second);
        assert_eq!(bench.receive(), "co");
        assert_eq!(bench.receive(), "", "0 is read, and not believed yet");
        assert!(bench.port.open && bench.port.deadline().is_some());
        // Now it says that somebody is: it is the second, who goes on.
        let mut second = OpenOptions::new().write(true).open(&bench.path).unwrap();
        assert_eq!(bench.receive(), "");
        assert_eq!((bench.port.open, bench.port.deadline()), (true, None));
        assert_eq!(bench.expire(HANG_UP * 2), "");
        second.write_all(&ping()[5..]).unwrap();
        assert_eq!(bench.receive(), "f");
    }

    #[test]
    fn an_engine_that_stays_away_has_gone() {
        let mut bench = Bench::new();
        drop(connect(&bench.path, 1));
        assert_eq!(bench.receive(), "o");
        assert_eq!(bench.receive(), "");
        assert_eq!(bench.expire(Duration::ZERO), "");
        assert_eq!(bench.receive(), "", "it is said since the first time");
        assert_eq!(bench.expire(HANG_UP), "c");
        assert!(!bench.port.open && bench.port.deadline().is_none());
        drop(connect(&bench.path, 2));
        assert_eq!(bench.receive(), "o");
    }
}
