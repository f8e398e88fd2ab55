//! A machine's life between its first start and its end: settings, ports, standing still, console,
//! a fresh root; and several machines at once.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};

use crate::support::deck::{Deck, finish};
use crate::support::{can_boot, deck_with_busybox, have};

/// For what takes seconds on a host that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(120);

fn show(deck: &Deck, name: &str) -> serde_json::Value {
    deck.run(["vm", "show", name, "--output", "json"]).expect(0).json()
}

/// What a command in the machine prints.
#[track_caller]
fn exec(deck: &Deck, command: &str) -> String {
    deck.run(["vm", "exec", "m", "--", "sh", "-c", command]).expect(0).stdout
}

/// Length of a file system of the machine.
#[track_caller]
fn length(deck: &Deck, path: &str) -> u64 {
    let blocks = exec(deck, &format!("stat -f -c '%b %S' {path}"));
    let [count, size] = blocks.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{blocks}") };
    count.parse::<u64>().unwrap() * size.parse::<u64>().unwrap()
}

#[test]
fn settings_ports_pause_console_and_reset_of_a_real_machine() {
    if !can_boot() {
        return;
    }
    let deck = deck_with_busybox();
    let _guard = deck.guard("m");
    deck.run(["vm", "run", "busybox", "--name", "m", "--label", "tier=web"]).expect(0);

    // Ports open and close while it runs.
    let ports = deck.run(["vm", "ports", "m", "--add", "0:7", "--output", "json"]).expect(0).json();
    let port = ports[0]["host_port"].as_u64().unwrap();
    let listens = || std::net::TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())).is_ok();
    assert!(listens(), "{ports}");
    deck.run(["vm", "ports", "m", "--remove", &port.to_string()]).expect(0);
    assert!(!listens());
    deck.run(["vm", "ports", "m", "--remove", &port.to_string()]).expect(3).says(&["m", "next:"]);

    // Standing still is a state that every process sees, and nothing is lost by it.
    deck.run(["vm", "pause", "m"]).expect(0);
    assert_eq!(show(&deck, "m")["state"], "paused");
    deck.run(["vm", "exec", "m", "--", "true"]).expect(125).says(&["vm resume m"]);
    deck.run(["vm", "resume", "m"]).expect(0);
    assert_eq!(exec(&deck, "echo goes on"), "goes on\n");

    console_over_a_pipe_and_a_terminal(&deck);

    // What takes effect when is said, and so it is.
    let changed = deck
        .run(["vm", "set", "m", "--memory", "384", "--disk", "9", "--work-disk", "off", "--label", "tier=db"])
        .expect(0);
    for line in [
        "m: label tier web → db\n",
        "m: memory 1.00 GiB → 384 MiB, from its next start on\n",
        "m: disk 8.00 GiB → 9.00 GiB\n",
        "m: work disk on → off, from its next start on\n",
    ] {
        assert!(changed.stdout.contains(line), "{changed:?}");
    }
    // It is shown with what it has, and what it will have beside it.
    let shown = show(&deck, "m");
    assert_eq!(shown["settings"]["memory_mib"], 1024, "{shown}");
    assert_eq!(shown["settings"]["disk_bytes"], 9_u64 << 30, "{shown}");
    assert_eq!(shown["pending"], serde_json::json!({ "memory_mib": 384, "work_disk": false }));
    let shown = deck.run(["vm", "show", "m"]).expect(0).stdout;
    assert!(shown.contains("1.00 GiB → 384 MiB at next start\n"), "{shown}");
    let listed = deck.run(["vm", "list"]).expect(0).says(&["next start"]);
    assert!(listed.stdout.contains("1.00 GiB → 384 MiB"), "{listed:?}");
    deck.run(["vm", "set", "m", "--remove-label", "tear"]).expect(3).says(&["`tear`", "next:", "`tier`"]);
    // Both disks are longer, and so are the file systems on them, while they are in use.
    for path in ["/", "/root"] {
        let bytes = length(&deck, path);
        assert!(bytes > 8 << 30, "{path}: {bytes} bytes");
    }
    deck.run(["vm", "set", "m", "--disk", "1"]).expect(2).says(&["smaller", "next:"]);
    deck.run(["vm", "reset", "m"]).expect(4).says(&["running"]);
    exec(&deck, "echo root > /on-root && echo work > /root/on-work");
    deck.run(["vm", "stop", "m"]).expect(0);
    deck.run(["vm", "reset", "m"]).expect(0);
    deck.run(["vm", "start", "m"]).expect(0);
    assert_eq!(show(&deck, "m")["pending"], serde_json::Value::Null);
    assert_eq!(
        exec(&deck, "ls /on-root /root/on-work 2>/dev/null; grep -c ' /root ' /proc/mounts || true"),
        "0\n"
    );
    let memory = exec(&deck, "/bin/busybox awk '/MemTotal/ { print $2 }' /proc/meminfo");
    let kib: u64 = memory.trim().parse().unwrap();
    assert!((300 << 10..=384 << 10).contains(&kib), "{memory}");
    let begun = Instant::now();
    // The fresh one grows while it is in use.
    while length(&deck, "/") <= 8 << 30 {
        assert!(begun.elapsed() < PATIENCE, "{} bytes", length(&deck, "/"));
        std::thread::sleep(Duration::from_millis(200));
    }
    // The work disk was kept while it was away.
    deck.run(["vm", "set", "m", "--work-disk", "on"]).expect(0);
    deck.run(["vm", "restart", "m"]).expect(0);
    assert_eq!(exec(&deck, "cat /root/on-work"), "work\n");
}

