//! What a machine finds on its root is what its image's layers mean.
//!
//! The reference is `umoci unpack`, run as root; the layers hold everything that is known to go
//! wrong when images are unpacked. Both trees are listed by one program, in the machine and here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::deck::Deck;
use crate::support::layout::{Layout, TarBuilder};
use crate::support::{have, is_root, run};

#[allow(dead_code, unreachable_pub, reason = "the engine's own tests use all of it")]
#[path = "../../engine/src/rootfs/torture/mod.rs"]
mod torture;

/// What a machine makes on its root: mount points, the files that are its own, and what ext4 has.
const OF_THE_MACHINE: [&str; 13] = [
    "dev",
    "etc",
    "etc/hostname",
    "etc/hosts",
    "etc/resolv.conf",
    "lib",
    "lib/modules",
    "lost+found",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
];

/// Lines of the listing by their names, and where in a line the time is.
fn listed(text: &str) -> BTreeMap<&str, Vec<&str>> {
    text.lines()
        .map(|line| {
            let mut fields = line.split('\t');
            (fields.next().unwrap(), fields.collect())
        })
        .collect()
}

const MODE: usize = 0;
const TIME: usize = 6;

fn lister(folder: &Path) -> PathBuf {
    let program = folder.join("tree");
    run(Command::new("cc")
        .args(["-static", "-O2", "-o"])
        .arg(&program)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/support/tree.c")));
    program
}

#[test]
fn the_tree_in_the_machine_is_the_one_that_umoci_unpacks() {
    if !have("qemu-system-x86_64") || !have("umoci") || !have("apt-get") {
        return;
    }
    if !is_root() {
        eprintln!("skipped: `umoci unpack` as root is the reference, and this is not root");
        return;
    }
    let deck = Deck::shared();
    // In memory: extended attributes of every kind, and no wait for a disk.
    let place = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
    let folder = tempfile::Builder::new().prefix("vmdeck-tree-").tempdir_in(place).unwrap();

    let program = lister(folder.path());
    let mut tar = TarBuilder::default();
    tar.file("tree", 0o755, &std::fs::read(&program).unwrap());
    let layout = folder.path().join("torture");
    let mut image = Layout::new(&layout);
    image.config = serde_json::json!({ "Entrypoint": ["/tree"], "Cmd": ["/"] });
    for items in torture::layers(torture::LARGE_FOLDER) {
        image.layer(&torture::archive::archive(&items));
    }
    image.layer(&tar.finish()).finish();

    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let bundle = folder.path().join("bundle");
    run(Command::new("umoci")
        .arg("unpack")
        .arg("--image")
        .arg(format!("{}:latest", layout.display()))
        .arg(&bundle));
    let expected = run(Command::new(&program).arg(bundle.join("rootfs")));
    let expected = listed(&expected);

    let source = format!("oci:{}", deck.readable(&layout).display());
    deck.run(["image", "pull", &source, "--name", "torture"]).expect(0);
    let _guard = deck.guard("torture");
    let found = deck.run(["vm", "run", "torture", "--name", "torture", "--", "/tree", "--root", "/names"]);
    let found = found.expect(0).stdout;
    let found = listed(&found);

    let mut lines = Vec::new();
    for (name, fields) in &expected {
        let Some(other) = found.get(name) else {
            lines.push(format!("missing: {name}"));
            continue;
        };
        let (mut fields, mut other) = (fields.clone(), other.clone());
        // `umoci` leaves the time of its own run on folders that no layer describes and on those in
        // which it removes something: what the layers say of the others is compared.
        let seconds: u64 = fields[TIME].split('.').next().unwrap().parse().unwrap_or(0);
        if fields[MODE].starts_with('4') && seconds >= begun {
            (fields[TIME], other[TIME]) = ("", "");
        }
        if fields != other {
            lines.push(format!("{name}:\n  umoci   {fields:?}\n  machine {other:?}"));
        }
    }
    let added: Vec<_> = found.keys().filter(|name| !expected.contains_key(**name)).collect();
    let own = |name: &str| OF_THE_MACHINE.contains(&name) || name.starts_with("lib/modules/");
    lines.extend(added.iter().filter(|name| !own(name)).map(|name| format!("extra: {name}")));
    assert!(lines.is_empty(), "{} differences:\n{}", lines.len(), lines.join("\n"));
    assert!(expected.len() > torture::LARGE_FOLDER, "{} entries only", expected.len());
    eprintln!("{} entries are equal, {} are the machine's own", expected.len(), added.len());
}
