//! Bundles: exported, pulled on another host, from a file and over HTTP.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmdeck_engine::ErrorKind;
use vmdeck_engine::image::{Digest, PullImage, Settings};

use crate::fixture::*;
use crate::server::*;

/// The file of a bundle that somebody else has made.
async fn bundle() -> Vec<u8> {
    let here = Bench::new();
    pulled(&here).await;
    let path = here.folder.path().join("small.tar.zst");
    export(&here, "small", &path).await.unwrap();
    fs::read(path).unwrap()
}

#[tokio::test]
async fn a_bundle_brings_an_image_to_another_host() {
    let here = Bench::new();
    let image = pulled(&here).await;
    let path = here.folder.path().join("small.tar.zst");
    export(&here, "small", &path).await.unwrap();
    // The file system is hundreds of megabytes long and nearly empty.
    assert!(fs::metadata(&path).unwrap().len() < 4 << 20);
    let error = export(&here, "small", &path).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);

    let there = Bench::new();
    let reference = format!("bundle:{}", path.display());
    let mut task = there
        .images
        .pull(vmdeck_engine::image::PullImage { reference: reference.clone(), ..Default::default() }, None);
    let brought = task.wait().await.unwrap();
    assert_eq!((brought.name.as_str(), &brought.config), ("small", &image.config));
    assert_eq!(brought.rootfs_bytes, image.rootfs_bytes);
    check_seed(&there, &brought);
    assert_eq!(cat(&brought.files.rootfs, "/etc/name"), "small\n");
    use std::os::unix::fs::MetadataExt;
    let blocks = |path: &Path| fs::metadata(path).unwrap().blocks();
    assert!(blocks(&brought.files.rootfs) <= blocks(&image.files.rootfs) + 64);
    // Who exported it cannot log in: nothing of that key came along, not even in free blocks.
    let seed = brought.files.work_seed.as_ref().unwrap();
    assert_eq!(cat(seed, "/.ssh/authorized_keys").lines().count(), 1);
    let ours = vmdeck_engine::keys::installation_key(&here.data).unwrap().public_line;
    let key = ours.split_ascii_whitespace().nth(1).unwrap().as_bytes();
    let holds = |path: &Path| fs::read(path).unwrap().windows(key.len()).any(|window| window == key);
    assert!(holds(image.files.work_seed.as_ref().unwrap()) && !holds(seed));
    // Once more under the same name is no error, and under another shares the files.
    assert_eq!(there.pull(&reference, "small").await.unwrap(), brought);
    assert_eq!(there.pull(&reference, "other").await.unwrap().files, brought.files);
    let digest = Digest::of(&fs::read(&path).unwrap());
    there.pull(&format!("{reference}@{digest}"), "pinned").await.unwrap();
    let wrong = format!("{reference}@{}", Digest::of(b"other"));
    let error = there.pull(&wrong, "wrong").await.unwrap_err();
    assert!(whole(&error).contains("does not have the promised digest"), "{}", whole(&error));
    assert_eq!(there.names("staging"), [""; 0]);
    assert_eq!(there.names("images").len(), 1);
}

#[tokio::test]
async fn a_bundle_comes_over_http_in_spite_of_a_reset_and_by_its_catalog_name() {
    let bytes = bundle().await;
    let digest = Digest::of(&bytes);
    let broken = Arc::new(AtomicBool::new(false));
    let always = Arc::clone(&broken);
    let server = Server::start(move |request, before| {
        let (from, length) = (request.from().unwrap_or(0), bytes.len());
        let answer = Answer::new(if from > 0 { 206 } else { 200 }, &bytes[from..])
            .header("ETag", "\"1\"")
            .header("Content-Range", format!("bytes {from}-{}/{length}", length - 1));
        if before == 0 || always.load(Ordering::Relaxed) {
            answer.end(End::Reset((length - from) / 2))
        } else {
            answer
        }
    })
    .await;
    let url = format!("http://{}/small.tar.zst", server.address);
    let folder = tempfile::tempdir().unwrap();
    let catalog = folder.path().join("images.toml");
    let text =
        format!("[[image]]\nname = \"tiny\"\nreference = \"bundle:{url}\"\nsha256 = \"{}\"\n", digest.hex());
    fs::write(&catalog, text).unwrap();
    let there = Bench::with(Settings { catalog: Some(catalog), ..settings() });
    let request = vmdeck_engine::image::PullImage { reference: "tiny".into(), ..Default::default() };
    let image = there.images.pull(request, None).wait().await.unwrap();
    assert_eq!(image.name, "tiny");
    check_seed(&there, &image);
    assert_eq!(server.requests("small").len(), 2);
    assert_eq!(server.requests("small")[1].header("if-range"), Some("\"1\""));

    broken.store(true, Ordering::Relaxed);
    let error = there.pull(&format!("bundle:{url}"), "again").await.unwrap_err();
    assert!(whole(&error).contains("download of `http://127.0.0.1"), "{}", whole(&error));
    assert_eq!(there.names("staging"), [""; 0]);
    let error = there.pull("bundle:http://10.255.255.1/x.tar.zst", "plain").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(whole(&error).contains("--plain-http"), "{}", whole(&error));
}

