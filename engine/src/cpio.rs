//! A writer of cpio archives as the kernel unpacks them into its first root file system.
//!
//! The format is `newc`: kernel documentation, `driver-api/early-userspace/buffer-format.rst`.
//! Archives may follow one another in one initrd when each begins at a multiple of 4 bytes, which
//! everything written here ends at. The archive is not compressed: the kernel copies it faster than
//! it could inflate it.

use std::time::Duration;

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
/// Length of a header, in bytes: the magic number and 13 numbers of 8 digits.
const HEADER: usize = 110;
/// Archives end at a multiple of this, as those of cpio(1) do.
const BLOCK: usize = 512;

const TYPE_DIRECTORY: u32 = 0o040000;
const TYPE_FILE: u32 = 0o100000;
const TYPE_SYMLINK: u32 = 0o120000;
const TYPE_CHARACTER_DEVICE: u32 = 0o020000;

#[derive(Debug, thiserror::Error)]
pub enum CpioError {
    #[error("`{name}` is too large for a cpio archive: {size} bytes")]
    TooLarge { name: String, size: usize },
    #[error("`{}` is no path for a cpio archive", name.escape_debug())]
    InvalidPath { name: String },
    #[error("a cpio archive is damaged")]
    Damaged,
}

/// An archive under construction, in memory. All entries belong to root.
///
/// A directory must be added before what lies in it: the kernel does not create it by itself.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
    modified: u32,
}

/// What differs between the kinds of entries.
struct Entry<'a> {
    mode: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl Archive {
    pub fn new() -> Self {
        Self::default()
    }

    /// Entries added from here on have this time of modification, counted from 1970; 0 at first,
    /// which makes archives of the same content equal.
    pub fn set_modified(&mut self, since_epoch: Duration) {
        // The field has 32 bits: it ends in 2106.
        self.modified = u32::try_from(since_epoch.as_secs()).unwrap_or(u32::MAX);
    }

    /// `path` has no leading `/`; `permissions` are the lower twelve bits of a mode.
    pub fn directory(&mut self, path: &str, permissions: u32) -> Result<(), CpioError> {
        self.add(path, Entry { mode: TYPE_DIRECTORY | permissions, device: (0, 0), content: &[] })
    }

    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> Result<(), CpioError> {
        self.add(path, Entry { mode: TYPE_FILE | permissions, device: (0, 0), content })
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), CpioError> {
        self.add(path, Entry { mode: TYPE_SYMLINK | 0o777, device: (0, 0), content: target.as_bytes() })
    }

    pub fn character_device(
        &mut self,
        path: &str,
        permissions: u32,
        major: u32,
        minor: u32,
    ) -> Result<(), CpioError> {
        let mode = TYPE_CHARACTER_DEVICE | permissions;
        self.add(path, Entry { mode, device: (major, minor), content: &[] })
    }

    /// The archive with its end mark; its length is a multiple of 512.
    pub fn finish(mut self) -> Vec<u8> {
        self.inodes = 0;
        self.modified = 0;
        self.header(TRAILER, 0, 1, (0, 0), 0);
        let length = self.bytes.len().next_multiple_of(BLOCK);
        self.bytes.resize(length, 0);
        self.bytes
    }

    fn add(&mut self, path: &str, entry: Entry<'_>) -> Result<(), CpioError> {
        if path.is_empty() || path.starts_with('/') || path.contains('\0') || path == TRAILER {
            return Err(CpioError::InvalidPath { name: path.to_owned() });
        }
        let size = u32::try_from(entry.content.len())
            .map_err(|_| CpioError::TooLarge { name: path.to_owned(), size: entry.content.len() })?;
        self.inodes += 1;
        let links = if entry.mode & 0o170000 == TYPE_DIRECTORY { 2 } else { 1 };
        self.header(path, entry.mode, links, entry.device, size);
        self.bytes.extend_from_slice(entry.content);
        self.pad();
        Ok(())
    }

    fn header(&mut self, name: &str, mode: u32, links: u32, device: (u32, u32), size: u32) {
        // Inode numbers differ, so that the kernel takes no two entries for hard links of one file.
        let name_size = u32::try_from(name.len() + 1).expect("paths are short: they name our own files");
        let fields = [
            self.inodes,
            mode,
            0, // uid
            0, // gid
            links,
            self.modified,
            size,
            0, // major and minor of the device that holds the file
            0,
            device.0,
            device.1,
            name_size,
            0, // check sum, of another variant of the format
        ];
        self.bytes.extend_from_slice(MAGIC.as_bytes());
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }
}

