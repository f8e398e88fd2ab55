//! Finds the machine's disks by their serials.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a disk may take to appear. Drivers are loaded by now and find their devices at once;
/// only a slow bus takes longer.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

const BLOCK_DEVICES: &str = "/sys/block";

/// Waits for the disk with this serial, and calls `meanwhile` now and then.
pub(super) fn wait(serial: &str, mut meanwhile: impl FnMut()) -> Option<PathBuf> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find(serial) {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(PAUSE);
        meanwhile();
    }
}

/// The device of the disk with this serial.
pub(super) fn find(serial: &str) -> Option<PathBuf> {
    let entry = fs::read_dir(BLOCK_DEVICES).ok()?.flatten().find(|entry| {
        fs::read_to_string(entry.path().join("serial")).is_ok_and(|found| found.trim_end() == serial)
    })?;
    Some(Path::new("/dev").join(entry.file_name()))
}

/// Why a disk was not found, as far as can be seen from here.
pub(super) fn missing(serial: &str) -> String {
    let disks: Vec<String> = fs::read_dir(BLOCK_DEVICES)
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    if disks.is_empty() {
        let driver = "the kernel sees no disk at all: it has no driver for virtio disks (virtio_blk), \
                      neither built in nor among the modules of its initrd";
        format!("there is no root disk `{serial}`: {driver}")
    } else {
        format!("there is no root disk `{serial}` among those the kernel sees ({})", disks.join(", "))
    }
}

/// Whether a device holds an ext4 file system (or its older forms, which the same driver mounts):
/// the magic number of the superblock, kernel documentation `filesystems/ext4/globals.rst`.
pub(super) fn is_ext4(device: &Path) -> io::Result<bool> {
    let mut magic = [0; 2];
    let mut file = fs::File::open(device)?;
    file.seek(SeekFrom::Start(1024 + 0x38))?;
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(u16::from_le_bytes(magic) == 0xef53),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
