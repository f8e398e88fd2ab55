//! QEMU: command line, start, control, accelerator proof.
//!
//! ```text
//! launch: fork ▶ identity on record ▶ exec, CPUs halted ▶ QMP greeting ▶ cont ▶ guest runs
//! ```
//!
//! Files in a machine's folder that are of this module's own: `qmp.sock` with `qmp.lock` (one
//! client at a time), `qemu.log` (what QEMU prints), `journal.out` (its events, see [`journal`]),
//! `recorder.lock` (see [`recorder`]).

pub(crate) mod accelerator;
pub(crate) mod binary;
pub mod command;
pub mod failure;
mod journal;
mod launch;
mod machine;
mod qmp;
mod recorder;

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{Accelerator, AcceleratorVerdict, Ending, Machine, MachineSpec, Vmm};
use crate::error::{Error, Result};
use crate::process::ProcessIdentity;

/// The system's QEMU.
#[derive(Clone, Debug)]
pub struct Qemu {
    cache: PathBuf,
}

impl Qemu {
    /// `cache` is an existing folder for what was found out about this host: the accelerator's
    /// verdict, and what QEMU was built with.
    pub fn new(cache: PathBuf) -> Self {
        Self { cache }
    }
}

impl Qemu {
    /// Forgets which accelerator runs guests here, so that the next question proves it anew.
    pub fn forget_accelerator(&self) -> Result<()> {
        accelerator::forget(&self.cache)
    }
}

impl Vmm for Qemu {
    fn accelerator<'a>(&'a self, cancel: &'a CancellationToken) -> BoxFuture<'a, Result<AcceleratorVerdict>> {
        Box::pin(accelerator::verdict(&self.cache, cancel))
    }

    fn distrust_accelerator(&self, accelerator: Accelerator, reason: &str) -> Result<()> {
        accelerator::distrust(&self.cache, accelerator, reason)
    }

    fn launch<'a>(
        &'a self,
        spec: &'a MachineSpec,
        identity: Box<dyn FnOnce(ProcessIdentity) -> BoxFuture<'static, Result<()>> + Send + 'a>,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Box<dyn Machine>>> {
        Box::pin(async move {
            let machine = launch::launch(&self.cache, spec, identity, cancel).await?;
            Ok(Box::new(machine) as Box<dyn Machine>)
        })
    }

    fn attach<'a>(
        &'a self,
        directory: &'a Path,
        process: &'a ProcessIdentity,
    ) -> BoxFuture<'a, Result<Box<dyn Machine>>> {
        Box::pin(async move {
            let machine = machine::QemuMachine::open(directory, process)?;
            Ok(Box::new(machine) as Box<dyn Machine>)
        })
    }

    fn ending(&self, directory: &Path) -> Ending {
        journal::ending(directory)
    }

    fn standing_still(&self, directory: &Path) -> Option<bool> {
        journal::standing_still(directory)
    }
}

/// Replaces a small file by rename, so that readers see the old or the new one.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(value)?)?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|error| Error::io(format!("cannot write `{}`", path.display()), error))
}

#[cfg(test)]
mod tests;
