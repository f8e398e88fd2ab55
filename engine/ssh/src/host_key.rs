//! The host key of a machine: made when it is first needed, kept in the machine's folder, and pinned
//! there for the client in a `known_hosts` of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use russh::keys::PrivateKey;
use vmdeck_engine::data_directory::DataDirectory;
use vmdeck_engine::identifier::VmId;
use vmdeck_engine::{Error, Result, keys};

const KNOWN_HOSTS: &str = "known_hosts";
const LARGEST_FILE: u64 = 64 << 10;

/// A machine's host key.
#[derive(Debug)]
pub struct HostKey {
    pub(crate) private: PrivateKey,
    /// For `UserKnownHostsFile`: it has the key under `alias` and nothing else.
    pub known_hosts: PathBuf,
}

/// The host key of a machine that was started once; made first if there is none yet. `alias` is what
/// the client knows the machine as (`HostKeyAlias`). Blocking, brief.
pub fn host_key(data: &DataDirectory, vm: &VmId, alias: &str) -> Result<HostKey> {
    let key = keys::host_key(data, vm)?;
    let fail = |error| Error::io(format!("cannot pin the host key `{}`", key.private_path.display()), error);
    let text = read(&key.private_path).map_err(fail)?;
    let private = PrivateKey::from_openssh(&text).map_err(|error| {
        Error::failed(format!("`{}` is no private key", key.private_path.display()))
            .with_source(error)
            .with_hint("delete it: vmdeck then makes a new one")
    })?;
    let known_hosts = data.vm(vm).join(KNOWN_HOSTS);
    let line = format!("{alias} {}\n", key.public_line);
    if read(&known_hosts).ok().as_deref() != Some(&line) {
        let staged = stage(&known_hosts, line.as_bytes()).map_err(fail)?;
        fs::rename(&staged, &known_hosts).map_err(fail)?;
    }
    Ok(HostKey { private, known_hosts })
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// Writes it under a name of this process and thread.
fn stage(path: &Path, content: &[u8]) -> std::io::Result<PathBuf> {
    let staged = path.with_extension(format!("{}-{:?}.new", std::process::id(), std::thread::current().id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(staged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_pinned() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(folder.path()).unwrap();
        let vm = VmId::random();
        fs::create_dir_all(data.vm(&vm)).unwrap();
        let first = host_key(&data, &vm, "box.vmdeck").unwrap();
        let pinned = fs::read_to_string(&first.known_hosts).unwrap();
        assert!(pinned.starts_with("box.vmdeck ssh-ed25519 "), "{pinned}");
        let again = host_key(&data, &vm, "box.vmdeck").unwrap();
        assert_eq!(again.private.to_bytes().unwrap(), first.private.to_bytes().unwrap());
        // A machine that was renamed keeps its key.
        host_key(&data, &vm, "other.vmdeck").unwrap();
        assert_eq!(fs::read_to_string(&first.known_hosts).unwrap(), pinned.replace("box", "other"));
        let other = VmId::random();
        fs::create_dir_all(data.vm(&other)).unwrap();
        assert_ne!(
            host_key(&data, &other, "x").unwrap().private.to_bytes().unwrap(),
            first.private.to_bytes().unwrap()
        );
    }
}
