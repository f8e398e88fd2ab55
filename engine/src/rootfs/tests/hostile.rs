//! Layers that mean harm, or are damaged: a clear error, threads that end, nothing outside.

use proptest::prelude::*;

use super::super::tar::{BLOCK, Content, Entry, Reader};
use super::super::torture;
use super::super::torture::archive::{Dialect, Item, archive, encode_records, seal};
use super::*;

/// The error these entries, as a second layer, end in.
fn error_of(items: &[Item]) -> Error {
    error_of_bytes(&archive(items))
}

fn error_of_bytes(layer: &[u8]) -> Error {
    let folder = tempfile::tempdir().unwrap();
    let base = [
        Item::folder("d"),
        Item::file("d/f", "f"),
        Item::symlink("loop-a", "loop-b"),
        Item::symlink("loop-b", "loop-a"),
    ];
    merged(folder.path(), &[archive(&base), layer.to_vec()]).unwrap_err()
}

fn check(items: &[Item], message: &str) {
    let error = error_of(items);
    let found = error.full_message();
    assert!(found.starts_with("layer 2: ") && found.contains(message), "{found:?} does not say {message:?}");
    assert!(error.hint().is_some(), "no next step: {found}");
}

#[test]
fn names_that_lead_out_of_the_image() {
    for name in ["../x", "/../x", "d/../../x", "d/../../../../../../etc/passwd", "..", "./.."] {
        check(&[Item::file(name, "x")], &format!("entry `{name}`: its name leads out of the image by `..`"));
    }
    check(&[Item::folder("..")], "leads out of the image");
    check(&[Item::symlink("../x", "y")], "leads out of the image");
    check(&[Item::whiteout("../", "x")], "leads out of the image");
}

#[test]
fn hard_links_that_lead_out_or_nowhere() {
    check(
        &[Item::hard_link("x", "../../etc/passwd")],
        "hard link that leads out of the image by `..`: `../../etc/passwd`",
    );
    check(&[Item::hard_link("x", "/../etc/passwd")], "leads out of the image");
    check(
        &[Item::hard_link("x", "/etc/passwd")],
        "entry `x`: it is a hard link to `etc/passwd`, which does not exist",
    );
    check(&[Item::hard_link("x", "d")], "hard link to the folder `d`");
    check(&[Item::hard_link("x", "")], "hard link to ``, which does not exist");
    check(&[Item::hard_link("x", "x")], "which does not exist");
    check(&[Item::hard_link("x", "loop-a/y")], "which does not exist");
    check(&[Item::hard_link("d", "d/f")], "hard link to `d/f`, which does not exist");
    check(&[Item::hard_link("x", "d/f/y")], "which does not exist");
}

#[test]
fn links_cannot_lead_anything_out() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let target = outside.to_str().unwrap();
    let items = [
        Item::symlink("way", target),
        Item::file("way/planted", "x"),
        Item::symlink("dots", "../../../../../../../../.."),
        Item::file("dots/planted", "x"),
    ];
    let dump = merged(folder.path(), &[archive(&items)]).unwrap();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    let inside = format!("{}/planted", target.trim_start_matches('/'));
    assert!(dump.contains_key(inside.as_bytes()) && dump.contains_key(&b"planted"[..]));
}

#[test]
fn tricks_with_names() {
    check(&[Item::file("./", "x")], "turn the root folder into something else");
    check(&[Item::symlink("/", "/etc")], "turn the root folder into something else");
    check(&[Item::hard_link(".", "d/f")], "turn the root folder into something else");
    check(&[Item::file("d/.wh.", "")], "whiteout of nothing");
    check(&[Item::file("d/.wh...", "")], "whiteout of nothing");
    check(&[Item::file("d/.wh.f/x", "")], "lies inside a whiteout");
    check(&[Item::file("x".repeat(256), "")], "a part longer than 255 bytes");
    check(&[Item::file("x/".repeat(2_100), "")], "longer than 4,096 bytes");
    check(&[Item::file("y", "").record("GNU.sparse.name", "a\0b")], "`GNU.sparse.name` makes no sense");
    check(&[Item::file("loop-a/x", "")], "too many symbolic links");
    check(&[Item::file("d/f/x", "")], "`d/f` on the way to it is not a folder");
    check(&[Item::symlink("x", "")], "a target of 1 to 4,095 bytes");
    check(&[Item::symlink("x", "y".repeat(4_096))], "a target of 1 to 4,095 bytes");
    check(&[Item::character("x", 4_096, 0)], "device number 4096:0 does not exist");
    check(&[Item::block("x", 1, 1 << 20)], "device number 1:1048576 does not exist");
}

