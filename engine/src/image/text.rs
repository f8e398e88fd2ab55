//! Text from outside on its way into a message.

/// At most `limit` characters of a text nobody vouches for, control characters escaped, so that a
/// registry's answer cannot write to the user's terminal.
pub(crate) fn printable(text: &str, limit: usize) -> String {
    let mut shown: String = text.chars().take(limit).flat_map(escape).collect();
    if text.chars().nth(limit).is_some() {
        shown.push('…');
    }
    shown
}

fn escape(character: char) -> impl Iterator<Item = char> {
    let escaped = character.is_control().then(|| character.escape_debug());
    let plain = escaped.is_none().then_some(character);
    escaped.into_iter().flatten().chain(plain)
}

/// Bytes for a person: `12.3 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_long_texts_cut() {
        assert_eq!(printable("a\u{1b}[31mé\n", 20), "a\\u{1b}[31mé\\n");
        assert_eq!(printable("abcdef", 3), "abc…");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(12_900_000), "12.3 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }
}
