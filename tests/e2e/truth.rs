//! What the program says after it, or a hypervisor, was killed.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::deck::Deck;
use crate::support::{can_boot, deck_with_busybox, have};

/// For what takes seconds on a host that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(120);

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
        if vm["state"] != "running" || begun.elapsed() > PATIENCE {
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
    while vms(&deck)[0]["state"] == "running" && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(vms(&deck)[0]["state"], "stopped");
    deck.expect_no_processes();
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
        let is_alive = |list: &[serde_json::Value]| {
            list.first().is_some_and(|vm| {
                matches!(vm["state"].as_str().unwrap(), "running" | "starting" | "stopping")
            })
        };
        // A process that is on record has yet to become the hypervisor, or to end with its vmdeck.
        let (mut list, mut processes) = (vms(&deck), deck.hypervisors());
        let begun = Instant::now();
        while is_alive(&list) == processes.is_empty() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
            (list, processes) = (vms(&deck), deck.hypervisors());
        }
        let when = format!("killed after {milliseconds} ms: {list:?}, processes {processes:?}");
        assert!(processes.len() <= 1, "{when}");
        let alive = is_alive(&list);
        assert_eq!(alive, !processes.is_empty(), "{when}");
        match list.first() {
            None => assert_eq!(deck.files("vms"), [""; 0], "{when}"),
            Some(_) => {
                // No repair by hand: it goes on from whatever it is.
                if milliseconds >= 1_000 && !alive {
                    deck.run(["vm", "start", "m"]).expect(0);
                }
                deck.run(["vm", "delete", "--force", "m"]).expect(0);
            }
        }
        deck.expect_no_processes();
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
    deck.expect_no_processes();
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
    deck.expect_no_processes();
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

/// What a command in the machine prints.
#[track_caller]
fn exec(deck: &Deck, command: &str) -> String {
    deck.run(["vm", "exec", "m", "--", "sh", "-c", command]).expect(0).stdout
}

#[test]
fn a_change_that_was_killed_and_a_guest_that_panicked_leave_the_truth() {
    if !can_boot() {
        return;
    }
    let deck = deck_with_busybox();
    let _guard = deck.guard("m");
    deck.run(["vm", "run", "busybox", "--name", "m"]).expect(0);
    killed_while_settings_change(&deck);

    // A guest whose kernel panics has failed, and its last words say why.
    exec(&deck, "echo kept > /kept && /bin/busybox sync");
    let mut child = deck
        .command(["vm", "exec", "m", "--", "sh", "-c", "echo lost > /lost; echo c > /proc/sysrq-trigger"])
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while vms(&deck)[0]["state"] == "running" && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(100));
    }
    let _ = child.kill();
    child.wait().unwrap();
    let vm = vms(&deck).remove(0);
    assert_eq!((&vm["state"], &vm["ended"]["cause"]), (&"failed".into(), &"guest_panicked".into()), "{vm}");
    let message = vm["ended"]["message"].as_str().unwrap();
    assert!(message.contains("Kernel panic") && message.contains("sysrq"), "{message}");
    deck.expect_no_processes();
    // Its journal is as the panic left it, and it starts without help.
    deck.run(["vm", "start", "m"]).expect(0);
    assert_eq!(exec(&deck, "cat /kept"), "kept\n");

    deck.run(["vm", "stop", "m"]).expect(0);
    for milliseconds in [2, 4, 8, 12, 16, 20, 30, 50] {
        let mut child = deck.command(["vm", "reset", "m"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        let _ = child.kill();
        child.wait().unwrap();
        assert_eq!(vms(&deck)[0]["state"], "stopped");
    }
    deck.run(["vm", "reset", "m"]).expect(0);
    let id = vms(&deck)[0]["id"].as_str().unwrap().to_owned();
    let disks = deck.files(&format!("vms/{id}"));
    assert!(!disks.iter().any(|name| name.starts_with("root")), "{disks:?}");
    deck.run(["vm", "start", "m"]).expect(0);
    assert_eq!(
        exec(&deck, "ls / | wc -l; cat /kept 2>/dev/null || echo fresh").lines().last(),
        Some("fresh")
    );
}

/// After each kill all of a change is on record or nothing of it; and ports that are on record are open.
fn killed_while_settings_change(deck: &Deck) {
    let mut ports = 0;
    for (index, milliseconds) in [4, 8, 12, 16, 20, 25, 30, 40, 60, 90].into_iter().enumerate() {
        let (disk, memory) = ((9 + index).to_string(), (512 + index).to_string());
        let mut child = deck
            .command(["vm", "set", "m", "--disk", &disk, "--memory", &memory, "--port", "0:7"])
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        let _ = child.kill();
        child.wait().unwrap();
        let vm = vms(deck).remove(0);
        let settings = &vm["settings"];
        let on_record = |name: &str| vm["pending"].get(name).unwrap_or(&settings[name]);
        let changed = *on_record("memory_mib") == 512 + index;
        let grown = *on_record("disk_bytes") == (9 + index) << 30;
        assert_eq!(grown, changed, "after {milliseconds} ms: {vm}");
        ports += usize::from(changed);
        let forwards = settings["ports"].as_array().unwrap();
        assert_eq!(forwards.len(), ports, "after {milliseconds} ms: {vm}");
        for forward in forwards {
            let port = u16::try_from(forward["host_port"].as_u64().unwrap()).unwrap();
            assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(), "{milliseconds} ms: {vm}");
        }
        assert_eq!(vm["state"], "running");
    }
}
