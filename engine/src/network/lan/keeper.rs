//! Makes sure that the switch runs while machines need it.
//!
//! The switch holds the lock on `locks/lan-switch` for as long as it lives, and tells there which process
//! it is. Whoever starts it takes that lock first and hands it over with the fork, so that there is
//! never a second one. A switch that is about to end because nobody is there, and a machine that has
//! just come, pass one door (`locks/lan-door`): either the switch sees the machine, or the machine's
//! vmdeck sees that the switch is gone.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::VERB;
use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::lock::FileLock;
use crate::process::{ProcessIdentity, detached};

/// How long somebody else may take at the door. It takes milliseconds.
const DOOR_TIMEOUT: Duration = Duration::from_secs(10);

/// What the switch may need of this process's environment.
const ENVIRONMENT: [&str; 3] = ["PATH", "HOME", "VMDECK_LOG"];

/// Starts the switch of a data directory.
#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    data: DataDirectory,
}

impl Keeper {
    pub(crate) fn new(data: DataDirectory) -> Self {
        Self { data }
    }

    /// Starts the switch unless it runs. A machine that needs it has to have its process on record.
    pub(crate) async fn ensure(&self) -> Result<()> {
        let _door = door(&self.data).await?;
        let path = lock_path(&self.data);
        let fail = |error| Error::io("cannot start the network between machines", error);
        let lock = open(&path).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(fail(error)),
        }
        // This program, also when its file was replaced meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("vmdeck").arg(VERB).arg("--data-dir").arg(self.data.root());
        command.current_dir(self.data.vms()).env_clear();
        command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let told = lock.try_clone().map_err(fail)?;
        let record = move |identity| async move { tell(&told, &identity).map_err(fail) };
        let switch = detached::spawn(command, vec![lock.into()], record).await?;
        tracing::info!(pid = switch.identity().pid, "started the network between machines");
        Ok(())
    }
}

/// The process that is the switch, if one runs.
pub fn running(data: &DataDirectory) -> Option<ProcessIdentity> {
    let identity: ProcessIdentity = serde_json::from_slice(&std::fs::read(lock_path(data)).ok()?).ok()?;
    identity.is_alive().then_some(identity)
}

/// Becomes the switch: holds the lock, unless whoever started this process has it for it.
pub(super) fn become_the_switch(data: &DataDirectory) -> Result<Option<FileLock>> {
    let fail = |error| Error::io("the network between machines cannot be run", error);
    let path = lock_path(data);
    let this = ProcessIdentity::current().map_err(fail)?;
    if let Some(lock) = FileLock::try_acquire(&path).map_err(fail)? {
        tell(lock.file(), &this).map_err(fail)?;
        return Ok(Some(lock));
    }
    match running(data) {
        Some(identity) if identity == this => Ok(None),
        _ => Err(Error::conflict("the network between machines is run by another process")),
    }
}

/// Comes to stand in the door.
pub(super) async fn door(data: &DataDirectory) -> Result<FileLock> {
    let (path, never) = (data.locks().join("lan-door"), CancellationToken::new());
    tokio::time::timeout(DOOR_TIMEOUT, FileLock::acquire(&path, &never)).await.unwrap_or_else(|_| {
        Err(Error::failed("another vmdeck has been starting the network between machines for too long"))
    })
}

fn lock_path(data: &DataDirectory) -> PathBuf {
    data.locks().join("lan-switch")
}

fn open(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

/// Writes down who holds the lock.
fn tell(mut lock: &File, identity: &ProcessIdentity) -> io::Result<()> {
    lock.set_len(0)?;
    io::Seek::rewind(&mut lock)?;
    lock.write_all(&serde_json::to_vec(identity)?)
}
