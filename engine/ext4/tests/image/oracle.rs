//! Judges that know ext4 independently of this crate.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a tool of e2fsprogs; `None`, and a word why, where it is not installed.
pub(crate) fn tool(name: &str, arguments: &[&str], image: &Path) -> Option<Output> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    match Command::new(name).args(arguments).arg(image).env("PATH", path).output() {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("skipped a check by {name}: {error}");
            None
        }
    }
}

/// Fails unless `e2fsck -fn` finds the image clean.
#[track_caller]
pub(crate) fn assert_clean(image: &Path) {
    let Some(output) = tool("e2fsck", &["-fn"], image) else { return };
    assert!(
        output.status.code() == Some(0),
        "e2fsck: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What `debugfs` says to a request.
pub(crate) fn debugfs(image: &Path, request: &str) -> Option<String> {
    let output = tool("debugfs", &["-R", request], image)?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}
