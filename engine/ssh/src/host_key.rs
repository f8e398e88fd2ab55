//! The host key of a machine: made when it is first needed, kept in the machine's folder, and pinned
//! there for the client in a `known_hosts` of its own.

use std::path::PathBuf;

use russh::keys::PrivateKey;
use vmdeck_engine::data_directory::DataDirectory;
use vmdeck_engine::identifier::VmId;
use vmdeck_engine::{Error, Result, keys};

const KNOWN_HOSTS: &str = "known_hosts";

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
    let text = keys::read(&key.private_path).map_err(fail)?;
    let private = PrivateKey::from_openssh(&text).map_err(|error| {
        Error::failed(format!("`{}` is no private key", key.private_path.display()))
            .with_source(error)
            .with_hint("delete it: vmdeck then makes a new one")
    })?;
    let known_hosts = data.vm(vm).join(KNOWN_HOSTS);
    keys::keep(&known_hosts, &format!("{alias} {}\n", key.public_line)).map_err(fail)?;
    Ok(HostKey { private, known_hosts })
}

#[cfg(test)]
mod tests {
    use std::fs;

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
