//! Pulls from a real registry and from layouts on disk; what bad input leaves behind.

use std::path::Path;
use std::process::Command;

use crate::support::deck::Deck;
use crate::support::layout::{Layout, TarBuilder};
use crate::support::registry::Registry;
use crate::support::{fixtures, have, run};

fn check_file_system(path: &Path) {
    if have("e2fsck") {
        run(Command::new("e2fsck").env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").arg("-fn").arg(path));
    }
}

/// Where an image's root file system lies.
fn rootfs(deck: &Deck, name: &str) -> std::path::PathBuf {
    let image = deck.run(["image", "show", name, "--output", "json"]).expect(0).json();
    image["files"]["rootfs"].as_str().unwrap().into()
}

/// Nothing half done may be left.
#[track_caller]
fn nothing_is_left(deck: &Deck) {
    assert_eq!(deck.files("staging"), [""; 0], "staging");
    assert_eq!(deck.files("images"), [""; 0], "images");
    assert_eq!(deck.run(["image", "list", "--output", "json"]).expect(0).json(), serde_json::json!([]));
    let running = deck.run(["operation", "list", "--running", "--output", "json"]).expect(0).json();
    assert_eq!(running, serde_json::json!([]));
}

#[test]
fn debian_is_pulled_from_a_registry_and_is_a_clean_file_system() {
    let Some(registry) = Registry::start() else { return };
    if !have("mmdebstrap") {
        return;
    }
    registry.push(&fixtures::minbase(), "debian:12");
    let deck = Deck::new();
    let reference = registry.reference("debian:12");
    let pulled =
        deck.run(["image", "pull", &reference, "--name", "debian", "--output", "json"]).expect(0).json();
    assert_eq!(pulled["name"], "debian");
    assert_eq!(pulled["architecture"], "amd64");
    check_file_system(&rootfs(&deck, "debian"));
    let seed = pulled["files"]["work_seed"].as_str().unwrap();
    check_file_system(Path::new(seed));

    // The same again is done at once and changes nothing; another name shares the files.
    deck.run(["image", "pull", &reference, "--name", "debian"]).expect(0);
    deck.run(["image", "pull", &reference, "--name", "other"]).expect(0);
    assert_eq!(rootfs(&deck, "debian"), rootfs(&deck, "other"));
    deck.run(["image", "delete", "debian"]).expect(0);
    check_file_system(&rootfs(&deck, "other"));
    deck.run(["image", "delete", "other"]).expect(0);
    nothing_is_left(&deck);
}

#[test]
fn events_end_with_the_result() {
    let deck = Deck::new();
    let layout = deck.readable(&fixtures::busybox());
    let reference = format!("oci:{}", layout.display());
    let ended = deck.run(["image", "pull", &reference, "--name", "busybox", "--output", "ndjson"]).expect(0);
    let events: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        events.iter().any(|event| event["event"] == "phase" && event["kind"] == "image pull"),
        "{events:?}"
    );
    assert_eq!(events.last().unwrap()["result"]["name"], "busybox");
    check_file_system(&rootfs(&deck, "busybox"));
}

#[test]
fn references_that_lead_nowhere_end_with_the_documented_status() {
    let deck = Deck::new();
    let empty = deck.readable(tempfile::tempdir().unwrap().path());
    let empty = format!("oci:{}", empty.display());
    for (reference, status, words) in [
        ("UPPER CASE", 2, vec!["UPPER CASE"]),
        ("ftp://example.org/x", 2, vec!["ftp"]),
        ("", 2, vec![]),
        ("oci:/does/not/exist", 3, vec!["/does/not/exist"]),
        ("docker-archive:/does/not/exist", 3, vec!["/does/not/exist"]),
        (&empty, 1, vec!["oci"]),
        // Nothing listens on the discard port of loopback.
        ("127.0.0.1:9/x:1", 1, vec!["127.0.0.1:9"]),
    ] {
        let ended = deck.run(["image", "pull", reference, "--name", "x"]).says(&words);
        assert_eq!(ended.status, status, "{reference}: {}", ended.stderr);
        assert!(ended.stderr.contains("next:"), "{reference} has no next step: {}", ended.stderr);
    }
    nothing_is_left(&deck);
}

#[test]
fn an_unknown_tag_and_a_foreign_architecture_are_named() {
    let Some(registry) = Registry::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut foreign = Layout::new(folder.path());
    foreign.architecture = "riscv64".into();
    foreign.layer(&TarBuilder::default().directory("etc/", 0o755).finish()).finish();
    registry.push(folder.path(), "foreign:1");
    let deck = Deck::new();
    deck.run(["image", "pull", &registry.reference("foreign:2")]).expect(3).says(&[
        "`foreign`",
        "`2`",
        "next:",
    ]);
    deck.run(["image", "pull", &registry.reference("absent:1")])
        .expect(3)
        .says(&["`absent`", "`1`", "next:"]);
    deck.run(["image", "pull", &registry.reference("foreign:1")]).expect(1).says(&["riscv64", "amd64"]);
    nothing_is_left(&deck);
}

