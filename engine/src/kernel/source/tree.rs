//! Kernels that lie on this host as files: an image, and the folder of its modules.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use vmdeck_ext4::Timestamp;

use super::{Budget, LARGEST_FILE, ModuleFile, Part, Reading, Sink, wanted_module_path};
use crate::error::{Error, Result};
use crate::regular_file;

/// How deep folders of modules may lie in each other.
const DEEPEST: usize = 64;

pub(super) fn read(
    image: &Path,
    configuration: Option<&Path>,
    modules: Option<&Path>,
    reading: Reading<'_>,
    budget: &mut Budget,
    sink: &mut dyn Sink,
) -> Result<()> {
    let content = read_file(image, reading, budget)?;
    sink.take(Part::Image { release: None, content })?;
    if let Some(path) = configuration {
        // It only serves to warn.
        match read_file(path, reading, budget) {
            Ok(content) => sink.take(Part::Configuration(content))?,
            Err(error) => tracing::debug!(error = error.full_message(), "no configuration"),
        }
    }
    let Some(root) = modules else { return Ok(()) };
    if root.is_file() {
        return super::volume::read(root, reading, budget, sink);
    }
    let fail = |path: &Path, error| Error::io(format!("cannot read `{}`", path.display()), error);
    each_file(root, &mut |path, relative| {
        if reading.cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        let metadata = fs::metadata(path).map_err(|error| fail(path, error))?;
        let content = read_file(path, reading, budget)?;
        sink.take(Part::Module(ModuleFile {
            release: None,
            path: relative.to_owned(),
            modified: Timestamp {
                seconds: metadata.mtime(),
                nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or_default(),
            },
            content,
        }))
    })
}

/// Bytes of the modules below a folder.
pub(super) fn size(root: &Path) -> u64 {
    let mut size = 0;
    let counted = each_file(root, &mut |path, _| {
        size += fs::metadata(path).map_or(0, |metadata| metadata.len());
        Ok(())
    });
    if counted.is_ok() { size } else { 0 }
}

/// Calls `work` with each wanted file and its path below `root`. Links in the tree are not followed:
/// `build` and `source` lead to the whole source code.
fn each_file(root: &Path, work: &mut dyn FnMut(&Path, &str) -> Result<()>) -> Result<()> {
    let mut folders = vec![(root.to_owned(), String::new(), 0)];
    while let Some((folder, relative, depth)) = folders.pop() {
        let fail = |error| Error::io(format!("cannot read the folder `{}`", folder.display()), error);
        let mut entries: Vec<_> =
            fs::read_dir(&folder).map_err(fail)?.collect::<Result<_, _>>().map_err(fail)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            let Ok(name) = std::str::from_utf8(name.as_bytes()) else { continue };
            let path = if relative.is_empty() { name.to_owned() } else { format!("{relative}/{name}") };
            let kind = entry.file_type().map_err(fail)?;
            if kind.is_dir() && depth < DEEPEST {
                folders.push((entry.path(), path, depth + 1));
            } else if kind.is_file() && wanted_module_path(&path) {
                work(&entry.path(), &path)?;
            }
        }
    }
    Ok(())
}

fn read_file(path: &Path, reading: Reading<'_>, budget: &mut Budget) -> Result<Vec<u8>> {
    let doing = || format!("cannot read `{}`", path.display());
    let (file, length) = regular_file::open(path).map_err(|error| Error::io(doing(), error))?;
    budget
        .take(&path.to_string_lossy(), length)
        .map_err(|error| Error::failed("the kernel is too large").with_source(error))?;
    let mut content = Vec::new();
    file.take(LARGEST_FILE).read_to_end(&mut content).map_err(|error| Error::io(doing(), error))?;
    reading.progress.advance(content.len() as u64);
    Ok(content)
}
