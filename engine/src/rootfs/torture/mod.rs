//! Layers that hold everything which is known to go wrong when images are unpacked.
//!
//! Needs nothing but the standard library, so that other tests can take it in by its path. What is
//! in here is legal and means the same to `umoci unpack` as root; what that cannot unpack is in
//! [`beyond_umoci`].

pub mod archive;

use archive::{Dialect, Item};

/// Files in the large folder: more than a small index holds.
pub const LARGE_FOLDER: usize = 60_000;

/// The layers, bottom first, as lists of entries. `large` is the number of files in the large
/// folder.
pub fn layers(large: usize) -> Vec<Vec<Item>> {
    vec![base(large), changes(), Vec::new(), more_changes()]
}

fn base(large: usize) -> Vec<Item> {
    let mut items = vec![Item::folder("./").mode(0o755).time(1_500_000_000, 0)];
    names(&mut items);
    metadata(&mut items);
    contents(&mut items);
    links(&mut items);
    headers(&mut items);
    to_be_changed(&mut items);
    items.push(Item::folder("large/"));
    items.extend((0..large).map(|i| Item::file(format!("large/file-{i:05}"), format!("{i}\n"))));
    items
}

fn names(items: &mut Vec<Item>) {
    items.push(Item::folder("names"));
    items.push(Item::file(format!("names/{}", "n".repeat(255)), "255 bytes"));
    items.push(Item::file(format!("names/{}", "é".repeat(127)), "254 bytes of utf-8"));
    items.push(Item::file(b"names/\xff\xfe not utf-8".to_vec(), "bytes"));
    items.push(Item::file("names/new\nline", "newline"));
    items.push(Item::file("names/ spaces ", "blanks"));
    items.push(Item::file("names/back\\slash", "backslash"));
    items.push(Item::file("names/.whiteout", "no whiteout"));
    items.push(Item::file("names/a.wh.b", "no whiteout either"));
    items.push(Item::file("names/...", "three dots"));
    let mut deep = String::from("deep");
    for level in 0..40 {
        items.push(Item::folder(deep.clone()));
        deep = format!("{deep}/level-{level}");
    }
    items.push(Item::file(format!("{deep}-end"), "deep"));
    items.push(Item::file("/absolute/path", "taken relative to the root"));
    items.push(Item::file("./dotted/./path//twice", "made clean"));
    items.push(Item::file("dotted/../dotted/up", "made clean, too"));
    items.push(Item::file("implicit/parents/are/made", "0755"));
}

fn metadata(items: &mut Vec<Item>) {
    items.push(Item::folder("meta").mode(0o700).owner(12, 34));
    items.push(Item::file("meta/setuid", "su").mode(0o4755));
    items.push(Item::file("meta/setgid", "sg").mode(0o2755).owner(0, 42));
    items.push(Item::folder("meta/sticky").mode(0o1777));
    items.push(Item::folder("meta/setgid-folder").mode(0o2775).owner(7, 8));
    items.push(Item::file("meta/mode-0000", "none").mode(0));
    items.push(Item::folder("meta/folder-0000").mode(0));
    items.push(Item::file("meta/folder-0000/inside", "inside"));
    items.push(Item::file("meta/large-owner", "").owner(70_000, 100_000));
    items.push(Item::file("meta/huge-owner", "").owner(4_000_000_000, 4_294_967_294));
    items.push(Item::file("meta/gnu-owner", "").owner(3_000_000, 4_000_000_000).dialect(Dialect::Gnu));
    items.push(Item::file("meta/nanoseconds", "").time(1_234_567_890, 123_456_789));
    items.push(Item::file("meta/before-1970", "").time(-86_400, 0));
    items.push(Item::file("meta/before-1970-fraction", "").time(-2, 750_000_000));
    items.push(Item::file("meta/before-1970-gnu", "").time(-1_000_000, 0).dialect(Dialect::Gnu));
    items.push(Item::file("meta/after-2038", "").time(4_102_444_800, 999_999_999));
    items.push(Item::symlink("meta/link-time", "target").time(1_111_111_111, 111_111_111).owner(5, 6));
    items.push(Item::character("meta/null", 1, 3));
    items.push(Item::block("meta/disk", 259, 70_000).mode(0o640).owner(0, 6));
    items.push(Item::character("meta/large-major", 4_095, 1_048_575));
    items.push(Item::fifo("meta/fifo").owner(1, 2));

    items.push(Item::file("meta/user-xattr", "").xattr("user.comment", "hello"));
    items.push(Item::file("meta/binary-xattr", "").xattr("user.bytes", b"a\nb=c\0\xff\n".to_vec()));
    let many = (0..20).fold(Item::file("meta/many-xattrs", ""), |item, i| {
        item.xattr(&format!("user.attribute-{i}"), format!("value {i}"))
    });
    items.push(many);
    items.push(Item::file("meta/large-xattr", "").xattr("user.large", vec![b'x'; 3_500]));
    items.push(Item::folder("meta/folder-xattr").xattr("user.on.a.folder", "yes"));
    items.push(Item::file("meta/trusted-xattr", "").xattr("trusted.secret", "root sees it"));
    items.push(Item::file("meta/capability", "ping").mode(0o755).xattr("security.capability", capability()));
    items.push(Item::file("meta/acl", "").mode(0o660).xattr("system.posix_acl_access", acl()));
    items.push(Item::folder("meta/acl-default").mode(0o770).xattr("system.posix_acl_default", acl()));
    // Labels of the packing host: `umoci` leaves them out.
    items.push(Item::file("meta/selinux", "").xattr("security.selinux", "u:r:t:s0\0"));
}

