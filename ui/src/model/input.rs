//! A line of text being typed.

use crossterm::event::KeyCode;

use crate::keymap::Key;

/// Longest text taken; a paste beyond it is cut.
const LONGEST: usize = 4096;

/// A line of text with a cursor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextInput {
    text: String,
    /// Byte offset, on a character's boundary.
    cursor: usize,
    /// Nobody has typed it: what is typed first takes its place, as that of a selected text.
    offered: bool,
}

impl TextInput {
    pub fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { cursor: text.len(), text, offered: false }
    }

    /// A text that may be taken as it is; the first character typed takes its place.
    pub fn offer(text: impl Into<String>) -> Self {
        let input = Self::new(text);
        Self { offered: !input.text.is_empty(), ..input }
    }

    /// Whether the text is one that was offered, and not touched since.
    pub fn is_offered(&self) -> bool {
        self.offered
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn cursor(&self) -> usize {
        self.cursor
    }

    pub fn set(&mut self, text: impl Into<String>) {
        *self = Self::new(text);
    }

    /// Takes text over as it is, whatever keys it could have been: a paste. Line ends become blanks.
    pub fn paste(&mut self, text: &str) {
        self.replace_offer();
        for character in text.trim_end_matches(['\r', '\n']).chars() {
            if character.is_control() {
                if matches!(character, '\n' | '\t') {
                    self.insert(' ');
                }
            } else {
                self.insert(character);
            }
        }
    }

    fn replace_offer(&mut self) {
        if self.offered {
            *self = Self::default();
        }
    }

    fn insert(&mut self, character: char) {
        if self.text.len() + character.len_utf8() <= LONGEST {
            self.text.insert(self.cursor, character);
            self.cursor += character.len_utf8();
        }
    }

    /// Edits by a key, as the shell's line editor does. Returns whether the key was one of editing.
    pub fn key(&mut self, key: Key) -> bool {
        let Key { code, ctrl, alt, .. } = key;
        match (code, ctrl, alt) {
            (KeyCode::Char(character), false, false) => {
                self.replace_offer();
                self.insert(character);
            }
            (KeyCode::Backspace | KeyCode::Delete, false, false) if self.offered => self.replace_offer(),
            (KeyCode::Backspace, false, false) | (KeyCode::Char('h'), true, false) => {
                let from = self.before();
                self.text.drain(from..self.cursor);
                self.cursor = from;
            }
            (KeyCode::Delete, false, false) | (KeyCode::Char('d'), true, false) => {
                let to = self.after();
                self.text.drain(self.cursor..to);
            }
            (KeyCode::Char('w'), true, false) | (KeyCode::Backspace, false, true) => {
                let from = self.word_before();
                self.text.drain(from..self.cursor);
                self.cursor = from;
            }
            (KeyCode::Char('u'), true, false) => {
                self.text.drain(..self.cursor);
                self.cursor = 0;
            }
            (KeyCode::Char('k'), true, false) => self.text.truncate(self.cursor),
            (KeyCode::Left, false, false) | (KeyCode::Char('b'), true, false) => self.cursor = self.before(),
            (KeyCode::Right, false, false) | (KeyCode::Char('f'), true, false) => self.cursor = self.after(),
            (KeyCode::Left, true, false) | (KeyCode::Char('b'), false, true) => {
                self.cursor = self.word_before()
            }
            (KeyCode::Right, true, false) | (KeyCode::Char('f'), false, true) => {
                self.cursor = self.word_after()
            }
            (KeyCode::Home, ..) | (KeyCode::Char('a'), true, false) => self.cursor = 0,
            (KeyCode::End, ..) | (KeyCode::Char('e'), true, false) => self.cursor = self.text.len(),
            _ => return false,
        }
        // Moved in or shortened: the text is the user's now.
        self.offered = false;
        true
    }

    fn before(&self) -> usize {
        self.text[..self.cursor].char_indices().next_back().map_or(0, |(index, _)| index)
    }

    fn after(&self) -> usize {
        self.text[self.cursor..].chars().next().map_or(self.cursor, |next| self.cursor + next.len_utf8())
    }

    fn word_before(&self) -> usize {
        let trimmed = self.text[..self.cursor].trim_end_matches(|c: char| !c.is_alphanumeric());
        trimmed.trim_end_matches(char::is_alphanumeric).len()
    }

    fn word_after(&self) -> usize {
        let rest = self.text[self.cursor..].trim_start_matches(|c: char| !c.is_alphanumeric());
        self.text.len() - rest.trim_start_matches(char::is_alphanumeric).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn typed(keys: &str) -> TextInput {
        let mut input = TextInput::new("pull debian:12");
        for key in keys.split(' ') {
            input.key(Key::parse(key).unwrap());
        }
        input
    }

    #[test]
    fn the_line_is_edited_as_in_a_shell() {
        for (keys, text) in [
            ("ctrl-w", "pull debian:"),
            ("ctrl-w ctrl-w", "pull "),
            ("ctrl-u", ""),
            ("home ctrl-k", ""),
            ("ctrl-a x", "xpull debian:12"),
            ("left backspace", "pull debian:2"),
            ("ctrl-left ctrl-left delete", "pull ebian:12"),
            ("home ctrl-right ctrl-k", "pull"),
        ] {
            assert_eq!(typed(keys).text(), text, "{keys}");
        }
    }

    #[test]
    fn an_offered_text_gives_way_to_what_is_typed_and_not_to_what_edits_it() {
        for (keys, text) in
            [("x", "x"), ("x y", "xy"), ("end x", "postgres:17x"), ("backspace", ""), ("ctrl-w", "postgres:")]
        {
            let mut input = TextInput::offer("postgres:17");
            for key in keys.split(' ') {
                input.key(Key::parse(key).unwrap());
            }
            assert_eq!(input.text(), text, "{keys}");
            assert!(!input.is_offered());
        }
        let mut input = TextInput::offer("postgres:17");
        input.paste("debian");
        assert_eq!(input.text(), "debian");
        assert!(!input.key(Key::parse("tab").unwrap()) && TextInput::offer("x").is_offered());
    }

    #[test]
    fn a_paste_is_text_and_no_keys() {
        let mut input = TextInput::default();
        input.paste("debian:12\nq\u{1b}[Ax\r\n");
        assert_eq!(input.text(), "debian:12 q[Ax");
    }

    proptest! {
        #[test]
        fn no_editing_panics(keys in proptest::collection::vec(
            proptest::sample::select(vec!["left", "right", "ctrl-left", "ctrl-right", "home", "end", "backspace",
                "delete", "ctrl-w", "ctrl-u", "ctrl-k", "ä", "漢", "space", "a"]), 0..40)
        ) {
            let mut input = TextInput::default();
            for key in keys {
                input.key(Key::parse(key).unwrap());
                prop_assert!(input.text().is_char_boundary(input.cursor()));
            }
        }
    }
}
