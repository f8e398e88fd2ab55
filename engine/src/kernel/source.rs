//! Where the parts of a kernel come from: packages, archives, streams, an unpacked tree, single files.
//!
//! A source is read once, front to back, and hands its parts to a [`Sink`] as it meets them; nothing
//! is unpacked to disk. Everything read is bounded in number and size.

pub(super) mod ar;
mod deb;
mod file;
mod stream;
mod tar;
mod tree;
mod volume;

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;
use vmdeck_ext4::Timestamp;

use super::boot_image::is_release;
use crate::error::Result;
use crate::operation::progress::ProgressPart;

/// The most files a kernel may have.
const MOST_FILES: usize = 100_000;
/// The most bytes a kernel may have in all, as they come.
const MOST_BYTES: u64 = 8 << 30;
/// The largest single file, in bytes. The largest modules of stock kernels have 30 MiB.
const LARGEST_FILE: u64 = 512 << 20;

pub(super) use stream::TarStream;

/// Something to read a kernel from.
#[derive(Debug)]
pub(super) enum Source {
    /// Debian packages that together hold one kernel.
    Debs(Vec<PathBuf>),
    /// A tar archive of `boot/` and `lib/modules/`, however it is compressed.
    Tar(PathBuf),
    /// Such archives as they arrive, one after the other.
    Streams(Vec<TarStream>),
    /// A kernel image, with its configuration and `lib/modules/<release>` where there are such: a folder,
    /// or an ext4 image of it.
    Files { image: PathBuf, configuration: Option<PathBuf>, modules: Option<PathBuf> },
}

/// One part of a kernel.
#[derive(Debug)]
pub(super) enum Part {
    /// A bzImage or vmlinux. `release` is what its file name says.
    Image { release: Option<String>, content: Vec<u8> },
    /// Its build configuration.
    Configuration(Vec<u8>),
    /// A file of `lib/modules/<release>`.
    Module(ModuleFile),
}

#[derive(Debug)]
pub(super) struct ModuleFile {
    /// Name of the folder; `None` when the source does not tell.
    pub release: Option<String>,
    /// Components below that folder; none is empty, `.`, `..` or holds a zero byte.
    pub path: String,
    pub modified: Timestamp,
    pub content: Vec<u8>,
}

/// Takes the parts.
pub(super) trait Sink {
    fn take(&mut self, part: Part) -> Result<()>;
}

/// What goes along with the reading of a source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading<'a> {
    pub cancel: &'a CancellationToken,
    /// Counts bytes of the source.
    pub progress: &'a ProgressPart,
}

impl Source {
    /// Bytes to be read, as far as that is known beforehand.
    pub(super) fn size(&self) -> u64 {
        let length = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        match self {
            Self::Debs(paths) => paths.iter().map(|path| length(path)).sum(),
            Self::Tar(path) => length(path),
            Self::Streams(_) => 0,
            Self::Files { image, modules, .. } => length(image) + modules.as_deref().map_or(0, tree::size),
        }
    }

    /// Reads all of it. Blocks.
    pub(super) fn read(self, reading: Reading<'_>, sink: &mut dyn Sink) -> Result<()> {
        let mut budget = Budget::default();
        match self {
            Self::Debs(paths) => {
                paths.iter().try_for_each(|path| deb::read(path, reading, &mut budget, sink))
            }
            Self::Tar(path) => file::read_tar(&path, reading, &mut budget, sink),
            Self::Streams(streams) => {
                streams.into_iter().try_for_each(|stream| stream.read(reading, &mut budget, sink))
            }
            Self::Files { image, configuration, modules } => {
                tree::read(&image, configuration.as_deref(), modules.as_deref(), reading, &mut budget, sink)
            }
        }
    }
}

/// What may still be read.
#[derive(Debug)]
struct Budget {
    files: usize,
    bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { files: MOST_FILES, bytes: MOST_BYTES }
    }
}

#[derive(Debug, thiserror::Error)]
enum LimitError {
    #[error("it holds more than {MOST_FILES} files")]
    Files,
    #[error("it holds more than {MOST_BYTES} bytes")]
    Bytes,
    #[error("`{}` in it is larger than {LARGEST_FILE} bytes", .0.escape_debug())]
    File(String),
}

impl Budget {
    fn take(&mut self, path: &str, size: u64) -> Result<(), LimitError> {
        if size > LARGEST_FILE {
            return Err(LimitError::File(path.to_owned()));
        }
        self.files = self.files.checked_sub(1).ok_or(LimitError::Files)?;
        self.bytes = self.bytes.checked_sub(size).ok_or(LimitError::Bytes)?;
        Ok(())
    }
}

/// What a path within a kernel's tree means.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Image { release: &'a str },
    Configuration,
    Module { release: &'a str, path: &'a str },
}

impl<'a> Place<'a> {
    /// `path` is relative to the root of the tree. Whatever is not wanted, or has a strange form, is
    /// nothing.
    fn of(path: &'a str) -> Option<Self> {
        let path = path.strip_prefix("./").unwrap_or(path);
        if path.contains('\0') || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return None;
        }
        if let Some(file) = path.strip_prefix("boot/") {
            if let Some(release) = file.strip_prefix("vmlinuz-").filter(|release| is_release(release)) {
                return Some(Self::Image { release });
            }
            return file.starts_with("config-").then_some(Self::Configuration);
        }
        let below = path.strip_prefix("usr/").unwrap_or(path).strip_prefix("lib/modules/")?;
        let (release, path) = below.split_once('/').filter(|(release, _)| is_release(release))?;
        match path {
            // Where Fedora and systemd's kernel-install keep them.
            "vmlinuz" => Some(Self::Image { release }),
            "config" => Some(Self::Configuration),
            _ if wanted_module_path(path) => Some(Self::Module { release, path }),
            _ => None,
        }
    }
}

/// Modules and the lists of the build; no links to source trees, no other images, no signatures.
fn wanted_module_path(path: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or(path);
    let module = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().any(|end| file.ends_with(end));
    let list = !path.contains('/') && file.starts_with("modules.");
    (module || list) && path.len() <= 1024 && path.split('/').all(|part| part.len() <= 255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_belongs_to_a_kernel_has_a_place() {
        assert_eq!(Place::of("./boot/vmlinuz-6.1"), Some(Place::Image { release: "6.1" }));
        assert_eq!(Place::of("boot/config-6.1"), Some(Place::Configuration));
        let module = Place::Module { release: "6.1", path: "kernel/a/b.ko.xz" };
        assert_eq!(Place::of("./lib/modules/6.1/kernel/a/b.ko.xz"), Some(module));
        assert_eq!(
            Place::of("usr/lib/modules/6.1/modules.order"),
            Some(Place::Module { release: "6.1", path: "modules.order" })
        );
        for path in [
            "./boot/System.map-6.1",
            "lib/modules/6.1/build",
            "lib/modules/../../etc/passwd",
            "lib/modules/6.1/../../../x.ko",
            "/lib/modules/6.1/x.ko",
            "lib/modules/6.1//x.ko",
            "boot/vmlinuz-../x",
            "etc/passwd",
            "",
        ] {
            assert_eq!(Place::of(path), None, "{path}");
        }
    }
}
