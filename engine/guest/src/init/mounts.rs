//! File systems: the kernel's own, the image's root, and the change from one root to the other.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot, fchdir};
use vmdeck_protocol::message::{Failure, FailureClass};
use vmdeck_protocol::settings::{MODULES_SERIAL, Settings, WORK_SERIAL};

use crate::jail::Jail;
use crate::log;

use super::disks;

/// What every process expects of a device directory and devtmpfs does not have.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// The kernel's file systems in the initramfs.
pub(super) fn first() -> io::Result<()> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for (kind, path, flags) in
        [("devtmpfs", "/dev", MsFlags::MS_NOSUID), ("proc", "/proc", plain), ("sysfs", "/sys", plain)]
    {
        fs::create_dir_all(path)?;
        match mount(Some(kind), path, Some(kind), flags, None::<&str>) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => return Err(io::Error::other(format!("{path}: {error}"))),
        }
    }
    Ok(())
}

/// Mounts the image's root.
pub(super) fn root(device: &Path, path: &Path) -> Result<(), Failure> {
    let failure = |class, message| Failure { class, message };
    match disks::is_ext4(device) {
        Ok(true) => {}
        Ok(false) => {
            let message = "the root disk holds no ext4 file system".to_owned();
            return Err(failure(FailureClass::RootNotAFileSystem, message));
        }
        Err(error) => {
            let message = format!("the root disk cannot be read: {error}");
            return Err(failure(FailureClass::RootNotAFileSystem, message));
        }
    }
    let mounted = fs::create_dir_all(path)
        .and_then(|()| Ok(mount(Some(device), path, Some("ext4"), MsFlags::empty(), None::<&str>)?));
    mounted.map_err(|error| {
        let hint = match error.raw_os_error() {
            Some(libc::ENODEV) => " (the kernel has no ext4)",
            Some(libc::EINVAL | libc::EUCLEAN) => {
                " (it is damaged, or has features that this kernel does not know)"
            }
            _ => "",
        };
        failure(
            FailureClass::RootNotAFileSystem,
            format!("the file system of the root disk cannot be mounted: {error}{hint}"),
        )
    })
}

/// Moves the kernel's file systems into the image's root and adds those that every process expects.
pub(super) fn move_into(jail: &Jail) -> io::Result<()> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    // `/proc` last: until then this process may need it.
    for path in ["/dev", "/sys", "/proc"] {
        mount_at(jail, path, 0o755, Some(path), None, MsFlags::MS_MOVE, None)?;
    }
    mount_at(jail, "/run", 0o755, Some("tmpfs"), Some("tmpfs"), plain, Some("mode=0755"))?;
    let pts = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = Some("mode=0620,gid=5,ptmxmode=0666");
    for (path, kind, flags, options) in
        [("/dev/pts", "devpts", pts, options), ("/dev/shm", "tmpfs", plain, Some("mode=1777"))]
    {
        if let Err(error) = mount_at(jail, path, 0o755, Some(kind), Some(kind), flags, options) {
            log::warning(&format!("`{path}` cannot be mounted: {error}"));
        }
    }
    for (link, target) in DEVICE_LINKS {
        let name = Path::new(link).file_name().unwrap_or_default();
        if let Ok(directory) = jail.open("/dev", OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()) {
            // It exists when the machine is started by a newer kernel that makes it.
            let _ = nix::unistd::symlinkat(target, directory, name);
        }
    }
    Ok(())
}

/// Mounts the work disk at root's home and the modules where they are looked for. To be called while
/// the devices are still where they were found.
pub(super) fn extra_disks(jail: &Jail, settings: &Settings, home: &str) {
    if settings.work_disk {
        let mounted = disk(jail, WORK_SERIAL, home, 0o700, MsFlags::empty());
        if let Err(error) = mounted {
            log::warning(&format!("the work disk was not mounted at `{home}`: {error}"));
        }
    }
    if settings.modules_disk {
        let release = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        let path = format!("/lib/modules/{release}");
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        if let Err(error) = disk(jail, MODULES_SERIAL, &path, 0o755, flags) {
            log::warning(&format!("the kernel's modules were not mounted at `{path}`: {error}"));
        }
    }
}

/// Makes the image's root the root of this process, and empties the initramfs, which is memory.
pub(super) fn switch_root(jail: Jail) -> io::Result<()> {
    for path in [vmdeck_protocol::settings::PATH, vmdeck_protocol::settings::MODULES_PATH, "init"] {
        let _ = fs::remove_file(Path::new("/").join(path));
    }
    let _ = fs::remove_dir_all("/vmdeck");
    fchdir(jail.root())?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

/// Mounts something inside the image's root, whatever links lead there. The directory is made when
/// it is missing.
pub(super) fn mount_at(
    jail: &Jail,
    path: &str,
    mode: u32,
    source: Option<&str>,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> io::Result<()> {
    jail.create_directories(path, mode)?;
    let directory = jail.open(path, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?;
    // mount(2) takes a path; the current directory is one that no link can redirect.
    fchdir(directory.as_fd())?;
    let mounted = mount(source, ".", kind, flags, options);
    chdir("/")?;
    Ok(mounted?)
}

fn disk(jail: &Jail, serial: &str, path: &str, mode: u32, flags: MsFlags) -> io::Result<()> {
    let device = disks::find(serial).ok_or_else(|| io::Error::other("there is no such disk"))?;
    if !disks::is_ext4(&device)? {
        return Err(io::Error::other("it holds no ext4 file system"));
    }
    mount_at(jail, path, mode, device.to_str(), Some("ext4"), flags, None)
}
