//! The init and agent inside a vmdeck machine: one static binary.
//!
//! ```text
//!   initramfs                                    image's root
//!   PID 1  init: modules ─ disks ─ root ─ network ─┬─ exec ──▶ the image's init (systemd, …)
//!                                                  ├─ stays ─▶ small init: reaps children
//!                                                  └─ fork ──▶ agent: channel, commands, power-off
//! ```
//!
//! [`init`] runs once and hands over; [`agent`] serves the virtio-serial ports for as long as the
//! machine is up, whoever is PID 1. Both are in the library so that tests drive the agent over a
//! socket with the engine's real side of the channel at the other end.
//!
//! What an image contains is not trusted to be sane: paths in it are resolved as if it were already
//! the root ([`jail`]), and nothing in it is needed.

pub mod accounts;
pub mod agent;
pub mod command;
pub mod init;
pub mod jail;
pub mod log;
pub mod serve;
mod stats;
mod system;
