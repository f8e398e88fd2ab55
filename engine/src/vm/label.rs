//! Labels: what a user tells machines apart by.

use crate::error::{Error, Result};

/// Longest key, and longest value, in bytes.
const KEY: usize = 63;
const VALUE: usize = 255;

/// Checks a label as a user gives it.
///
/// A key is 1 … 63 letters, digits, `.`, `_`, `-` or `/`, the first a letter or digit; a value up to
/// 255 bytes without control characters.
pub fn check_label(key: &str, value: &str) -> Result<()> {
    let fits = (1..=KEY).contains(&key.len())
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/'))
        && key.as_bytes()[0].is_ascii_alphanumeric();
    if !fits {
        return Err(Error::usage(format!("`{}` cannot be the key of a label", key.escape_default()))
            .with_hint(
                "use 1 to 63 letters, digits, `.`, `_`, `-` or `/`, beginning with a letter or digit",
            ));
    }
    if value.len() > VALUE || value.chars().any(char::is_control) {
        return Err(Error::usage(format!(
            "the value of label `{key}` is no plain text of up to {VALUE} bytes"
        ))
        .with_hint("labels tell machines apart; keep longer texts elsewhere"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short_and_plain() {
        for (key, value) in [("a", ""), ("tier", "web"), ("example.org/owner", "Zoë = me")] {
            assert!(check_label(key, value).is_ok(), "{key}");
        }
        let long = "x".repeat(256);
        for (key, value) in [("", "a"), ("-a", ""), ("a b", ""), ("a=b", ""), ("a", "\u{1b}"), ("a", &long)] {
            assert!(check_label(key, value).is_err(), "{key}");
        }
    }
}
