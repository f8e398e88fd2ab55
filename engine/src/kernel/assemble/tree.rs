//! `modules.ext4`: the folder `/lib/modules/<release>` of a kernel as a file system.

use std::collections::HashMap;

use vmdeck_ext4::{
    DataWriter, Directory, FileData, Formatter, InodeId, InodeKind, Metadata, Timestamp, Tree, TreeError,
};

use super::{StoredFile, image_error};
use crate::error::{Error, Result};
use crate::kernel::modules::depmod::IndexFile;

/// Writes the content of one file.
pub(super) fn write(writer: &mut DataWriter<'_>, content: &[u8]) -> Result<FileData> {
    writer.begin(content.len() as u64).map_err(image_error)?;
    writer.write(content).map_err(image_error)?;
    writer.end().map_err(image_error)
}

/// Adds the index files and writes the file system's metadata.
pub(super) fn finish(
    formatter: Formatter,
    files: Vec<StoredFile>,
    indices: Vec<IndexFile>,
    created: Timestamp,
) -> Result<()> {
    let mut tree = TreeBuilder::new(created);
    for file in files {
        tree.add(&file.path, file.modified, file.data)?;
    }
    let mut writer = formatter.data_writer();
    for (name, content) in indices {
        let data = write(&mut writer, &content)?;
        tree.add(name, created, data)?;
    }
    writer.flush().map_err(image_error)?;
    drop(writer);
    let (file, _summary) = formatter.finish(&tree.tree).map_err(image_error)?;
    file.sync_all().map_err(|error| Error::io("cannot write the image of the modules", error))
}

struct TreeBuilder {
    tree: Tree,
    directories: HashMap<String, InodeId>,
    created: Timestamp,
}

impl TreeBuilder {
    fn new(created: Timestamp) -> Self {
        Self { tree: Tree::new(metadata(0o755, created)), directories: HashMap::new(), created }
    }

    fn add(&mut self, path: &str, modified: Timestamp, data: FileData) -> Result<()> {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let fail = |error: TreeError| {
            Error::failed(format!("cannot put `{}` into the image of the modules", path.escape_debug()))
                .with_source(error)
        };
        let directory = self.directory(directory).map_err(fail)?;
        // A package may hold a file twice; the later one counts, as when it is unpacked.
        self.tree.remove(directory, name.as_bytes());
        self.tree
            .create(directory, name.as_bytes(), metadata(0o644, modified), InodeKind::File(data))
            .map_err(fail)?;
        Ok(())
    }

    fn directory(&mut self, path: &str) -> Result<InodeId, TreeError> {
        let mut current = self.tree.root();
        for (end, _) in path.match_indices('/').chain((!path.is_empty()).then_some((path.len(), ""))) {
            let prefix = &path[..end];
            if let Some(&known) = self.directories.get(prefix) {
                current = known;
                continue;
            }
            let name = prefix.rsplit('/').next().unwrap_or(prefix);
            let kind = InodeKind::Directory(Directory::new());
            current = self.tree.create(current, name.as_bytes(), metadata(0o755, self.created), kind)?;
            self.directories.insert(prefix.to_owned(), current);
        }
        Ok(current)
    }
}

fn metadata(mode: u16, modified: Timestamp) -> Metadata {
    Metadata { mode, modified, ..Metadata::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_once_and_later_files_replace_earlier_ones() {
        let mut builder = TreeBuilder::new(Timestamp::default());
        for (path, size) in [("kernel/a/x.ko", 1), ("kernel/b/y.ko", 2), ("kernel/a/x.ko", 3), ("top", 4)] {
            let data = FileData { size, ..FileData::default() };
            builder.add(path, Timestamp::default(), data).unwrap();
        }
        let tree = &builder.tree;
        let kernel = tree.lookup(tree.root(), b"kernel").unwrap();
        assert_eq!(tree.directory(kernel).unwrap().len(), 2);
        let file = tree.lookup(tree.lookup(kernel, b"a").unwrap(), b"x.ko").unwrap();
        assert!(matches!(&tree.inode(file).kind, InodeKind::File(data) if data.size == 3));
        assert!(tree.lookup(tree.root(), b"top").is_some());
    }

    #[test]
    fn a_file_in_the_place_of_a_directory_is_an_error() {
        let mut builder = TreeBuilder::new(Timestamp::default());
        builder.add("a.ko", Timestamp::default(), FileData::default()).unwrap();
        assert!(builder.add("a.ko/b.ko", Timestamp::default(), FileData::default()).is_err());
    }
}
