//! A file system that is soon full: a tmpfs in a mount namespace of its own, which ends with the
//! value. An ordinary user gets one by a user namespace.

use std::path::{Path, PathBuf};

use super::deck::ORDINARY;
use super::holder::Holder;
use super::{have, is_root};

pub(crate) struct SmallDisk {
    holder: Holder,
}

impl SmallDisk {
    /// Mounts one at a folder that exists. `None`, and a line that says so, where the host lets nobody
    /// do that.
    pub(crate) fn mount(folder: &Path, megabytes: u32) -> Option<Self> {
        if !have("unshare") || !have("nsenter") {
            return None;
        }
        let owner = if is_root() { format!("uid={ORDINARY},gid={ORDINARY},") } else { String::new() };
        let script =
            format!("mount -t tmpfs -o {owner}size={megabytes}m,mode=700 vmdeck-test '{}'", folder.display());
        let holder = Holder::start(&[if is_root() { "-m" } else { "-Urm" }], &script, None);
        if holder.is_none() {
            eprintln!("skipped: this host mounts no tmpfs in a namespace");
        }
        holder.map(|holder| Self { holder })
    }

    /// What puts a command into the namespace, as an ordinary user, to stand before it.
    pub(crate) fn enter(&self) -> Vec<String> {
        let target = format!("--target={}", self.holder.pid());
        let mut words = vec!["nsenter".to_owned(), target, "--mount".to_owned()];
        if is_root() {
            words.extend([format!("--setgid={ORDINARY}"), format!("--setuid={ORDINARY}")]);
        } else {
            words.extend(["--user".to_owned(), "--preserve-credentials".to_owned()]);
        }
        words
    }

    /// Where a path of the namespace is to be seen from outside.
    pub(crate) fn outside(&self, path: &Path) -> PathBuf {
        Path::new("/proc")
            .join(self.holder.pid().to_string())
            .join("root")
            .join(path.strip_prefix("/").unwrap())
    }
}
