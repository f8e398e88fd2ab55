//! The console of vmdeck.
//!
//! ```text
//!             ┌───────────── main thread ─────────────┐      ┌── worker runtime ──┐
//!  tty ──────▶│ runtime ── Msg ──▶ update(Model) ──┐  │      │ engine             │
//!  signals ──▶│    ▲                               │  │◀─────│  watch<Snapshot>   │
//!             │    └── screen ◀── view(&Model) ◀───┘  │◀─────│  outcomes          │
//!             └───────────────────┬── Effect ─────────┘      │                    │
//!                                 └─────────────────────────▶│  service calls     │
//!                                                            └────────────────────┘
//! ```
//!
//! [`update`](update::update) and [`view`](view::view) are pure; all input and output is in
//! [`runtime`]. Text enters the screen by one gate only, [`paint::Painter`], which takes out what a
//! guest or a registry could use to send commands to the user's terminal.
//!
//! This crate opens no files and knows the engine by its public types alone.
#![forbid(unsafe_code)]

pub mod action;
pub mod events;
pub mod format;
pub mod fuzzy;
pub mod keymap;
pub mod layout;
pub mod message;
pub mod model;
pub mod options;
pub mod paint;
pub mod runtime;
pub mod screen;
pub mod terminal;
pub mod text;
pub mod theme;
pub mod update;
pub mod view;

pub use keymap::Keymap;
pub use options::{ConsoleOptions, KeysFile, ThemeChoice};
pub use runtime::{Ending, keymap, run};
