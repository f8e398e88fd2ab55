//! What the program says after it, or a hypervisor, was killed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::deck::Deck;
use crate::support::{fixtures, have};

fn can_boot() -> bool {
    have("qemu-system-x86_64") && have("apt-get") && have("busybox")
}

fn deck_with_busybox() -> Arc<Deck> {
    let deck = Deck::new();
    deck.import_kernel();
    let layout = deck.readable(&fixtures::busybox());
    deck.run(["image", "pull", &format!("oci:{}", layout.display()), "--name", "busybox"]).expect(0);
    Arc::new(deck)
}

fn vms(deck: &Deck) -> Vec<serde_json::Value> {
    deck.run(["vm", "list", "--output", "json"]).expect(0).json().as_array().unwrap().clone()
}

#[test]
fn a_killed_hypervisor_is_noticed_and_the_machine_starts_again() {
    if !can_boot() {
        return;
    }
    let deck = deck_with_busybox();
    let _guard = deck.guard("m");
    deck.run(["vm", "run", "busybox", "--name", "m"]).expect(0);
    let [pid] = deck.hypervisors()[..] else { panic!("not one hypervisor: {:?}", deck.hypervisors()) };
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let begun = Instant::now();
    let vm = loop {
        let vm = vms(&deck).remove(0);
        if vm["state"] != "running" || begun.elapsed() > Duration::from_secs(10) {
            break vm;
        }
    };
    assert_eq!(vm["state"], "failed", "{vm}");
    deck.run(["vm", "start", "m"]).expect(0);
    deck.run(["vm", "exec", "m", "--", "sh", "-c", "true"]).expect(0);
}

#[test]
fn a_guest_that_powers_itself_off_is_stopped_not_failed() {
    if !can_boot() {
        return;
    }
    let deck = deck_with_busybox();
    let _guard = deck.guard("m");
    deck.run(["vm", "run", "busybox", "--name", "m"]).expect(0);
    // The agent is this image's init: an orderly power-off as the guest's root does it.
    deck.run(["vm", "exec", "m", "--", "/bin/busybox", "poweroff", "-f"]);
    let begun = Instant::now();
    while vms(&deck)[0]["state"] == "running" && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(vms(&deck)[0]["state"], "stopped");
    assert_eq!(deck.processes(), [0; 0]);
}

#[test]
fn vmdeck_killed_during_create_boot_and_stop_leaves_the_truth() {
    if !can_boot() {
        return;
    }
    let deck = deck_with_busybox();
    for milliseconds in [10, 50, 150, 400, 1_000, 2_500, 5_000] {
        let mut child = deck.command(["vm", "run", "busybox", "--name", "m"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        let _ = child.kill();
        child.wait().unwrap();
        let list = vms(&deck);
        let processes = deck.hypervisors();
        let when = format!("killed after {milliseconds} ms: {list:?}, processes {processes:?}");
        assert!(processes.len() <= 1, "{when}");
        match list.first() {
            None => assert!(processes.is_empty() && deck.files("vms").is_empty(), "{when}"),
            Some(vm) => {
                let state = vm["state"].as_str().unwrap();
                let alive = matches!(state, "running" | "starting" | "stopping");
                assert_eq!(alive, !processes.is_empty(), "{when}");
                // No repair by hand: it goes on from whatever it is.
                if milliseconds >= 1_000 && !alive {
                    deck.run(["vm", "start", "m"]).expect(0);
                }
                deck.run(["vm", "delete", "--force", "m"]).expect(0);
            }
        }
        assert_eq!(deck.processes(), [0; 0], "{when}");
        assert_eq!(deck.files("vms"), [""; 0], "{when}");
        assert_eq!(deck.files("staging"), [""; 0], "{when}");
    }
    // And during a stop.
    let _guard = deck.guard("m");
    deck.run(["vm", "run", "busybox", "--name", "m"]).expect(0);
    let mut child = deck.command(["vm", "stop", "m"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(120));
    let _ = child.kill();
    child.wait().unwrap();
    deck.run(["vm", "stop", "m"]).expect(0);
    assert_eq!(vms(&deck)[0]["state"], "stopped");
    assert_eq!(deck.processes(), [0; 0]);
}

#[test]
fn a_cancelled_boot_ends_with_130_and_no_process() {
    if !can_boot() {
        return;
    }
    let deck = deck_with_busybox();
    let _guard = deck.guard("m");
    deck.run(["vm", "create", "m", "--image", "busybox"]).expect(0);
    let child = deck.command(["vm", "start", "m"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1_500));
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    crate::support::deck::finish(child).expect(130);
    assert_eq!(deck.processes(), [0; 0]);
    let state = vms(&deck)[0]["state"].clone();
    assert!(state == "stopped" || state == "failed" || state == "created", "{state}");
    deck.run(["vm", "start", "m"]).expect(0);
}

#[test]
fn two_processes_never_make_two_machines_of_one_name() {
    if !have("apt-get") || !have("busybox") {
        return;
    }
    let deck = deck_with_busybox();
    let children: Vec<_> = (0..6)
        .map(|_| {
            deck.command(["vm", "create", "same", "--image", "busybox", "--port", "0:80"]).spawn().unwrap()
        })
        .collect();
    let mut statuses: Vec<i32> =
        children.into_iter().map(|child| crate::support::deck::finish(child).status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [0, 4, 4, 4, 4, 4]);
    // A machine has no folder before its first start.
    assert_eq!(vms(&deck).len(), 1);
    assert_eq!(deck.files("vms"), [""; 0]);
    // Different names at once: nobody loses, no port and no address twice.
    let names: Vec<String> = (0..6).map(|number| format!("m{number}")).collect();
    let children: Vec<_> = names
        .iter()
        .map(|name| {
            deck.command(["vm", "create", name, "--image", "busybox", "--port", "0:80"]).spawn().unwrap()
        })
        .collect();
    for child in children {
        crate::support::deck::finish(child).expect(0);
    }
    let list = vms(&deck);
    let unique = |pick: fn(&serde_json::Value) -> String| {
        list.iter().map(pick).collect::<std::collections::HashSet<_>>().len()
    };
    assert_eq!(unique(|vm| vm["address"].to_string()), 7, "{list:?}");
    assert_eq!(unique(|vm| vm["settings"]["ports"][0]["host_port"].to_string()), 7, "{list:?}");
    for name in names.iter().map(String::as_str).chain(["same"]) {
        deck.run(["vm", "delete", name]).expect(0);
    }
    assert_eq!(deck.files("vms"), [""; 0]);
}
