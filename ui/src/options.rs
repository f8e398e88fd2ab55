//! What the program that opens the console decides.

use std::io;
use std::path::{Path, PathBuf};

use crate::events::EventRing;

/// Writes a text into a file that must not be there yet.
pub type WriteNew = fn(&Path, &str) -> io::Result<()>;

/// Settings of one console.
#[derive(Clone, Debug, Default)]
pub struct ConsoleOptions {
    /// The data directory as the header shows it, for example `~/.local/share/vmdeck`.
    pub data_label: String,
    pub theme: ThemeChoice,
    /// Draw with ASCII only: asked for, or because the locale is not UTF-8.
    pub ascii: bool,
    /// Leave every action out that changes something.
    pub read_only: bool,
    /// Leave the mouse to the terminal, so that it selects text as usual.
    pub no_mouse: bool,
    /// The user's key bindings, where there is such a file.
    pub keys: Option<KeysFile>,
    /// The user's home, for paths that begin with `~`.
    pub home: Option<PathBuf>,
    /// Writes a file that must not be there yet; the console itself opens none.
    pub write_new: Option<WriteNew>,
    /// Where the program's own log puts its lines for the console to show.
    pub events: Option<EventRing>,
}

/// Colours of the console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThemeChoice {
    /// The terminal's own 16 colours on its own background; fits every terminal.
    #[default]
    Terminal,
    /// 24-bit colours on a dark background.
    Dark,
    /// 24-bit colours on a light background.
    Light,
    /// No colour at all: weight, underline and reverse only. For `NO_COLOR`.
    Mono,
}

impl ThemeChoice {
    pub const ALL: [Self; 4] = [Self::Terminal, Self::Dark, Self::Light, Self::Mono];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Terminal => "terminal",
            Self::Dark => "dark",
            Self::Light => "light",
            Self::Mono => "mono",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|choice| choice.as_str() == text)
    }
}

/// A file of key bindings, already read.
#[derive(Clone, Debug)]
pub struct KeysFile {
    /// Its path, for messages.
    pub label: String,
    /// Its content, TOML.
    pub text: String,
}
