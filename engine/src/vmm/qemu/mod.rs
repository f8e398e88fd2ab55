//! QEMU: command line, QMP, accelerator proof.

use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::{Accelerator, AcceleratorVerdict, Machine, MachineSpec, Vmm};
use crate::error::{Error, Result};
use crate::process::ProcessIdentity;

/// The system's QEMU.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// Where the accelerator's verdict is kept.
    _verdict: PathBuf,
}

impl Qemu {
    /// `cache` is a folder for the accelerator's verdict.
    pub fn new(cache: PathBuf) -> Self {
        Self { _verdict: cache }
    }
}

impl Vmm for Qemu {
    fn accelerator<'a>(
        &'a self,
        _cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<AcceleratorVerdict>> {
        Box::pin(async { Err(Error::failed("qemu is being written")) })
    }

    fn distrust_accelerator(&self, _accelerator: Accelerator, _reason: &str) -> Result<()> {
        Err(Error::failed("qemu is being written"))
    }

    fn launch<'a>(
        &'a self,
        _spec: &'a MachineSpec,
        _identity: Box<dyn FnOnce(ProcessIdentity) -> BoxFuture<'static, Result<()>> + Send + 'a>,
        _cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Box<dyn Machine>>> {
        Box::pin(async { Err(Error::failed("qemu is being written")) })
    }

    fn attach<'a>(
        &'a self,
        _directory: &'a Path,
        _process: &'a ProcessIdentity,
    ) -> BoxFuture<'a, Result<Box<dyn Machine>>> {
        Box::pin(async { Err(Error::failed("qemu is being written")) })
    }
}