/// An entry that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadEntry<'a> {
    pub name: &'a str,
    /// Type and permissions.
    pub mode: u32,
    pub content: &'a [u8],
}

/// Reads the first archive in `bytes`, without its end mark. After an error there is nothing more.
pub fn entries(bytes: &[u8]) -> impl Iterator<Item = Result<ReadEntry<'_>, CpioError>> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let current = rest.take()?;
        match read_entry(current) {
            Some((entry, _)) if entry.name == TRAILER => None,
            Some((entry, behind)) => {
                rest = Some(behind);
                Some(Ok(entry))
            }
            None => Some(Err(CpioError::Damaged)),
        }
    })
}

fn read_entry(bytes: &[u8]) -> Option<(ReadEntry<'_>, &[u8])> {
    let header = bytes.get(..HEADER)?.strip_prefix(MAGIC.as_bytes())?;
    let field = |index: usize| {
        let digits = std::str::from_utf8(&header[index * 8..(index + 1) * 8]).ok()?;
        u32::from_str_radix(digits, 16).ok()
    };
    let (mode, size, name_size) = (field(1)?, field(6)? as usize, field(11)? as usize);
    let name = bytes.get(HEADER..HEADER.checked_add(name_size)?)?.strip_suffix(b"\0")?;
    let start = (HEADER + name_size).next_multiple_of(4);
    let content = bytes.get(start..start.checked_add(size)?)?;
    let behind = bytes.get((start + size).next_multiple_of(4)..)?;
    Some((ReadEntry { name: std::str::from_utf8(name).ok()?, mode, content }, behind))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new();
        archive.directory("dev", 0o755).unwrap();
        archive.file("init", 0o755, b"hello").unwrap();
        archive.symlink("bin", "usr/bin").unwrap();
        archive.character_device("dev/console", 0o600, 5, 1).unwrap();
        archive.finish()
    }

    #[test]
    fn entries_have_the_bytes_of_the_format() {
        let bytes = sample();
        assert_eq!(bytes.len() % 512, 0);
        let second = 110 + 6; // header, "dev\0" padded from 114 to 116
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[second..second + 6], b"070701");
        assert_eq!(&bytes[second + 6..second + 22], b"00000002000081ED");
        assert_eq!(&bytes[second + 54..second + 62], b"00000005");
        assert_eq!(&bytes[second + 110..second + 115], b"init\0");
        assert_eq!(&bytes[second + 116..second + 124], b"hello\0\0\0");
        let third = bytes.windows(4).position(|window| window == b"dev/").unwrap() - 110;
        assert_eq!(&bytes[third + 78..third + 94], b"0000000500000001");
    }

    #[test]
    fn paths_that_would_end_or_leave_the_archive_are_refused() {
        for path in ["", "/init", "a\0b", "TRAILER!!!"] {
            assert!(Archive::new().file(path, 0o644, b"").is_err(), "{path:?}");
        }
    }

    #[test]
    fn another_reader_sees_the_same_entries() {
        let Ok(mut child) = Command::new("busybox")
            .args(["cpio", "-tv"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
        else {
            eprintln!("skipped: busybox is not installed, so no other reader of cpio is at hand");
            return;
        };
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), &sample()).unwrap();
        let output = child.wait_with_output().unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = listing.lines().collect();
        assert_eq!(lines.len(), 4, "{listing}");
        assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" dev"), "{listing}");
        assert!(lines[1].starts_with("-rwxr-xr-x"), "{listing}");
        assert!(lines[2].ends_with("bin -> usr/bin"), "{listing}");
        assert!(lines[3].starts_with("crw-------") && lines[3].ends_with(" dev/console"), "{listing}");
    }

    #[test]
    fn entries_are_read_back() {
        let bytes = sample();
        let read: Vec<_> = entries(&bytes).map(Result::unwrap).collect();
        assert_eq!(read.len(), 4);
        assert_eq!(read[1], ReadEntry { name: "init", mode: 0o100755, content: b"hello" });
    }

    proptest! {
        #[test]
        fn damage_ends_the_reading(at in 0usize..600, damage in prop::collection::vec(any::<u8>(), 1..12)) {
            let mut bytes = sample();
            let end = (at + damage.len()).min(bytes.len());
            let at = at.min(end);
            bytes[at..end].copy_from_slice(&damage[..end - at]);
            prop_assert!(entries(&bytes).count() < 100);
        }
    }
}
