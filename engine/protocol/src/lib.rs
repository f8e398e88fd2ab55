//! The messages between the vmdeck engine and the agent inside a machine.
//!
//! ```text
//!   engine ──[ preamble: magic, nonce ]──[ frame ]──[ frame ]── … ──▶ agent
//!   engine ◀── stale bytes ──[ preamble: magic, same nonce ]──[ frame ]── … ── agent
//! ```
//!
//! The carrier is a byte stream (a virtio-serial port) that outlives the engine's connections: an
//! engine may die in the middle of a frame, and what the agent had queued for it reaches the next
//! one. So each connection begins with a [`handshake`] that both sides can find in whatever
//! surrounds it. After it come [`frame`]s of at most [`frame::MAX_PAYLOAD`] bytes, which carry
//! [`message`]s; the data of commands is raw bytes under credit-based flow control
//! ([`flow`]), so that one stalled reader holds up nobody else.
//!
//! Neither side trusts the other: nothing here allocates by a length it was only told, and no input
//! makes it panic. This crate does no I/O.

#![forbid(unsafe_code)]

pub mod flow;
pub mod frame;
pub mod handshake;
pub mod message;
pub mod service;
pub mod settings;
pub mod stats;

/// Version of the protocol that this crate speaks, told in [`message::Hello`]. A change that an
/// older peer can ignore does not raise it: messages of unknown kind are refused or skipped.
pub const VERSION: u32 = 1;

/// What the warning of a machine whose image's command cannot be run begins with.
pub const COMMAND_NOT_RUN: &str = "the image's command cannot be run";

/// Name of the virtio-serial port with this number, as the hypervisor is told and the guest sees it
/// in `/sys/class/virtio-ports/*/name`.
pub fn port_name(number: usize) -> String {
    format!("{PORT_PREFIX}{number}")
}

/// What the names of our virtio-serial ports begin with.
pub const PORT_PREFIX: &str = "vmdeck.";
