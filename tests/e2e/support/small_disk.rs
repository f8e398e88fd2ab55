//! A file system that is soon full: a tmpfs in a mount namespace of its own, which ends with the
//! value. An ordinary user gets one by a user namespace.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::deck::ORDINARY;
use super::{have, is_root};

pub(crate) struct SmallDisk {
    holder: Child,
}

impl SmallDisk {
    /// Mounts one at a folder that exists. `None`, and a line that says so, where the host lets nobody
    /// do that.
    pub(crate) fn mount(folder: &Path, megabytes: u32) -> Option<Self> {
        if !have("unshare") || !have("nsenter") {
            return None;
        }
        let owner = if is_root() { format!("uid={ORDINARY},gid={ORDINARY},") } else { String::new() };
        let script = format!(
            "mount -t tmpfs -o {owner}size={megabytes}m,mode=700 vmdeck-test '{}' && echo mounted && read line",
            folder.display()
        );
        let mut holder = Command::new("unshare")
            .arg(if is_root() { "-m" } else { "-Urm" })
            .args(["sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let disk = Self { holder };
        if line.trim() != "mounted" {
            eprintln!("skipped: this host mounts no tmpfs in a namespace");
            return None;
        }
        Some(disk)
    }

    /// What puts a command into the namespace, as an ordinary user, to stand before it.
    pub(crate) fn enter(&self) -> Vec<String> {
        let target = format!("--target={}", self.holder.id());
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
            .join(self.holder.id().to_string())
            .join("root")
            .join(path.strip_prefix("/").unwrap())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
