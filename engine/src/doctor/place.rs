//! The data directory, and the room there is: on disk, in memory, of processors.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Check;

const GIB: u64 = 1 << 30;
/// An image, a kernel and a machine's changes need about this much.
const LITTLE_SPACE: u64 = 5 * GIB;
const NO_SPACE: u64 = GIB / 2;
/// A guest's default memory and what QEMU takes beside it.
const LITTLE_MEMORY: u64 = GIB;

pub(super) fn checks(root: &Path) -> Vec<Check> {
    vec![data_directory(root), disk_space(root), memory(), processors()]
}

fn data_directory(root: &Path) -> Check {
    let name = "data directory";
    let shown = root.display();
    let elsewhere = "set VMDECK_DATA_DIR to a folder of yours on a local disk";
    let probe = root.join(format!(".doctor-{}", std::process::id()));
    let written = try_write(&probe);
    let _ = std::fs::remove_file(&probe);
    let file = match written {
        Ok(file) => file,
        Err(error) => return Check::failed(name, format!("{shown} cannot be written: {error}"), elsewhere),
    };
    let kind = rustix::fs::fstatfs(&file).map(|statistics| statistics.f_type as u64).unwrap_or_default();
    if let Some(kind) = remote(kind) {
        return Check::warning(
            name,
            format!("{shown} is on {kind}, where locks and the store's shared memory may not hold"),
            elsewhere,
        );
    }
    if kind == TMPFS {
        return Check::warning(
            name,
            format!("{shown} is in memory (tmpfs): all is gone when this host boots"),
            elsewhere,
        );
    }
    let copies = if clones(root, &file) { "copies share their blocks" } else { "copies are sparse" };
    Check::ok(name, format!("{shown} is writable and local; {copies}"))
}

const TMPFS: u64 = 0x0102_1994;

/// File systems of other hosts (statfs(2)).
fn remote(kind: u64) -> Option<&'static str> {
    match kind {
        0x6969 => Some("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        0x0102_1997 => Some("9p"),
        0x00c3_6400 => Some("Ceph"),
        0x6573_5546 => Some("FUSE"),
        _ => None,
    }
}

fn try_write(path: &Path) -> std::io::Result<File> {
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&[b'x'; 4096])?;
    file.sync_data()?;
    Ok(file)
}

/// Whether a file can be copied by reference (ioctl_ficlone(2)).
fn clones(root: &Path, file: &File) -> bool {
    let path = root.join(format!(".doctor-clone-{}", std::process::id()));
    let cloned = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .is_ok_and(|copy| rustix::fs::ioctl_ficlone(&copy, file).is_ok());
    let _ = std::fs::remove_file(&path);
    cloned
}

fn disk_space(root: &Path) -> Check {
    let name = "disk space";
    let statistics = match rustix::fs::statvfs(root) {
        Ok(statistics) => statistics,
        Err(error) => {
            return Check::failed(
                name,
                format!("the room on the disk is not known: {error}"),
                "set VMDECK_DATA_DIR to another disk",
            );
        }
    };
    let free = statistics.f_bavail.saturating_mul(statistics.f_frsize);
    let finding = format!("{} free on the disk of {}", gibibytes(free), root.display());
    let fix = "`vmdeck df` shows what vmdeck holds, `vmdeck image prune` removes what nobody uses";
    if free < NO_SPACE {
        Check::failed(name, finding, fix)
    } else if free < LITTLE_SPACE {
        Check::warning(name, finding, fix)
    } else if statistics.f_favail == 0 && statistics.f_files > 0 {
        Check::failed(name, format!("{finding}, but no inode"), "remove small files on that file system")
    } else {
        Check::ok(name, finding)
    }
}

fn memory() -> Check {
    let name = "memory";
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some((available, total)) = meminfo(&text, "MemAvailable:").zip(meminfo(&text, "MemTotal:")) else {
        return Check::warning(name, "/proc/meminfo does not say how much memory there is", "mount /proc");
    };
    let finding = format!("{} available of {}", gibibytes(available), gibibytes(total));
    if available < LITTLE_MEMORY {
        Check::warning(name, finding, "end what needs much memory, or give machines less of it (`--memory`)")
    } else {
        Check::ok(name, finding)
    }
}

/// A line of `/proc/meminfo` (proc_meminfo(5)), in bytes.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

fn processors() -> Check {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Check::ok("processors", format!("{count} for this process"))
}

fn gibibytes(bytes: u64) -> String {
    format!("{}.{} GiB", bytes / GIB, bytes % GIB * 10 / GIB)
}

#[cfg(test)]
mod tests {
    use super::super::CheckStatus;
    use super::*;

    #[test]
    fn a_line_of_meminfo() {
        let text = "MemTotal:       24576 kB\nMemAvailable:    1024 kB\n";
        assert_eq!(meminfo(text, "MemAvailable:"), Some(1 << 20));
        assert_eq!(meminfo(text, "SwapFree:"), None);
        assert_eq!(gibibytes(3 * GIB + GIB / 2), "3.5 GiB");
    }

    #[test]
    fn a_directory_that_is_not_there_fails_and_a_good_one_is_left_clean() {
        assert_eq!(data_directory(Path::new("/nowhere/at/all")).status, CheckStatus::Failed);
        assert_eq!(disk_space(Path::new("/nowhere/at/all")).status, CheckStatus::Failed);
        let folder = tempfile::tempdir().unwrap();
        assert_ne!(data_directory(folder.path()).status, CheckStatus::Failed);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
