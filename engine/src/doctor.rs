//! What this host can and cannot do, and the fix for what it cannot.

mod hypervisor;
mod network;
mod place;
mod tools;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

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

impl Check {
    fn ok(name: &str, finding: impl Into<String>) -> Self {
        Self { name: name.to_owned(), status: CheckStatus::Ok, finding: finding.into(), fix: None }
    }

    fn warning(name: &str, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: CheckStatus::Warning, fix: Some(fix.into()), ..Self::ok(name, finding) }
    }

    fn failed(name: &str, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: CheckStatus::Failed, fix: Some(fix.into()), ..Self::ok(name, finding) }
    }

    /// A check that could not be made because of this error.
    fn from_error(name: &str, error: &Error) -> Self {
        let check = Self { status: CheckStatus::Failed, ..Self::ok(name, error.full_message()) };
        Self { fix: error.hint().map(str::to_owned), ..check }
    }
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
pub async fn examine(engine: &crate::Engine) -> Result<Report> {
    let root = engine.data().root().to_owned();
    let here = tokio::task::spawn_blocking(move || {
        let mut checks = place::checks(&root);
        checks.extend(tools::checks());
        checks
    });
    let mut checks = hypervisor::checks(engine).await;
    checks
        .extend(here.await.map_err(|error| Error::failed("looking at this host failed").with_source(error))?);
    checks.push(network::bridged(engine.data().root()).await);
    checks.push(network::check());
    Ok(Report { checks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_finding_that_is_not_fine_comes_with_a_fix() {
        let folder = tempfile::tempdir().unwrap();
        let engine = crate::Engine::open(folder.path().join("data")).await.unwrap();
        let report = examine(&engine).await.unwrap();
        for check in &report.checks {
            eprintln!("{check:?}");
            assert_eq!(check.status == CheckStatus::Ok, check.fix.is_none(), "{check:?}");
            assert!(!check.finding.is_empty() && !check.finding.contains('\n'), "{check:?}");
        }
        let names: Vec<_> = report.checks.iter().map(|check| check.name.as_str()).collect();
        for name in [
            "qemu",
            "accelerator",
            "data directory",
            "disk space",
            "memory",
            "kernel source",
            "ssh",
            "guest network",
            "bridged network",
        ] {
            assert!(names.contains(&name), "{name} is not looked at");
        }
        // The second look has nothing to prove any more: what the first one found is not written anew.
        let found = || {
            let verdict = std::fs::metadata(folder.path().join("data/cache/accelerator.json")).ok()?;
            Some((std::os::unix::fs::MetadataExt::ino(&verdict), verdict.modified().unwrap()))
        };
        let before = found();
        assert_eq!(examine(&engine).await.unwrap().worst(), report.worst());
        assert_eq!(found(), before);
    }
}
