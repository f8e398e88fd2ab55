//! The one error type that leaves the engine: a kind, which decides the exit code, a message that
//! names the thing and the cause, and where there is one, the next step.
//!
//! Subsystems have enums of their own (`RegistryError`, `RootfsError`, …) and turn into this one
//! at the edge of their service.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, as far as a caller has to tell cases apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// It was tried and did not work.
    Failed,
    /// The request itself makes no sense.
    Usage,
    /// No such image, kernel, machine or operation.
    NotFound,
    /// The name is taken, the thing is in use, or its state forbids it.
    Conflict,
    /// This host lacks something; the hint says what to do about it.
    HostCannot,
    /// Cancelled on request.
    Cancelled,
}

impl ErrorKind {
    /// The exit status of a headless command that ends with this kind of error.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::HostCannot => 5,
            Self::Cancelled => 130,
        }
    }
}

/// An error as a person or a script gets to see it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

pub(crate) const DISK_FULL: &str = "free some space on that file system: `vmdeck df` shows what vmdeck holds";

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None }
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    pub fn host_cannot(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::HostCannot, message)
    }

    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "cancelled")
    }

    /// An I/O error with what was being done. A full disk gets its own hint.
    pub fn io(doing: impl Into<String>, error: std::io::Error) -> Self {
        let full =
            matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        let this = Self::failed(doing).with_source(error);
        if full { this.with_hint(DISK_FULL) } else { this }
    }

    /// The next step for the user.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    pub fn is_cancelled(&self) -> bool {
        self.kind == ErrorKind::Cancelled
    }

    /// The message with every cause behind it, joined by `: `.
    pub fn full_message(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            let part = error.to_string();
            // Libraries like to repeat their cause in their own text.
            if !text.ends_with(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            cause = error.source();
        }
        text
    }

    /// What is kept of this error in the store.
    pub fn report(&self) -> ErrorReport {
        ErrorReport { kind: self.kind, message: self.full_message(), hint: self.hint.clone() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        let is_full = error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
        let error = Self::failed("the store could not be read or written").with_source(error);
        if is_full { error.with_hint(DISK_FULL) } else { error }
    }
}

/// An error as it is stored with an operation and shown again later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    pub kind: ErrorKind,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl From<ErrorReport> for Error {
    fn from(report: ErrorReport) -> Self {
        Self { kind: report.kind, message: report.message, hint: report.hint, source: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_message_names_every_cause_once() {
        let error = Error::io("cannot write `x`", std::io::Error::other("disk on fire"));
        assert_eq!(error.full_message(), "cannot write `x`: disk on fire");
        assert_eq!(error.hint(), None);
    }

    #[test]
    fn a_full_disk_comes_with_a_next_step() {
        let error = Error::io("cannot write `x`", std::io::ErrorKind::StorageFull.into());
        assert!(error.hint().unwrap().contains("vmdeck df"));
    }
}
