//! Packing, order, digests, limits, cancel.

use std::os::unix::fs::MetadataExt;

use super::super::torture;
use super::super::torture::archive::{Item, archive};
use super::*;

fn sample() -> Vec<u8> {
    let random: Vec<u8> = (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    archive(&[
        Item::folder("d"),
        Item::file("d/a", "a"),
        Item::file("d/random", random),
        Item::file("z", "end"),
    ])
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 3).unwrap()
}

fn build(layers: &[Vec<u8>], compression: Compression) -> Result<Dump> {
    let folder = tempfile::tempdir().unwrap();
    let builder = RootfsBuilder::create(options(folder.path(), layers.len()), CancellationToken::new())?;
    send(&builder, layers, compression)?;
    Ok(dump_tree(&builder.merge(&[])?))
}

#[test]
fn every_packing_gives_the_same_tree() {
    let tar = sample();
    let expected = build(std::slice::from_ref(&tar), Compression::None).unwrap();
    assert_eq!(expected.len(), 5);
    let parts = [&tar[..100], &tar[100..1_000], &tar[1_000..200_001], &tar[200_001..]];
    let members: Vec<u8> = parts.iter().flat_map(|part| gzip(part)).collect();
    let frames: Vec<u8> = parts.iter().flat_map(|part| zstd(part)).collect();
    let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
    let cases = [
        ("none", tar.clone()),
        ("gzip", gzip(&tar)),
        ("members", members.clone()),
        ("an empty member", [gzip(b""), members.clone(), gzip(b"")].concat()),
        ("zeros behind", [gzip(&tar), vec![0; 1_000]].concat()),
        ("garbage behind", [gzip(&tar), b"garbage".repeat(100_000)].concat()),
        ("one byte behind", [gzip(&tar), b"\x1f".to_vec()].concat()),
        ("zstd", zstd(&tar)),
        ("frames", [skippable.clone(), frames, skippable].concat()),
        ("garbage behind the archive", gzip(&[&tar[..], &b"garbage".repeat(100_000)].concat())),
        ("no end blocks", gzip(&tar[..tar.len() - 1_024])),
        ("one end block", gzip(&tar[..tar.len() - 512])),
    ];
    for (name, packed) in cases {
        let found = build(&[packed], Compression::Detect).unwrap();
        assert_eq!(found, expected, "{name}");
    }
    // What is announced yields to what is there, as with the container engines.
    assert_eq!(build(&[zstd(&tar)], Compression::Gzip).unwrap(), expected);
    assert_eq!(build(&[gzip(&tar)], Compression::None).unwrap(), expected);
}

#[test]
fn an_empty_layer_is_a_layer() {
    for (packed, compression) in
        [(vec![], Compression::None), (gzip(&[]), Compression::Gzip), (gzip(&[0; 1_024]), Compression::Gzip)]
    {
        let dump = build(&[gzip(&sample()), packed], compression).unwrap();
        assert_eq!(dump.len(), 5);
    }
}

#[test]
fn damaged_packing_is_told() {
    let check = |packed: Vec<u8>, compression: Compression, message: &str| {
        let error = build(&[packed], compression).unwrap_err();
        assert!(
            error.full_message().contains(message),
            "{:?} does not say {message:?}",
            error.full_message()
        );
        assert!(error.hint().is_some());
    };
    let (gz, zst) = (gzip(&sample()), zstd(&sample()));
    for cut in [1, 5, 15, 1_000, gz.len() - 9, gz.len() - 1] {
        check(
            gz[..cut].to_vec(),
            Compression::Gzip,
            if cut < 2 { "begins with" } else { "gzip stream ends too early" },
        );
    }
    for cut in [5, 1_000, zst.len() - 1] {
        check(zst[..cut].to_vec(), Compression::Zstd, "zstd stream ends too early");
    }
    let mut flipped = gz.clone();
    let at = flipped.len() - 6;
    flipped[at] ^= 1;
    check(flipped, Compression::Gzip, "the gzip stream is damaged");
    let mut flipped = zst.clone();
    flipped[zst.len() / 2] ^= 1;
    assert!(build(&[flipped], Compression::Zstd).is_err());
    check([&zst[..], b"garbage"].concat(), Compression::Zstd, "the zstd stream is damaged");
    check(vec![], Compression::Gzip, "gzip stream ends too early");
    check(b"BZh91AY&SY".to_vec(), Compression::Detect, "packed with bzip2");
    check(b"\xfd7zXZ\0\0".to_vec(), Compression::None, "packed with xz");
    check(b"hello, world".to_vec(), Compression::Zstd, "begins with `hello,`");
}

