//! A hypervisor whose process is a real one (`sleep`, in the machine's folder and a session of its
//! own) and whose behaviour is scripted, launch by launch.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::process::detached::{self, Detached};
use crate::process::{PidFd, ProcessIdentity};
use crate::vm::record::PortForward;
use crate::vmm::qemu::failure::AcceleratorFailed;
use crate::vmm::{
    Accelerator, AcceleratorVerdict, Console, DiskOverlay, Ending, Machine, MachineSpec, MachineStatus, Vmm,
};

/// Name of a file in a machine's folder: its guest stands still.
pub(super) const PAUSED: &str = "paused";

/// And of one that has the hypervisor refuse snapshots.
pub(super) const REFUSES: &str = "refuses";

/// What one launch does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Script {
    /// Runs for ever, and says nothing.
    Hang,
    /// Prints this on the console and ends.
    EndSaying(&'static str),
    /// The accelerator cannot be started, for this reason.
    Refuse(&'static str),
    /// This host has none.
    Missing,
}

#[derive(Debug)]
pub(super) struct Fake {
    scripts: Mutex<VecDeque<Script>>,
    /// The verdict, and every launch's accelerator.
    accelerator: Mutex<Accelerator>,
    pub(super) launches: Mutex<Vec<Accelerator>>,
}

impl Fake {
    /// Does this at its launches, one after the other, and hangs at all later ones.
    pub(super) fn new(accelerator: Accelerator, scripts: &[Script]) -> Arc<Self> {
        Arc::new(Self {
            scripts: Mutex::new(scripts.iter().copied().collect()),
            accelerator: Mutex::new(accelerator),
            launches: Mutex::default(),
        })
    }

    pub(super) fn hanging() -> Arc<Self> {
        Self::new(Accelerator::Tcg, &[])
    }

    async fn start(
        &self,
        spec: &MachineSpec,
        identity: Box<dyn FnOnce(ProcessIdentity) -> BoxFuture<'static, Result<()>> + Send + '_>,
        cancel: &CancellationToken,
    ) -> Result<Box<dyn Machine>> {
        self.launches.lock().unwrap().push(spec.accelerator);
        let script = self.scripts.lock().unwrap().pop_front().unwrap_or(Script::Hang);
        let mut command = match script {
            Script::Missing => {
                return Err(Error::host_cannot("QEMU is not installed").with_hint("install it"));
            }
            Script::Refuse(why) => {
                let cause = AcceleratorFailed(why.into());
                return Err(Error::host_cannot("KVM does not start it").with_source(cause));
            }
            Script::Hang => {
                let mut command = Command::new("sleep");
                command.arg("600");
                command
            }
            Script::EndSaying(_) => Command::new("true"),
        };
        if let Script::EndSaying(words) = script {
            fs::write(spec.directory.join("console.log"), words).unwrap();
        }
        command.current_dir(&spec.directory);
        let process = detached::spawn(command, Vec::new(), identity).await?;
        if cancel.is_cancelled() {
            process.kill().unwrap();
            process.wait().await;
            return Err(Error::cancelled());
        }
        let directory = spec.directory.clone();
        Ok(Box::new(FakeMachine { identity: process.identity().clone(), directory, started: Some(process) }))
    }
}

impl Vmm for Fake {
    fn accelerator<'a>(
        &'a self,
        _cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<AcceleratorVerdict>> {
        let accelerator = *self.accelerator.lock().unwrap();
        Box::pin(async move { Ok(AcceleratorVerdict { accelerator, reason: "scripted".into() }) })
    }

    fn distrust_accelerator(&self, _accelerator: Accelerator, _reason: &str) -> Result<()> {
        *self.accelerator.lock().unwrap() = Accelerator::Tcg;
        Ok(())
    }

    fn launch<'a>(
        &'a self,
        spec: &'a MachineSpec,
        identity: Box<dyn FnOnce(ProcessIdentity) -> BoxFuture<'static, Result<()>> + Send + 'a>,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Box<dyn Machine>>> {
        Box::pin(self.start(spec, identity, cancel))
    }

    fn attach<'a>(
        &'a self,
        directory: &'a Path,
        process: &'a ProcessIdentity,
    ) -> BoxFuture<'a, Result<Box<dyn Machine>>> {
        let (identity, directory) = (process.clone(), directory.to_owned());
        let machine = FakeMachine { identity, directory, started: None };
        Box::pin(async move { Ok(Box::new(machine) as Box<dyn Machine>) })
    }

    fn ending(&self, _directory: &Path) -> Ending {
        Ending::Unknown
    }

    /// Machines stand still when this file is there: what a hypervisor would have written down.
    fn standing_still(&self, directory: &Path) -> Option<bool> {
        Some(directory.join(PAUSED).exists())
    }
}

