//! The log: files in the data directory, rotated daily. Nothing is ever written to the terminal.
//!
//! `VMDECK_LOG` filters it (`vmdeck_engine=debug`, …); `info` by default.

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::EnvFilter;
use vmdeck_engine::data_directory::DataDirectory;
use vmdeck_engine::{Error, Result};

/// Days kept.
const FILES_KEPT: usize = 7;

/// Lines that may wait for the disk; what comes beyond is dropped rather than waited for.
const LINES_BUFFERED: usize = 4096;

/// Starts the log. Lines are flushed when the guard is dropped.
pub(crate) fn start(data: &DataDirectory) -> Result<WorkerGuard> {
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
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(writer).init();
    Ok(guard)
}
