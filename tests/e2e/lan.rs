//! Machines that reach each other (`--network lan`).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::deck::{Deck, finish};
use crate::support::{can_boot, deck_with_busybox};

fn show(deck: &Deck, name: &str) -> serde_json::Value {
    deck.run(["vm", "show", name, "--output", "json"]).expect(0).json()
}

/// What a command in a machine prints.
#[track_caller]
fn exec(deck: &Deck, name: &str, command: &str) -> String {
    deck.run(["vm", "exec", name, "--", "sh", "-c", command]).expect(0).stdout
}

/// The process that the machines' frames pass through, by what it says of itself.
fn switch(deck: &Deck) -> Option<i32> {
    let text = std::fs::read_to_string(deck.data().join("locks/lan-switch")).ok()?;
    let pid = serde_json::from_str::<serde_json::Value>(&text).ok()?["pid"].as_i64()?;
    i32::try_from(pid).ok().filter(|pid| deck.processes().contains(pid))
}

/// Listens in `server` and has `client` connect.
fn talk(deck: &Deck, server: &str, client: &str, to: &str) -> String {
    let listen = "/bin/busybox nc -l -p 7 -e /bin/echo from $(hostname || uname -n)";
    let listening = deck.command(["vm", "exec", server, "--", "sh", "-c", listen]).spawn().unwrap();
    let call =
        format!("for i in $(busybox seq 60); do /bin/busybox nc {to} 7 </dev/null && exit; sleep 1; done");
    let said = exec(deck, client, &call);
    finish(listening).expect(0);
    said
}

#[test]
fn machines_reach_each_other_also_when_the_switch_is_killed() {
    if !can_boot() {
        return;
    }
    let deck = deck_with_busybox();
    let (_a, _b) = (deck.guard("a"), deck.guard("b"));
    for name in ["a", "b"] {
        let machine = ["vm", "create", name, "--image", "busybox", "--network", "lan"];
        deck.run(machine.into_iter().chain(["--memory", "192", "--cpus", "1", "--port", "0:8"])).expect(0);
    }
    assert_eq!(switch(&deck), None, "nobody needs it yet");
    deck.run(["vm", "start", "a", "b"]).expect(0);
    let address = |name| show(&deck, name)["address"].as_str().unwrap().to_owned();
    let (a, b) = (address("a"), address("b"));
    assert_eq!(a.rsplit_once('.').unwrap().0, b.rsplit_once('.').unwrap().0, "one network: {a} {b}");

    // By address, by name, and by name with the domain.
    for target in [b.as_str(), "b", "b.vmdeck", "B.VMDECK"] {
        exec(&deck, "a", &format!("/bin/busybox ping -c 1 -W 60 {target}"));
    }
    assert_eq!(talk(&deck, "b", "a", "b"), "from b\n");
    assert_eq!(talk(&deck, "a", "b", &a), "from a\n");
    assert!(deck.run(["vm", "show", "b"]).expect(0).stdout.contains("b.vmdeck"));
    let hosts = exec(&deck, "a", "cat /etc/hosts");
    assert!(hosts.contains(&format!("{a}\ta\ta.vmdeck\n")), "{hosts}");
    deck.run(["vm", "exec", "a", "--", "/bin/busybox", "ping", "-c", "1", "c.vmdeck"]).expect(1);

    the_other_network_is_that_of_the_user_mode(&deck);
    nobody_speaks_in_another_s_name(&deck, &b);

    // What was killed is started again by whatever looks at the machines next, and they notice nothing.
    let first = switch(&deck).expect("the switch runs");
    deck.kill(first);
    assert_eq!(talk(&deck, "b", "a", "b"), "from b\n");
    let second = switch(&deck).expect("the switch runs again");
    assert_ne!(first, second);
    let is_vmdeck =
        |pid: &i32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path.ends_with("vmdeck"));
    let ours: Vec<i32> = deck.processes().into_iter().filter(is_vmdeck).collect();
    assert_eq!((deck.hypervisors().len(), ours), (2, vec![second]), "one switch for both machines");

    // It stays for the last machine, and goes with it.
    deck.run(["vm", "stop", "a"]).expect(0);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(switch(&deck), Some(second));
    deck.run(["vm", "exec", "b", "--", "/bin/busybox", "ping", "-c", "1", "-W", "2", "a.vmdeck"]).expect(1);
    deck.run(["vm", "delete", "--force", "a", "b"]).expect(0);
    let begun = Instant::now();
    while !deck.processes().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(120), "{:?} stay", deck.processes());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!((deck.files("vms"), deck.files("staging")), (vec![], vec![]));
}

/// Out by the hypervisor's sockets, in by forwarded ports, as with `--network user`.
fn the_other_network_is_that_of_the_user_mode(deck: &Deck) {
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = service.local_addr().unwrap().port();
    let serving = std::thread::spawn(move || service.accept().unwrap().0.write_all(b"out\n").unwrap());
    let call = format!(
        "gateway=$(/bin/busybox ip route | /bin/busybox awk '/^default/ {{ print $3 }}'); \
         /bin/busybox nc -w 60 $gateway {port} < /dev/null"
    );
    assert_eq!(exec(deck, "a", &call), "out\n");
    serving.join().unwrap();
    let listen = "/bin/busybox nc -l -p 8 -e /bin/echo in";
    let guest = deck.command(["vm", "exec", "b", "--", "sh", "-c", listen]).spawn().unwrap();
    let port = show(deck, "b")["settings"]["ports"][0]["host_port"].as_u64().unwrap();
    let (begun, mut said) = (Instant::now(), String::new());
    while said.is_empty() && begun.elapsed() < Duration::from_secs(120) {
        let connected = TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap()));
        let _ = connected.and_then(|mut stream| stream.read_to_string(&mut said));
    }
    assert_eq!(said, "in\n");
    finish(guest).expect(0);
}

/// A machine that takes another address gets no answers at it.
fn nobody_speaks_in_another_s_name(deck: &Deck, b: &str) {
    let network = b.rsplit_once('.').unwrap().0;
    let forge = format!(
        "/bin/busybox ip address add {network}.77/24 dev eth1 && \
         /bin/busybox ping -I {network}.77 -c 2 -W 1 {b}; echo $?; \
         /bin/busybox ip address del {network}.77/24 dev eth1"
    );
    let said = exec(deck, "a", &forge);
    assert!(said.contains("0 packets received") && said.ends_with("1\n"), "{said}");
    let logs: String = deck
        .files("logs")
        .iter()
        .map(|name| std::fs::read_to_string(deck.data().join("logs").join(name)).unwrap())
        .collect();
    assert!(logs.contains("in another one's name"), "{logs}");
}
