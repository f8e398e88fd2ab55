//! The file systems on the machine's own disks: the root, and the work disk at the home of root.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::unistd::syncfs;
use vmdeck_protocol::settings::{ROOT_SERIAL, WORK_SERIAL};

use crate::init::growth::GROWTH;

/// Writes out what they hold in memory. Returns the exit status.
pub(super) fn sync() -> io::Result<u8> {
    for path in mount_points()? {
        syncfs(File::open(path)?)?;
    }
    Ok(0)
}

/// Grows them to their disks, once those have this length. Returns the exit status.
pub(super) fn grow(bytes: u64) -> io::Result<u8> {
    for path in mount_points()? {
        GROWTH.run_for(&path, bytes).map_err(|error| {
            io::Error::other(format!("the file system at `{}` was not grown: {error}", path.display()))
        })?;
    }
    Ok(0)
}

/// One place where each is mounted.
fn mount_points() -> io::Result<Vec<PathBuf>> {
    let is_ours = |device: &str| {
        let serial = fs::read_to_string(format!("/sys/dev/block/{device}/serial"));
        serial.is_ok_and(|serial| [ROOT_SERIAL, WORK_SERIAL].contains(&serial.trim_end()))
    };
    Ok(parse(&fs::read("/proc/self/mountinfo")?, is_ours))
}

/// Reads `/proc/self/mountinfo` (proc_pid_mountinfo(5)): `ID PARENT MAJOR:MINOR ROOT MOUNT-POINT …`.
fn parse(text: &[u8], is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    for line in text.split(|&byte| byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let [_, _, device, root, path, ..] = fields[..] else { continue };
        let Ok(device) = std::str::from_utf8(device) else { continue };
        // Anything but the root of the file system may be a file that is mounted over another one.
        if root == b"/" && is_wanted(device) && seen.insert(device) {
            found.push(PathBuf::from(OsString::from_vec(unescape(path))));
        }
    }
    found
}

/// `\040` is a blank.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let octal =
            after.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                plain.push(escaped);
                rest = &after[3..];
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_disk_is_found_once() {
        let text = b"22 1 254:0 / / rw - ext4 /dev/root rw\n23 22 254:16 / /home/a\\040b rw - ext4 x rw\n\
            24 22 254:0 /etc/hosts /etc/hosts rw - ext4 x rw\n25 22 0:5 / /dev rw - devtmpfs d rw\n\
            26 22 254:16 / /mnt rw - ext4 x rw\nbroken\n";
        let found = parse(text, |device| device.starts_with("254:"));
        assert_eq!(found, [PathBuf::from("/"), PathBuf::from("/home/a b")]);
    }
}
