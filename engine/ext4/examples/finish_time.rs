//! Times `Formatter::finish`: `finish_time FOLDER [INODES]` (50,000 when not said).
//!
//! The image is made in a nameless file in FOLDER. A tenth of the inodes are directories; files have
//! one to four blocks.

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use vmdeck_ext4::{Directory, Formatter, InodeKind, Metadata, Options, Timestamp, Tree};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: finish_time FOLDER [INODES]")?;
    let inodes: usize = arguments.next().map_or(Ok(50_000), |count| count.parse())?;
    let mut output = std::io::stdout();
    for _ in 0..5 {
        let options = Options {
            size: 0,
            free: 1 << 30,
            journal: 64 << 20,
            uuid: [7; 16],
            label: String::new(),
            created: Timestamp::default(),
        };
        let start = Instant::now();
        let formatter = Formatter::create(tempfile::tempfile_in(&folder)?, options)?;
        let mut tree = Tree::new(Metadata::default());
        let mut writer = formatter.data_writer();
        let mut directory = tree.root();
        let content = [0x55; 4 * 4096];
        for index in 0..inodes {
            let metadata = Metadata { mode: 0o755, ..Metadata::default() };
            let name = format!("some-file-name-{index}");
            if index % 10 == 0 {
                let kind = InodeKind::Directory(Directory::new());
                directory = tree.create(tree.root(), name.as_bytes(), metadata, kind)?;
            } else {
                writer.begin(0)?;
                writer.write(&content[..(index % 4 + 1) * 4096 - 100])?;
                let kind = InodeKind::File(writer.end()?);
                tree.create(directory, name.as_bytes(), metadata, kind)?;
            }
        }
        writer.flush()?;
        drop(writer);
        let streamed = start.elapsed();
        let start = Instant::now();
        let (_file, summary) = formatter.finish(&tree)?;
        let finished = start.elapsed();
        writeln!(output, "{} inodes: content {streamed:?}, finish {finished:?}", summary.inodes)?;
    }
    Ok(())
}
