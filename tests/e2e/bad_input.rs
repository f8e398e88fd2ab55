//! Bad input as a user meets it: the documented exit status, a message that names the thing and the
//! next step, and nothing left behind.

use std::io::Write;
use std::os::unix::fs::FileExt;

use crate::support::deck::{Deck, Ended};
use crate::support::hostile::{Hostile, Reply, Shelf};
use crate::support::layout::{Layout, TarBuilder, gzip, noise};
use crate::support::registry::Registry;
use crate::support::small_disk::SmallDisk;
use crate::support::{fixtures, have};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// What a command that failed must look like.
#[track_caller]
fn check(what: &str, ended: &Ended, status: i32, words: &[&str]) {
    assert_eq!(ended.status, status, "{what}: {}", ended.stderr);
    for word in words.iter().chain(&["next:"]) {
        assert!(ended.stderr.contains(word), "{what} does not say `{word}`: {}", ended.stderr);
    }
    assert!(!ended.stderr.contains("panicked"), "{what}: {}", ended.stderr);
}

/// Nothing half done may be left.
#[track_caller]
fn nothing_is_left(what: &str, deck: &Deck) {
    assert_eq!(deck.files("staging"), [""; 0], "{what}");
    assert_eq!(deck.files("images"), [""; 0], "{what}");
    for list in [
        ["image", "list", "--output", "json"].as_slice(),
        &["operation", "list", "--running", "--output", "json"],
    ] {
        let listed = deck.run(list.iter().copied()).expect(0).json();
        assert_eq!(listed, serde_json::json!([]), "{what}: {list:?}");
    }
}

/// A tar of one file whose content is the same byte over and over.
fn monotonous(byte: u8, megabytes: usize) -> Vec<u8> {
    TarBuilder::default().file("bomb", 0o644, &vec![byte; megabytes << 20]).finish()
}

#[test]
fn a_hostile_registry_gets_an_error_and_no_space() {
    struct Case {
        name: &'static str,
        words: &'static [&'static str],
        /// What is answered instead of the truth.
        lie: fn(&Shelf, &str) -> Option<Reply>,
    }
    let cases = [
        Case {
            name: "wrong-digest",
            words: &["promised digest", "tampers"],
            lie: |shelf, path| {
                let mut bytes = shelf.layer_bytes().to_vec();
                *bytes.last_mut().unwrap() ^= 1;
                (path == shelf.layer).then(|| Reply::new(200, bytes))
            },
        },
        Case {
            name: "short-layer",
            words: &["by the manifest"],
            lie: |shelf, path| (path == shelf.layer).then(|| Reply::new(200, &shelf.layer_bytes()[..100])),
        },
        Case {
            name: "cut-connection",
            words: &["pulling again goes on where it stopped"],
            lie: |shelf, path| {
                let bytes = shelf.layer_bytes();
                (path == shelf.layer).then(|| Reply::new(200, &bytes[..100]).announcing(bytes.len() as u64))
            },
        },
        Case {
            name: "endless-layer",
            words: &["more than", "its manifest says"],
            lie: |shelf, path| (path == shelf.layer).then(|| Reply::new(200, shelf.layer_bytes()).endless()),
        },
        Case {
            name: "endless-manifest",
            words: &["more than the 4194304 bytes"],
            lie: |_, path| {
                path.starts_with("manifests").then(|| Reply::new(200, vec![b' '; 1 << 16]).endless())
            },
        },
        Case {
            name: "manifest-of-a-gigabyte",
            words: &["more than the 4194304 bytes"],
            lie: |_, path| path.starts_with("manifests").then(|| Reply::new(200, "{}").announcing(1 << 30)),
        },
        Case {
            name: "redirects-in-a-circle",
            words: &["redirects"],
            lie: |shelf, path| {
                let again =
                    || Reply::new(307, "").header("Location", format!("/v2/redirects-in-a-circle/{path}"));
                (path == shelf.layer).then(again)
            },
        },
        Case {
            name: "no-json",
            words: &["manifest is malformed"],
            lie: |_, path| path.starts_with("manifests").then(|| Reply::new(200, "<html>")),
        },
        Case { name: "zstd-bomb", words: &["looks like a bomb"], lie: |_, _| None },
    ];
    let tar = TarBuilder::default().file("file", 0o644, &noise(300_000, 1)).finish();
    let honest = Shelf::new(&tar, gzip(&tar), GZIP);
    let bomb = monotonous(0, 200);
    let bomb = Shelf::new(&bomb, zstd::encode_all(bomb.as_slice(), 1).unwrap(), ZSTD);
    let layer = honest.layer.clone();
    let lies: Vec<_> = cases.iter().map(|case| (case.name, case.lie)).collect();
    let server = Hostile::start(move |repository, path| {
        let shelf = if repository == "zstd-bomb" { &bomb } else { &honest };
        let lie = lies.iter().find(|(name, _)| *name == repository).and_then(|(_, lie)| lie(shelf, path));
        lie.unwrap_or_else(|| shelf.honest(path))
    });
    let deck = Deck::new();
    for Case { name, words, .. } in &cases {
        let ended = deck.run(["image", "pull", &server.reference(&format!("{name}:1")), "--name", "x"]);
        check(name, &ended, 1, words);
        nothing_is_left(name, &deck);
    }
    // What is not what its digest says is not kept under that name.
    let kept = deck.files("cache/blobs/sha256");
    assert!(kept.iter().all(|name| !layer.ends_with(name.as_str())), "{kept:?}");
    // The registry can do it right, too.
    deck.run(["image", "pull", &server.reference("truth:1"), "--name", "x"]).expect(0);
}