#[test]
fn damaged_and_hostile_layers_leave_nothing() {
    let deck = Deck::new();
    let outside = std::env::temp_dir().join("vmdeck-e2e-escaped");
    let hostile: Vec<(&str, Vec<u8>, &str)> = vec![
        ("parent", TarBuilder::default().file("../../escaped", 0o644, b"x").finish(), "escaped"),
        ("nested-parent", TarBuilder::default().file("a/../../escaped", 0o644, b"x").finish(), "escaped"),
        (
            "link-out",
            TarBuilder::default().hard_link("etc-passwd", "../../../etc/passwd").finish(),
            "etc-passwd",
        ),
        ("truncated", TarBuilder::default().file("f", 0o644, &[7; 5000]).finish()[..2048].to_vec(), "layer"),
    ];
    for (name, tar, word) in hostile {
        let folder = tempfile::tempdir().unwrap();
        Layout::new(folder.path()).layer(&tar).finish();
        let layout = deck.readable(folder.path());
        let ended = deck.run(["image", "pull", &format!("oci:{}", layout.display()), "--name", name]);
        assert_eq!(ended.status, 1, "{name}: {}", ended.stderr);
        assert!(ended.stderr.contains(word) && ended.stderr.contains("next:"), "{name}: {}", ended.stderr);
    }
    assert!(!outside.exists());
    nothing_is_left(&deck);
}

#[test]
fn a_symlink_cannot_lead_a_layer_out_of_its_image() {
    let deck = Deck::new();
    let folder = tempfile::tempdir().unwrap();
    let target = tempfile::tempdir().unwrap();
    let out = target.path().to_str().unwrap();
    let tar = TarBuilder::default().symlink("out", out).file("out/file", 0o644, b"inside").finish();
    Layout::new(folder.path()).layer(&tar).finish();
    let layout = deck.readable(folder.path());
    deck.run(["image", "pull", &format!("oci:{}", layout.display()), "--name", "jailed"]).expect(0);
    assert_eq!(std::fs::read_dir(target.path()).unwrap().count(), 0, "the layer wrote to the host");
    check_file_system(&rootfs(&deck, "jailed"));
}

#[test]
fn a_wrong_digest_is_found_out() {
    let deck = Deck::new();
    let folder = tempfile::tempdir().unwrap();
    Layout::new(folder.path()).layer(&TarBuilder::default().file("f", 0o644, b"content").finish()).finish();
    let blobs = folder.path().join("blobs/sha256");
    let layer = std::fs::read_dir(&blobs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| std::fs::read(path).unwrap().starts_with(&[0x1f, 0x8b]))
        .unwrap();
    let mut bytes = std::fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    let layout = deck.readable(folder.path());
    deck.run(["image", "pull", &format!("oci:{}", layout.display()), "--name", "x"])
        .expect(1)
        .says(&["next:"]);
    nothing_is_left(&deck);
}

#[test]
fn a_name_taken_by_another_image_is_a_conflict() {
    let deck = Deck::new();
    let busybox = deck.readable(&fixtures::busybox());
    deck.run(["image", "pull", &format!("oci:{}", busybox.display()), "--name", "x"]).expect(0);
    let folder = tempfile::tempdir().unwrap();
    Layout::new(folder.path()).layer(&TarBuilder::default().file("f", 0o644, b"content").finish()).finish();
    let other = deck.readable(folder.path());
    deck.run(["image", "pull", &format!("oci:{}", other.display()), "--name", "x"])
        .expect(4)
        .says(&["`x`", "next:"]);
    assert_eq!(deck.files("staging"), [""; 0]);
    assert_eq!(deck.files("images").len(), 1);
}

#[test]
fn a_pull_killed_at_any_moment_leaves_nothing_and_the_next_one_succeeds() {
    if !have("mmdebstrap") {
        return;
    }
    let deck = Deck::new();
    let layout = deck.readable(&fixtures::minbase());
    let reference = format!("oci:{}", layout.display());
    for milliseconds in [5, 60, 150, 300, 450] {
        let mut child = deck.command(["image", "pull", &reference, "--name", "debian"]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        let _ = child.kill();
        child.wait().unwrap();
        let names = deck.run(["image", "list", "--output", "json"]).expect(0).json();
        assert_eq!(deck.files("staging"), [""; 0], "killed after {milliseconds} ms");
        assert_eq!(
            deck.files("images").len(),
            names.as_array().unwrap().len(),
            "killed after {milliseconds} ms"
        );
        let states = deck.run(["operation", "list", "--output", "json"]).expect(0).json();
        assert!(
            states.as_array().unwrap().iter().all(|operation| operation["state"] != "running"),
            "killed after {milliseconds} ms: {states}"
        );
    }
    deck.run(["image", "pull", &reference, "--name", "debian"]).expect(0);
    check_file_system(&rootfs(&deck, "debian"));
}
