//! Starting QEMU, and what becomes of a start that fails.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use serde_json::json;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::super::{MachineSpec, NetworkAttachment};
use super::binary::{Binary, Features};
use super::command::{self, Start};
use super::failure;
use super::machine::QemuMachine;
use super::qmp::{Qmp, QmpError};
use super::recorder;
use crate::error::{Error, Result};
use crate::process::ProcessIdentity;
use crate::process::detached::{self, Detached};

/// What QEMU prints, of all runs.
const LOG: &str = "qemu.log";
/// Length from which on it is begun anew.
const LOG_LIMIT: u64 = 256 << 10;
/// What QEMU and the libraries it loads may need of this process's environment, which may hold
/// secrets.
const ENVIRONMENT: [&str; 6] =
    ["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "QEMU_MODULE_DIR", "XDG_RUNTIME_DIR"];

/// Kills the process unless it is let go.
struct Guard(Option<Detached>);

impl Guard {
    fn get(&self) -> &Detached {
        self.0.as_ref().expect("it is let go of last")
    }

    fn let_go(mut self) -> Detached {
        self.0.take().expect("it is let go of last")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(process) = &self.0
            && let Err(error) = process.kill()
        {
            tracing::error!(pid = process.identity().pid, %error, "a hypervisor could not be killed");
        }
    }
}

/// Starts a machine. A start that fails or is cancelled has no process left when this returns; one
/// that is dropped before it is done has it killed.
pub(super) async fn launch<F>(
    cache: &Path,
    spec: &MachineSpec,
    record: impl FnOnce(ProcessIdentity) -> F + Send,
    cancel: &CancellationToken,
) -> Result<QemuMachine>
where
    F: Future<Output = Result<()>> + Send,
{
    let binary = Binary::find()?;
    let features = cancel.run_until_cancelled(Features::of(&binary, cache)).await;
    let features = features.ok_or_else(Error::cancelled)??;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()
        .map_err(|error| Error::io("cannot make a pair of sockets", error))?;
    let theirs = OwnedFd::from(theirs);
    let (recorder, recorded) = recorder::prepare(&spec.directory).await?;
    let tap = match &spec.network {
        NetworkAttachment::Tap { device, .. } => {
            Some(device.try_clone().map_err(|error| Error::io("cannot pass on the machine's tap", error))?)
        }
        NetworkAttachment::None | NetworkAttachment::User { .. } => None,
    };
    let start = Start {
        launch_socket: detached::number(&theirs),
        console_pipe: detached::number(&recorded.console),
        journal_socket: detached::number(&recorded.journal),
        tap: tap.as_ref().map(detached::number),
        sandbox: features.sandbox,
    };
    let arguments = command::arguments(&absolute(spec)?, start)?;

    let mut command = Command::new(&binary.path);
    command.args(arguments).current_dir(&spec.directory).env_clear();
    command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    // Messages are read by `failure`.
    command.env("LC_ALL", "C");
    let log = open_log(&spec.directory)?;
    let log_start = log.metadata().map_or(0, |metadata| metadata.len());
    let copy = log.try_clone().map_err(|error| Error::io("cannot start the hypervisor", error))?;
    command.stdin(Stdio::null()).stdout(log).stderr(copy);
    // What it needs of the network it is given: who breaks out of a guest must not get more.
    detached::give_up_network_rights(&mut command);

    // The recorder ends with the last holder of QEMU's ends: with this process, if no QEMU comes.
    let kept = [theirs, recorded.console, recorded.journal].into_iter().chain(tap).collect();
    recorder.start().await?;
    let process = Guard(Some(detached::spawn(command, kept, record).await?));
    match cancel.run_until_cancelled(run(ours, process.get())).await {
        Some(Ok(())) => {}
        Some(Err(error)) => return Err(failed(spec, process, log_start, error).await),
        None => {
            end(spec, process.get()).await;
            return Err(Error::cancelled());
        }
    }
    match QemuMachine::of(&spec.directory, process.let_go()) {
        Ok(machine) => Ok(machine),
        Err(process) => Err(failed(spec, Guard(Some(process)), log_start, QmpError::Closed).await),
    }
}

/// Waits for QEMU to be there, and lets the guest's CPUs run.
async fn run(ours: std::os::unix::net::UnixStream, process: &Detached) -> Result<(), QmpError> {
    ours.set_nonblocking(true)?;
    let talk = async {
        let mut qmp = Qmp::negotiate(UnixStream::from_std(ours)?).await?;
        qmp.execute("cont", json!({})).await.map(drop)
    };
    tokio::select! {
        result = talk => result,
        _ = process.wait() => Err(QmpError::Closed),
    }
}

/// Ends what is left of the process and finds out why it failed.
async fn failed(spec: &MachineSpec, process: Guard, log_start: u64, error: QmpError) -> Error {
    let process = process.get();
    if matches!(error, QmpError::Closed) {
        // It is ending by itself: its exit status says more than that it was killed.
        let bound = std::time::Duration::from_secs(2);
        let _ = tokio::time::timeout(bound, process.wait()).await;
    }
    let status = end(spec, process).await;
    let status = status.map_or_else(|| "status unknown".to_owned(), |status| status.to_string());
    let log = failure::log_tail(&spec.directory.join(LOG), log_start);
    match error {
        QmpError::Closed => failure::classify(spec, &log, &status),
        error => Error::failed(format!("the hypervisor of `{}` cannot be controlled", spec.name))
            .with_source(error),
    }
}

/// Kills the process and waits until it and all that it wrote is there.
async fn end(spec: &MachineSpec, process: &Detached) -> Option<ExitStatus> {
    if let Err(error) = process.kill() {
        tracing::error!(pid = process.identity().pid, %error, "a hypervisor could not be killed");
    }
    let status = process.wait().await;
    recorder::drained(&spec.directory).await;
    status
}

/// Opens what QEMU prints into, which is kept from run to run.
fn open_log(directory: &Path) -> Result<File> {
    let path = directory.join(LOG);
    let fail = |error| Error::io(format!("cannot write `{}`", path.display()), error);
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(fail)?;
    if log.metadata().map_err(fail)?.len() > LOG_LIMIT {
        log.set_len(0).map_err(fail)?;
    }
    Ok(log)
}

/// QEMU has another working directory, so that paths must not depend on it.
fn absolute(spec: &MachineSpec) -> Result<MachineSpec> {
    let absolute = |path: &Path| {
        std::path::absolute(path)
            .map_err(|error| Error::io(format!("cannot resolve `{}`", path.display()), error))
    };
    let mut spec = spec.clone();
    spec.directory = absolute(&spec.directory)?;
    spec.kernel = absolute(&spec.kernel)?;
    spec.initrd = absolute(&spec.initrd)?;
    for disk in &mut spec.disks {
        disk.path = absolute(&disk.path)?;
    }
    Ok(spec)
}
