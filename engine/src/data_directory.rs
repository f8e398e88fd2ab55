//! Where everything lies: the one place that knows the paths below the data directory.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::fcntl::{FallocateFlags, fallocate};

use crate::error::{Error, Result};
use crate::identifier::{ImageId, LayerId, OperationId, VmId};
use crate::space::Space;

/// Room that is set aside, by its name below the data directory and its length.
const RESERVE: &str = "reserve";
const RESERVE_BYTES: u64 = 1 << 20;

/// The data directory of one installation, mode 0700.
#[derive(Clone, Debug)]
pub struct DataDirectory {
    root: PathBuf,
}

impl DataDirectory {
    /// `$VMDECK_DATA_DIR`, else `$XDG_DATA_HOME/vmdeck`, else `~/.local/share/vmdeck`.
    pub fn default_path() -> Result<PathBuf> {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = variable("VMDECK_DATA_DIR") {
            return std::path::absolute(&path)
                .map_err(|error| Error::io("cannot resolve VMDECK_DATA_DIR", error));
        }
        // The XDG base directory specification has relative paths ignored.
        if let Some(path) = variable("XDG_DATA_HOME").filter(|path| path.is_absolute()) {
            return Ok(path.join("vmdeck"));
        }
        variable("HOME")
            .filter(|path| path.is_absolute())
            .map(|home| home.join(".local/share/vmdeck"))
            .ok_or_else(|| {
                Error::usage("neither VMDECK_DATA_DIR nor HOME says where the data directory is")
                    .with_hint("set VMDECK_DATA_DIR to a folder of your own")
            })
    }

    /// Creates what is missing of the layout and narrows the mode to 0700.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let this = Self { root: root.into() };
        let fail = |path: &Path, error| {
            Error::io(format!("cannot prepare the data directory `{}`", path.display()), error)
                .with_hint("set VMDECK_DATA_DIR to a folder that you can write")
        };
        make_private(&this.root).map_err(|error| fail(&this.root, error))?;
        for folder in
            ["images", "kernels", "vms", "layers", "cache/blobs/sha256", "staging", "keys", "locks", "logs"]
        {
            let path = this.root.join(folder);
            make_private(&path).map_err(|error| fail(&path, error))?;
        }
        this.keep_reserve();
        Ok(this)
    }

    /// Sets some room aside, where there is plenty: see [`Self::use_reserve`].
    fn keep_reserve(&self) {
        let path = self.root.join(RESERVE);
        if path.exists() || self.free().is_none_or(|free| free < 64 * RESERVE_BYTES) {
            return;
        }
        // Where another process is first, its file is as good.
        let Ok(file) = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) else {
            return;
        };
        if fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES as i64).is_err() {
            // This file system cannot.
            let _ = fs::remove_file(&path);
        }
    }

    /// Gives back the room that was set aside, when the disk is full: so that the store can be opened and
    /// can take down what is deleted. Whether it was there to be given back. Blocking, brief.
    pub fn use_reserve(&self) -> bool {
        self.is_full() && fs::remove_file(self.root.join(RESERVE)).is_ok()
    }

    /// Whether there is less room than what is set aside. Blocking, brief.
    pub fn is_full(&self) -> bool {
        self.free().is_some_and(|free| free < RESERVE_BYTES)
    }

    /// Bytes that an ordinary user may still write there.
    fn free(&self) -> Option<u64> {
        Space::at(&self.root).ok().map(|space| space.free)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn database(&self) -> PathBuf {
        self.root.join("vmdeck.db")
    }

    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub fn image(&self, id: &ImageId) -> PathBuf {
        self.images().join(id.as_str())
    }

    pub fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// `name` has passed [`crate::identifier::check_name`].
    pub fn kernel(&self, name: &str) -> PathBuf {
        self.kernels().join(name)
    }

    pub fn vms(&self) -> PathBuf {
        self.root.join("vms")
    }

    pub fn vm(&self, id: &VmId) -> PathBuf {
        self.vms().join(id.as_str())
    }

    /// Folder of all frozen disks.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub fn layer(&self, id: &LayerId) -> PathBuf {
        self.layers().join(id.as_str())
    }

    /// Folder of verified blobs, named by the hexadecimal SHA-256 of their content.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("cache/blobs/sha256")
    }

    /// Folder of all staging folders.
    pub fn staging_root(&self) -> PathBuf {
        self.root.join("staging")
    }

    /// Work space of one operation; see [`crate::staging`].
    pub fn staging(&self, id: &OperationId) -> PathBuf {
        self.staging_root().join(id.as_str())
    }

    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// Lock files. They stay: removing a lock file that another process may just open is a race.
    pub fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }
}

fn make_private(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let metadata = fs::metadata(path)?;
    if metadata.permissions().mode() & 0o077 != 0 && metadata.uid() == nix::unistd::geteuid().as_raw() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}