#[test]
fn the_diff_id_is_that_of_the_whole_stream() {
    let tar = [sample(), b"behind the archive's end".repeat(50_000)].concat();
    let right = format!("sha256:{}", hex(&tar));
    let run = |diff_id: &str| {
        let folder = tempfile::tempdir().unwrap();
        let builder = RootfsBuilder::create(options(folder.path(), 1), CancellationToken::new()).unwrap();
        let sink = builder.layer(0, Compression::Gzip, Some(diff_id.into())).unwrap();
        sink.bytes.blocking_send(gzip(&tar).into()).unwrap();
        finish(sink)
    };
    run(&right).unwrap();
    let error = run(&format!("sha256:{}", "0".repeat(64))).unwrap_err();
    assert_eq!(
        error.full_message(),
        format!(
            "layer 1 (sha256:000000000000): the uncompressed layer is {right}, the image's config says sha256:{}",
            "0".repeat(64)
        )
    );
}

#[test]
fn limits_hold_over_all_layers() {
    let run = |limits: RootfsLimits, layers: &[Vec<u8>]| {
        let folder = tempfile::tempdir().unwrap();
        let options = RootfsOptions { limits, ..options(folder.path(), layers.len()) };
        let builder = RootfsBuilder::create(options, CancellationToken::new()).unwrap();
        send(&builder, layers, Compression::Detect)
    };
    let layers = [sample(), sample()];
    let limits = RootfsLimits::default();
    run(RootfsLimits { entries: 8, bytes: 600_100, ..limits }, &layers).unwrap();
    let error = run(RootfsLimits { entries: 7, ..limits }, &layers).unwrap_err();
    assert!(error.full_message().ends_with("more than 7 entries in all layers"));
    let error = run(RootfsLimits { bytes: 600_000, ..limits }, &layers).unwrap_err();
    assert!(error.full_message().ends_with("more than 600000 bytes of content in all layers"));
    let bomb = zstd(&archive(&[Item::file("bomb", vec![0; 100 << 20])]));
    let error = run(RootfsLimits { ratio: 100, ..limits }, std::slice::from_ref(&bomb)).unwrap_err();
    assert!(error.full_message().contains("more than 100 for each"), "{}", error.full_message());
    assert!(error.hint().unwrap().contains("bomb"));
    run(RootfsLimits { ratio: 1 << 20, ..limits }, &[bomb]).unwrap();
}

#[test]
fn a_cancel_ends_everything_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let cancel = CancellationToken::new();
    let builder = RootfsBuilder::create(options(folder.path(), 3), cancel.clone()).unwrap();
    // One waits for its first byte, one is in the middle of a file, one is finished.
    let silent = builder.layer(0, Compression::Gzip, None).unwrap();
    let halfway = builder.layer(1, Compression::Gzip, None).unwrap();
    let packed = gzip(&sample());
    halfway.bytes.blocking_send(Bytes::copy_from_slice(&packed[..packed.len() / 2])).unwrap();
    let whole = builder.layer(2, Compression::Gzip, None).unwrap();
    whole.bytes.blocking_send(packed.into()).unwrap();
    finish(whole).unwrap();
    // They would wait for more bytes for ever.
    cancel.cancel();
    for sink in [silent, halfway] {
        assert!(finish(sink).unwrap_err().is_cancelled());
    }
    assert!(builder.finish(&[], None).unwrap_err().is_cancelled());
}

#[test]
fn dropping_the_builder_ends_its_threads() {
    let folder = tempfile::tempdir().unwrap();
    let builder = RootfsBuilder::create(options(folder.path(), 2), CancellationToken::new()).unwrap();
    let first = builder.layer(0, Compression::Gzip, None).unwrap();
    let second = builder.layer(1, Compression::Gzip, None).unwrap();
    let shared = Arc::downgrade(&builder.shared);
    drop(builder);
    assert!(shared.upgrade().is_none(), "a thread still holds the image");
    assert!(first.bytes.blocking_send(Bytes::from_static(b"late")).is_err());
    assert!(finish(second).unwrap_err().is_cancelled());
}

#[test]
fn a_failed_layer_does_not_block_its_sender() {
    let folder = tempfile::tempdir().unwrap();
    let builder = RootfsBuilder::create(options(folder.path(), 1), CancellationToken::new()).unwrap();
    let sink = builder.layer(0, Compression::None, None).unwrap();
    let piece = Bytes::from(vec![b'x'; 100_000]);
    let sent = (0..1_000).take_while(|_| sink.bytes.blocking_send(piece.clone()).is_ok()).count();
    assert!(sent < 100, "{sent} pieces were taken by a layer that is no archive");
    assert!(finish(sink).unwrap_err().full_message().contains("checksum"));
    assert!(builder.finish(&[], None).unwrap_err().full_message().contains("layer 0"));
}

