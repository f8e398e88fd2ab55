//! End to end, with real parts: the program itself, a real registry, real kernels, real machines.
//!
//! The program is run as an ordinary user also where the tests run as root. Tests that need a tool
//! this host lacks say so and pass; `assets/test.sh` installs all of them.

// A test that cannot go on should say where, and one that cannot run here why.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

mod bad_input;
mod boot;
mod boot_failures;
mod bridge;
mod command_line;
mod guest_verbs;
mod lan;
mod manage;
mod proxy;
mod pull;
mod ssh;
mod tree;
mod truth;
