//! The serial console of a machine: an emulated terminal, how far it is scrolled back, whether it has
//! the keys.
//!
//! What the guest prints is drawn into cells of an emulator and from there painted as any other text:
//! no byte of it reaches the user's terminal as it is.

mod keys;

use std::panic::{AssertUnwindSafe, catch_unwind};

use vmdeck_engine::identifier::VmId;

use super::input::TextInput;
use crate::terminal::quietly;
pub use keys::{encode, encode_paste};

/// Lines kept beyond the screen.
const SCROLLBACK: usize = 5000;

/// Size that programs on a serial line take for granted: no terminal smaller than this is emulated.
const SMALLEST: (u16, u16) = (24, 80);

/// Whether what is typed reaches the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// Only looked at.
    Watching,
    /// Being connected; what is typed waits.
    Asking,
    Attached,
}

/// The console pane.
pub struct ConsolePane {
    pub vm: VmId,
    parser: vt100::Parser,
    pub attachment: Attachment,
    /// Whether anything was read yet.
    pub loaded: bool,
    /// A search being typed.
    pub search_input: Option<TextInput>,
    /// What was searched for last.
    pub needle: String,
}

impl std::fmt::Debug for ConsolePane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsolePane")
            .field("vm", &self.vm)
            .field("attachment", &self.attachment)
            .finish_non_exhaustive()
    }
}

impl Clone for ConsolePane {
    fn clone(&self) -> Self {
        let (rows, columns) = self.parser.screen().size();
        let mut parser = vt100::Parser::new(rows, columns, SCROLLBACK);
        parser.process(&self.parser.screen().state_formatted());
        Self {
            vm: self.vm.clone(),
            parser,
            attachment: self.attachment.clone(),
            loaded: self.loaded,
            search_input: self.search_input.clone(),
            needle: self.needle.clone(),
        }
    }
}

impl ConsolePane {
    pub fn new(vm: VmId) -> Self {
        Self {
            vm,
            parser: vt100::Parser::new(SMALLEST.0, SMALLEST.1, SCROLLBACK),
            attachment: Attachment::Watching,
            loaded: false,
            search_input: None,
            needle: String::new(),
        }
    }

    /// Whether keys go to the machine.
    pub fn has_keys(&self) -> bool {
        self.attachment != Attachment::Watching
    }

    pub fn screen(&self) -> &vt100::Screen {
        self.parser.screen()
    }

    /// Takes in what the guest printed. Bytes that the emulator stumbles over cost the screen, not
    /// the console.
    pub fn print(&mut self, anew: bool, bytes: &[u8]) {
        self.loaded = true;
        if anew {
            self.reset();
        }
        let parser = &mut self.parser;
        if quietly(|| catch_unwind(AssertUnwindSafe(|| parser.process(bytes)))).is_err() {
            tracing::warn!(vm = %self.vm, "the terminal emulator failed on a console's bytes");
            self.reset();
        }
    }

    fn reset(&mut self) {
        let (rows, columns) = self.parser.screen().size();
        self.parser = vt100::Parser::new(rows, columns, SCROLLBACK);
    }

    /// Fits the emulated screen to the pane.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        let size = (rows.max(SMALLEST.0), columns.max(SMALLEST.1));
        if self.parser.screen().size() != size {
            let parser = &mut self.parser;
            let resized =
                quietly(|| catch_unwind(AssertUnwindSafe(|| parser.screen_mut().set_size(size.0, size.1))));
            if resized.is_err() {
                self.parser = vt100::Parser::new(size.0, size.1, SCROLLBACK);
            }
        }
    }

    /// Lines scrolled back.
    pub fn scrolled(&self) -> usize {
        self.parser.screen().scrollback()
    }

    /// Scrolls back so many lines, as far as there are some.
    pub fn scroll_to(&mut self, lines: usize) {
        self.parser.screen_mut().set_scrollback(lines);
    }

    /// Moves to the next line, upwards or downwards from what is in sight, that has the searched text.
    pub fn find(&mut self, upwards: bool) -> bool {
        let needle = self.needle.to_lowercase();
        if needle.is_empty() {
            return false;
        }
        let (rows, columns) = self.parser.screen().size();
        let (here, rows) = (self.scrolled(), usize::from(rows));
        self.scroll_to(usize::MAX);
        let most = self.scrolled();
        // Line 0 is the oldest one kept.
        let mut lines: Vec<String> = Vec::with_capacity(most + rows);
        for back in (0..=most).rev() {
            self.scroll_to(back);
            let mut shown = self.parser.screen().rows(0, columns);
            if back == 0 { lines.extend(shown) } else { lines.extend(shown.next()) }
        }
        let has = |at: &usize| lines.get(*at).is_some_and(|line| line.to_lowercase().contains(&needle));
        let top = most - here;
        let found = if upwards {
            (0..top).rev().find(has).or_else(|| (top..lines.len()).rev().find(has))
        } else {
            (top + 1..lines.len()).find(has).or_else(|| (0..=top).find(has))
        };
        self.scroll_to(found.map_or(here, |at| most.saturating_sub(at)));
        found.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pane(lines: usize) -> ConsolePane {
        let mut pane = ConsolePane::new(VmId::from_stored("0".repeat(12)));
        let text: String = (0..lines).map(|number| format!("line {number}\r\n")).collect();
        pane.print(true, text.as_bytes());
        pane
    }

    #[test]
    fn what_scrolled_away_is_found() {
        let mut pane = pane(200);
        pane.needle = "Line 42".into();
        assert!(pane.find(true));
        assert!(pane.screen().contents().starts_with("line 42\n"), "{}", pane.screen().contents());
        pane.needle = "line 4".into();
        assert!(pane.find(false));
        assert!(pane.screen().contents().starts_with("line 43\n"));
        pane.needle = "nowhere".into();
        assert!(!pane.find(true));
        assert!(pane.screen().contents().starts_with("line 43\n"));
    }

    #[test]
    fn what_is_on_the_screen_is_found_without_scrolling() {
        let mut pane = pane(5);
        pane.needle = "line 3".into();
        assert!(pane.find(true));
        assert_eq!(pane.scrolled(), 0);
    }

    proptest! {
        #[test]
        fn no_bytes_and_no_size_take_the_console_down(
            chunks in proptest::collection::vec((any::<Vec<u8>>(), 0u16..300, 0u16..100), 0..8)
        ) {
            let mut pane = pane(40);
            for (bytes, columns, rows) in chunks {
                pane.resize(columns, rows);
                pane.print(false, &bytes);
                let escapes: Vec<u8> = bytes.iter().flat_map(|byte| [0x1b, b'[', byte % 96 + 32]).collect();
                pane.print(false, &escapes);
                pane.scroll_to(usize::from(rows));
                pane.needle = "e".into();
                pane.find(true);
            }
        }
    }
}