#[test]
fn damaged_headers() {
    check(&[Item::file("x", "").typeflag(b'Z')], "unknown type `Z`");
    check(&[Item::file("x", "").typeflag(b'M')], "one of several volumes");
    check(&[Item::file("x", "").record("size", "-1")], "`size` makes no sense");
    check(&[Item::file("x", "").owner(1 << 40, 0)], "`uid` holds no number");
    check(&[Item::file("x", "").size(5_000)], "ends in the middle");
    check(&[Item::file("x", "").size(1 << 60)], "bytes of content in all layers");
    check(&[Item::file("x", "").size(u64::MAX >> 1)], "bytes of content in all layers");
    check(&[Item::sparse("x", (1, 0), 1 << 60, &[])], "bytes of content in all layers");
    check(&[Item::sparse("x", (1, 0), 5, &[(0, b"too long")])], "sparse file's map is malformed");
    check(&[Item::sparse("x", (0, 1), 100, &[(50, b"x"), (20, b"y")])], "sparse file's map is malformed");
    check(&[Item::file("x", "").record("GNU.sparse.offset", "5")], "sparse file's map is malformed");
    check(&[Item::file("x", "").record("GNU.sparse.major", "2")], "sparse file's map is malformed");
    check(&[Item::file("x", "").record("SCHILY.xattr.user.large", vec![b'x'; 2 << 20])], "longer than 1 MiB");
    let long = Item {
        content: vec![b'x'; 2 << 20],
        ..Item::file("././@LongLink", "").typeflag(b'L').dialect(Dialect::Gnu)
    };
    check(&[long, Item::file("x", "")], "longer than 1 MiB");

    let good = archive(&[Item::file("x", "x")]);
    let mut bad = good.clone();
    bad[0] ^= 1;
    assert!(error_of_bytes(&bad).full_message().contains("byte 512: a header's checksum is wrong"));
    assert!(error_of_bytes(&good[..700]).full_message().contains("ends in the middle"));
    assert!(error_of_bytes(&good[..100]).full_message().contains("ends in the middle"));
    let dangling = archive(&[Item { content: encode_records(&[]), ..Item::file("x", "").typeflag(b'x') }]);
    assert!(error_of_bytes(&dangling).full_message().contains("ends in the middle"));
    let mut lone = vec![0; BLOCK];
    lone.extend(&good);
    assert!(error_of_bytes(&lone).full_message().contains("a header follows a block of zeros"));
}

#[test]
fn a_header_may_be_summed_over_signed_bytes() {
    let mut block = [0; BLOCK];
    block[..4].copy_from_slice(b"\xff\xfea\0");
    block[100..107].copy_from_slice(b"0000644");
    seal(&mut block);
    let signed: i64 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { i64::from(byte.cast_signed()) })
        .sum();
    block[148..156].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
    let mut entry = Entry::default();
    assert!(Reader::new(&block[..]).next(&mut entry).unwrap());
    assert_eq!(entry.path, b"\xff\xfea");
}

/// One entry that makes thousands of folders, by links, is counted as what it makes.
#[test]
fn folders_made_by_links_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let target = "a/".repeat(2_000);
    let items = [Item::symlink("s", target), Item::file("s/x", "")];
    let mut options = options(folder.path(), 1);
    options.limits.entries = 1_000;
    let builder = RootfsBuilder::create(options.clone(), CancellationToken::new()).unwrap();
    let error = send(&builder, &[archive(&items)], Compression::None).unwrap_err();
    assert_eq!(error.full_message(), "layer 1: more than 1000 entries in all layers");
    // The same of an upper layer, which is merged when those below it are complete.
    let folder = tempfile::tempdir().unwrap();
    options.path = folder.path().join("rootfs.ext4");
    options.layers = 2;
    let builder = RootfsBuilder::create(options, CancellationToken::new()).unwrap();
    let bottom = archive(&[Item::file("f", "")]);
    send(&builder, &[bottom, archive(&items)], Compression::None).unwrap();
    let error = builder.finish(&[], None).unwrap_err();
    assert_eq!(error.full_message(), "layer 2: more than 1000 entries in all layers");
}

struct Count(u64);

impl Content for Count {
    fn write(&mut self, content: &[u8]) -> Result<(), LayerError> {
        self.0 += content.len() as u64;
        Ok(())
    }

    fn write_hole(&mut self, length: u64) -> Result<(), LayerError> {
        self.0 += length;
        Ok(())
    }
}

/// Reads an archive to its end or first error.
fn read(bytes: &[u8]) -> Result<(), LayerError> {
    let mut reader = Reader::new(bytes);
    let mut entry = Entry::default();
    while reader.next(&mut entry)? {
        if entry.size < 1 << 40 {
            let mut count = Count(0);
            reader.copy_content(&entry, &mut count)?;
            let expected =
                if entry.entry_type == super::super::tar::EntryType::Regular { entry.size } else { count.0 };
            assert_eq!(count.0, expected);
        }
    }
    Ok(())
}

fn torture_archive() -> &'static [u8] {
    static ARCHIVE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let mut items: Vec<_> = torture::layers(3).into_iter().flatten().collect();
        items.retain(|item| item.content.len() < 20_000);
        items.extend(torture::beyond_umoci());
        archive(&items)
    })
}

proptest! {
    /// Whatever bytes change, the reader ends with an entry, an end or an error.
    #[test]
    fn a_mutated_archive_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
        reseal in any::<bool>(),
    ) {
        let mut bytes = torture_archive().to_vec();
        bytes.truncate(cut.index(bytes.len()) + 1);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
            // With a right checksum, a damaged header gets further.
            let start = at / BLOCK * BLOCK;
            if reseal && let Some(block) = bytes[start..].first_chunk_mut::<BLOCK>() {
                seal(block);
            }
        }
        let _ = read(&bytes);
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let _ = read(&bytes);
        let _ = super::super::path::clean_entry(&bytes, &mut Vec::new());
    }
}
