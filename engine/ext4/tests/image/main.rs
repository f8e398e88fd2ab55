//! Images, written and then judged by e2fsck and read by readers that are not ours.

// Helpers are no `#[test]` functions, so that what is allowed in tests must be said again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod compare;
mod content;
mod copying;
mod editing;
mod foreign;
mod mount;
mod mounted;
mod oracle;
mod random;
mod reading;
mod shapes;
mod streaming;
