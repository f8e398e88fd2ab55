//! Numbers as people read them. All of them are `Display`, so that painting allocates nothing.

use std::fmt;

/// A length in bytes, three digits at least: `512 B`, `48.6 MiB`, `1.43 GiB`.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1000 {
            return write!(f, "{} B", self.0);
        }
        #[allow(clippy::cast_precision_loss)] // Three digits are shown.
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 999.5 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let digits = if value < 9.995 {
            2
        } else if value < 99.95 {
            1
        } else {
            0
        };
        write!(f, "{value:.digits$} {}", UNITS[unit])
    }
}

/// Memory given in MiB: `512M`, `2G`, `1.5G`.
#[derive(Clone, Copy, Debug)]
pub struct Mebibytes(pub u64);

impl fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1024 {
            write!(f, "{}M", self.0)
        } else if self.0.is_multiple_of(1024) {
            write!(f, "{}G", self.0 / 1024)
        } else {
            #[allow(clippy::cast_precision_loss)]
            let value = self.0 as f64 / 1024.0;
            write!(f, "{value:.1}G")
        }
    }
}

/// How long ago or for how long, in the two largest units: `45s`, `12m`, `3h 5m`, `4d 2h`.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub i64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.max(0) / 1000;
        let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
        if minutes == 0 {
            write!(f, "{seconds}s")
        } else if hours == 0 {
            write!(f, "{minutes}m")
        } else if days == 0 {
            write!(f, "{hours}h {}m", minutes % 60)
        } else {
            write!(f, "{days}d {}h", hours % 24)
        }
    }
}

/// How long something took, to be compared with its like: `7 ms`, `0.42 s`, `12.8 s`, `2m 5s`, `3h 5m`.
#[derive(Clone, Copy, Debug)]
pub struct Took(pub u64);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[allow(clippy::cast_precision_loss)]
        let seconds = self.0 as f64 / 1000.0;
        match self.0 {
            0..100 => write!(f, "{} ms", self.0),
            100..9_995 => write!(f, "{seconds:.2} s"),
            9_995..99_950 => write!(f, "{seconds:.1} s"),
            99_950..3_600_000 => write!(f, "{}m {}s", self.0 / 60_000, self.0 % 60_000 / 1000),
            _ => write!(f, "{}h {}m", self.0 / 3_600_000, self.0 % 3_600_000 / 60_000),
        }
    }
}

/// The time from one moment to a later one, in milliseconds.
pub fn between(from: i64, to: i64) -> u64 {
    u64::try_from(to.saturating_sub(from)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (10_240, "10.0 KiB"),
            (1_048_576, "1.00 MiB"),
            (1_610_612_736, "1.50 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn spans_have_two_units_at_most() {
        for (milliseconds, text) in
            [(-5, "0s"), (59_999, "59s"), (60_000, "1m"), (3_900_000, "1h 5m"), (90_000_000, "1d 1h")]
        {
            assert_eq!(Span(milliseconds).to_string(), text);
        }
    }

    #[test]
    fn durations_can_be_compared() {
        for (milliseconds, text) in
            [(7, "7 ms"), (420, "0.42 s"), (12_840, "12.8 s"), (125_000, "2m 5s"), (11_100_000, "3h 5m")]
        {
            assert_eq!(Took(milliseconds).to_string(), text);
        }
    }
}
