//! What the tests stand on: fixtures built once, a registry, and data directories with the program.

pub(crate) mod deck;
pub(crate) mod fixtures;
pub(crate) mod holder;
pub(crate) mod hostile;
pub(crate) mod layout;
pub(crate) mod namespace;
pub(crate) mod proxy;
pub(crate) mod registry;
pub(crate) mod small_disk;
#[path = "../../../engine/src/test_support.rs"]
pub(crate) mod test_support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use deck::Deck;

/// Whether a program can be run; says so when it cannot.
pub(crate) fn have(program: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|paths| {
        std::env::split_paths(&paths)
            .chain([PathBuf::from("/usr/sbin")])
            .any(|path| path.join(program).is_file())
    });
    if !found {
        eprintln!("skipped: this host has no `{program}` (assets/test.sh installs it)");
    }
    found
}

/// Whether a machine with busybox can be booted here; says so when it cannot.
pub(crate) fn can_boot() -> bool {
    have("qemu-system-x86_64") && have("apt-get") && have("busybox")
}

/// A data directory of its own, with Debian's kernel and an image `busybox`.
pub(crate) fn deck_with_busybox() -> Arc<Deck> {
    let deck = Deck::new();
    deck.import_kernel();
    let layout = deck.readable(&fixtures::busybox());
    deck.run(["image", "pull", &format!("oci:{}", layout.display()), "--name", "busybox"]).expect(0);
    Arc::new(deck)
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Runs a helper program to its end; panics with what it said when it fails.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
