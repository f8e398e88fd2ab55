//! The image service against real parts: a real registry, real archives, real file systems; and
//! against a server that misbehaves on purpose, because a real one does so too rarely.

// The configuration's `allow-unwrap-in-tests` does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod bundles;
mod concurrency;
mod crash;
mod faults;
mod fixture;
mod lifecycle;
mod registry;
mod server;
mod sources;
#[path = "../../src/test_support.rs"]
mod test_support;
