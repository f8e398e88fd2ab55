//! Machines on a bridge of the host (`--network bridge`). The host is a network name space that the test
//! makes, and so is what lies beyond it; vmdeck is run by an ordinary user with CAP_NET_ADMIN.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::deck::{Deck, Ended, finish};
use crate::support::namespace::Namespace;
use crate::support::{can_boot, deck_with_busybox};

/// Addresses for documentation (RFC 5737): of the host beyond, and of what is there.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// A firewall of somebody else, of which nothing may change.
const FOREIGN: &str = "table inet foreign {
    set known { type ipv4_addr; elements = { 192.0.2.7, 192.0.2.9 }; }
    chain input { type filter hook input priority 10; policy accept; tcp dport 9 counter drop; }
    chain forward { type filter hook forward priority 10; policy accept; ip daddr @known drop; }
}
table netdev foreign {
    chain in { type filter hook ingress device \"lo\" priority 5; policy accept; }
}";

struct Lab {
    deck: Arc<Deck>,
    host: Namespace,
    outside: Namespace,
    /// As `nft` lists it.
    foreign: String,
}

impl Lab {
    fn new(deck: Arc<Deck>) -> Option<Self> {
        let (host, outside) = (Namespace::new()?, Namespace::new()?);
        host.shell(&format!(
            "ip link add up0 type veth peer name out0 netns {} && ip address add {HOST}/24 dev up0 && \
             ip link set up0 up && nft '{FOREIGN}'",
            outside.pid()
        ));
        // Beyond it is known that the machines are behind the host: that alone must not lead to them.
        outside.shell(&format!(
            "ip address add {OUTSIDE}/24 dev out0 && ip link set out0 up && \
             for net in 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16; do ip route add $net via {HOST}; done"
        ));
        let foreign = host.shell("nft list ruleset");
        Some(Self { deck, host, outside, foreign })
    }

    fn start<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Child {
        self.deck.command_behind(&self.host.as_administrator(), arguments).spawn().unwrap()
    }

    #[track_caller]
    fn run<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Ended {
        finish(self.start(arguments))
    }

    #[track_caller]
    fn exec(&self, name: &str, command: &str) -> String {
        self.run(["vm", "exec", name, "--", "sh", "-c", command]).expect(0).stdout
    }

    fn show(&self, name: &str) -> serde_json::Value {
        self.run(["vm", "show", name, "--output", "json"]).expect(0).json()
    }

    fn address(&self, name: &str) -> Ipv4Addr {
        self.show(name)["address"].as_str().unwrap().parse().unwrap()
    }

    fn hypervisor(&self, name: &str) -> i32 {
        i32::try_from(self.show(name)["run"]["process"]["pid"].as_i64().unwrap()).unwrap()
    }

    fn kill_hypervisor(&self, name: &str) {
        self.deck.kill(self.hypervisor(name));
    }

    /// Names of interfaces of vmdeck's.
    fn interfaces(&self) -> Vec<String> {
        let all = self.host.shell("ip -o link | cut -d: -f2 | cut -d@ -f1");
        all.split_whitespace().filter(|name| name.starts_with('v')).map(str::to_owned).collect()
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        assert_eq!(self.interfaces(), Vec::<String>::new());
        assert_eq!(self.host.shell("nft list ruleset"), self.foreign, "the firewall is not what it was");
        assert_eq!(self.host.shell("cat /proc/sys/net/ipv4/ip_forward").trim(), "0");
        assert!(!self.deck.data().join("bridge.json").exists());
    }

    /// Listens in a machine, and has somebody connect.
    fn serve(&self, name: &str, connect: impl FnOnce(SocketAddr) -> String) -> String {
        let listen = format!("/bin/busybox nc -l -p 7 -e /bin/echo from {name}");
        let listening = self.start(["vm", "exec", name, "--", "sh", "-c", &listen]);
        let said = connect((self.address(name), 7).into());
        finish(listening).expect(0);
        said
    }
}

/// What is said at an address, which may take a moment to be there.
fn hear(address: SocketAddr) -> String {
    let (begun, mut said) = (Instant::now(), String::new());
    while said.is_empty() && begun.elapsed() < Duration::from_secs(120) {
        let connected = TcpStream::connect_timeout(&address, Duration::from_secs(5));
        let _ = connected.and_then(|mut stream| stream.read_to_string(&mut said));
        std::thread::sleep(Duration::from_millis(50));
    }
    said
}

#[test]
fn bridged_machines_are_reached_reach_out_and_leave_nothing() {
    if !can_boot() {
        return;
    }
    let deck = deck_with_busybox();
    let (_a, _b, _c) = (deck.guard("a"), deck.guard("b"), deck.guard("c"));
    let machine = |name| ["vm", "create", name, "--image", "busybox", "--network", "bridge"];
    deck.run(machine("a")).expect(5).says(&["CAP_NET_ADMIN", "--network lan"]);
    let Some(lab) = Lab::new(Arc::clone(&deck)) else { return };

    lab.run(machine("a").into_iter().chain(["--port", "0:8"])).expect(2).says(&["at its address"]);
    for name in ["a", "b"] {
        lab.run(machine(name).into_iter().chain(["--memory", "192", "--cpus", "1"])).expect(0);
    }
    lab.nothing_is_left();
    lab.run(["vm", "start", "a", "b"]).expect(0);
    let (a, b) = (lab.address("a"), lab.address("b"));
    assert_eq!(a.octets()[..3], b.octets()[..3], "one network: {a} {b}");
    assert_eq!(lab.interfaces().len(), 3, "a bridge and two taps: {:?}", lab.interfaces());

    assert_eq!(lab.serve("a", |at| lab.host.within(|| hear(at))), "from a\n");
    let call = |at: SocketAddr| format!("/bin/busybox nc -w 60 {} {} </dev/null", at.ip(), at.port());
    let patiently = |at| format!("for i in $(busybox seq 60); do {} && exit; sleep 1; done", call(at));
    assert_eq!(lab.serve("a", |at| lab.exec("b", &patiently(at))), "from a\n");
    machines_reach_out_by_the_hosts_address_and_are_not_reached_back(&lab);
    nobody_speaks_in_another_s_name(&lab, b);

    lab.run(["vm", "ports", "b"]).expect(0);
    lab.run(["vm", "ports", "b", "--add", "0:8"]).expect(2).says(&[&b.to_string()]);
    lab.run(["vm", "set", "b", "--label", "tier=web"]).expect(0);
    disks_are_kept_grow_and_are_cloned(&lab, b);
    let c = lab.address("c");
    assert!(c != a && c != b && c.octets()[..3] == a.octets()[..3], "{c}");
    for name in ["a", "b"] {
        let status = std::fs::read_to_string(format!("/proc/{}/status", lab.hypervisor(name))).unwrap();
        assert!(status.contains("CapEff:\t0000000000000000"), "it may do more than it needs:\n{status}");
    }

    // Killed one by one: what is of the one goes, what both need stays until the second is gone.
    lab.kill_hypervisor("b");
    lab.run(["vm", "list"]).expect(0);
    assert_eq!(lab.show("b")["state"], "failed");
    assert_eq!(lab.interfaces().len(), 2, "{:?}", lab.interfaces());
    assert_eq!(lab.host.shell("nft list tables netdev").lines().count(), 2, "the foreign one and a's");
    assert_eq!(lab.serve("a", |at| lab.host.within(|| hear(at))), "from a\n");
    lab.kill_hypervisor("a");
    lab.run(["vm", "list"]).expect(0);
    lab.nothing_is_left();

    a_start_that_is_killed_half_way_leaves_nothing(&lab);
    a_firewall_that_drops_is_told_of_and_left_alone(&lab);
    lab.run(["vm", "restart", "a"]).expect(0);
    assert_eq!(lab.address("a"), a);
    assert_eq!(lab.serve("a", |at| lab.host.within(|| hear(at))), "from a\n");
    lab.run(["vm", "stop", "a"]).expect(0);
    lab.nothing_is_left();
    lab.run(["vm", "delete", "a", "b", "c"]).expect(0);
    lab.nothing_is_left();
    assert_eq!(deck.files("vms"), [""; 0]);
    deck.expect_no_processes();
}

fn machines_reach_out_by_the_hosts_address_and_are_not_reached_back(lab: &Lab) {
    let service = lab.outside.within(|| TcpListener::bind((OUTSIDE, 8)).unwrap());
    let serving = std::thread::spawn(move || {
        let (mut stream, from) = service.accept().unwrap();
        stream.write_all(b"out\n").unwrap();
        from.ip()
    });
    assert_eq!(lab.exec("a", &format!("/bin/busybox nc -w 60 {OUTSIDE} 8 </dev/null")), "out\n");
    assert_eq!(serving.join().unwrap(), IpAddr::V4(HOST));
    // This host passes packets on now, but not to machines that have not asked for them.
    let listen = "/bin/busybox nc -l -p 7 -w 120 -e /bin/echo reached";
    let listening = lab.start(["vm", "exec", "a", "--", "sh", "-c", listen]);
    let at = SocketAddr::from((lab.address("a"), 7));
    let reached = lab.outside.within(|| TcpStream::connect_timeout(&at, Duration::from_secs(3)).is_ok());
    assert!(!reached, "from beyond the host {at} is reached");
    assert_eq!(lab.host.within(|| hear(at)), "reached\n", "it did listen");
    finish(listening).expect(0);
}

/// A machine that takes another address, or another hardware address, gets no answers.
fn nobody_speaks_in_another_s_name(lab: &Lab, b: Ipv4Addr) {
    let [x, y, z, _] = b.octets();
    let other = Ipv4Addr::new(x, y, z, 77);
    let ping = |from: &str, seconds| format!("/bin/busybox ping {from} -c 2 -W {seconds} {b}; echo $?");
    let forge = format!(
        "/bin/busybox ip address add {other}/24 dev eth0; {}; /bin/busybox ip address del {other}/24 dev eth0",
        ping(&format!("-I {other}"), 1)
    );
    let said = lab.exec("a", &forge);
    assert!(said.contains("0 packets received") && said.ends_with("1\n"), "{said}");
    let mac = "$(cat /sys/class/net/eth0/address)";
    let set = |mac: &str| format!("/bin/busybox ip link set eth0 address {mac}");
    let forge = format!(
        "own={mac}; {}; {}; {}; {}",
        set("5a:00:00:00:00:77"),
        ping("", 1),
        set("$own"),
        ping("", 60)
    );
    let said = lab.exec("a", &forge);
    let results: Vec<&str> = said.lines().filter(|line| line.contains("packets received")).collect();
    assert!(
        results.len() == 2
            && results[0].contains(" 0 packets received")
            && results[1].contains(" 2 packets received"),
        "{said}"
    );
}

/// While the machine is on the bridge, and it stays there.
fn disks_are_kept_grow_and_are_cloned(lab: &Lab, b: Ipv4Addr) {
    lab.exec("b", "echo one > /kept");
    lab.run(["vm", "snapshot", "create", "b", "one"]).expect(0);
    lab.run(["vm", "set", "b", "--disk", "9"]).expect(0);
    lab.exec("b", "echo two > /kept; /bin/busybox sync");
    lab.run(["vm", "clone", "b", "c"]).expect(0);
    lab.run(["vm", "start", "c"]).expect(0);
    assert_eq!(lab.exec("c", "cat /kept"), "two\n");
    lab.exec("c", &format!("/bin/busybox ping -c 1 -W 60 {b}"));
    lab.run(["vm", "stop", "c"]).expect(0);
    lab.exec("a", &format!("/bin/busybox ping -c 1 -W 60 {b}"));
}

/// One like Docker's, which lets nothing through that it does not know.
fn a_firewall_that_drops_is_told_of_and_left_alone(lab: &Lab) {
    const TABLE: &str =
        "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }";
    lab.run(["vm", "stop", "a"]).expect(0);
    lab.host.shell(&format!("nft '{TABLE}'"));
    let listed = lab.host.shell("nft list table ip filter");
    let said = lab.run(["vm", "start", "a"]).expect(0).says(&["table ip filter, chain FORWARD"]).stderr;
    let doctor = lab.run(["doctor"]).expect(0).stdout;
    let bridge = lab.interfaces().into_iter().find(|name| name.starts_with("vmdeck-")).unwrap();
    let fix = format!("iptables -I FORWARD -i {bridge} -j ACCEPT");
    assert!(said.contains(&fix) && doctor.contains(&fix), "{said}\n{doctor}");
    assert_eq!(lab.host.shell("nft list table ip filter"), listed);

    let service = lab.outside.within(|| TcpListener::bind((OUTSIDE, 8)).unwrap());
    std::thread::spawn(move || {
        for mut client in service.incoming().flatten() {
            let _ = client.write_all(b"out\n");
        }
    });
    let call = |seconds| format!("/bin/busybox nc -w {seconds} {OUTSIDE} 8 </dev/null || true");
    assert_eq!(lab.exec("a", &call(3)), "", "what was said is not so");
    for direction in ["iifname", "oifname"] {
        lab.host.shell(&format!("nft insert rule ip filter FORWARD {direction} {bridge} accept"));
    }
    assert_eq!(lab.exec("a", &call(60)), "out\n");
    let told = lab.run(["vm", "restart", "a"]).expect(0).stderr;
    assert!(!told.contains("chain FORWARD"), "{told}");
    lab.host.shell("nft delete table ip filter");
}

/// At the moment in which its bridge appears.
fn a_start_that_is_killed_half_way_leaves_nothing(lab: &Lab) {
    let mut starting = lab.start(["vm", "start", "a"]);
    let begun = Instant::now();
    while lab.interfaces().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(120), "there is no bridge");
        std::thread::sleep(Duration::from_millis(1));
    }
    starting.kill().unwrap();
    starting.wait().unwrap();
    lab.run(["vm", "list"]).expect(0);
    // It was killed before there was a hypervisor, or its boot goes on; neither is anything to repair.
    if lab.show("a")["run"].is_null() {
        lab.nothing_is_left();
    }
}
