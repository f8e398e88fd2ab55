//! Paths inside an image's root, resolved as a process inside it would resolve them.
//!
//! An image may hold any symbolic link (`/etc → /proc/1`, `/lib → usr/lib`, `resolv.conf →
//! ../run/…`). Each path here is resolved by openat2(2) with `RESOLVE_IN_ROOT`: absolute links begin
//! at the image's root and `..` does not leave it.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Most bytes read of a file of an image.
const MAX_READ: u64 = 4 * 1024 * 1024;

/// A directory taken as the root of all paths.
#[derive(Debug)]
pub struct Jail {
    root: OwnedFd,
}

impl Jail {
    /// Takes a directory of this process's own name space as the root.
    pub fn new(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { root: nix::fcntl::open(path, flags, Mode::empty())? })
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a path; close-on-exec is added to the flags.
    pub fn open(&self, path: impl AsRef<Path>, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(mode)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        Ok(openat2(&self.root, path.as_ref(), how)?)
    }

    /// What a path leads to, links followed.
    pub fn stat(&self, path: impl AsRef<Path>) -> io::Result<FileStat> {
        Ok(fstat(self.open(path, OFlag::O_PATH, Mode::empty())?)?)
    }

    pub fn is_directory(&self, path: impl AsRef<Path>) -> bool {
        self.stat(path).is_ok_and(|stat| kind(&stat) == SFlag::S_IFDIR)
    }

    /// Whether the path leads to a regular file that root may execute.
    pub fn is_executable(&self, path: impl AsRef<Path>) -> bool {
        self.stat(path).is_ok_and(|stat| kind(&stat) == SFlag::S_IFREG && stat.st_mode & 0o111 != 0)
    }

    /// The content of a regular file of at most 4 MiB.
    pub fn read(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        // Without O_NONBLOCK a FIFO in the image would stop us for good.
        let file = self.open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty())?;
        regular(&file)?;
        let mut content = Vec::new();
        std::fs::File::from(file).take(MAX_READ).read_to_end(&mut content)?;
        Ok(content)
    }

    /// Makes a directory and those above it, as far as they do not exist.
    pub fn create_directories(&self, path: impl AsRef<Path>, mode: u32) -> io::Result<()> {
        let mut prefix = PathBuf::from(".");
        for component in path.as_ref().components() {
            let name = match component {
                Component::Normal(name) => name,
                Component::ParentDir => {
                    prefix.push("..");
                    continue;
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            };
            let parent = self.open(&prefix, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?;
            prefix.push(name);
            if self.is_directory(&prefix) {
                continue;
            }
            match mkdirat(&parent, name, Mode::from_bits_truncate(mode)) {
                Ok(()) => {}
                // A link that leads nowhere: what it should lead to is made instead.
                Err(Errno::EEXIST) => {
                    let target = readlinkat(&parent, name)?;
                    let beside = prefix.parent().unwrap_or(Path::new(".")).join(target);
                    // One step only: a chain of links, or a circle, ends in the error below.
                    let made = self.open(
                        beside.parent().unwrap_or(Path::new(".")),
                        OFlag::O_PATH | OFlag::O_DIRECTORY,
                        Mode::empty(),
                    )?;
                    let last = beside.file_name().ok_or(Errno::ENOTDIR)?;
                    mkdirat(&made, last, Mode::from_bits_truncate(mode))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Writes a regular file, through links when they lead somewhere. A link that leads nowhere,
    /// or to something that is not a regular file, is replaced by the file.
    pub fn write(&self, path: impl AsRef<Path>, content: &[u8], mode: u32) -> io::Result<()> {
        let path = path.as_ref();
        if let Some(parent) = path.parent() {
            self.create_directories(parent, 0o755)?;
        }
        let mode = Mode::from_bits_truncate(mode);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let opened = self.open(path, flags, mode).and_then(|file| {
            regular(&file)?;
            Ok(file)
        });
        let file = match opened {
            Ok(file) => file,
            Err(_) => {
                let parent = path.parent().unwrap_or(Path::new("."));
                let parent = self.open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?;
                let name = path.file_name().ok_or(Errno::EISDIR)?;
                unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir)?;
                self.open(path, flags | OFlag::O_EXCL, mode)?
            }
        };
        std::fs::File::from(file).write_all(content)
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn regular(file: &OwnedFd) -> io::Result<()> {
    if kind(&fstat(file)?) == SFlag::S_IFREG {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn jail() -> (tempfile::TempDir, Jail) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("root/etc")).unwrap();
        fs::write(folder.path().join("outside"), "untouched").unwrap();
        let jail = Jail::new(&folder.path().join("root")).unwrap();
        (folder, jail)
    }

    #[test]
    fn links_lead_where_they_would_inside() {
        let (folder, jail) = jail();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        symlink("usr/lib", root.join("lib")).unwrap();
        symlink("/usr/lib/real", root.join("etc/absolute")).unwrap();
        jail.create_directories("/lib/modules/6.1", 0o755).unwrap();
        assert!(root.join("usr/lib/modules/6.1").is_dir());
        jail.write("/etc/absolute", b"here", 0o644).unwrap();
        assert_eq!(fs::read(root.join("usr/lib/real")).unwrap(), b"here");
    }

    #[test]
    fn nothing_is_written_outside() {
        let (folder, jail) = jail();
        let root = folder.path().join("root");
        symlink("../../outside", root.join("etc/hosts")).unwrap();
        symlink(folder.path().join("outside"), root.join("etc/hostname")).unwrap();
        symlink("../..", root.join("up")).unwrap();
        jail.write("/etc/hosts", b"x", 0o644).unwrap();
        jail.write("/etc/hostname", b"x", 0o644).unwrap();
        jail.write("/up/outside", b"x", 0o644).unwrap();
        assert_eq!(fs::read(folder.path().join("outside")).unwrap(), b"untouched");
        assert_eq!(jail.read("/etc/hostname").unwrap(), b"x");
    }

    #[test]
    fn a_link_that_leads_nowhere_is_replaced() {
        let (folder, jail) = jail();
        let path = folder.path().join("root/etc/resolv.conf");
        symlink("../run/systemd/resolve/stub-resolv.conf", &path).unwrap();
        jail.write("/etc/resolv.conf", b"nameserver 10.0.2.3\n", 0o644).unwrap();
        assert!(path.symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn a_pipe_in_the_way_stops_nobody() {
        let (folder, jail) = jail();
        let path = folder.path().join("root/etc/hosts");
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o644)).unwrap();
        assert!(jail.read("/etc/hosts").is_err());
        jail.write("/etc/hosts", b"x", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }

    #[test]
    fn a_circle_of_links_is_an_error() {
        let (folder, jail) = jail();
        symlink("b", folder.path().join("root/a")).unwrap();
        symlink("a", folder.path().join("root/b")).unwrap();
        assert!(jail.create_directories("/a/x", 0o755).is_err());
        assert!(jail.write("/a/x", b"", 0o644).is_err());
    }
}
