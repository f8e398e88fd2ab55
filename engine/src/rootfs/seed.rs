//! The work seed: what is in the image's `/root`, as a file system of its own. A machine's work
//! disk begins as a copy of it and is mounted there.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::path::Path;

use tokio_util::sync::CancellationToken;
use vmdeck_ext4::{
    DataWriter, Directory, FileData, FormatError, Formatter, InodeId, InodeKind, Metadata, Options,
    Timestamp, Tree,
};

use super::error::{EntryError, RootfsError};
use super::jail::Jail;

/// Bytes of the smallest seed's free space. The disk is grown to what the machine asks for.
const FREE: u64 = 64 << 20;
/// Bytes of the journal: one transaction must hold what growing the file system online changes, and
/// the kernel lets a transaction have a quarter of the journal. Sparse, so it costs nothing.
const JOURNAL: u64 = 32 << 20;
/// Bytes to copy in one step.
const STEP: usize = 1 << 20;

/// Writes the seed to a new file.
pub(super) fn write(
    jail: &Jail,
    image: &Formatter,
    path: &Path,
    image_uuid: [u8; 16],
    created: Timestamp,
    cancel: &CancellationToken,
) -> Result<(), RootfsError> {
    let home = jail.follow(b"root").filter(|id| jail.tree.inode(*id).is_directory());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(RootfsError::io(format!("create `{}`", path.display())))?;
    let options = Options {
        size: 0,
        free: FREE,
        journal: JOURNAL,
        uuid: derived(image_uuid),
        label: "vmdeck-work".into(),
        created,
    };
    let format = |doing| move |source| RootfsError::Format { doing, source };
    let seed = Formatter::create(file, options).map_err(format("create the work seed"))?;
    let tree = match home {
        Some(home) => Copy { jail, image, cancel }.copy(home, &seed)?,
        None => Tree::new(Metadata { mode: 0o700, modified: created, ..Metadata::default() }),
    };
    let (file, _) = seed.finish(&tree).map_err(format("write the work seed"))?;
    file.sync_data().map_err(RootfsError::io(format!("write `{}`", path.display())))
}

/// A UUID for the second file system of an image, made from that of the first.
fn derived(mut uuid: [u8; 16]) -> [u8; 16] {
    // The last six bytes: version and variant lie before them.
    for byte in &mut uuid[10..] {
        *byte ^= 0x5a;
    }
    uuid
}

struct Copy<'a> {
    jail: &'a Jail,
    image: &'a Formatter,
    cancel: &'a CancellationToken,
}

impl Copy<'_> {
    /// A tree whose root is `home`, its content copied.
    fn copy(&self, home: InodeId, seed: &Formatter) -> Result<Tree, RootfsError> {
        let source = &self.jail.tree;
        let mut tree = Tree::new(source.inode(home).metadata.clone());
        let mut writer = seed.data_writer();
        // Inodes with several names, so that they stay one.
        let mut copied: HashMap<InodeId, InodeId> = HashMap::new();
        let mut folders = vec![(home, tree.root())];
        while let Some((from, to)) = folders.pop() {
            for (name, id) in source.directory(from).into_iter().flatten() {
                if self.cancel.is_cancelled() {
                    return Err(RootfsError::Cancelled);
                }
                let inode = source.inode(*id);
                let placed = if let Some(present) = copied.get(id) {
                    tree.link(to, name, *present)
                } else {
                    let kind = match &inode.kind {
                        InodeKind::Directory(_) => InodeKind::Directory(Directory::new()),
                        InodeKind::File(data) => InodeKind::File(
                            copy_content(self.image, data, &mut writer).map_err(|source| {
                                RootfsError::Format { doing: "copy a file to the work seed", source }
                            })?,
                        ),
                        other => other.clone(),
                    };
                    tree.create(to, name, inode.metadata.clone(), kind).map(|new| {
                        if inode.is_directory() {
                            folders.push((*id, new));
                        } else if inode.links() > 1 {
                            copied.insert(*id, new);
                        }
                    })
                };
                placed.map_err(|error| RootfsError::Injection {
                    path: super::error::escape(name),
                    source: EntryError::from(error),
                })?;
            }
        }
        writer.flush().map_err(|source| RootfsError::Format { doing: "write the work seed", source })?;
        Ok(tree)
    }
}

/// Copies what is stored of a file; its holes stay holes.
fn copy_content(
    image: &Formatter,
    data: &FileData,
    writer: &mut DataWriter<'_>,
) -> Result<FileData, FormatError> {
    const BLOCK: u64 = 4096;
    let stored = data.extents.iter().map(|extent| u64::from(extent.blocks) * BLOCK).sum::<u64>();
    writer.begin(stored.min(data.size))?;
    let mut buffer = vec![0; STEP.min(usize::try_from(stored).unwrap_or(STEP))];
    let mut position = 0;
    for extent in &data.extents {
        let start = u64::from(extent.logical) * BLOCK;
        let end = (start + u64::from(extent.blocks) * BLOCK).min(data.size);
        if start > position {
            writer.write_hole(start - position)?;
        }
        position = start;
        while position < end {
            let length = usize::try_from(end - position).unwrap_or(STEP).min(STEP);
            let count = image.read_at(data, position, &mut buffer[..length])?;
            if count == 0 {
                return Err(FormatError::Io(std::io::ErrorKind::UnexpectedEof.into()));
            }
            writer.write(&buffer[..count])?;
            position += count as u64;
        }
    }
    if data.size > position {
        writer.write_hole(data.size - position)?;
    }
    writer.end()
}
