//! The host's `nft`, which puts rules into the kernel.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::{Error, Result};
use crate::process::{detached, tethered};

/// It takes milliseconds.
const BOUND: Duration = Duration::from_secs(20);

/// Where it lies though the `PATH` of ordinary users does not lead there.
const ADMINISTRATORS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// The program, where this host has it.
pub(super) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(ADMINISTRATORS.iter().map(PathBuf::from))
        .map(|folder| folder.join("nft"))
        .find(|path| {
            std::fs::metadata(path)
                .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
        })
}

pub(super) fn missing() -> Error {
    Error::host_cannot("the bridged network needs `nft`, which this host does not have")
        .with_hint("install nftables (Debian: `sudo apt-get install nftables`), or use --network lan or user")
}

/// Carries out a script, all of it or nothing.
pub(super) async fn run(script: &str) -> Result<()> {
    let program = program().ok_or_else(missing)?;
    let fail = |error| Error::io(format!("cannot run `{}`", program.display()), error);
    let file = memfd_create("vmdeck-rules", MemfdFlags::CLOEXEC).map_err(|error| fail(error.into()))?;
    write_all(&file, script).map_err(fail)?;
    let mut command = Command::new(&program);
    command.arg("-f").arg(format!("/proc/self/fd/{}", detached::number(&file)));
    command.env_clear().env("LC_ALL", "C");
    detached::pass_on_network_rights(&mut command);
    let finished = tethered::run(command, vec![file], BOUND, |_| false).await.map_err(fail)?;
    if finished.status.success() {
        return Ok(());
    }
    let said = finished.output.lines().find(|line| line.contains("Error")).unwrap_or("it did not say why");
    // `/proc/self/fd/9:3:1-20: Error: …`
    let said = said.split_once("Error: ").map_or(said, |(_, said)| said);
    let error = if finished.timed_out {
        Error::failed("`nft` takes too long")
    } else if said.contains("not permitted") {
        Error::host_cannot(format!("`nft` may not change the packet filter: {said}"))
    } else {
        Error::host_cannot(format!("`nft` cannot put up the rules of the bridged network: {said}"))
    };
    Err(error.with_hint(
        "does this kernel have nf_tables with nat, masq and the families ip and netdev? --network lan \
         needs none of it",
    ))
}

fn write_all(file: &impl std::os::fd::AsFd, text: &str) -> io::Result<()> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let written = rustix::io::write(file, rest)?;
        rest = &rest[written..];
    }
    Ok(())
}