#[tokio::test]
async fn a_bundle_whose_digest_is_known_goes_on_where_an_earlier_pull_broke() {
    let bytes = bundle().await;
    let (length, digest, whole_file) = (bytes.len(), Digest::of(&bytes), bytes.clone());
    let broken = Arc::new(AtomicBool::new(true));
    let breaks = Arc::clone(&broken);
    let server = Server::start(move |request, _| {
        let from = request.from().unwrap_or(0);
        let answer = if from >= length {
            return Answer::new(416, "");
        } else if from > 0 {
            Answer::new(206, &bytes[from..])
                .header("Content-Range", format!("bytes {from}-{}/{length}", length - 1))
        } else {
            Answer::new(200, bytes.as_slice())
        };
        if !breaks.load(Ordering::Relaxed) {
            answer
        } else if from == 0 {
            answer.end(End::Reset(length * 9 / 10))
        } else {
            answer.end(End::Reset(0))
        }
    })
    .await;
    let reference = format!("bundle:http://{}/small.tar.zst@{digest}", server.address);
    let there = Bench::new();
    let partial = there.data.root().join(format!("cache/blobs/sha256/{}.partial", digest.hex()));
    let error = there.pull(&reference, "small").await.unwrap_err();
    assert!(whole(&error).contains("broke"), "{}", whole(&error));
    let kept = fs::metadata(&partial).unwrap().len();
    assert!(kept > length as u64 / 2, "{kept} of {length}");
    assert_eq!(there.names("staging"), [""; 0]);

    broken.store(false, Ordering::Relaxed);
    let before = server.requests("small").len();
    let image = there.pull(&reference, "small").await.unwrap();
    check_seed(&there, &image);
    let asked: Vec<_> = server.requests("small")[before..].iter().map(|request| request.from()).collect();
    assert_eq!(asked, [Some(usize::try_from(kept).unwrap())]);
    assert!(!partial.exists());

    // All of it was there; or something else was.
    for (kept, asked) in [(whole_file, 1), (vec![7; 5000], 2)] {
        there.images.delete("small").await.unwrap();
        fs::write(&partial, kept).unwrap();
        let before = server.requests("small").len();
        there.pull(&reference, "small").await.unwrap();
        assert_eq!(server.requests("small").len() - before, asked);
        assert!(!partial.exists());
    }
    // Nothing tells which file a part of another one would be of.
    broken.store(true, Ordering::Relaxed);
    let unpinned = format!("bundle:http://{}/small.tar.zst", server.address);
    there.pull(&unpinned, "other").await.unwrap_err();
    assert_eq!(there.names("cache/blobs/sha256"), [""; 0]);
    assert_eq!(there.names("staging"), [""; 0]);
}

