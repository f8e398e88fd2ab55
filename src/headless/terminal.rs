//! The terminal in raw mode, for as long as something needs it.

use vmdeck_engine::{Error, Result};

/// Raw mode, ended when this goes, however that comes about.
pub(super) struct RawMode;

impl RawMode {
    pub(super) fn enter() -> Result<Self> {
        crossterm::terminal::enable_raw_mode()
            .map_err(|error| Error::io("cannot put the terminal into raw mode", error))?;
        Ok(Self)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = crossterm::terminal::disable_raw_mode();
    }
}