fn console_over_a_pipe_and_a_terminal(deck: &Deck) {
    // Bytes as they are, escapes and all.
    let mut command = deck.command(["vm", "console", "m"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let input = child.stdin.take().unwrap();
    attached(&mut child);
    // A second one is told so.
    deck.run(["vm", "console", "m"]).expect(4).says(&["another terminal"]);
    exec(deck, "echo -ne 'raw \\033[31m\\001\\n' > /dev/ttyS0");
    hear(child.stdout.take().unwrap(), "raw \u{1b}[31m\u{1}");
    drop(input);
    assert_eq!(child.wait().unwrap().code(), Some(0));

    // What is typed arrives; ctrl-] leaves, and the terminal is as it was.
    let pty = openpty(None, None).unwrap();
    let before = tcgetattr(&pty.slave).unwrap().local_flags;
    let end = |fd: &OwnedFd| fd.try_clone().unwrap();
    let mut command = deck.command(["vm", "console", "m"]);
    let mut child = command.stdin(end(&pty.slave)).stdout(end(&pty.slave)).spawn().unwrap();
    attached(&mut child);
    let read = "/bin/busybox stty -F /dev/ttyS0 sane; echo ready > /dev/ttyS0; read line < /dev/ttyS0; echo got $line";
    let reader = deck.command(["vm", "exec", "m", "--", "sh", "-c", read]).spawn().unwrap();
    let mut master = File::from(pty.master);
    hear(master.try_clone().unwrap(), "ready");
    assert!(!tcgetattr(&pty.slave).unwrap().local_flags.contains(LocalFlags::ICANON), "raw mode");
    master.write_all(b"typed\r").unwrap();
    assert_eq!(finish(reader).expect(0).stdout, "got typed\n");
    master.write_all(b"\x1d").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(tcgetattr(&pty.slave).unwrap().local_flags, before);
    assert_eq!(show(deck, "m")["state"], "running");
}

/// Waits until this comes.
#[track_caller]
fn hear(mut from: impl Read + Send + 'static, mark: &str) {
    let (heard, hearing) = mpsc::channel();
    std::thread::spawn(move || {
        let mut part = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut part) {
            let _ = heard.send(part[..length].to_vec());
        }
    });
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains(mark) {
        let part = hearing.recv_timeout(PATIENCE);
        all.extend(part.unwrap_or_else(|_| panic!("no {mark:?} in {:?}", String::from_utf8_lossy(&all))));
    }
}

/// Waits until the client says that it has the console.
fn attached(child: &mut Child) {
    let mut said = Vec::new();
    let pipe = child.stderr.as_mut().unwrap();
    while !said.ends_with(b"\n") {
        let mut byte = [0];
        assert_eq!(pipe.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
        said.extend(byte);
    }
    assert!(String::from_utf8_lossy(&said).starts_with("attached"), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn many_at_once_by_name_label_or_all() {
    if !have("apt-get") || !have("busybox") {
        return;
    }
    let deck = deck_with_busybox();
    for (name, tier) in [("a", "web"), ("b", "web"), ("c", "db")] {
        let label = format!("tier={tier}");
        deck.run(["vm", "create", name, "--image", "busybox", "--label", &label, "--label", "all=1"])
            .expect(0);
    }
    let names = |arguments: &[&str]| -> Vec<String> {
        let list = ["vm", "list", "--output", "json"].into_iter().chain(arguments.iter().copied());
        let list = deck.run(list).expect(0).json();
        list.as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&["--label", "tier"]), ["a", "b", "c"]);
    assert_eq!(names(&["--label", "tier=web"]), ["a", "b"]);
    assert_eq!(names(&["--label", "tier=web", "--label", "all=2"]), [""; 0]);
    let wide = deck.run(["vm", "list", "--wide"]).expect(0);
    assert!(wide.stdout.contains("all=1,tier=db"), "{wide:?}");
    deck.run(["vm", "create", "d", "--image", "busybox", "--label", "=x"]).expect(2);

    // Without machines to stop there is nothing to fail.
    deck.run(["vm", "stop", "--all"]).expect(0).says(&["nothing was done"]);
    deck.run(["vm", "stop", "--all", "a"]).expect(2);
    deck.run(["vm", "delete"]).expect(2);

    // What fails is told, the rest is done, and the status says what kind of failure it was.
    let ended = deck.run(["vm", "delete", "none", "a", "neither"]).expect(3).says(&["`none`", "`neither`"]);
    assert_eq!(ended.stdout, "a\n");
    deck.run(["vm", "delete", "--label", "tier=web"]).expect(0);
    assert_eq!(names(&[]), ["c"]);
    deck.run(["vm", "delete", "--all"]).expect(0);
    assert_eq!(names(&[]), [""; 0]);
}

/// What the hypervisor reads when nothing of it is in the guest's memory any more.
#[test]
fn a_running_machine_keeps_its_disks_through_freezes_growth_and_clones() {
    if !can_boot() {
        return;
    }
    let deck = deck_with_busybox();
    let (_guard, _clone) = (deck.guard("m"), deck.guard("n"));
    deck.run(["vm", "run", "busybox", "--name", "m", "--memory", "256"]).expect(0);
    let mut written = Vec::new();
    let mut write = |name: &str| {
        let random = "busybox dd if=/dev/urandom bs=1k count=300 2> /dev/null";
        for folder in ["", "/root"] {
            exec(&deck, &format!("{random} > {folder}/{name}"));
            written.push(format!("{folder}/{name}"));
        }
        let sums = exec(&deck, &format!("busybox sync; busybox md5sum {}", written.join(" ")));
        // The directories and the free space as well.
        let again = format!(
            "echo 3 > /proc/sys/vm/drop_caches; busybox find / -xdev > /dev/null; busybox df -k / > /dev/null; busybox md5sum {}",
            written.join(" ")
        );
        assert_eq!(exec(&deck, &again), sums, "after {name}");
        (again, sums)
    };
    write("first");
    deck.run(["vm", "snapshot", "create", "m", "one"]).expect(0);
    write("second");
    deck.run(["vm", "snapshot", "create", "m", "two"]).expect(0);
    write("third");
    deck.run(["vm", "set", "m", "--disk", "9"]).expect(0);
    write("fourth");
    deck.run(["vm", "clone", "m", "n"]).expect(0);
    let (again, sums) = write("fifth");
    // The clone lies on layers that the original's hypervisor has open, and starts beside it.
    deck.run(["vm", "start", "n"]).expect(0);
    let of_clone = deck.run(["vm", "exec", "n", "--", "sh", "-c", &again.replace(" /fifth /root/fifth", "")]);
    let of_clone = of_clone.expect(0).stdout;
    assert!(sums.starts_with(&of_clone) && of_clone.contains("/root/fourth"), "{of_clone}\nof\n{sums}");
    deck.run(["vm", "restart", "m"]).expect(0);
    assert_eq!(exec(&deck, &again), sums);
    // What a run is known by goes with it.
    deck.run(["vm", "stop", "m", "n"]).expect(0);
    let id = show(&deck, "m")["id"].as_str().unwrap().to_owned();
    let disks: Vec<_> =
        deck.files(&format!("vms/{id}")).into_iter().filter(|name| name.ends_with(".qcow2")).collect();
    assert_eq!(disks, ["root.qcow2", "work.qcow2"]);
}

#[test]
fn snapshots_and_clones_of_a_real_machine_also_when_vmdeck_is_killed() {
    if !can_boot() {
        return;
    }
    let deck = deck_with_busybox();
    let (_guard, _clone) = (deck.guard("m"), deck.guard("n"));
    deck.run(["vm", "run", "busybox", "--name", "m"]).expect(0);
    let write = |text: &str| exec(&deck, &format!("echo {text} > /on-root && echo {text} > /root/on-work"));
    let read = || exec(&deck, "cat /on-root /root/on-work");
    write("one");
    let snapshot = deck.run(["vm", "snapshot", "create", "m", "first", "--output", "json"]).expect(0).json();
    let expected = serde_json::json!([true, true, "first"]);
    assert_eq!(serde_json::json!([snapshot["running"], snapshot["synced"], snapshot["name"]]), expected);
    write("two");

    // Killed at some point of it, while the guest writes: the machine goes on with what it wrote.
    for milliseconds in [5, 10, 15, 20, 25, 30, 40, 60, 90] {
        let mut child = deck.command(["vm", "snapshot", "create", "m"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        let _ = child.kill();
        child.wait().unwrap();
        write(&format!("after-{milliseconds}"));
        assert_eq!(show(&deck, "m")["state"], "running");
    }
    deck.run(["vm", "stop", "m"]).expect(0);
    let snapshots = deck.run(["vm", "snapshot", "list", "m", "--output", "json"]).expect(0).json();
    for snapshot in snapshots.as_array().unwrap().iter().skip(1) {
        deck.run(["vm", "snapshot", "delete", "m", snapshot["name"].as_str().unwrap()]).expect(0);
    }
    assert_eq!(deck.files("staging"), [""; 0]);
    deck.run(["vm", "start", "m"]).expect(0);
    assert_eq!(read(), "after-90\nafter-90\n");
    // A hypervisor that is killed right after one leaves a journal, not a loss.
    deck.run(["vm", "snapshot", "create", "m", "last"]).expect(0);
    write("three");
    exec(&deck, "/bin/busybox sync");
    let [pid] = deck.hypervisors()[..] else { panic!("not one hypervisor: {:?}", deck.hypervisors()) };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let begun = Instant::now();
    while show(&deck, "m")["state"] == "running" && begun.elapsed() < PATIENCE {}
    deck.run(["vm", "start", "m"]).expect(0);
    assert_eq!(read(), "three\nthree\n");

    deck.run(["vm", "snapshot", "restore", "m", "first"]).expect(4).says(&["running"]);
    deck.run(["vm", "stop", "m"]).expect(0);
    // A clone of how it is now; the original goes back, and then away.
    deck.run(["vm", "clone", "m", "n"]).expect(0);
    deck.run(["vm", "snapshot", "restore", "m", "first"]).expect(0);
    deck.run(["vm", "start", "m"]).expect(0);
    assert_eq!(read(), "one\none\n");
    deck.run(["vm", "delete", "--force", "m"]).expect(0);
    let clone = deck.run(["vm", "start", "n"]).expect(0);
    assert_eq!(clone.stdout, "n\n");
    let content =
        deck.run(["vm", "exec", "n", "--", "sh", "-c", "cat /on-root /root/on-work; hostname || uname -n"]);
    assert!(content.expect(0).stdout.starts_with("three\nthree\n"));
    // An image of a machine on layers needs none of them.
    deck.run(["vm", "stop", "n"]).expect(0);
    deck.run(["image", "promote", "--from-vm", "n", "promoted"]).expect(0);
    deck.run(["vm", "delete", "n"]).expect(0);
    assert_eq!(deck.files("layers"), [""; 0]);
    let _promoted = deck.guard("p");
    let ended = deck.run(["vm", "run", "promoted", "--name", "p", "--", "cat", "/on-root", "/root/on-work"]);
    assert_eq!(ended.expect(0).stdout, "three\nthree\n");
}

#[test]
fn an_isolated_machine_is_reached_and_reaches_nothing() {
    if !can_boot() {
        return;
    }
    let deck = deck_with_busybox();
    let _guard = deck.guard("m");
    // A service of this host on its loopback interface, as a database is.
    let service = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = service.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in service.incoming().flatten() {
            let mut client = client;
            let _ = client.write_all(b"secret\n");
        }
    });
    let reach = |deck: &Deck, seconds: u64| {
        let address = show(deck, "m")["address"].as_str().unwrap().replace(".15", ".2");
        exec(deck, &format!("/bin/busybox nc -w {seconds} {address} {port} < /dev/null || true"))
    };
    deck.run(["vm", "run", "busybox", "--name", "m", "--network", "isolated", "--port", "0:7"]).expect(0);
    assert_eq!(reach(&deck, 3), "", "an isolated machine reaches this host");
    let listen = "/bin/busybox nc -l -p 7 -e /bin/echo from inside";
    let guest = deck.command(["vm", "exec", "m", "--", "sh", "-c", listen]).spawn().unwrap();
    let host_port = show(&deck, "m")["settings"]["ports"][0]["host_port"].as_u64().unwrap();
    let begun = Instant::now();
    let mut said = String::new();
    while said.is_empty() && begun.elapsed() < PATIENCE {
        let connected = std::net::TcpStream::connect(("127.0.0.1", u16::try_from(host_port).unwrap()));
        let _ = connected.and_then(|mut stream| stream.read_to_string(&mut said));
    }
    assert_eq!(said, "from inside\n");
    finish(guest).expect(0);
    deck.run(["vm", "delete", "--force", "m"]).expect(0);
    // What README says of the default, so that whoever mends it also mends that.
    deck.run(["vm", "run", "busybox", "--name", "m"]).expect(0);
    assert_eq!(reach(&deck, 60), "secret\n");
}