#[tokio::test]
async fn a_bundle_whose_digest_is_known_is_fetched_once_for_all_its_names() {
    let bytes = bundle().await;
    let digest = Digest::of(&bytes);
    let server = Server::start(move |_, _| Answer::new(200, bytes.as_slice())).await;
    let reference = format!("bundle:http://{}/small.tar.zst@{digest}", server.address);
    let there = Bench::new();
    let (first, second) = tokio::join!(there.pull(&reference, "first"), there.pull(&reference, "second"));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(server.requests("small").len(), 1);
    // Of another place, too, which need not be there any more; and where a name is taken.
    let moved = format!("bundle:http://127.0.0.1:1/moved.tar.zst@{digest}");
    let third = there.pull(&moved, "third").await.unwrap();
    assert_eq!(third.reference.as_deref(), Some(moved.as_str()));
    for image in [&second, &third] {
        assert_eq!((&image.content_id, &image.files), (&first.content_id, &first.files));
        check_seed(&there, image);
    }
    assert_eq!(there.pull(&moved, "second").await.unwrap(), second);
    let replacing = PullImage { replace: true, ..request(&moved, "second") };
    assert_eq!(there.images.pull(replacing, None).wait().await.unwrap(), second);

    // The files are gone once the last name is, and then it is fetched again.
    for name in ["first", "second", "third"] {
        there.images.delete(name).await.unwrap();
    }
    assert_eq!(there.names("images"), [""; 0]);
    there.pull(&reference, "first").await.unwrap();
    assert_eq!(server.requests("small").len(), 2);
    assert_eq!(there.names("staging"), [""; 0]);
}

#[tokio::test]
async fn a_hostile_bundle_is_refused_and_leaves_nothing() {
    let here = Bench::new();
    let image = pulled(&here).await;
    let rootfs = fs::read(&image.files.rootfs).unwrap();
    let manifest = |sha256: Digest, size: usize, name: &str| {
        serde_json::json!({"format": "vmdeck-bundle", "version": 1, "name": "x",
            "files": {name: {"size": size, "sha256": sha256.to_string()}}})
        .to_string()
        .into_bytes()
    };
    let good = manifest(Digest::of(&rootfs), rootfs.len(), "rootfs.ext4");
    let other = manifest(Digest::of(b""), rootfs.len(), "rootfs.ext4");
    let more = manifest(Digest::of(b""), 0, "work-seed.ext4");
    let future = br#"{"format":"vmdeck-bundle","version":2}"#;
    let strange = br#"{"format":"other","version":1}"#;
    type Members<'a> = &'a [(&'a str, &'a [u8])];
    let cases: [(Members<'_>, &str); 10] = [
        (&[("manifest.json", &other), ("rootfs.ext4", &rootfs)], "is not what its manifest says"),
        (&[("rootfs.ext4", &rootfs)], "has no `manifest.json`"),
        (&[("manifest.json", &good)], "has no `rootfs.ext4`"),
        (&[("manifest.json", &more), ("rootfs.ext4", &rootfs)], "lacks `work-seed.ext4`"),
        (
            &[("manifest.json", &good), ("rootfs.ext4", &rootfs), ("kernel", b"k")],
            "`kernel` in the bundle is not in",
        ),
        (&[("manifest.json", &good), ("etc/passwd", b"x")], "`etc/passwd` of the bundle has no place"),
        (&[("manifest.json", &good), ("manifest.json", &good)], "is there twice"),
        (&[("manifest.json", future)], "later version"),
        (&[("manifest.json", strange)], "none of a bundle of vmdeck"),
        (
            &[
                ("rootfs.ext4", b"no file system"),
                ("manifest.json", &manifest(Digest::of(b"no file system"), 14, "rootfs.ext4")),
            ],
            "is no ext4 file system",
        ),
    ];
    let there = Bench::new();
    let path = there.folder.path().join("bundle");
    for (members, expected) in cases {
        fs::write(&path, zstd::encode_all(tar_of(members).as_slice(), 1).unwrap()).unwrap();
        let error = there.pull(&format!("bundle:{}", path.display()), "x").await.unwrap_err();
        assert!(whole(&error).contains(expected), "{expected}: {}", whole(&error));
        there.assert_clean().await;
    }
    let whole_bundle =
        zstd::encode_all(tar_of(&[("manifest.json", &good), ("rootfs.ext4", &rootfs)]).as_slice(), 1)
            .unwrap();
    for bytes in [&whole_bundle[..whole_bundle.len() / 2], b"hello".as_slice(), b""] {
        fs::write(&path, bytes).unwrap();
        let error = there.pull(&format!("bundle:{}", path.display()), "x").await.unwrap_err();
        assert!(whole(&error).contains("damaged"), "{}", whole(&error));
        there.assert_clean().await;
    }
    fs::write(&path, &whole_bundle).unwrap();
    there.pull(&format!("bundle:{}", path.display()), "x").await.unwrap();
}
