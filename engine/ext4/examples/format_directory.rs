//! Writes a directory of this host into an ext4 image: `format_directory DIRECTORY IMAGE [SIZE]`.
//!
//! A demonstration and a measure: prints how long streaming the content and writing the metadata
//! took. It does not follow symbolic links and does not keep extended attributes.

use std::error::Error;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Instant;

use vmdeck_ext4::{DataWriter, Directory, Formatter, InodeId, InodeKind, Metadata, Options, Timestamp, Tree};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(source), Some(target)) = (arguments.next(), arguments.next()) else {
        return Err("usage: format_directory DIRECTORY IMAGE [SIZE]".into());
    };
    let size = arguments.next().map_or(Ok(0), |size| size.to_string_lossy().parse())?;
    let file = File::options().read(true).write(true).create(true).truncate(true).open(target)?;
    let options = Options {
        size,
        free: 64 << 20,
        journal: 64 << 20,
        uuid: [0x42; 16],
        label: String::new(),
        created: Timestamp { seconds: 1_700_000_000, nanoseconds: 0 },
    };
    let start = Instant::now();
    let formatter = Formatter::create(file, options)?;
    let mut tree = Tree::new(metadata(&fs::symlink_metadata(&source)?));
    let mut writer = formatter.data_writer();
    let root = tree.root();
    add(&mut writer, &mut tree, root, Path::new(&source))?;
    writer.flush()?;
    drop(writer);
    let streamed = start.elapsed();
    let (_, summary) = formatter.finish(&tree)?;
    let mut output = std::io::stdout();
    std::io::Write::write_fmt(
        &mut output,
        format_args!("{summary:?}\ncontent {streamed:?}, metadata {:?}\n", start.elapsed() - streamed),
    )?;
    Ok(())
}

fn metadata(metadata: &fs::Metadata) -> Metadata {
    Metadata {
        mode: (metadata.mode() & 0o7777) as u16,
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified: Timestamp { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() as u32 },
        ..Metadata::default()
    }
}

fn add(
    writer: &mut DataWriter<'_>,
    tree: &mut Tree,
    parent: InodeId,
    path: &Path,
) -> Result<(), Box<dyn Error>> {
    let mut buffer = vec![0; 256 << 10];
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let host = entry.metadata()?;
        let kind = if host.is_dir() {
            InodeKind::Directory(Directory::new())
        } else if host.is_symlink() {
            InodeKind::Symlink(fs::read_link(entry.path())?.as_os_str().as_bytes().into())
        } else if host.is_file() {
            let mut file = File::open(entry.path())?;
            writer.begin(host.len())?;
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    length => writer.write(&buffer[..length])?,
                }
            }
            InodeKind::File(writer.end()?)
        } else if host.file_type().is_fifo() {
            InodeKind::Fifo
        } else {
            continue;
        };
        let is_directory = matches!(kind, InodeKind::Directory(_));
        let id = tree.create(parent, entry.file_name().as_bytes(), metadata(&host), kind)?;
        if is_directory {
            add(writer, tree, id, &entry.path())?;
        }
    }
    Ok(())
}
