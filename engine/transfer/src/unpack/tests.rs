use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::pack;
use crate::wire::Writer;

const PLAIN: Attributes = Attributes { mode: 0o644, seconds: 1_000_000_000, nanoseconds: 5 };
const OPEN: Attributes = Attributes { mode: 0o755, ..PLAIN };

fn packed(source: &Path) -> Vec<u8> {
    let mut stream = Vec::new();
    pack(source, &mut stream, &mut |_| {}).unwrap();
    stream
}

fn unpacked(stream: &[u8], to: &Path, name: Option<&str>) -> (Result<Summary, TransferError>, Vec<String>) {
    let mut warnings = Vec::new();
    let result = Target::resolve(to, name.map(OsStr::new)).and_then(|target| {
        unpack(stream, &target, Policy::Untrusted, &mut |text| warnings.push(text), &mut |_| {})
    });
    (result, warnings)
}

/// A stream that a hostile peer could make.
fn stream(make: impl FnOnce(&mut Writer<&mut Vec<u8>>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes).unwrap();
    make(&mut writer);
    writer.end().unwrap();
    bytes
}

fn file(writer: &mut Writer<&mut Vec<u8>>, path: &str, content: &[u8]) {
    writer.file(PLAIN, OsStr::new(path)).unwrap();
    writer.data(content).unwrap();
    writer.file_end().unwrap();
}

#[test]
fn a_tree_arrives_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("tree");
    fs::create_dir_all(source.join("a/b")).unwrap();
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(source.join("a/big"), &content).unwrap();
    fs::write(source.join("empty"), "").unwrap();
    fs::write(source.join("a/tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(source.join("a/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("../no/where", source.join("a/link")).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::new(123_456_789, 987_654_321);
    let times = fs::FileTimes::new().set_modified(long_ago);
    File::open(source.join("a/big")).unwrap().set_times(times).unwrap();
    fs::set_permissions(source.join("a/b"), fs::Permissions::from_mode(0o500)).unwrap();
    File::open(source.join("a")).unwrap().set_times(times).unwrap();

    let to = folder.path().join("to");
    fs::create_dir(&to).unwrap();
    let (result, warnings) = unpacked(&packed(&source), &to, Some("tree"));
    let summary = result.unwrap();
    assert_eq!((summary.files, summary.bytes, summary.skipped), (4, 1_200_010, 0), "{warnings:?}");
    let to = to.join("tree");
    assert_eq!(fs::read(to.join("a/big")).unwrap(), content);
    assert_eq!(fs::read(to.join("empty")).unwrap(), b"");
    assert_eq!(fs::read_link(to.join("a/link")).unwrap(), Path::new("../no/where"));
    for timed in ["a", "a/big"] {
        assert_eq!(fs::metadata(to.join(timed)).unwrap().modified().unwrap(), long_ago, "{timed}");
    }
    assert_eq!(fs::metadata(to.join("a/b")).unwrap().mode() & 0o7777, 0o500);
    // What runs as somebody else there must not do so here.
    assert_eq!(fs::metadata(to.join("a/tool")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn names_follow_the_rules_of_cp() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("f"), "1").unwrap();
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/x"), "2").unwrap();
    fs::create_dir(at("to")).unwrap();
    symlink("to", at("to-link")).unwrap();
    fs::write(at("old"), "0").unwrap();
    symlink("old", at("old-link")).unwrap();
    let (f, d) = (packed(&at("f")), packed(&at("d")));
    for (stream, to, name, made) in [
        (&f, "to", Some("f"), "to/f"),
        (&f, "to/g", Some("f"), "to/g"),
        (&f, "old-link", Some("f"), "old"),
        (&d, "to-link/", Some("d"), "to/d/x"),
        (&d, "to/e", Some("d"), "to/e/x"),
        (&d, "to", None, "to/x"),
    ] {
        unpacked(stream, &at(to), name).0.unwrap();
        assert!(at(made).is_file(), "{to} {name:?}");
    }
    assert!(at("old-link").is_symlink());
    assert_eq!(fs::read_to_string(at("old")).unwrap(), "1");
    for (stream, to, says) in [
        (&f, "new/", "there is no folder"),
        (&f, "no/where", "there is no folder"),
        (&d, "f", "is not a folder"),
        (&d, "/dev/null", "is not a folder"),
        (&f, "/dev/null", "neither a file nor a link"),
    ] {
        let error = unpacked(stream, &at(to), Some("d")).0.unwrap_err();
        assert!(error.to_string().contains(says), "{to}: {error}");
    }
    fs::create_dir_all(at("to/d2/f")).unwrap();
    let error = unpacked(&f, &at("to/d2"), Some("f")).0.unwrap_err();
    assert!(error.to_string().contains("a folder has its name"), "{error}");
}

#[test]
fn devices_sockets_and_pipes_are_left_out_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("s");
    fs::create_dir(&source).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    nix::unistd::mkfifo(&source.join("pipe"), Mode::S_IRWXU).unwrap();
    fs::write(source.join("z"), "z").unwrap();
    let (result, warnings) = unpacked(&packed(&source), &folder.path().join("t"), Some("s"));
    assert_eq!(result.unwrap(), Summary { files: 1, bytes: 1, skipped: 0 });
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("pipe") && warnings[1].contains("socket"), "{warnings:?}");
    assert!(pack(Path::new("/dev/null"), io::sink(), &mut |_| {}).is_err());
}

