//! A machine's life by keys alone, beside pulls from a real registry.

use std::time::Duration;

use crate::support::deck::Deck;
use crate::support::registry::Registry;
use crate::support::{fixtures, have};
use crate::terminal::Terminal;

#[test]
fn three_pulls_beside_a_boot_then_promote_console_shell_stop_and_delete() {
    if !have("qemu-system-x86_64") || !have("apt-get") || !have("busybox") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    let busybox = fixtures::busybox();
    for name in ["one", "two", "three"] {
        registry.push(&busybox, name);
    }
    let deck = Deck::shared();
    let layout = deck.readable(&busybox);
    deck.run(["image", "pull", &format!("oci:{}", layout.display()), "--name", "keys-base"]).expect(0);
    let _guard = deck.guard("by-keys");

    let mut terminal = Terminal::run(deck.on_terminal([]), 140, 40);
    terminal.wait_for("VMs");
    terminal.wait("the engine is open", |screen| !screen.contains("opening"));

    // A machine of an image that is here: it boots while the rest goes on.
    terminal.type_in("1n");
    terminal.wait_for("New machine");
    terminal.type_in("\x15keys-base\tby-keys\r");
    terminal.wait_for("by-keys");

    // Three pulls, none of which waits for another.
    terminal.type_in("2");
    for name in ["one", "two", "three"] {
        terminal.type_in("p");
        terminal.wait_for("Pull an image");
        terminal.type_in(&format!("{}\r", registry.reference(name)));
        terminal.wait("the form is closed", |screen| !screen.contains("Pull an image"));
    }
    for name in ["one", "two", "three"] {
        terminal.wait_for(&format!("image {name} is there"));
    }

    // The machine's boot, phase by phase, then a shell in it.
    terminal.type_in("1/by-keys\r");
    terminal.wait("the machine runs", |screen| screen.contains("running"));
    terminal.type_in("!");
    terminal.wait_for("ctrl-] comes back");
    // A hundred keys, none lost, none twice; and the answer of the guest, not their echo.
    let typed: String = (0..100).map(|number| char::from(b'a' + number % 26)).collect();
    terminal.type_in(&format!("echo {typed} | wc -c\r"));
    terminal.wait_for("\n101");
    // What is typed right behind ctrl-] is for the console, and none of it is lost: the palette opens
    // and finds the view of kernels.
    let behind = |terminal: &mut Terminal| {
        terminal.type_in("\x1d:view-kernels\r");
        terminal.wait_for("SOURCE");
        terminal.type_in("1");
        terminal.wait("the machines are back", |screen| !screen.contains("SOURCE"));
    };
    behind(&mut terminal);
    // Its serial console on the whole terminal, and beside the list.
    terminal.type_in("C");
    terminal.wait_for("console of by-keys");
    behind(&mut terminal);
    terminal.type_in("c");
    terminal.wait_for("ctrl-] leaves");
    behind(&mut terminal);
    terminal.wait("the keys are back", |screen| !screen.contains("ctrl-] leaves"));

    // Stopped, made an image of, deleted.
    terminal.type_in("x");
    terminal.wait("the machine is stopped", |screen| screen.contains("stopped"));
    terminal.type_in("P");
    terminal.wait_for("Make an image of by-keys");
    terminal.type_in("\x15promoted\r");
    terminal.wait_for("image promoted is there");
    terminal.type_in("D");
    terminal.wait_for("Delete this machine?");
    terminal.type_in("\t\r");
    terminal.wait_for("machine by-keys is deleted");

    // At once, when the last picture still shows it as running: it has ended, so nothing is asked.
    terminal.type_in("q");
    assert_eq!(terminal.end(Duration::from_secs(30)).0.code(), Some(0));
    let images = deck.run(["image", "list", "--output", "json"]).expect(0).json();
    let names: Vec<_> =
        images.as_array().unwrap().iter().filter_map(|image| image["name"].as_str()).collect();
    for name in ["one", "two", "three", "promoted"] {
        assert!(names.contains(&name), "{names:?}");
        deck.run(["image", "delete", name]).expect(0);
    }
}

#[test]
fn a_registered_image_is_promoted_by_keys_alone() {
    if !have("mke2fs") {
        return;
    }
    let deck = Deck::new();
    let home = deck.data().parent().unwrap().to_owned();
    let rootfs = home.join("golden.ext4");
    crate::support::run(
        std::process::Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&rootfs).arg("8M"),
    );
    crate::support::run(std::process::Command::new("chmod").arg("644").arg(&rootfs));
    let mut terminal = Terminal::run(deck.on_terminal([]), 100, 30);
    terminal.wait_for("No machine yet");
    terminal.wait("the engine is open", |screen| !screen.contains("opening"));
    terminal.type_in("2t");
    terminal.wait_for("Register files");
    terminal.type_in("golden\t~/golden.ext4\r");
    terminal.wait_for("image golden is registered");
    terminal.wait_for("registered: files");
    terminal.type_in("P");
    terminal.wait_for("Promote golden");
    terminal.type_in("mine\r");
    terminal.wait_for("image mine is vmdeck's own now");
    // At once, when the last picture still shows it as running: it has ended, so nothing is asked.
    terminal.type_in("q");
    assert_eq!(terminal.end(Duration::from_secs(30)).0.code(), Some(0));
    let image = deck.run(["image", "show", "mine", "--output", "json"]).expect(0).json();
    assert_eq!(image["managed"], true);
    assert!(rootfs.exists());
}
