//! `vmdeck vm ssh`, and what the user's own OpenSSH needs to reach machines.
//!
//! The client gets a command of ours in place of a network connection (`ProxyCommand`); in that
//! process runs the SSH server (crate `vmdeck-ssh`). Host keys are pinned in the machines' folders,
//! so that no file of the user is read or written for them.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::oneshot;
use vmdeck_engine::vm::record::Vm;
use vmdeck_engine::{Error, Result};

use super::{Context, Outcome};
use crate::cli::vm::SshArguments;

/// What machines are called in the client's world, after their name.
const DOMAIN: &str = "vmdeck";

/// Opens the user's client in place of this process.
pub(super) async fn run(context: &Context, arguments: SshArguments) -> Outcome {
    let vm = context.engine.vms().find(&arguments.name).await?;
    // Said here, a machine that does not run is told better than by a client whose proxy ended.
    drop(context.engine.vms().channel(&vm.name).await?);
    let mut command = Command::new("ssh");
    for (name, value) in options(context, &vm)? {
        command.arg("-o").arg(format!("{name}={value}"));
    }
    command.arg("-o").arg(format!("User={}", arguments.user)).args(&arguments.option);
    command.arg(host(&vm)).args(&arguments.command);
    context.engine.shutdown().await;
    let error = command.exec();
    Err(match error.kind() {
        std::io::ErrorKind::NotFound => Error::host_cannot("there is no `ssh` on this host")
            .with_hint("install OpenSSH's client (Debian: `apt-get install openssh-client`); `vmdeck vm exec` works without it"),
        _ => Error::io("cannot run `ssh`", error),
    })
}

/// `vmdeck vm ssh-proxy`: one client, on standard input and output.
pub(super) async fn proxy(context: &Context, name: &str) -> Outcome {
    let vms = context.engine.vms();
    let vm = vms.find(name).await?;
    let guest = vms.channel(&vm.name).await?;
    let key = vmdeck_ssh::host_key::host_key(context.engine.data(), &vm.id, &host(&vm))?;
    let stream = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
    tokio::select! {
        served = vmdeck_ssh::serve(stream, guest, key) => served?,
        () = client_gone()? => {}
    }
    Ok(0)
}

/// Waits until nobody reads standard output any more. The server itself need not notice: it does not
/// read while a command has more input than it takes.
fn client_gone() -> Result<impl Future<Output = ()>> {
    let failed = |error| Error::io("cannot watch the connection of the SSH client", error);
    let output = std::io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
    let (gone, waiting) = oneshot::channel();
    std::thread::Builder::new()
        .name("hangup".into())
        .stack_size(64 * 1024)
        .spawn(move || {
            let mut descriptors = [PollFd::new(output.as_fd(), PollFlags::empty())];
            // With no event asked for it sleeps until the other end is closed.
            while poll(&mut descriptors, PollTimeout::NONE) == Err(Errno::EINTR) {}
            let _ = gone.send(());
        })
        .map_err(failed)?;
    Ok(async move {
        let _ = waiting.await;
    })
}

/// `vmdeck ssh-config`: a block for each machine that was started once.
pub(super) async fn config(context: &Context) -> Outcome {
    let mut text = String::from(
        "# Machines of vmdeck, for OpenSSH. Write it to a file, and begin ~/.ssh/config with `Include FILE`.\n",
    );
    for vm in context.engine.vms().list().await? {
        if !context.engine.data().vm(&vm.id).is_dir() {
            continue;
        }
        text.push_str(&format!("\nHost {}\n    User root\n", host(&vm)));
        for (name, value) in options(context, &vm)? {
            text.push_str(&format!("    {name} {value}\n"));
        }
    }
    context.output.text(&text)?;
    Ok(0)
}

fn host(vm: &Vm) -> String {
    format!("{}.{DOMAIN}", vm.name)
}

/// The client's options (ssh_config(5)) that lead to a machine.
fn options(context: &Context, vm: &Vm) -> Result<Vec<(&'static str, String)>> {
    let data = context.engine.data();
    let key = vmdeck_ssh::host_key::host_key(data, &vm.id, &host(vm))?;
    let program = std::env::current_exe().map_err(|error| Error::io("cannot tell where vmdeck is", error))?;
    let proxy = [
        shell_word(&program)?,
        "--quiet --data-dir".to_owned(),
        shell_word(data.root())?,
        "vm ssh-proxy".to_owned(),
        vm.id.to_string(),
    ];
    Ok(vec![
        ("ProxyCommand", proxy.join(" ")),
        ("HostKeyAlias", host(vm)),
        ("UserKnownHostsFile", config_word(&key.known_hosts)?),
        ("GlobalKnownHostsFile", "/dev/null".to_owned()),
        ("StrictHostKeyChecking", "yes".to_owned()),
        ("UpdateHostKeys", "no".to_owned()),
        ("CheckHostIP", "no".to_owned()),
    ])
}

/// A path for the user's shell, by way of the client, which takes `%` for its own.
fn shell_word(path: &Path) -> Result<String> {
    Ok(format!("'{}'", text(path)?.replace('%', "%%").replace('\'', r"'\''")))
}

/// A path as one word of ssh_config(5).
fn config_word(path: &Path) -> Result<String> {
    let text = text(path)?;
    if text.contains('"') {
        return Err(Error::failed(format!("OpenSSH cannot be told of `{text}`: its path has a quote in it")));
    }
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().filter(|text| !text.contains('\n')).ok_or_else(|| {
        Error::failed(format!("OpenSSH cannot be told of `{}`: its path is no plain text", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_client_and_the_shell() {
        assert_eq!(shell_word(Path::new("/a b/it's 5%")).unwrap(), r"'/a b/it'\''s 5%%'");
        assert_eq!(config_word(Path::new("/a b/5%")).unwrap(), "\"/a b/5%%\"");
        assert!(config_word(Path::new("/a\"b")).is_err());
        assert!(shell_word(Path::new("/a\nb")).is_err());
    }
}
