//! What is on disk of a data directory's bridge: written before anything is made, and removed after
//! everything is. Whoever reads it holds the lock on the bridge.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::forwarding::WasOff;
use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::process;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Name of the bridge and of its table. It stays when the data directory is moved meanwhile.
    pub(super) bridge: String,
    /// Taps whose tables may be there.
    pub(super) taps: Vec<String>,
    /// What has to be put back.
    pub(super) forwarding: Option<WasOff>,
    pub(super) place: Place,
}

/// Where it was made: what was made elsewhere is not to be looked for here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// Device and inode of the data directory: a copy has others, and its bridge is another's.
    directory: (u64, u64),
    /// Of the host: it is not there any more after a reboot, nor is the bridge.
    boot_id: String,
    /// `net:[4026531840]`, the network name space (namespaces(7)).
    namespace: String,
}

impl Place {
    pub(super) fn here(data: &DataDirectory) -> Result<Self> {
        let look = || -> io::Result<Self> {
            let folder = fs::metadata(data.root())?;
            let namespace = fs::read_link("/proc/self/ns/net")?;
            Ok(Self {
                directory: (folder.dev(), folder.ino()),
                boot_id: process::boot_id().to_owned(),
                namespace: namespace.to_string_lossy().into_owned(),
            })
        };
        look().map_err(|error| Error::io("cannot tell which network this is", error))
    }

    /// Whether what was made there is made, though perhaps not within reach.
    pub(super) fn still_is(&self, here: &Self) -> bool {
        self.directory == here.directory && self.boot_id == here.boot_id
    }
}

impl Record {
    pub(super) fn read(data: &DataDirectory) -> Result<Option<Self>> {
        let path = path(data);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(|error| {
                Error::failed(format!("`{}` is damaged", path.display()))
                    .with_source(error)
                    .with_hint("remove it, and the bridge it stands for: `ip link` shows it")
            })?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("cannot read `{}`", path.display()), error)),
        }
    }

    /// Replaces it by rename: what is read is the old or the new one.
    pub(super) fn write(&self, data: &DataDirectory) -> Result<()> {
        let path = path(data);
        let write = || -> io::Result<()> {
            let temporary = path.with_extension("json.new");
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|error| Error::io(format!("cannot write `{}`", path.display()), error))
    }
}

pub(super) fn remove(data: &DataDirectory) -> Result<()> {
    let path = path(data);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("cannot remove `{}`", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Whether there is one: all that a vmdeck without bridged machines looks at.
pub(super) fn is_there(data: &DataDirectory) -> bool {
    path(data).exists()
}

fn path(data: &DataDirectory) -> PathBuf {
    data.root().join("bridge.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_elsewhere_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(folder.path().join("data")).unwrap();
        let here = Place::here(&data).unwrap();
        assert!(here.still_is(&here));
        let other = DataDirectory::open(folder.path().join("copy")).unwrap();
        assert!(!here.still_is(&Place::here(&other).unwrap()), "a copy of the data directory");
        assert!(!Place { boot_id: "another".into(), ..here.clone() }.still_is(&here), "a reboot");
        let elsewhere = Place { namespace: "net:[1]".into(), ..here.clone() };
        assert!(elsewhere.still_is(&here) && elsewhere != here, "another network");

        assert_eq!(Record::read(&data).unwrap(), None);
        let record = Record { bridge: "b".into(), taps: vec!["t".into()], forwarding: None, place: here };
        record.write(&data).unwrap();
        assert!(is_there(&data));
        assert_eq!(Record::read(&data).unwrap(), Some(record));
        remove(&data).unwrap();
        remove(&data).unwrap();
        assert!(!is_there(&data));
        fs::write(path(&data), "{").unwrap();
        assert!(Record::read(&data).unwrap_err().full_message().contains("bridge.json"));
    }
}
