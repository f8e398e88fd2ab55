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

/// Grows the ext4 file systems mounted at these paths to the length of their disks. The kernel does
/// it while they are in use.
pub(super) fn grow(mount_points: &[&str]) {
    let mut done = Vec::new();
    for path in mount_points {
        let Ok(directory) = fs::File::open(path) else { continue };
        let Ok(device) = nix::sys::stat::fstat(&directory).map(|stat| stat.st_dev) else { continue };
        if done.contains(&device) {
            continue;
        }
        done.push(device);
        if let Err(error) = grow_one(&directory, device) {
            crate::log::warning(&format!("the file system at `{path}` was not grown: {error}"));
        }
    }
}

fn grow_one(directory: &fs::File, device: u64) -> io::Result<()> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    // In sectors of 512 bytes, whatever the device's own are.
    let sectors = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/size"))?;
    let sectors: u64 = sectors.trim_end().parse().map_err(io::Error::other)?;
    let status = nix::sys::statfs::fstatfs(directory)?;
    if status.filesystem_type() != nix::sys::statfs::EXT4_SUPER_MAGIC {
        return Ok(());
    }
    let block = u64::try_from(status.block_size()).map_err(io::Error::other)?.max(1024);
    let blocks = sectors * 512 / block;
    // `blocks()` leaves out what the file system uses for itself, some percent. A disk that is not
    // clearly larger is left alone: the call would find nothing to do, but it is not free.
    if blocks <= status.blocks() + status.blocks() / 16 {
        return Ok(());
    }
    crate::system::resize_ext4(directory, blocks)
}