/// `cap_net_raw+ep` (`struct vfs_cap_data`, version 2, linux/capability.h).
fn capability() -> Vec<u8> {
    [0x0200_0001_u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// `user::rw-,user:1000:r--,group::rw-,mask::rw-,other::---` (linux/posix_acl_xattr.h).
fn acl() -> Vec<u8> {
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01_u16, 6_u16, u32::MAX),
        (0x02, 4, 1000),
        (0x04, 6, u32::MAX),
        (0x10, 6, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

fn contents(items: &mut Vec<Item>) {
    let pattern = |length: usize| (0..length).map(|i| (i * 31 % 251) as u8).collect::<Vec<u8>>();
    for length in [0, 1, 511, 512, 513, 4_095, 4_096, 4_097, 60_000, 300_000, 5_000_000] {
        items.push(Item::file(format!("content/{length}"), pattern(length)));
    }
    items.push(Item::file("content/zeros", vec![0; 1 << 20]));
    let mut hole = pattern(3 << 20);
    hole[1 << 20..2 << 20].fill(0);
    items.push(Item::file("content/zeros-inside", hole));
    for version in [(0, 0), (0, 1), (1, 0)] {
        let name = format!("content/sparse-{}.{}", version.0, version.1);
        let (first, second) = (pattern(5_000), pattern(10_240));
        items.push(Item::sparse(&name, version, 3_000_001, &[(0, &first), (1_000_448, &second)]));
        let name = format!("content/sparse-end-{}.{}", version.0, version.1);
        items.push(Item::sparse(&name, version, 2_000_000, &[(1_990_000, &pattern(10_000))]));
    }
    items.push(Item::sparse("content/sparse-nothing", (1, 0), 1_000_000, &[]));
}

fn links(items: &mut Vec<Item>) {
    items.push(Item::folder("links"));
    items.push(Item::file("links/one", "one of many").owner(3, 4).xattr("user.shared", "by all"));
    items.push(Item::hard_link("links/two", "links/one"));
    items.push(Item::hard_link("links/three", "/links/two"));
    items.push(Item::hard_link("links/four", "./links/../links/three"));
    items.push(Item::symlink("links/soft", "one"));
    items.push(Item::hard_link("links/hard-to-soft", "links/soft"));
    items.push(Item::symlink("links/dangling", "nowhere/at/all"));
    items.push(Item::symlink("links/absolute", "/links/one"));
    items.push(Item::symlink("links/out", "../../../../etc/passwd"));
    items.push(Item::symlink("links/fast", "x".repeat(59)));
    items.push(Item::symlink("links/slow", "x".repeat(60)));
    items.push(Item::symlink("links/longest", format!("{}x", "x/".repeat(2_047))));
    items.push(Item::symlink("links/longest-gnu", "y".repeat(4_095)).dialect(Dialect::Gnu));
    items.push(Item::hard_link("links/to-fifo", "meta/fifo"));
    items.push(Item::folder("usr"));
    items.push(Item::folder("usr/bin"));
    items.push(Item::symlink("bin", "usr/bin"));
    items.push(Item::file("bin/through-a-link", "lies in usr/bin"));
    items.push(Item::symlink("jail", "../../../../usr"));
    items.push(Item::file("jail/bin/through-dots", "lies in usr/bin, too"));
    items.push(Item::symlink("made", "links/made-by-link"));
    items.push(Item::file("made/below", "its folder did not exist"));
    items.push(Item::hard_link("usr/bin/linked", "bin/through-a-link"));
}

fn headers(items: &mut Vec<Item>) {
    let long = format!("headers/{}/{}", "p".repeat(90), "q".repeat(120));
    items.push(Item::folder("headers"));
    items.push(Item::file(format!("{long}-pax"), "pax"));
    items.push(Item::file(format!("{long}-gnu"), "gnu").dialect(Dialect::Gnu));
    items.push(Item::symlink(format!("{long}-gnu-link"), format!("{long}-gnu")).dialect(Dialect::Gnu));
    items.push(Item::file("headers/v7", "v7").dialect(Dialect::V7).typeflag(0));
    items.push(Item::folder("headers/v7-folder/").dialect(Dialect::V7).typeflag(0));
    items.push(Item::file("headers/overruled", "pax wins").record("path", "headers/by-pax"));
    items.push(Item::file("headers/empty-record", "kept").record("path", "").record("comment", ""));
    items.push(Item::file("headers/unknown-record", "kept").record("VENDOR.thing", "x\ny"));
    items.push(Item::file("headers/twice", "first").mode(0o600));
    items.push(Item::file("headers/twice", "second").mode(0o640));
    items.push(Item::file("headers/file-then-folder", "gone"));
    items.push(Item::folder("headers/file-then-folder"));
    items.push(Item::folder("headers/folder-then-file"));
    items.push(Item::file("headers/folder-then-file/gone", "gone"));
    items.push(Item::file("headers/folder-then-file", "kept"));
    items.push(Item::folder("headers/folder-twice").mode(0o700));
    items.push(Item::file("headers/folder-twice/kept", "kept"));
    items.push(Item::folder("headers/folder-twice").mode(0o711));
    items.push(Item::folder("headers/folder-with-size").size(4096));
}

/// What the layers above will change.
fn to_be_changed(items: &mut Vec<Item>) {
    for folder in
        ["white", "white/folder", "white/folder/below", "white/opaque", "white/opaque-late", "white/kept"]
    {
        items.push(Item::folder(folder).mode(0o750).owner(9, 9));
    }
    for file in [
        "white/file",
        "white/folder/a",
        "white/folder/below/b",
        "white/opaque/lower",
        "white/opaque-late/lower",
        "white/again-before",
        "white/again-after",
        "white/as-link",
        "white/as-device",
        "white/as-folder",
        "white/kept/lower",
        "white/linked",
    ] {
        items.push(Item::file(file, file));
    }
    for name in ["white/again-folder", "white/again-folder-late"] {
        items.push(Item::folder(name).mode(0o700));
        items.push(Item::file(format!("{name}/lower"), "lower"));
    }
    items.push(Item::folder("real"));
    items.push(Item::file("real/lower", "must stay"));
    items.push(Item::symlink("white/link-to-real", "../real"));
    items.push(Item::symlink("white/way-to-real", "../real"));
    items.push(Item::file("real/hidden-through-link", "goes"));

    items.push(Item::folder("swap"));
    items.push(Item::file("swap/file-to-folder", "x"));
    items.push(Item::file("swap/file-to-link", "x"));
    items.push(Item::folder("swap/folder-to-file"));
    items.push(Item::file("swap/folder-to-file/below", "x"));
    items.push(Item::folder("swap/folder-to-link"));
    items.push(Item::file("swap/folder-to-link/below", "x"));
    items.push(Item::symlink("swap/link-to-folder", "../real"));
    items.push(Item::symlink("swap/link-to-file", "../real/lower"));
    items.push(Item::fifo("swap/fifo-to-device"));
    items.push(Item::folder("swap/metadata").mode(0o700).owner(1, 1).xattr("user.old", "goes"));
    items.push(Item::file("swap/metadata/kept", "kept"));
    items.push(Item::folder("swap/implicit").mode(0o711).owner(5, 5).time(1_000_000_000, 5));
    items.push(Item::folder("cross"));
    items.push(Item::file("cross/target", "linked from above").owner(11, 12));
    items.push(Item::file("cross/overwritten", "old content"));
    items.push(Item::symlink("cross/soft", "target"));
}

fn changes() -> Vec<Item> {
    vec![
        Item::whiteout("white/", "file"),
        Item::whiteout("white/", "folder"),
        Item::whiteout("white/", "never-was"),
        Item::whiteout("not/there/", "never-was"),
        Item::folder("white/opaque").mode(0o705),
        Item::opaque("white/opaque/"),
        Item::file("white/opaque/upper", "upper"),
        Item::folder("white/opaque-late"),
        Item::file("white/opaque-late/upper", "upper"),
        Item::opaque("white/opaque-late/"),
        Item::whiteout("white/", "again-before"),
        Item::file("white/again-before", "new"),
        Item::file("white/again-after", "new"),
        Item::whiteout("white/", "again-after"),
        Item::whiteout("white/", "again-folder"),
        Item::folder("white/again-folder"),
        Item::file("white/again-folder/upper", "upper"),
        Item::folder("white/again-folder-late"),
        Item::file("white/again-folder-late/upper", "upper"),
        Item::whiteout("white/", "again-folder-late"),
        Item::whiteout("white/", "as-link").typeflag(b'1'),
        Item::character("white/.wh.as-device", 0, 0),
        Item::folder("white/.wh.as-folder"),
        // A folder in the place of a link: Docker marks it opaque. What the link led to stays.
        Item::folder("white/link-to-real"),
        Item::opaque("white/link-to-real/"),
        Item::file("white/link-to-real/new", "new"),
        Item::whiteout("white/way-to-real/", "hidden-through-link"),
        // Renamed: a link first, then the old name goes.
        Item::hard_link("white/renamed", "white/linked"),
        Item::whiteout("white/", "linked"),
        Item::folder("swap/file-to-folder"),
        Item::file("swap/file-to-folder/below", "below"),
        Item::symlink("swap/file-to-link", "metadata"),
        Item::file("swap/folder-to-file", "now a file"),
        Item::symlink("swap/folder-to-link", "metadata"),
        Item::folder("swap/link-to-folder"),
        Item::file("swap/link-to-folder/below", "below"),
        Item::file("swap/link-to-file", "now a file"),
        Item::character("swap/fifo-to-device", 1, 5),
        Item::folder("swap/metadata")
            .mode(0o751)
            .owner(2, 3)
            .time(1_400_000_000, 1)
            .xattr("user.new", "comes"),
        Item::file("swap/implicit/child", "leaves its folder as it is"),
        Item::hard_link("cross/second", "cross/target"),
        Item::hard_link("cross/old", "cross/overwritten"),
        Item::file("cross/overwritten", "new content"),
        Item::hard_link("cross/new", "cross/overwritten"),
        Item::hard_link("cross/hard-to-soft", "cross/soft"),
    ]
}

fn more_changes() -> Vec<Item> {
    vec![
        Item::hard_link("cross/third", "cross/second"),
        Item::whiteout("cross/", "target"),
        Item::folder("swap/folder-to-file"),
        Item::file("swap/folder-to-file/again", "a folder again"),
        Item::file("white/file", "back again"),
        Item::opaque("white/kept/"),
        Item::whiteout("", "jail"),
        Item::folder(".").mode(0o711).owner(0, 0).time(1_700_000_000, 7),
    ]
}

/// Legal entries that `umoci` 0.4.7 refuses or loses, for one layer.
pub fn beyond_umoci() -> Vec<Item> {
    let many: Vec<(u64, &[u8])> = (0..60).map(|i| (i * 8192, &b"x"[..])).collect();
    vec![
        Item::global(&[("comment", "of all that follow"), ("SCHILY.xattr.user.global", "on all")]),
        Item::file("contiguous", "a regular file").typeflag(b'7'),
        Item::file("empty-xattr", "").xattr("user.empty", ""),
        Item::file("base64-xattr", "").record("LIBARCHIVE.xattr.user.b%2e64", "AAECAw"),
        Item::file("linked", "content"),
        Item::hard_link("link-without-content", "linked").size(7),
        Item { content: b"content".to_vec(), ..Item::hard_link("link-with-content", "linked") },
        Item::sparse("sparse-nothing-0.0", (0, 0), 1_000_000, &[]),
        Item::sparse("sparse-nothing-0.1", (0, 1), 1_000_000, &[]),
        Item::old_sparse(
            "old-sparse",
            10 << 30,
            &[(4096, b"first"), (1 << 30, b"second"), ((10 << 30) - 5, b"third")],
        ),
        // Four parts of the map fit into the header, 21 into each block behind it.
        Item::old_sparse("old-sparse-many", 60 * 8192, &many),
        // All names, links and owners of GNU at once.
        Item::file(format!("gnu/{}", "g".repeat(200)), "g").owner(-2, -2).dialect(Dialect::Gnu),
    ]
}
