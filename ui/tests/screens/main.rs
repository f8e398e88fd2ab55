//! Whole screens, the decisions behind them, and the promise that no size and no model panics.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

#[path = "../support/sample.rs"]
mod sample;

mod decisions;
mod lists;
mod sizes;
mod snapshots;