#[test]
fn nothing_is_written_through_a_link_of_the_peer() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("mine"), "mine").unwrap();
    let to = folder.path().join("to");
    let hostile = stream(|writer| {
        writer.folder(OPEN, OsStr::new("")).unwrap();
        writer.link(OPEN, OsStr::new("out"), outside.as_os_str()).unwrap();
        file(writer, "out/mine", b"theirs");
        writer.folder(OPEN, OsStr::new("out/more")).unwrap();
        writer.link(OPEN, OsStr::new("file"), outside.join("mine").as_os_str()).unwrap();
        file(writer, "file", b"theirs");
        file(writer, "../outside/mine", b"theirs");
        file(writer, "/etc/vmdeck-was-here", b"theirs");
        file(writer, "fine", b"fine");
        // A folder replaced by a link cannot have its attributes set through it.
        writer.folder(Attributes { mode: 0, ..OPEN }, OsStr::new("out")).unwrap();
    });
    let (result, warnings) = unpacked(&hostile, &to, Some("x"));
    let summary = result.unwrap();
    assert_eq!(summary.skipped, 5, "{warnings:?}");
    assert_eq!(fs::read_to_string(outside.join("mine")).unwrap(), "mine");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_ne!(fs::metadata(&outside).unwrap().mode() & 0o777, 0);
    // A file takes the place of the link, not of what it leads to.
    assert_eq!(fs::read_to_string(to.join("file")).unwrap(), "theirs");
    assert!(!to.join("file").is_symlink());
    assert_eq!(fs::read_to_string(to.join("fine")).unwrap(), "fine");
    assert!(!Path::new("/etc/vmdeck-was-here").exists());
}

#[test]
fn a_cut_stream_leaves_no_half_file() {
    let folder = tempfile::tempdir().unwrap();
    let whole = stream(|writer| {
        writer.folder(OPEN, OsStr::new("")).unwrap();
        file(writer, "one", b"1");
        file(writer, "two", b"22222");
    });
    for length in 0..whole.len() {
        let to = folder.path().join("to");
        let (result, _) = unpacked(&whole[..length], &to, Some("x"));
        assert!(matches!(result, Err(TransferError::Cut)), "{length}: {result:?}");
        for entry in fs::read_dir(&to).into_iter().flatten() {
            let path = entry.unwrap().path();
            let expected = if path.ends_with("one") { "1" } else { "22222" };
            assert_eq!(fs::read_to_string(&path).unwrap(), expected, "{length} {path:?}");
        }
        let _ = fs::remove_dir_all(&to);
    }
}

