//! The console as a user meets it: the real program on a real pseudo-terminal, its screen read back by
//! a terminal emulator.

// A test that cannot go on should say where, and one that cannot run here why.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "../e2e/support/mod.rs"]
#[allow(dead_code)] // The parts that only the other tests use.
mod support;

mod life;
mod safety;
#[allow(dead_code)] // Measurements use the rest.
mod terminal;
