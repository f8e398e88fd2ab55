//! The log: files in the data directory, rotated daily, and the console's own view of it. Nothing is
//! ever written to the terminal.
//!
//! `VMDECK_LOG` filters the files (`vmdeck_engine=debug`, …); `info` by default. The console has a
//! filter of its own: the engine's lines down to `debug`, to be looked at when something is odd.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt as format};
use vmdeck_engine::data_directory::DataDirectory;
use vmdeck_engine::{Error, Result};
use vmdeck_ui::events::EventRing;
use vmdeck_ui::model::toast::Level;

/// Days kept.
const FILES_KEPT: usize = 7;

/// Lines that may wait for the disk; what comes beyond is dropped rather than waited for.
const LINES_BUFFERED: usize = 4096;

/// Starts the log, its lines also going to the console's ring where there is one. Lines are flushed
/// when the guard is dropped.
pub(crate) fn start(data: &DataDirectory, console: Option<EventRing>) -> Result<WorkerGuard> {
    let appender = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("vmdeck")
        .filename_suffix("log")
        .max_log_files(FILES_KEPT)
        .build(data.logs())
        .map_err(|error| {
            Error::failed(format!("cannot write the log in `{}`", data.logs().display())).with_source(error)
        })?;
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(LINES_BUFFERED).lossy(true).finish(appender);
    let filter = EnvFilter::try_from_env("VMDECK_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let files = format::layer().with_ansi(false).with_writer(writer).with_filter(filter);
    tracing_subscriber::registry().with(files).with(console.map(console_layer)).init();
    Ok(guard)
}

fn console_layer<S>(ring: EventRing) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let targets = Targets::new().with_default(LevelFilter::WARN).with_target("vmdeck", LevelFilter::DEBUG);
    ToConsole(ring).with_filter(targets)
}

/// Puts events into the console's ring.
struct ToConsole(EventRing);

impl<S: Subscriber> Layer<S> for ToConsole {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let metadata = event.metadata();
        let level = match *metadata.level() {
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warning,
            tracing::Level::INFO => Level::Information,
            _ => Level::Detail,
        };
        let mut text = Text::default();
        event.record(&mut text);
        let target = metadata.target();
        if let ("vmdeck_engine::operation", Level::Information) = (target, level) {
            // That one began or ended is told by the console itself, also of other processes' ones.
            if let Some(line) = text.line {
                self.0.put(level, &format!("operation {}", text.id.unwrap_or_default()), line);
            }
            return;
        }
        let source = target.strip_prefix("vmdeck_").unwrap_or(target);
        self.0.put(level, source.strip_prefix("engine::").unwrap_or(source), text.into_line());
    }
}

/// A message and its fields as one line.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
    /// Of an operation: its id, and a line of its own log.
    id: Option<String>,
    line: Option<String>,
}

impl Text {
    fn into_line(self) -> String {
        match (self.message.is_empty(), self.fields.is_empty()) {
            (_, true) => self.message,
            (true, false) => self.fields,
            (false, false) => format!("{}: {}", self.message, self.fields),
        }
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "id" => self.id = Some(format!("{value:?}")),
            "line" => self.line = Some(format!("{value:?}")),
            _ => {}
        }
        // Writing into a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => {
                let separator = if self.fields.is_empty() { "" } else { ", " };
                write!(self.fields, "{separator}{name} {value:?}")
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_gets_what_the_engine_tells_and_only_warnings_of_others() {
        let ring = EventRing::default();
        let subscriber = tracing_subscriber::registry().with(console_layer(ring.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!(target: "vmdeck_engine::vm::boot", machine = "web", port = 8080, "forwards it");
            tracing::info!(target: "vmdeck_engine::operation", id = %"4f2a", "began");
            tracing::info!(target: "vmdeck_engine::operation", id = %"4f2a", line = "3 layers", "log");
            tracing::info!(target: "hyper::client", "connected");
            tracing::warn!(target: "hyper::client", error = %"reset", "lost");
        });
        let lines: Vec<_> =
            ring.take().into_iter().map(|line| (line.level, line.source, line.text)).collect();
        assert_eq!(
            lines,
            [
                (Level::Detail, "vm::boot".to_owned(), "forwards it: machine web, port 8080".to_owned()),
                (Level::Information, "operation 4f2a".to_owned(), "3 layers".to_owned()),
                (Level::Warning, "hyper::client".to_owned(), "lost: error reset".to_owned()),
            ]
        );
    }
}