#[test]
fn a_file_without_an_end_and_foreign_records_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let nested = stream(|writer| {
        writer.file(PLAIN, OsStr::new("")).unwrap();
        writer.file(PLAIN, OsStr::new("y")).unwrap();
    });
    let claims = [b"vmdeckT2".as_slice(), &[4, 0xff, 0xff, 0xff, 0xff]].concat();
    let unknown = [b"vmdeckT2".as_slice(), &[99, 0, 0, 0, 0]].concat();
    for hostile in [nested, claims, unknown, b"no stream at all".to_vec()] {
        let (result, _) = unpacked(&hostile, folder.path(), Some("x"));
        assert!(matches!(result, Err(TransferError::Malformed(_))), "{result:?}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

proptest! {
    /// Whatever order of folders, links and files a peer sends: nothing outside changes.
    #[test]
    fn no_order_of_records_leads_out(steps in prop::collection::vec((0..5_u8, 0..6_usize, 0..6_usize), 1..30)) {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("a"), "mine").unwrap();
        let before = fs::metadata(&outside).unwrap();
        let paths = ["a", "b", "a/a", "b/a", "a/b/a", "../outside/a"];
        let ends = [outside.to_str().unwrap(), "../outside", "a", "..", "b/a", "/"];
        let hostile = stream(|writer| {
            writer.folder(OPEN, OsStr::new("")).unwrap();
            for (kind, path, end) in steps {
                match kind {
                    0 => writer.folder(Attributes { mode: 0o700, ..OPEN }, OsStr::new(paths[path])).unwrap(),
                    1 => writer.link(OPEN, OsStr::new(paths[path]), OsStr::new(ends[end])).unwrap(),
                    2 => {
                        writer.named(PLAIN, OsStr::new(paths[path]), u32::try_from(end).unwrap()).unwrap();
                        writer.file_end().unwrap();
                    }
                    3 => writer.name(u32::try_from(end).unwrap(), OsStr::new(paths[path]), end == 5).unwrap(),
                    _ => file(writer, paths[path], b"theirs"),
                }
            }
        });
        let (result, _) = unpacked(&hostile, &folder.path().join("to"), Some("x"));
        prop_assert!(result.is_ok(), "{result:?}");
        prop_assert_eq!(fs::read_to_string(outside.join("a")).unwrap(), "mine");
        prop_assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        let after = fs::metadata(&outside).unwrap();
        prop_assert_eq!((before.mode(), before.mtime()), (after.mode(), after.mtime()));
        prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}

/// A folder where extended attributes of users can be set, if this host has one.
fn with_attributes() -> Option<tempfile::TempDir> {
    let places = [
        std::env::temp_dir(),
        Path::new("/dev/shm").to_owned(),
        Path::new(env!("CARGO_MANIFEST_DIR")).into(),
    ];
    let found = places.iter().find_map(|place| {
        let folder = tempfile::tempdir_in(place).ok()?;
        let probe = File::create(folder.path().join("probe")).ok()?;
        crate::extended::set(&probe, OsStr::new("user.probe"), b"1").ok()?;
        fs::remove_file(folder.path().join("probe")).ok()?;
        Some(folder)
    });
    if found.is_none() {
        eprintln!("skipped: no file system here keeps extended attributes");
    }
    found
}

fn attributes_of(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let tell = |name: &OsStr, value: &[u8]| -> Result<(), ()> {
        found.push((name.to_str().unwrap().to_owned(), value.to_owned()));
        Ok(())
    };
    crate::extended::each(File::open(path).unwrap(), tell).unwrap();
    found.sort();
    found
}

#[test]
fn extended_attributes_come_along() {
    let Some(folder) = with_attributes() else { return };
    let source = folder.path().join("s");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("f"), "content").unwrap();
    let long = vec![7; 3000];
    let set = |path: &Path, name: &str, value: &[u8]| {
        crate::extended::set(File::open(path).unwrap(), OsStr::new(name), value).unwrap();
    };
    set(&source, "user.of-folder", b"yes");
    set(&source.join("f"), "user.empty", b"");
    set(&source.join("f"), "user.long", &long);
    // As setfacl -m u:12345:r does it (Linux, posix_acl_xattr.h): version, then tag, permissions, id.
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let list = [
        2_u32.to_le_bytes().to_vec(),
        entry(1, 6, u32::MAX),
        entry(2, 4, 12_345),
        entry(4, 0, u32::MAX),
        entry(16, 4, u32::MAX),
        entry(32, 0, u32::MAX),
    ]
    .concat();
    let acl = "system.posix_acl_access";
    let has_lists =
        crate::extended::set(File::open(source.join("f")).unwrap(), OsStr::new(acl), &list).is_ok();
    let to = folder.path().join("t");
    let (result, warnings) = unpacked(&packed(&source), &to, Some("s"));
    assert_eq!((result.unwrap().skipped, warnings), (0, Vec::<String>::new()));
    assert_eq!(attributes_of(&to), [("user.of-folder".to_owned(), b"yes".to_vec())]);
    let mut expected = vec![("user.empty".to_owned(), Vec::new()), ("user.long".to_owned(), long)];
    if has_lists {
        expected.insert(0, (acl.to_owned(), list));
    }
    assert_eq!(attributes_of(&to.join("f")), expected);
    assert_eq!(fs::metadata(to.join("f")).unwrap().mode(), fs::metadata(source.join("f")).unwrap().mode());
}

#[test]
fn attributes_that_are_not_for_here_are_not_set() {
    let Some(folder) = with_attributes() else { return };
    let capability = [0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let hostile = stream(|writer| {
        writer.folder(OPEN, OsStr::new("")).unwrap();
        for name in ["trusted.overlay.opaque", "security.selinux", "system.nfs4_acl", "user.fine"] {
            writer.extended(OsStr::new(name), b"y").unwrap();
        }
        writer.file(PLAIN, OsStr::new("tool")).unwrap();
        writer.extended(OsStr::new("security.capability"), &capability).unwrap();
        writer.extended(OsStr::new("system.posix_acl_access"), b"no list").unwrap();
        writer.file_end().unwrap();
        // Of nothing that is open.
        writer.extended(OsStr::new("user.stray"), b"y").unwrap();
    });
    let to = folder.path().join("t");
    let (result, warnings) = unpacked(&hostile, &to, Some("x"));
    assert_eq!(result.unwrap().skipped, 0);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("posix_acl_access"), "{warnings:?}");
    assert_eq!(attributes_of(&to), [("user.fine".to_owned(), b"y".to_vec())]);
    assert_eq!(attributes_of(&to.join("tool")), []);
    // More than a value can have, and more than is kept of folders that are not done.
    let long = stream(|writer| {
        writer.folder(OPEN, OsStr::new("")).unwrap();
        writer.extended(OsStr::new("user.long"), &vec![0; crate::extended::MAX_VALUE + 1]).unwrap();
    });
    assert!(matches!(unpacked(&long, &to, Some("x")).0, Err(TransferError::Malformed(_))));
    let many = stream(|writer| {
        writer.folder(OPEN, OsStr::new("")).unwrap();
        for number in 0..40 {
            writer.extended(OsStr::new(&format!("user.{number}")), &vec![0; 60_000]).unwrap();
        }
    });
    let (result, warnings) = unpacked(&many, &to, Some("x"));
    result.unwrap();
    assert!(warnings.iter().any(|warning| warning.contains("too many")), "{warnings:?}");
}

#[test]
fn files_with_several_names_stay_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("s");
    fs::create_dir_all(source.join("b")).unwrap();
    fs::write(source.join("a"), "one").unwrap();
    for name in ["b/c", "d"] {
        fs::hard_link(source.join("a"), source.join(name)).unwrap();
    }
    // One of its names is not copied.
    fs::write(source.join("e"), "two").unwrap();
    fs::hard_link(source.join("e"), folder.path().join("elsewhere")).unwrap();
    let to = folder.path().join("t");
    // A second time over the first as well.
    for name in [Some("s"), None] {
        let (result, warnings) = unpacked(&packed(&source), &to, name);
        let expected = Summary { files: 4, bytes: 6, skipped: 0 };
        assert_eq!((result.unwrap(), warnings), (expected, Vec::<String>::new()));
        let inode = |name: &str| fs::metadata(to.join(name)).unwrap().ino();
        assert_eq!((inode("a"), inode("a")), (inode("b/c"), inode("d")));
        assert_eq!(fs::metadata(to.join("a")).unwrap().nlink(), 3);
        assert_eq!(fs::metadata(to.join("e")).unwrap().nlink(), 1);
        assert_eq!(fs::read_to_string(to.join("b/c")).unwrap(), "one");
        assert_eq!(fs::read_dir(&to).unwrap().count(), 4);
    }
}

