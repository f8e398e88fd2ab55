//! Text from outside — names, references, registry errors, console lines — made fit for a cell.
//!
//! Nothing here trusts its input: control characters (C0, DEL, C1), bidirectional overrides and
//! isolates, zero-width and other invisible format characters never reach the terminal, and widths
//! are counted in columns, so that a name cannot move what stands beside it.

use std::fmt;

use unicode_width::UnicodeWidthChar;

/// What a character becomes on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Takes a cell (or two) of its own.
    Cell(char, u16),
    /// Is drawn over the character before it.
    Mark(char),
    /// Is left out.
    Nothing,
}

/// Decides what a character of untrusted text becomes.
pub fn shown(character: char) -> Shown {
    if character.is_ascii() {
        return match character {
            ' '..='~' => Shown::Cell(character, 1),
            '\t' | '\n' | '\r' => Shown::Cell(' ', 1),
            _ => Shown::Cell('?', 1),
        };
    }
    if is_invisible(character) {
        return Shown::Nothing;
    }
    match character.width() {
        Some(0) => Shown::Mark(character),
        Some(width) => Shown::Cell(character, if width > 1 { 2 } else { 1 }),
        // C1 controls.
        None => Shown::Cell('?', 1),
    }
}

/// Format characters that change what others look like and show nothing themselves (Unicode general
/// category Cf and its like: UAX #9 for the bidirectional ones, tags, variation selectors).
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Columns that a text takes when it is painted.
pub fn width(text: &str) -> u16 {
    if text.is_ascii() {
        return u16::try_from(text.len()).unwrap_or(u16::MAX);
    }
    text.chars().fold(0, |sum: u16, character| match shown(character) {
        Shown::Cell(_, width) => sum.saturating_add(width),
        _ => sum,
    })
}

/// The same of what is formatted, without keeping it.
pub fn width_of(arguments: fmt::Arguments<'_>) -> u16 {
    struct Counter(u16);
    impl fmt::Write for Counter {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 = self.0.saturating_add(width(text));
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // Counting does not fail.
    let _ = fmt::write(&mut counter, arguments);
    counter.0
}

/// The longest end of a text that takes at most so many columns.
pub fn tail(text: &str, columns: u16) -> &str {
    let mut from = 0;
    let mut rest = width(text);
    for (at, character) in text.char_indices() {
        if rest <= columns {
            break;
        }
        if let Shown::Cell(_, width) = shown(character) {
            rest -= width;
        }
        from = at + character.len_utf8();
    }
    &text[from..]
}

/// A copy that is safe to hand to the terminal by other ways than the painter: the clipboard's
/// paste, or standard error after the console has ended.
pub fn clean(text: &str) -> String {
    text.chars()
        .filter_map(|character| match shown(character) {
            Shown::Cell(character, _) | Shown::Mark(character) => Some(character),
            Shown::Nothing => None,
        })
        .collect()
}

/// Breaks a text into lines of at most `columns`, at blanks where there are some; at least one line.
pub fn wrap(text: &str, columns: u16) -> impl Iterator<Item = &str> {
    let columns = columns.max(1);
    text.split('\n').flat_map(move |paragraph| {
        let mut rest = Some(paragraph.trim_end());
        std::iter::from_fn(move || {
            let line = rest.take()?;
            let Some((end, next)) = break_at(line, columns) else { return Some(line) };
            rest = Some(&line[next..]);
            Some(&line[..end])
        })
    })
}

/// Where to break a line: the end of what is kept and the beginning of what follows.
fn break_at(text: &str, columns: u16) -> Option<(usize, usize)> {
    let (mut used, mut blank, mut fits) = (0u16, None, 0);
    for (index, character) in text.char_indices() {
        let width = match shown(character) {
            Shown::Cell(_, width) => width,
            _ => 0,
        };
        if used + width > columns {
            return match blank {
                _ if character == ' ' => Some((index, index + 1)),
                Some(blank) if blank > 0 => Some((blank, blank + 1)),
                // A word longer than a line; a character wider than the line still has to go somewhere.
                _ if fits > 0 => Some((fits, fits)),
                _ => {
                    let next = index + character.len_utf8();
                    (next < text.len()).then_some((next, next))
                }
            };
        }
        if character == ' ' {
            blank = Some(index);
        }
        used += width;
        fits = index + character.len_utf8();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_to_the_terminal_do_not_survive() {
        assert_eq!(clean("a\u{1b}[31mb\u{7}"), "a?[31mb?");
        assert_eq!(clean("\u{9b}31m"), "?31m");
        assert_eq!(clean("abc\u{202e}fed\u{2066}\u{200b}\u{feff}\u{e0041}x"), "abcfedx");
        assert_eq!(clean("e\u{301}漢"), "e\u{301}漢");
    }

    #[test]
    fn widths_are_columns() {
        for (text, columns) in [("", 0), ("abc", 3), ("漢字", 4), ("e\u{301}", 1), ("a\u{200d}b", 2)] {
            assert_eq!(width(text), columns, "{text:?}");
        }
    }

    #[test]
    fn lines_break_at_blanks_and_inside_long_words() {
        let check = |text: &str, columns, expected: &[&str]| {
            assert_eq!(wrap(text, columns).collect::<Vec<_>>(), expected, "{text:?}");
        };
        check("the quick brown", 9, &["the quick", "brown"]);
        check("abcdefgh", 3, &["abc", "def", "gh"]);
        check("漢字漢", 1, &["漢", "字", "漢"]);
        check("a\nb", 5, &["a", "b"]);
        check("", 5, &[""]);
    }

    proptest! {
        #[test]
        fn wrapping_ends_and_fits(text in "\\PC{0,80}|[ a-c漢\u{301}]{0,80}", columns in 0u16..20) {
            for line in wrap(&text, columns) {
                prop_assert!(width(line) <= columns.max(2));
            }
        }

        #[test]
        fn clean_text_has_no_controls(text in any::<String>()) {
            prop_assert!(!clean(&text).chars().any(|c| c.is_control() || is_invisible(c)));
        }
    }
}