#[test]
fn a_registry_with_a_password_names_the_way_in_and_takes_docker_s_credentials() {
    let Some(registry) = Registry::start_with_password("deck", "s3cret") else { return };
    registry.push(&fixtures::busybox(), "private:1");
    let reference = registry.reference("private:1");
    let host = reference.split('/').next().unwrap();
    let deck = Deck::new();
    let login = format!("podman login {host}");
    check("anonymous", &deck.run(["image", "pull", &reference]), 1, &[host, "refuses access", &login]);
    nothing_is_left("anonymous", &deck);
    let config = |pair: &str| {
        use base64::Engine as _;
        let auth = base64::engine::general_purpose::STANDARD.encode(pair);
        deck.write(".docker/config.json", &format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#));
    };
    config("deck:hunter2");
    let ended = deck.run(["image", "pull", &reference]);
    check("wrong password", &ended, 1, &[host, "refuses access"]);
    assert!(!ended.stderr.contains("hunter2"), "the password is shown: {}", ended.stderr);
    config("deck:s3cret");
    deck.run(["image", "pull", &reference, "--name", "private"]).expect(0);
}

#[test]
fn files_that_are_not_what_they_should_be_are_refused() {
    let deck = Deck::new();
    let layout = deck.readable(&fixtures::busybox());
    deck.run(["image", "pull", &format!("oci:{}", layout.display()), "--name", "box"]).expect(0);
    let bundle = deck.data().parent().unwrap().join("box.tar.zst");
    let bundle = bundle.to_str().unwrap();
    deck.run(["image", "export", "box", bundle]).expect(0);
    let rootfs = deck.run(["image", "show", "box", "--output", "json"]).expect(0).json();
    let rootfs = rootfs["files"]["rootfs"].as_str().unwrap().to_owned();

    let copy = deck.write("rootfs.ext4", "");
    std::fs::copy(&rootfs, &copy).unwrap();
    let copy = copy.to_str().unwrap();

    let pinned = format!("bundle:{bundle}@sha256:{}", "0".repeat(64));
    let damaged = deck.write("damaged.tar.zst", "");
    std::fs::copy(bundle, &damaged).unwrap();
    let length = std::fs::metadata(&damaged).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(&damaged).unwrap();
    file.write_all_at(&[0xaa; 64], length / 2).unwrap();
    let damaged = format!("bundle:{}", damaged.display());
    let text = deck.write("text", "no bundle, no file system");
    let (folder, text) =
        (deck.data().parent().unwrap().to_str().unwrap().to_owned(), text.to_str().unwrap().to_owned());
    let no_bundle = format!("bundle:{text}");
    let cases: [(&[&str], i32, &[&str]); 9] = [
        (&["pull", &pinned, "--name", "x"], 1, &["promised digest"]),
        (&["pull", &damaged, "--name", "x"], 1, &["bundle"]),
        (&["pull", &no_bundle, "--name", "x"], 1, &["bundle"]),
        (&["register", "x", "--rootfs", &folder], 2, &["is a folder", &folder]),
        (&["register", "x", "--rootfs", &text], 2, &["no ext4 file system", &text]),
        (&["register", "x", "--rootfs", "/does/not/exist"], 3, &["/does/not/exist"]),
        (&["register", "x", "--rootfs", &rootfs], 2, &["belongs to an image of vmdeck"]),
        (&["register", "x", "--rootfs", copy, "--kernel", &text], 2, &["no kernel", &text]),
        (&["promote", "box"], 4, &["`box`"]),
    ];
    for (arguments, status, words) in cases {
        let ended = deck.run(["image"].into_iter().chain(arguments.iter().copied()));
        check(&arguments.join(" "), &ended, status, words);
        assert_eq!(deck.files("staging"), [""; 0], "{arguments:?}");
        assert_eq!(deck.files("images").len(), 1, "{arguments:?}");
        let listed = deck.run(["image", "list", "--output", "json"]).expect(0).json();
        assert_eq!(listed.as_array().unwrap().len(), 1, "{arguments:?}: {listed}");
    }
}

#[test]
fn a_registered_image_whose_files_are_gone_says_so() {
    let deck = Deck::new();
    let layout = deck.readable(&fixtures::busybox());
    deck.run(["image", "pull", &format!("oci:{}", layout.display()), "--name", "box"]).expect(0);
    let shown = deck.run(["image", "show", "box", "--output", "json"]).expect(0).json();
    assert_eq!(shown["missing"], serde_json::json!([]));
    let copy = deck.write("rootfs.ext4", "");
    std::fs::copy(shown["files"]["rootfs"].as_str().unwrap(), &copy).unwrap();
    let path = copy.to_str().unwrap();
    deck.run(["image", "register", "mine", "--rootfs", path]).expect(0);
    std::fs::remove_file(&copy).unwrap();
    let shown = deck.run(["image", "show", "mine", "--output", "json"]).expect(0).json();
    assert_eq!(shown["missing"], serde_json::json!([path]));
    let ended = deck.run(["image", "show", "mine"]).expect(0);
    assert!(ended.stdout.lines().any(|line| line.starts_with("missing") && line.contains(path)), "{ended:?}");
    let ended = deck.run(["image", "list"]).expect(0);
    let flagged: Vec<_> = ended.stdout.lines().filter(|line| line.contains("files missing")).collect();
    assert!(matches!(flagged.as_slice(), [line] if line.starts_with("mine")), "{}", ended.stdout);
    // Nothing is fetched for it, and everybody says the same of it.
    let out = deck.data().parent().unwrap().join("out");
    let out = out.to_str().unwrap();
    for arguments in [
        &["vm", "create", "m", "--image", "mine"][..],
        &["image", "promote", "mine"],
        &["image", "export", "mine", out],
    ] {
        deck.run(arguments.iter().copied()).expect(3).says(&[path, "put the registered file back"]);
    }
    assert_eq!(deck.files("kernels"), [""; 0]);
    let ended = deck.run(["image", "delete", "box", "--output", "json"]).expect(0).json();
    assert_eq!(ended[0]["missing"], serde_json::json!([]));
}

/// An image of one layer.
fn layout_of(deck: &Deck, name: &str, tar: &[u8]) -> String {
    let folder = tempfile::Builder::new().prefix(name).tempdir().unwrap();
    Layout::new(folder.path()).layer(tar).finish();
    format!("oci:{}", deck.readable(folder.path()).display())
}

/// An image that takes 40 MiB, packed and unpacked.
fn large_layout(deck: &Deck) -> String {
    layout_of(deck, "large", &TarBuilder::default().file("noise", 0o644, &noise(40 << 20, 2)).finish())
}

#[test]
fn on_a_disk_that_is_full_images_can_be_deleted() {
    let deck = Deck::new();
    let small = format!("oci:{}", deck.readable(&fixtures::busybox()).display());
    let large = large_layout(&deck);
    let Some(disk) = SmallDisk::mount(&deck.folder("data"), 80) else { return };
    let run = |arguments: &[&str]| deck.run_on(&disk, arguments.iter().copied());
    run(&["image", "pull", &small, "--name", "box"]).expect(0);
    // What fits is not refused for what it might have been.
    run(&["image", "pull", &large, "--name", "large"]).expect(0);
    run(&["image", "delete", "large"]).expect(0);
    let fill = disk.outside(&deck.data().join("fill"));
    let mut file = std::fs::File::create(&fill).unwrap();
    let full = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    // Whether the store could be opened without the room that was set aside depends on what was left
    // beside it: the pull fails at its record, or for want of room.
    check("pull", &run(&["image", "pull", &large, "--name", "more"]), 1, &["vmdeck df"]);
    run(&["image", "delete", "box"]).expect(0);
    let listed = run(&["image", "list", "--output", "json"]).expect(0).json();
    assert_eq!(listed, serde_json::json!([]));
}

#[test]
fn a_disk_that_fills_up_ends_in_an_error_and_leaves_nothing() {
    let deck = Deck::new();
    // Small until it is unpacked: nobody can know before.
    let bomb = layout_of(&deck, "bomb", &monotonous(1, 96));
    let large = large_layout(&deck);
    let small = format!("oci:{}", deck.readable(&fixtures::busybox()).display());
    let rootfs = deck.write("rootfs.ext4", "");
    if have("mke2fs") {
        crate::support::run(
            std::process::Command::new("mke2fs")
                .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
                .args(["-q", "-F", "-t", "ext4"])
                .arg(&rootfs)
                .arg("48M"),
        );
        // Whether it is sound nobody gets to ask: it does not fit.
        let mut file = std::fs::OpenOptions::new().write(true).open(&rootfs).unwrap();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(20 << 20)).unwrap();
        file.write_all(&noise(24 << 20, 3)).unwrap();
    }

    let Some(disk) = SmallDisk::mount(&deck.folder("data"), 20) else { return };
    let run = |arguments: &[&str]| deck.run_on(&disk, arguments.iter().copied());
    let nothing_is_left = |what: &str| {
        for folder in ["staging", "images"] {
            let left = std::fs::read_dir(disk.outside(&deck.data().join(folder))).unwrap().count();
            assert_eq!(left, 0, "{what}: {folder}");
        }
        let running = run(&["operation", "list", "--running", "--output", "json"]).expect(0).json();
        assert_eq!(running, serde_json::json!([]), "{what}");
    };
    check(
        "bomb",
        &run(&["image", "pull", &bomb, "--name", "x"]),
        1,
        &["No space left on device", "vmdeck df"],
    );
    nothing_is_left("bomb");
    check("large", &run(&["image", "pull", &large, "--name", "x"]), 1, &["are free", "vmdeck df"]);
    nothing_is_left("large");
    if have("mke2fs") {
        run(&["image", "register", "mine", "--rootfs", rootfs.to_str().unwrap()]).expect(0);
        check("promote", &run(&["image", "promote", "mine"]), 1, &["are free", "vmdeck df"]);
        nothing_is_left("promote");
        let listed = run(&["image", "list", "--output", "json"]).expect(0).json();
        assert!(listed[0]["managed"] == false && listed.as_array().unwrap().len() == 1, "{listed}");
    }
    // There is room for what is small, and it is whole.
    run(&["image", "pull", &small, "--name", "box"]).expect(0);
    drop(disk);

    let out = deck.folder("out");
    let Some(disk) = SmallDisk::mount(&out, 20) else { return };
    let target = out.join("large.tar.zst");
    deck.run(["image", "pull", &large, "--name", "large"]).expect(0);
    let ended = deck.run_on(&disk, ["image", "export", "large", target.to_str().unwrap()]);
    check("export", &ended, 1, &["No space left on device", "next:"]);
    assert_eq!(std::fs::read_dir(disk.outside(&out)).unwrap().count(), 0);
    assert_eq!(deck.files("staging"), [""; 0]);
}