#[test]
fn further_names_are_for_files_of_this_copy_alone() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("mine"), "mine").unwrap();
    let to = folder.path().join("to");
    fs::create_dir(&to).unwrap();
    fs::write(to.join("old"), "old").unwrap();
    let hostile = stream(|writer| {
        let name = OsStr::new;
        writer.folder(OPEN, name("")).unwrap();
        // No such number; one whose file was replaced by a link; one that never came to be.
        writer.name(1, name("x1"), false).unwrap();
        writer.named(PLAIN, name("f"), 2).unwrap();
        writer.file_end().unwrap();
        writer.link(OPEN, name("f"), outside.join("mine").as_os_str()).unwrap();
        writer.name(2, name("x2"), false).unwrap();
        writer.link(OPEN, name("out"), outside.as_os_str()).unwrap();
        writer.named(PLAIN, name("out/mine"), 3).unwrap();
        writer.file_end().unwrap();
        writer.name(3, name("x3"), false).unwrap();
        // Forgotten; through a link; over itself.
        writer.named(PLAIN, name("g"), 4).unwrap();
        writer.data(b"g").unwrap();
        writer.file_end().unwrap();
        writer.name(4, name("out/x4"), false).unwrap();
        writer.name(4, name("g"), false).unwrap();
        writer.name(4, name("old"), true).unwrap();
        writer.name(4, name("x5"), false).unwrap();
    });
    let target = Target::resolve(&to, None).unwrap();
    let mut warnings = Vec::new();
    let summary =
        unpack(&hostile[..], &target, Policy::Untrusted, &mut |text| warnings.push(text), &mut |_| {})
            .unwrap();
    assert_eq!(summary.skipped, 6, "{warnings:?}");
    assert_eq!(fs::read_to_string(outside.join("mine")).unwrap(), "mine");
    assert_eq!(fs::metadata(outside.join("mine")).unwrap().nlink(), 1);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    for name in ["x1", "x2", "x3", "x5"] {
        assert!(!to.join(name).exists(), "{name}");
    }
    assert_eq!(fs::read_to_string(to.join("old")).unwrap(), "g");
    assert_eq!(fs::metadata(to.join("g")).unwrap().nlink(), 2);
    let names: Vec<_> = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
}
