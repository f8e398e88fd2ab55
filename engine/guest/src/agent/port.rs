//! One channel to an engine: a virtio-serial port, or a socket in tests.
//!
//! A port outlives the engines that connect to it. That one went away is seen by a read that says
//! "end", and again, should another have connected at once, by the preamble of the new one.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;

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
                    if self.open || self.dead {
                        self.close();
                        events.push(PortEvent::Closed);
                    }
                    self.incoming.reset();
                    return;
                }
                Ok(length) => self.decode(&buffer[..length], events),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    self.readable = false;
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
