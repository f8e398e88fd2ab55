//! What the serial console and the hypervisor have written since a boot began.
//!
//! Text from a guest: bounded, and freed of everything that could act on a terminal.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

/// As much of the end is looked at.
const TAIL_BYTES: u64 = 64 << 10;
/// Longest line that is kept, in characters.
const LINE_CHARACTERS: usize = 240;
/// Lines shown with a failure.
pub(in crate::vm) const TAIL_LINES: usize = 20;

/// A log file from the moment on at which it was looked at first.
#[derive(Clone, Debug)]
pub(in crate::vm) struct LogTail {
    path: PathBuf,
    start: u64,
    seen: u64,
}

impl LogTail {
    /// From the end of what is there now; a file that is not there yet begins empty.
    pub(in crate::vm) fn from_end(path: PathBuf) -> Self {
        let length = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        Self { path, start: length, seen: length }
    }

    /// From a place that was the end when a run began.
    pub(in crate::vm) fn from_offset(path: PathBuf, start: u64) -> Self {
        Self { path, start, seen: start }
    }

    /// Where it begins.
    pub(in crate::vm) fn start(&self) -> u64 {
        self.start
    }

    /// Whether anything was written since this was asked last.
    pub(in crate::vm) fn grew(&mut self) -> bool {
        let length = std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len());
        if length < self.start {
            // Begun anew.
            self.start = 0;
        }
        std::mem::replace(&mut self.seen, length) != length
    }

    /// The last lines, at most [`TAIL_BYTES`] of them, safe to print.
    pub(in crate::vm) fn lines(&self) -> Vec<String> {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            let length = file.metadata()?.len();
            let start = if length < self.start { 0 } else { self.start };
            file.seek(SeekFrom::Start(start.max(length.saturating_sub(TAIL_BYTES))))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map(|bytes| printable_lines(&bytes)).unwrap_or_default()
    }
}

/// The last `count` lines.
pub(in crate::vm) fn last(lines: &[String], count: usize) -> Vec<String> {
    lines[lines.len().saturating_sub(count)..].to_vec()
}

/// Splits into lines, and takes out escape sequences (ECMA-48) and other control characters. Empty
/// lines go.
pub(in crate::vm) fn printable_lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\n' => lines.push(String::new()),
            '\u{9b}' => skip_control_sequence(&mut characters),
            '\u{1b}' => match characters.next_if(|next| *next != '\n') {
                Some('[') => skip_control_sequence(&mut characters),
                // OSC, DCS, SOS, PM and APC end with BEL or ST; an unended one ends with the line.
                Some(']' | 'P' | 'X' | '^' | '_') => {
                    while let Some(next) = characters.next_if(|next| *next != '\n') {
                        if next == '\u{7}' || (next == '\u{1b}' && characters.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                }
                // Intermediates of a longer sequence, then its final byte.
                Some(' '..='/') => {
                    while characters.next_if(|next| (' '..='/').contains(next)).is_some() {}
                    characters.next_if(|next| *next != '\n');
                }
                _ => {}
            },
            '\t' => push(&mut lines, ' '),
            // Also what is no control character by class and yet rearranges text: bidi overrides.
            _ if character.is_control() || ('\u{202a}'..='\u{202e}').contains(&character) => {}
            '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => {}
            _ => push(&mut lines, character),
        }
    }
    lines.into_iter().map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// The rest of a CSI sequence: parameters and intermediates, then one final byte. An unended one ends
/// with the line.
fn skip_control_sequence(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while let Some(next) = characters.next_if(|next| *next != '\n') {
        if ('\u{40}'..='\u{7e}').contains(&next) {
            break;
        }
    }
}

fn push(lines: &mut [String], character: char) {
    if let Some(line) = lines.last_mut()
        // Characters are counted by bytes first: that is enough nearly always, and cheap.
        && (line.len() < LINE_CHARACTERS || line.chars().count() < LINE_CHARACTERS)
    {
        line.push(character);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_taken_out() {
        let check = |input: &str, expected: &[&str]| {
            assert_eq!(printable_lines(input.as_bytes()), expected, "{input:?}");
        };
        check("a\r\nb\r\n\r\n", &["a", "b"]);
        check("\u{1b}[1;31mred\u{1b}[0m", &["red"]);
        check("\u{1b}]0;title\u{7}x\u{1b}]2;t\u{1b}\\y", &["xy"]);
        check("\u{1b}]0;never ended\nnext", &["next"]);
        check("\u{1b}c\u{1b}(Bok\u{9b}31m\u{7f}", &["ok"]);
        check("\u{1b}[31\nb\u{1b}\nc\u{1b}", &["b", "c"]);
        check("a\u{202e}b\tc", &["ab c"]);
    }

    #[test]
    fn only_what_came_since_is_told_and_no_more_than_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        std::fs::write(&path, "of an earlier boot\n").unwrap();
        let mut tail = LogTail::from_end(path.clone());
        assert!(!tail.grew());
        assert!(tail.lines().is_empty());
        std::fs::write(&path, format!("of an earlier boot\nnew\n{}", "x".repeat(1 << 20))).unwrap();
        assert!(tail.grew());
        assert!(!tail.grew());
        assert_eq!(tail.lines()[0].len(), LINE_CHARACTERS);
        // A log begun anew is all new.
        std::fs::write(&path, "short\n").unwrap();
        assert!(tail.grew());
        assert_eq!(tail.lines(), ["short"]);
        assert!(LogTail::from_offset(folder.path().join("none"), 7).lines().is_empty());
    }

    proptest! {
        #[test]
        fn no_input_leaves_a_control_character(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for line in printable_lines(&bytes) {
                prop_assert!(!line.chars().any(char::is_control));
                prop_assert!(line.chars().count() <= LINE_CHARACTERS);
            }
        }
    }
}
