//! What reaches the image while content streams, and what does not.

use std::fs;
use std::os::unix::fs::MetadataExt;

use vmdeck_ext4::{FormatError, Formatter, InodeKind, Options, Tree};

use crate::content::{add_file, build, create, metadata, noise, options, write};
use crate::oracle::assert_clean;

#[test]
fn content_can_be_read_back_and_released() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let formatter = Formatter::create(create(&path), options()).unwrap();
    let mut writer = formatter.data_writer();
    let kept = noise(3_000_000, 4);
    writer.begin(10).unwrap();
    writer.write(&kept[..1_000_000]).unwrap();
    writer.write_hole(100_000).unwrap();
    writer.write(&kept[1_000_000..]).unwrap();
    let data = writer.end().unwrap();
    let secret = write(&mut writer, &b"a secret that must not stay ".repeat(1000));
    let between = write(&mut writer, b"stays");
    let more = write(&mut writer, &b"a secret of a second file ".repeat(300));
    let last = write(&mut writer, &b"a secret of a third one ".repeat(400_000));
    let expected = [&kept[..1_000_000], &[0; 100_000], &kept[1_000_000..]].concat();
    writer.flush().unwrap();
    drop(writer);

    let mut read = vec![1; expected.len() + 100];
    assert_eq!(formatter.read_at(&data, 0, &mut read).unwrap(), expected.len());
    assert!(read[..expected.len()] == expected);
    for offset in [0, 999_999, 1_000_001, 1_099_999, 3_099_990, 3_100_000, 9_999_999] {
        let mut part = vec![1; 5000];
        let length = formatter.read_at(&data, offset, &mut part).unwrap();
        let offset = (offset as usize).min(expected.len());
        assert!(part[..length] == expected[offset..(offset + 5000).min(expected.len())]);
    }

    // Out of order, and two that touch each other.
    formatter.release([&last, &secret, &more]).unwrap();
    let mut part = vec![0; 5];
    formatter.read_at(&between, 0, &mut part).unwrap();
    assert_eq!(part, b"stays");
    let mut tree = Tree::new(metadata(0o755));
    tree.create(tree.root(), b"kept", metadata(0o644), InodeKind::File(data)).unwrap();
    formatter.finish(&tree).unwrap();
    assert_clean(&path);
    let image = fs::read(&path).unwrap();
    assert!(!image.windows(8).any(|bytes| bytes == b"a secret"));
}

#[test]
fn holes_and_wrong_sizes_cost_nothing() {
    let image = build(options(), |writer, tree| {
        writer.begin(u64::MAX / 2).unwrap();
        writer.write_hole(10 << 30).unwrap();
        writer.write(b"end").unwrap();
        let hole = writer.end().unwrap();
        writer.begin(500 << 30).unwrap();
        writer.write(&[7; 10_000]).unwrap();
        let short = writer.end().unwrap();
        writer.begin(0).unwrap();
        writer.write(&noise(12 << 20, 3)).unwrap();
        let long = writer.end().unwrap();
        for (name, data) in [(&b"hole"[..], hole), (b"short", short), (b"long", long)] {
            tree.create(tree.root(), name, metadata(0o644), InodeKind::File(data)).unwrap();
        }
    });
    assert_clean(&image.path);
    assert!(image.summary.size < 128 << 20, "{:?}", image.summary);
    let allocated = fs::metadata(&image.path).unwrap().blocks() * 512;
    assert!(allocated < 20 << 20, "{allocated}");
}

#[test]
fn a_large_file_is_one_run_of_blocks() {
    build(options(), |writer, tree| {
        write(writer, &noise(5000, 1));
        let data = write(writer, &noise(20 << 20, 2));
        assert_eq!(data.extents.len(), 1);
        tree.create(tree.root(), b"large", metadata(0o644), InodeKind::File(data)).unwrap();
    });
}

#[test]
fn equal_content_gives_equal_images() {
    let make = || {
        let image = build(Options { size: 300 << 20, ..options() }, |writer, tree| {
            for index in 0..3000 {
                let length = (index * 37) % 9000;
                add_file(writer, tree, tree.root(), &format!("file {index}"), &noise(length, index as u64));
            }
            add_file(writer, tree, tree.root(), "large", &noise(3 << 20, 8));
        });
        fs::read(&image.path).unwrap()
    };
    assert!(make() == make());
}