#[test]
fn layers_must_be_complete_and_begun_once() {
    let folder = tempfile::tempdir().unwrap();
    let builder = RootfsBuilder::create(options(folder.path(), 2), CancellationToken::new()).unwrap();
    let sink = builder.layer(1, Compression::None, None).unwrap();
    assert!(builder.layer(1, Compression::None, None).is_err());
    assert!(builder.layer(2, Compression::None, None).is_err());
    sink.bytes.blocking_send(sample().into()).unwrap();
    finish(sink).unwrap();
    assert_eq!(builder.finish(&[], None).unwrap_err().to_string(), "layer 0 was never begun");
    // A connection that breaks off looks like a stream that ends.
    let folder = tempfile::tempdir().unwrap();
    let builder = RootfsBuilder::create(options(folder.path(), 1), CancellationToken::new()).unwrap();
    let sink = builder.layer(0, Compression::Gzip, None).unwrap();
    sink.bytes.blocking_send(Bytes::copy_from_slice(&gzip(&sample())[..500])).unwrap();
    assert!(finish(sink).unwrap_err().full_message().contains("ends too early"));
}

#[test]
fn what_upper_layers_hide_is_cut_out_of_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let secret = b"a secret that was deleted again ".repeat(100_000);
    let layers = [
        archive(&[
            Item::file("secret", &secret[..]),
            Item::file("replaced", &secret[..]),
            Item::file("kept", "kept"),
        ]),
        archive(&[Item::whiteout("", "secret"), Item::file("replaced", "short")]),
    ];
    let path = image(folder.path(), &layers).unwrap();
    let content = std::fs::read(&path).unwrap();
    assert!(!content.windows(32).any(|window| window == &secret[..32]), "the image still holds it");
    assert!(content.windows(4).any(|window| window == b"kept"));
    let allocated = path.metadata().unwrap().blocks() * 512;
    assert!(allocated < 2 << 20, "{allocated} bytes are allocated");
}

