//! The modules of a kernel in an ext4 image of `lib/modules/<release>`, as vmdeck itself makes them.

use std::path::Path;

use vmdeck_ext4::{FileKind, ImageError, InodeNumber, Reader};

use super::{Budget, LARGEST_FILE, ModuleFile, Part, Reading, Sink, wanted_module_path};
use crate::error::{Error, Result};
use crate::regular_file;

/// How deep folders of modules may lie in each other.
const DEEPEST: usize = 64;

pub(super) fn read(
    path: &Path,
    reading: Reading<'_>,
    budget: &mut Budget,
    sink: &mut dyn Sink,
) -> Result<()> {
    let doing = || format!("cannot read the modules in `{}`", path.display());
    let fail = |error: ImageError| Error::failed(doing()).with_source(error);
    let (file, _) = regular_file::open(path).map_err(|error| Error::io(doing(), error))?;
    let volume = Reader::open(file).map_err(fail)?;
    let mut folders = vec![(volume.root(), String::new(), 0)];
    while let Some((folder, relative, depth)) = folders.pop() {
        let mut entries: Vec<(String, InodeNumber)> = volume
            .entries(folder)
            .map_err(fail)?
            .into_iter()
            .filter_map(|(name, inode)| Some((String::from_utf8(name).ok()?, inode)))
            .collect();
        entries.sort();
        for (name, inode) in entries {
            if reading.cancel.is_cancelled() {
                return Err(Error::cancelled());
            }
            let path = if relative.is_empty() { name } else { format!("{relative}/{name}") };
            let stat = volume.stat(inode).map_err(fail)?;
            if stat.kind == FileKind::Directory && depth < DEEPEST {
                folders.push((inode, path, depth + 1));
            } else if stat.kind == FileKind::File && wanted_module_path(&path) {
                budget
                    .take(&path, stat.size)
                    .map_err(|error| Error::failed("the kernel is too large").with_source(error))?;
                let content = volume.read(inode, LARGEST_FILE).map_err(fail)?;
                reading.progress.advance(content.len() as u64);
                sink.take(Part::Module(ModuleFile {
                    release: None,
                    path,
                    modified: stat.modified,
                    content,
                }))?;
            }
        }
    }
    Ok(())
}
