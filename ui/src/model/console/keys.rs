//! Keys as the bytes that a terminal sends for them (xterm, ctlseqs: PC-style function keys).

use crossterm::event::KeyCode;

use crate::keymap::Key;

/// What a key sends. `application` says whether the guest asked for application cursor keys (DECCKM).
pub fn encode(key: Key, application: bool) -> Vec<u8> {
    let modifier = 1 + u8::from(key.shift) + 2 * u8::from(key.alt) + 4 * u8::from(key.ctrl);
    // A cursor or editing key, which carries its modifiers itself.
    let cursor = |letter: char| match (modifier, application) {
        (1, true) => format!("\x1bO{letter}").into_bytes(),
        (1, false) => format!("\x1b[{letter}").into_bytes(),
        _ => format!("\x1b[1;{modifier}{letter}").into_bytes(),
    };
    let tilde = |number: u8| match modifier {
        1 => format!("\x1b[{number}~").into_bytes(),
        _ => format!("\x1b[{number};{modifier}~").into_bytes(),
    };
    let plain = match key.code {
        KeyCode::Up => return cursor('A'),
        KeyCode::Down => return cursor('B'),
        KeyCode::Right => return cursor('C'),
        KeyCode::Left => return cursor('D'),
        KeyCode::Home => return cursor('H'),
        KeyCode::End => return cursor('F'),
        KeyCode::Insert => return tilde(2),
        KeyCode::Delete => return tilde(3),
        KeyCode::PageUp => return tilde(5),
        KeyCode::PageDown => return tilde(6),
        KeyCode::BackTab => return b"\x1b[Z".to_vec(),
        KeyCode::F(number @ 1..=4) => {
            let letter = char::from(b'P' + number - 1);
            return match modifier {
                1 => format!("\x1bO{letter}").into_bytes(),
                _ => cursor(letter),
            };
        }
        KeyCode::F(number @ 5..=12) => {
            const NUMBERS: [u8; 8] = [15, 17, 18, 19, 20, 21, 23, 24];
            return tilde(NUMBERS[usize::from(number - 5)]);
        }
        KeyCode::Enter => vec![b'\r'],
        KeyCode::Tab => vec![b'\t'],
        KeyCode::Backspace if key.ctrl => vec![0x08],
        KeyCode::Backspace => vec![0x7f],
        KeyCode::Esc => vec![0x1b],
        KeyCode::Char(character) if key.ctrl => match control(character) {
            Some(byte) => vec![byte],
            None => return Vec::new(),
        },
        KeyCode::Char(character) => character.encode_utf8(&mut [0; 4]).as_bytes().to_vec(),
        _ => return Vec::new(),
    };
    if key.alt { [vec![0x1b], plain].concat() } else { plain }
}

/// The control character of a key pressed with ctrl.
fn control(character: char) -> Option<u8> {
    match character.to_ascii_lowercase() {
        letter @ 'a'..='z' => u8::try_from(letter).ok().map(|byte| byte & 0x1f),
        ' ' | '@' | '2' => Some(0),
        '[' | '3' => Some(0x1b),
        '\\' | '4' => Some(0x1c),
        ']' | '5' => Some(0x1d),
        '^' | '6' => Some(0x1e),
        '_' | '7' | '/' => Some(0x1f),
        '?' | '8' => Some(0x7f),
        _ => None,
    }
}

/// What a paste sends: bracketed where the guest asked for that, and never able to end its bracket.
pub fn encode_paste(text: &str, bracketed: bool) -> Vec<u8> {
    let text = text.replace("\r\n", "\r").replace('\n', "\r");
    if !bracketed {
        return text.into_bytes();
    }
    let inner: String = text.chars().filter(|character| *character != '\x1b').collect();
    format!("\x1b[200~{inner}\x1b[201~").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_bytes_of_an_xterm() {
        let check = |key: &str, application: bool, bytes: &[u8]| {
            assert_eq!(encode(Key::parse(key).unwrap(), application), bytes, "{key}");
        };
        check("a", false, b"a");
        check("enter", false, b"\r");
        check("backspace", false, b"\x7f");
        check("ctrl-c", false, b"\x03");
        check("alt-x", false, b"\x1bx");
        check("up", false, b"\x1b[A");
        check("up", true, b"\x1bOA");
        check("ctrl-left", true, b"\x1b[1;5D");
        check("f1", false, b"\x1bOP");
        check("f5", false, b"\x1b[15~");
        check("delete", false, b"\x1b[3~");
        assert_eq!(encode(Key::plain(KeyCode::Char('é')), false), "é".as_bytes());
    }

    #[test]
    fn a_paste_cannot_end_its_bracket() {
        assert_eq!(encode_paste("a\nb", false), b"a\rb");
        assert_eq!(encode_paste("a\x1b[201~rm\n", true), b"\x1b[200~a[201~rm\r\x1b[201~");
    }
}
