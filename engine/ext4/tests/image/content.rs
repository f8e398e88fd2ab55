//! Helpers that make images in temporary files.

use std::fs::File;
use std::path::{Path, PathBuf};

use vmdeck_ext4::{
    DataWriter, Directory, FileData, Formatter, InodeId, InodeKind, Metadata, Options, Summary, Timestamp,
    Tree,
};

pub(crate) const CREATED: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 5 };

pub(crate) fn options() -> Options {
    Options {
        size: 0,
        free: 64 << 20,
        journal: 8 << 20,
        uuid: *b"vmdeck-ext4 test",
        label: "test".into(),
        created: CREATED,
    }
}

pub(crate) fn metadata(mode: u16) -> Metadata {
    Metadata { mode, modified: CREATED, ..Metadata::default() }
}

/// An image in a folder of its own.
pub(crate) struct Image {
    _folder: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) summary: Summary,
}

/// A folder in memory, where there is such a place: many small images are made, looked at and forgotten.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("vmdeck-ext4-").tempdir_in(place).unwrap()
}

/// Builds an image: `fill` streams content and names it in the tree.
pub(crate) fn build(options: Options, fill: impl FnOnce(&mut DataWriter<'_>, &mut Tree)) -> Image {
    let folder = scratch();
    let path = folder.path().join("image.ext4");
    let formatter = Formatter::create(create(&path), options).unwrap();
    let mut tree = Tree::new(metadata(0o755));
    let mut writer = formatter.data_writer();
    fill(&mut writer, &mut tree);
    writer.flush().unwrap();
    drop(writer);
    let (_, summary) = formatter.finish(&tree).unwrap();
    Image { _folder: folder, path, summary }
}

pub(crate) fn create(path: &Path) -> File {
    File::options().read(true).write(true).create_new(true).open(path).unwrap()
}

pub(crate) fn write(writer: &mut DataWriter<'_>, content: &[u8]) -> FileData {
    writer.begin(content.len() as u64).unwrap();
    writer.write(content).unwrap();
    writer.end().unwrap()
}

pub(crate) fn add_file(
    writer: &mut DataWriter<'_>,
    tree: &mut Tree,
    directory: InodeId,
    name: &str,
    content: &[u8],
) -> InodeId {
    let data = write(writer, content);
    tree.create(directory, name.as_bytes(), metadata(0o644), InodeKind::File(data)).unwrap()
}

pub(crate) fn add_directory(tree: &mut Tree, directory: InodeId, name: &str) -> InodeId {
    tree.create(directory, name.as_bytes(), metadata(0o755), InodeKind::Directory(Directory::new())).unwrap()
}

/// Bytes that do not repeat and hold no long runs of zeros.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
