//! Numbers and times as archives write them.

use vmdeck_ext4::Timestamp;

use super::TarError;

/// A numeric header field: octal text, or GNU base-256 when the first bit is set.
///
/// Octal text may have blanks and zero bytes around it and ends at the first of them; an empty
/// field is 0 (POSIX ustar; GNU tar manual, "Basic Tar Format"). Base-256 is big-endian two's
/// complement without that first bit.
pub(super) fn field(bytes: &[u8], name: &'static str) -> Result<i64, TarError> {
    if bytes.first().is_some_and(|first| first & 0x80 != 0) {
        return base256(bytes).ok_or(TarError::Number(name));
    }
    let start = bytes.iter().position(|byte| !matches!(byte, b' ' | 0)).unwrap_or(bytes.len());
    let digits = &bytes[start..];
    let end = digits.iter().position(|byte| matches!(byte, b' ' | 0)).unwrap_or(digits.len());
    let mut value: i64 = 0;
    for byte in &digits[..end] {
        if !matches!(byte, b'0'..=b'7') {
            return Err(TarError::Number(name));
        }
        value = value
            .checked_mul(8)
            .and_then(|value| value.checked_add(i64::from(byte - b'0')))
            .ok_or(TarError::Number(name))?;
    }
    Ok(value)
}

fn base256(bytes: &[u8]) -> Option<i64> {
    let negative = bytes[0] & 0x40 != 0;
    // Inverting a negative number's bits keeps the arithmetic unsigned; `!` at the end undoes it.
    let invert = if negative { 0xff } else { 0 };
    let mut value: u64 = 0;
    for (position, byte) in bytes.iter().enumerate() {
        let mut byte = byte ^ invert;
        if position == 0 {
            byte &= 0x7f;
        }
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).ok()?;
    Some(if negative { !value } else { value })
}

/// A decimal number of a PAX record.
pub(super) fn decimal<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    // `parse` would take a leading `+`, which POSIX does not know.
    if value.first() == Some(&b'+') {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// A PAX time: decimal seconds since the epoch, perhaps negative, perhaps with a fraction. Digits
/// finer than a nanosecond are cut off.
pub(super) fn time(value: &[u8]) -> Option<Timestamp> {
    let (negative, digits) = match value.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, value),
    };
    let (whole, fraction) = match digits.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&digits[..dot], &digits[dot + 1..]),
        None => (digits, &[][..]),
    };
    if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    let seconds: i64 = decimal(whole)?;
    let nanoseconds = (0..9).fold(0_u32, |sum, position| {
        sum * 10 + fraction.get(position).map_or(0, |digit| u32::from(digit - b'0'))
    });
    Some(match (negative, nanoseconds) {
        (false, _) => Timestamp { seconds, nanoseconds },
        (true, 0) => Timestamp { seconds: -seconds, nanoseconds: 0 },
        (true, _) => Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields() {
        let check = |bytes: &[u8], expected: Option<i64>| {
            assert_eq!(field(bytes, "size").ok(), expected, "{}", bytes.escape_ascii());
        };
        check(b"0000644\0", Some(0o644));
        check(b"   644 \0", Some(0o644));
        check(b"\0\0\0\0\0\0\0\0", Some(0));
        check(b"", Some(0));
        check(b"77777777777", Some(0o77_777_777_777));
        check(b"644\0junk", Some(0o644));
        check(b"0000648\0", None);
        check(b"-000644\0", None);
        check(b"777777777777777777777777", None);
    }

    #[test]
    fn base_256_fields() {
        let check = |bytes: &[u8], expected: Option<i64>| assert_eq!(field(bytes, "size").ok(), expected);
        check(&[0x80, 0, 0, 0, 0, 0, 0x01, 0x00], Some(256));
        check(&[0xff; 8], Some(-1));
        check(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], Some(-2));
        check(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Some(i64::MAX));
        check(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0], None);
        check(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None);
        check(&[0xff, 0xff, 0xff, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], Some(i64::MIN));
    }

    #[test]
    fn pax_times() {
        let check = |text: &str, expected: Option<(i64, u32)>| {
            let found = time(text.as_bytes()).map(|time| (time.seconds, time.nanoseconds));
            assert_eq!(found, expected, "{text}");
        };
        check("1350244992", Some((1_350_244_992, 0)));
        check("1350244992.023960108", Some((1_350_244_992, 23_960_108)));
        check("1350244992.3", Some((1_350_244_992, 300_000_000)));
        check("1350244992.12345678999", Some((1_350_244_992, 123_456_789)));
        check("1.", Some((1, 0)));
        check("-1.5", Some((-2, 500_000_000)));
        check("-0.25", Some((-1, 750_000_000)));
        check("-3", Some((-3, 0)));
        check(".5", None);
        check("", None);
        check("1.5e3", None);
        check("+1", None);
        check("99999999999999999999", None);
    }
}
