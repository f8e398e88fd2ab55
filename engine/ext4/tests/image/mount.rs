//! Mounts images through the kernel, where this process may.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::content::{build, options};

/// An image mounted on a folder until this is dropped.
pub(crate) struct Mount {
    folder: tempfile::TempDir,
    mounted: bool,
}

impl Mount {
    pub(crate) fn new(image: &Path, mode: &str) -> Self {
        let mount = Self::attempt(image, mode).expect("mounting worked before");
        assert!(mount.mounted);
        mount
    }

    fn attempt(image: &Path, mode: &str) -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new("mount")
            .args(["-o", &format!("loop,{mode}"), "-t", "ext4"])
            .arg(image)
            .arg(folder.path())
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(Self { folder, mounted: true })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Unmounts, so that what was written is in the image.
    pub(crate) fn unmount(mut self) {
        assert!(self.detach(), "umount failed");
    }

    fn detach(&mut self) -> bool {
        self.mounted = false;
        let umount = |options: &[&str]| {
            let output = Command::new("umount").args(options).arg(self.folder.path()).output().unwrap();
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            output.status.success()
        };
        // Something that looks at all mounts may hold it for a moment.
        for _ in 0..50 {
            if umount(&[]) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        umount(&["--lazy"]);
        false
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            self.detach();
        }
    }
}

/// Whether images can be mounted here: needs root, loop devices and ext4 in the kernel.
pub(crate) fn can_mount() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let image = build(options(), |_, _| {});
        match Mount::attempt(&image.path, "ro") {
            Ok(mount) => {
                mount.unmount();
                true
            }
            Err(error) => {
                eprintln!("skipped what needs a mounted image: {}", error.trim());
                false
            }
        }
    })
}
