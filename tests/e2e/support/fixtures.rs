//! Inputs that nobody here wrote: Debian roots, Debian's kernel, busybox. Built once and kept in
//! cargo's folder for tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use super::layout::{Layout, TarBuilder};

/// Held while one is built: tests that need the same one wait for it.
static BUILDING: Mutex<()> = Mutex::new(());

/// A fixture's path: built by `build` at the first use of it.
fn fixture(name: &str, build: impl FnOnce(&Path)) -> PathBuf {
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fixtures");
    let path = root.join(name);
    if !path.exists() {
        let unfinished = root.join(format!("{name}.unfinished"));
        let _ = fs::remove_dir_all(&unfinished);
        fs::create_dir_all(&unfinished).unwrap();
        build(&unfinished);
        fs::rename(&unfinished, &path).unwrap();
    }
    path
}

fn debian(name: &str, packages: &str) -> PathBuf {
    fixture(name, |path| {
        super::run(
            Command::new("sh")
                .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/make-debian-layout.sh"))
                .arg(path)
                .arg(packages),
        );
    })
}

/// An image layout of a Debian without an init.
pub(crate) fn minbase() -> PathBuf {
    debian("minbase", "")
}

/// An image layout of a Debian with systemd (and, as in every container image, without udev).
pub(crate) fn systemd() -> PathBuf {
    debian("systemd", "systemd-sysv,dbus")
}

/// An image layout with busybox, statically linked, and its links; nothing else.
pub(crate) fn busybox() -> PathBuf {
    fixture("busybox", |path| {
        let program = fs::read("/bin/busybox").or_else(|_| fs::read("/usr/bin/busybox")).unwrap();
        let mut tar = TarBuilder::default();
        tar.directory("bin/", 0o755).file("bin/busybox", 0o755, &program);
        for name in ["sh", "ls", "cat", "uname", "echo", "id", "env", "pwd", "mount", "sleep", "stat", "wc"] {
            tar.symlink(&format!("bin/{name}"), "busybox");
        }
        let mut layout = Layout::new(path);
        layout.config = serde_json::json!({ "Cmd": ["/bin/sh"], "Env": ["PATH=/bin", "FLAVOUR=plain"] });
        layout.layer(&tar.finish()).finish();
    })
}

/// An image layout with one static binary (`/hello`) and nothing else, not even a folder.
pub(crate) fn single_binary() -> PathBuf {
    fixture("single-binary", |path| {
        let source = path.join("hello.c");
        let binary = path.join("hello");
        fs::write(
            &source,
            "#include <stdio.h>\n#include <unistd.h>\nint main(int n, char **v) { printf(\"hello from pid %d\\n\", getpid() > 1); for (int i = 1; i < n; i++) puts(v[i]); return 7; }\n",
        )
        .unwrap();
        super::run(Command::new("cc").args(["-static", "-Os", "-o"]).arg(&binary).arg(&source));
        let mut tar = TarBuilder::default();
        tar.file("hello", 0o755, &fs::read(&binary).unwrap());
        let mut layout = Layout::new(path);
        layout.config = serde_json::json!({ "Entrypoint": ["/hello"] });
        layout.layer(&tar.finish()).finish();
    })
}

/// Debian's cloud kernel package.
pub(crate) fn kernel_package() -> PathBuf {
    let folder = fixture("kernel", |path| {
        // As an ordinary user would: state and lists of our own where the host has none.
        let depends =
            super::run(Command::new("apt-cache").args(["depends", "--important", "linux-image-cloud-amd64"]));
        let package = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .expect("the meta package depends on the newest kernel");
        super::run(Command::new("apt-get").args(["download", "-q", package]).current_dir(path));
    });
    fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .unwrap()
}