#[test]
fn several_threads_stream_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let formatter = Formatter::create(create(&path), options()).unwrap();
    let written = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4u64)
            .map(|thread| {
                let formatter = &formatter;
                scope.spawn(move || {
                    let mut writer = formatter.data_writer();
                    let files: Vec<_> = (0..300u64)
                        .map(|index| {
                            let size = if index % 50 == 0 { 2 << 20 } else { index as usize * 50 };
                            let content = noise(size, thread * 1000 + index + 1);
                            (format!("{thread}-{index}"), write(&mut writer, &content), content)
                        })
                        .collect();
                    writer.flush().unwrap();
                    files
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let mut tree = Tree::new(metadata(0o755));
    for (name, data, content) in &written {
        let mut read = vec![0; content.len()];
        formatter.read_at(data, 0, &mut read).unwrap();
        assert!(read == *content, "{name}");
        tree.create(tree.root(), name.as_bytes(), metadata(0o644), InodeKind::File(data.clone())).unwrap();
    }
    formatter.finish(&tree).unwrap();
    assert_clean(&path);
}

#[test]
fn what_cannot_be_written_is_named_with_its_path() {
    let attempt = |fill: &dyn Fn(&mut Tree)| -> String {
        let formatter = Formatter::create(tempfile::tempfile().unwrap(), options()).unwrap();
        let mut tree = Tree::new(metadata(0o755));
        let directory =
            crate::content::add_directory(&mut tree, vmdeck_ext4::Tree::root(&Tree::new(metadata(0))), "d");
        tree.create(directory, b"x", metadata(0o644), InodeKind::Fifo).unwrap();
        fill(&mut tree);
        formatter.finish(&tree).unwrap_err().to_string()
    };
    let x = |tree: &Tree| {
        let directory = tree.lookup(tree.root(), b"d").unwrap();
        tree.lookup(directory, b"x").unwrap()
    };
    let message = attempt(&|tree| {
        let id = x(tree);
        tree.metadata_mut(id).xattrs.insert(b"user.big".to_vec(), vec![1; 5000]);
    });
    assert!(message.starts_with("`/d/x`: its extended attributes take 5020 bytes"), "{message}");
    let message = attempt(&|tree| {
        let directory = tree.lookup(tree.root(), b"d").unwrap();
        let kind = InodeKind::BlockDevice { major: 4096, minor: 0 };
        tree.create(directory, b"dev", metadata(0o644), kind).unwrap();
    });
    assert!(message.starts_with("`/d/dev`: has device number 4096:0"), "{message}");
    let message = attempt(&|tree| {
        let (root, id) = (tree.root(), x(tree));
        for index in 0..65_000 {
            tree.link(root, index.to_string().as_bytes(), id).unwrap();
        }
    });
    assert!(message.contains("has 65001 hard links"), "{message}");
    let message = attempt(&|tree| {
        let root = tree.root();
        tree.create(root, b"link", metadata(0o777), InodeKind::Symlink([b'x'; 4096][..].into())).unwrap();
    });
    assert!(message.starts_with("`/link`: its target has 4096 bytes"), "{message}");
    let message = attempt(&|tree| {
        let root = tree.root();
        let extent = vmdeck_ext4::Extent { logical: 0, physical: 1, blocks: 1 };
        let data = vmdeck_ext4::FileData { size: 4096, extents: vec![extent] };
        tree.create(root, b"stolen", metadata(0o644), InodeKind::File(data)).unwrap();
    });
    assert!(message.starts_with("`/stolen`: its content shares blocks"), "{message}");
}

#[test]
fn misuse_of_a_writer_is_an_error() {
    let formatter = Formatter::create(tempfile::tempfile().unwrap(), options()).unwrap();
    let mut writer = formatter.data_writer();
    assert!(matches!(writer.write(b"x"), Err(FormatError::NoFileBegun)));
    assert!(matches!(writer.end(), Err(FormatError::NoFileBegun)));
    writer.begin(0).unwrap();
    assert!(matches!(writer.write_hole(1 << 45), Err(FormatError::FileTooLarge { .. })));
    writer.begin(0).unwrap();
    writer.write(&[1; 5000]).unwrap();
    writer.end().unwrap();
    drop(writer);
    let tree = Tree::new(metadata(0o755));
    assert!(matches!(formatter.finish(&tree), Err(FormatError::NotFlushed)));
    let long = Options { label: "seventeen letters".into(), ..options() };
    assert!(matches!(
        Formatter::create(tempfile::tempfile().unwrap(), long),
        Err(FormatError::LabelTooLong { .. })
    ));
}