#[test]
fn injections_contents_and_the_work_seed() {
    let folder = tempfile::tempdir().unwrap();
    let layer = archive(&[
        Item::folder("root").mode(0o700).owner(0, 0),
        Item::file("root/.bashrc", "alias"),
        Item::hard_link("root/again", "root/.bashrc"),
        Item::folder("root/.ssh").mode(0o750),
        Item::sparse("root/sparse", (1, 0), 10_000_000, &[(0, b"start"), (9_000_000, b"near the end")]),
        Item::symlink("root/link", ".bashrc"),
        Item::fifo("root/fifo"),
        Item::file("root/capable", "x").xattr("user.comment", "kept"),
        Item::symlink("etc/resolv.conf", "../run/resolv.conf"),
        Item::symlink("etc/os-release", "../usr/lib/os-release"),
        Item::file("usr/lib/os-release", "ID=debian\nVERSION_ID=\"12\"\n"),
        Item::file("usr/lib/systemd/systemd", "elf").mode(0o755),
        Item::symlink("sbin", "usr/sbin"),
        Item::symlink("usr/sbin/init", "/usr/lib/systemd/systemd"),
        Item::file("bin/sh", "elf").mode(0o755),
    ]);
    let builder = RootfsBuilder::create(options(folder.path(), 1), CancellationToken::new()).unwrap();
    send(&builder, &[layer], Compression::None).unwrap();
    // The home of an image's root user.
    let home = |name: &str| format!("/root{name}");
    let injection = |path: &str, mode: u16, content: &str| Injection {
        path: path.into(),
        mode,
        uid: 0,
        gid: 0,
        content: content.into(),
    };
    let seed = folder.path().join("seed.ext4");
    let rootfs = builder
        .finish(
            &[
                injection(&home("/.ssh"), 0o040_700, ""),
                injection(&home("/.ssh/authorized_keys"), 0o600, "key"),
                injection("/etc/resolv.conf", 0o644, "nameserver"),
                injection("/new/folder/file", 0o644, "new"),
            ],
            Some(&seed),
        )
        .unwrap();
    let path = folder.path().join("rootfs.ext4");
    check_image(&path);
    check_image(&seed);
    assert_eq!(path.metadata().unwrap().len(), rootfs.size);
    assert!(rootfs.used < rootfs.size && rootfs.size >= 256 << 20);
    let contents = &rootfs.contents;
    assert_eq!(contents.init, Some("/sbin/init"));
    assert_eq!(contents.init_system, Some(InitSystem::Systemd));
    assert!(contents.shell && !contents.udev);
    assert_eq!(contents.os_release["ID"], "debian");

    let (Some(root), Some(seed)) = (Mount::new(&path), Mount::new(&seed)) else { return };
    let (root, seed) = (root.dump(), seed.dump());
    let at = |name: &str| &root[name.as_bytes()];
    assert_eq!((at("root/.ssh").mode, at("root/.ssh/authorized_keys").mode), (0o700, 0o600));
    assert_eq!(at("root/.ssh/authorized_keys").content, hex(b"key"));
    assert_eq!((at("etc/resolv.conf").kind, &at("etc/resolv.conf").content), ("file", &hex(b"nameserver")));
    assert_eq!(at("new/folder").mode, 0o755);
    // The seed is exactly what is below /root, without that name.
    let mut expected = Dump::new();
    for (name, node) in &root {
        let Some(below) = name.strip_prefix(b"root") else { continue };
        let mut node = node.clone();
        node.same_as = node.same_as[b"root/".len().min(node.same_as.len())..].to_vec();
        expected.insert(below.strip_prefix(b"/").unwrap_or(below).to_vec(), node);
    }
    let lines = differences(&seed, &expected, |_, _| ());
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

#[test]
fn an_image_without_a_home_gets_an_empty_seed() {
    let folder = tempfile::tempdir().unwrap();
    for (name, layer) in [
        ("none", archive(&[Item::file("x", "x")])),
        ("a file", archive(&[Item::file("root", "x")])),
        ("a link out", archive(&[Item::symlink("root", "../../../../../nowhere")])),
    ] {
        let seed = folder.path().join(format!("{name}.seed"));
        let options = RootfsOptions { path: folder.path().join(name), ..options(folder.path(), 1) };
        let builder = RootfsBuilder::create(options, CancellationToken::new()).unwrap();
        send(&builder, &[layer], Compression::None).unwrap();
        builder.finish(&[], Some(&seed)).unwrap();
        check_image(&seed);
    }
}

#[test]
fn what_umoci_refuses_but_is_legal() {
    let folder = scratch();
    let layer = archive(&torture::beyond_umoci());
    let path = image(folder.path(), &[layer]).unwrap();
    assert!(path.metadata().unwrap().blocks() * 512 < 32 << 20, "a sparse file takes its full size");
    let Some(mount) = Mount::new(&path) else { return };
    let dump = mount.dump();
    let at = |name: &str| &dump[name.as_bytes()];
    assert_eq!(at("contiguous").content, hex(b"a regular file"));
    assert_eq!(at("empty-xattr").xattrs[&b"user.empty"[..]], b"");
    assert_eq!(at("empty-xattr").xattrs[&b"user.global"[..]], b"on all");
    assert_eq!(at("base64-xattr").xattrs[&b"user.b.64"[..]], [0, 1, 2, 3]);
    assert_eq!((at("linked").links, &at("linked").content), (3, &hex(b"content")));
    assert_eq!(at("sparse-nothing-0.1").content, hex(&vec![0; 1_000_000]));
    assert_eq!(at("old-sparse").size, 10 << 30);
    let file = std::fs::File::open(mount.0.path().join("old-sparse")).unwrap();
    for (offset, content) in [(4096, &b"first\0"[..]), (1 << 30, b"second\0"), ((10 << 30) - 6, b"\0third")] {
        let mut found = vec![0; content.len()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, offset).unwrap();
        assert_eq!(found, content);
    }
    let many: Vec<u8> = (0..60).flat_map(|_| [&b"x"[..], &[0; 8191]].concat()).collect();
    assert_eq!(at("old-sparse-many").content, hex(&many));
    assert_eq!(at(&format!("gnu/{}", "g".repeat(200))).uid, u32::MAX - 1);
}

#[test]
fn aufs_layers_keep_their_hard_links() {
    let dump = build(
        &[archive(&[
            Item::folder(".wh..wh.plnk"),
            Item::file(".wh..wh.plnk/1.2", "shared"),
            Item::file(".wh..wh.aufs", ""),
            Item::folder(".wh..wh.orph"),
            Item::file(".wh..wh.orph/x", "x"),
            Item::hard_link("one", ".wh..wh.plnk/1.2"),
            Item::hard_link("two", ".wh..wh.plnk/1.2"),
        ])],
        Compression::None,
    )
    .unwrap();
    assert_eq!(dump.keys().map(|name| name.as_slice()).collect::<Vec<_>>(), [&b""[..], b"one", b"two"]);
    assert_eq!((dump[&b"two"[..]].links, dump[&b"two"[..]].same_as.as_slice()), (2, &b"one"[..]));
}