#[derive(Debug)]
struct FakeMachine {
    identity: ProcessIdentity,
    directory: PathBuf,
    started: Option<Detached>,
}

impl FakeMachine {
    fn kill(&self) {
        if let Some(process) = PidFd::open(&self.identity).unwrap() {
            process.kill().unwrap();
        }
    }
}

impl Machine for FakeMachine {
    fn process(&self) -> &ProcessIdentity {
        &self.identity
    }

    fn status(&self) -> BoxFuture<'_, Result<MachineStatus>> {
        Box::pin(async { Ok(MachineStatus::Running) })
    }

    /// The guest obeys at once.
    fn press_power_button(&self) -> BoxFuture<'_, Result<()>> {
        self.kill();
        Box::pin(async { Ok(()) })
    }

    fn terminate(&self) -> BoxFuture<'_, Result<()>> {
        self.kill();
        Box::pin(async { self.wait().await.map(drop) })
    }

    fn wait(&self) -> BoxFuture<'_, Result<Option<ExitStatus>>> {
        Box::pin(async {
            if let Some(process) = PidFd::open(&self.identity).unwrap() {
                process.wait().await.unwrap();
            }
            Ok(match &self.started {
                Some(started) => started.wait().await,
                None => None,
            })
        })
    }

    fn add_forward<'a>(&'a self, _forward: &'a PortForward) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn remove_forward<'a>(&'a self, _forward: &'a PortForward) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn pause(&self) -> BoxFuture<'_, Result<()>> {
        fs::write(self.directory.join(PAUSED), "").unwrap();
        Box::pin(async { Ok(()) })
    }

    fn resume(&self) -> BoxFuture<'_, Result<()>> {
        let _ = fs::remove_file(self.directory.join(PAUSED));
        Box::pin(async { Ok(()) })
    }

    fn grow_disk<'a>(&'a self, _serial: &'a str, _bytes: u64) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// The overlay that was put on the disk, as [`Self::snapshot_disks`] wrote it down, and described as
    /// QEMU does it: a frozen disk's name is within a text.
    fn disk_file<'a>(&'a self, serial: &'a str) -> BoxFuture<'a, Result<Option<String>>> {
        let file = match fs::read_to_string(self.directory.join(serial)) {
            Ok(path) => format!(r#"json:{{"driver": "qcow2", "file": {{"filename": "{path}"}}}}"#),
            Err(_) => serial.replace("vmdeck-", "run-") + ".qcow2",
        };
        Box::pin(async { Ok(Some(file)) })
    }

    fn snapshot_disks<'a>(&'a self, overlays: &'a [DiskOverlay]) -> BoxFuture<'a, Result<()>> {
        if self.directory.join(REFUSES).exists() {
            return Box::pin(async { Err(Error::failed("this hypervisor takes no snapshots now")) });
        }
        for overlay in overlays {
            fs::write(self.directory.join(&overlay.serial), overlay.path.to_str().unwrap()).unwrap();
        }
        Box::pin(async { Ok(()) })
    }

    fn console(&self) -> BoxFuture<'_, Result<Console>> {
        Box::pin(async { Err(Error::failed("this hypervisor has no console")) })
    }
}
