//! What a command prints: results on standard output, everything else on standard error.
//!
//! Text that comes from images, guests or registries may hold anything; [`human`] makes it harmless
//! before it reaches a terminal.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use vmdeck_engine::{Error, Result};

use crate::cli::OutputFormat;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: OutputFormat,
    quiet: bool,
}

impl Output {
    pub(crate) fn new(format: OutputFormat, quiet: bool) -> Self {
        Self { format, quiet }
    }

    pub(crate) fn format(self) -> OutputFormat {
        self.format
    }

    pub(crate) fn quiet(self) -> bool {
        self.quiet
    }

    /// Prints the result when JSON is asked for; `false` when it is for people.
    pub(crate) fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<bool> {
        let text = match self.format {
            OutputFormat::Table => return Ok(false),
            OutputFormat::Json => serde_json::to_string_pretty(value),
            OutputFormat::Ndjson => {
                serde_json::to_string(&serde_json::json!({ "event": "result", "result": value }))
            }
        };
        let text = text.map_err(|error| Error::failed("cannot write JSON").with_source(error))?;
        self.text(&(text + "\n"))?;
        Ok(true)
    }

    /// An event of an operation, for `ndjson` only.
    pub(crate) fn event<T: Serialize>(self, value: &T) {
        if self.format == OutputFormat::Ndjson
            && let Ok(text) = serde_json::to_string(value)
        {
            let _ = self.text(&(text + "\n"));
        }
    }

    /// Prints to standard output.
    pub(crate) fn text(self, text: &str) -> Result<()> {
        write(text.as_bytes())
    }

    /// A line for people on standard error.
    pub(crate) fn message(self, text: &str) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "{}", human(text));
        }
    }

    /// An error, its cause and the next step. Standard output gets it too where a script reads
    /// events.
    pub(crate) fn error(self, error: &Error) {
        let mut stderr = io::stderr().lock();
        let _ = writeln!(stderr, "error: {}", human(&error.full_message()));
        if let Some(hint) = error.hint() {
            let _ = writeln!(stderr, "  next: {}", human(hint));
        }
        self.event(&serde_json::json!({ "event": "error", "error": error.report() }));
    }
}

/// Writes to standard output. A reader that went away ends the process quietly, as it does other
/// programs.
pub(crate) fn write(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(141),
        result => result.map_err(|error| Error::failed("cannot write to standard output").with_source(error)),
    }
}

/// Whether progress may draw over itself.
pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Text as it may be shown on a terminal: control characters and what turns the direction of
/// writing are escaped. Line feeds stay.
pub(crate) fn human(text: &str) -> Cow<'_, str> {
    let harmful = |character: char| {
        (character.is_control() && character != '\n')
            || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        if harmful(character) {
            clean.extend(character.escape_default());
        } else {
            clean.push(character);
        }
    }
    Cow::Owned(clean)
}

/// Columns of text under their headings.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).to_vec()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| human(&cell).replace('\n', " ")).to_vec());
    }

    /// Columns as wide as their widest cell, two blanks apart.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Lines of `name: value` for one thing.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    lines: Vec<(String, String)>,
}

impl Fields {
    pub(crate) fn add(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.lines.push((name.to_owned(), value.into()));
        self
    }

    /// Adds it unless there is none.
    pub(crate) fn add_some(&mut self, name: &str, value: Option<impl Into<String>>) -> &mut Self {
        if let Some(value) = value {
            self.add(name, value);
        }
        self
    }

    pub(crate) fn render(&self) -> String {
        let width = self.lines.iter().map(|(name, _)| name.chars().count() + 1).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in &self.lines {
            let name = if name.is_empty() { String::new() } else { format!("{name}:") };
            // Further lines of a value begin below its first: nothing of it looks like a field.
            let value = human(value).replace('\n', &format!("\n{}", " ".repeat(width + 2)));
            text.push_str(format!("{name:<width$}  {value}").trim_end());
            text.push('\n');
        }
        text
    }
}

/// A number of bytes in binary units, three significant digits.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1000.0 || unit == "TiB" {
            return match unit {
                "B" => format!("{count} B"),
                _ if value < 10.0 => format!("{value:.2} {unit}"),
                _ if value < 100.0 => format!("{value:.1} {unit}"),
                _ => format!("{value:.0} {unit}"),
            };
        }
        value /= 1024.0;
    }
    format!("{count} B")
}

/// A span of time for people.
pub(crate) fn duration(milliseconds: u64) -> String {
    match milliseconds {
        0..1_000 => format!("{milliseconds} ms"),
        1_000..60_000 => format!("{:.1} s", milliseconds as f64 / 1000.0),
        60_000..3_600_000 => format!("{}m{:02}s", milliseconds / 60_000, milliseconds / 1000 % 60),
        3_600_000..86_400_000 => format!("{}h{:02}m", milliseconds / 3_600_000, milliseconds / 60_000 % 60),
        _ => format!("{}d{:02}h", milliseconds / 86_400_000, milliseconds / 3_600_000 % 24),
    }
}

/// A point in time, in the local time zone.
pub(crate) fn time(milliseconds: i64) -> String {
    jiff::Timestamp::from_millisecond(milliseconds)
        .map(|time| {
            time.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
        })
        .unwrap_or_else(|_| "-".into())
}

/// How long ago.
pub(crate) fn ago(milliseconds: i64) -> String {
    let elapsed = vmdeck_engine::clock::now().saturating_sub(milliseconds);
    format!("{} ago", duration(u64::try_from(elapsed).unwrap_or(0)))
}

/// A digest shortened to what tells it apart.
pub(crate) fn short_digest(digest: &str) -> String {
    digest.split_once(':').map_or(digest, |(_, hex)| hex).chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_gets_through() {
        assert_eq!(human("a\u{1b}[31mb\u{9b}c\r\nd\u{202e}"), "a\\u{1b}[31mb\\u{9b}c\\r\nd\\u{202e}");
        assert!(matches!(human("plain ä"), Cow::Borrowed(_)));
    }

    #[test]
    fn sizes_and_spans_have_three_digits() {
        for (count, expected) in
            [(0, "0 B"), (999, "999 B"), (1024, "1.00 KiB"), (150 << 20, "150 MiB"), (3 << 40, "3.00 TiB")]
        {
            assert_eq!(bytes(count), expected);
        }
        for (milliseconds, expected) in
            [(5, "5 ms"), (1500, "1.5 s"), (61_000, "1m01s"), (3_660_000, "1h01m"), (90_000_000, "1d01h")]
        {
            assert_eq!(duration(milliseconds), expected);
        }
    }

    #[test]
    fn a_table_is_as_wide_as_its_cells() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["debian".into(), "up\u{7}".into()]);
        assert_eq!(table.render(), "NAME    STATE\ndebian  up\\u{7}\n");
    }

    #[test]
    fn a_value_with_lines_cannot_be_taken_for_further_fields() {
        let mut fields = Fields::default();
        fields.add("labels", "a=b\nmanaged:  yes").add("id", "x");
        assert_eq!(fields.render(), "labels:  a=b\n         managed:  yes\nid:      x\n");
    }
}
