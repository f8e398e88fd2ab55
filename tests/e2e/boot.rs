//! Machines that really boot: Debian without an init, Debian with systemd, busybox, a single binary.

use std::path::Path;
use std::sync::Arc;

use crate::support::deck::{Deck, Machine};
use crate::support::{fixtures, have};

/// Pulls a layout under a name and gives a guard for a machine of that name.
fn image(deck: &Arc<Deck>, layout: &Path, name: &str) -> Machine {
    let layout = deck.readable(layout);
    deck.run(["image", "pull", &format!("oci:{}", layout.display()), "--name", name]).expect(0);
    deck.guard(name)
}

fn can_boot() -> bool {
    have("qemu-system-x86_64") && have("mmdebstrap") && have("apt-get")
}

fn state(deck: &Deck, name: &str) -> String {
    let vm = deck.run(["vm", "show", name, "--output", "json"]).expect(0).json();
    vm["state"].as_str().unwrap().to_owned()
}

#[test]
fn debian_without_an_init_boots_runs_commands_stops_and_goes() {
    if !can_boot() {
        return;
    }
    let deck = Deck::shared();
    let _guard = image(&deck, &fixtures::minbase(), "minbase");
    let ended = deck.run([
        "vm",
        "run",
        "minbase",
        "--name",
        "minbase",
        "--",
        "sh",
        "-c",
        "uname -s; cat /etc/debian_version; exit 42",
    ]);
    let ended = ended.expect(42);
    assert!(ended.stdout.starts_with("Linux\n12"), "{ended:?}");

    let vm = deck.run(["vm", "show", "minbase", "--output", "json"]).expect(0).json();
    assert_eq!(vm["state"], "running");
    let phases = vm["boot"]["phases"].as_array().unwrap();
    let names: Vec<_> = phases.iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["resolve", "reserve", "disk", "network", "vmm", "kernel", "init", "agent", "ready"]);
    for phase in phases {
        assert!(matches!(phase["status"].as_str().unwrap(), "done" | "skipped"), "{phase}");
        assert!(phase["status"] == "skipped" || phase["duration_ms"].is_u64(), "{phase}");
    }

    // Standard input, binary-safe, both streams apart, and the status.
    let exec = |command: &str| deck.run(["vm", "exec", "minbase", "--", "sh", "-c", command]);
    let ended = exec("echo out; echo err >&2; exit 3").expect(3);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("out\n", "err\n"));
    exec("kill -9 $$").expect(137);
    deck.run(["vm", "exec", "minbase", "--", "/no/such/program"]).expect(127).says(&["/no/such/program"]);
    deck.run([
        "vm",
        "exec",
        "--user",
        "nobody",
        "--workdir",
        "/tmp",
        "minbase",
        "--",
        "sh",
        "-c",
        "test $(id -un) = nobody -a $PWD = /tmp",
    ])
    .expect(0);
    deck.run(["vm", "exec", "--env", "A=b c", "minbase", "--", "sh", "-c", "test \"$A\" = 'b c'"]).expect(0);
    let hostname = exec("hostname; getent hosts minbase; cat /etc/resolv.conf").expect(0);
    assert!(
        hostname.stdout.starts_with("minbase\n") && hostname.stdout.contains("nameserver"),
        "{hostname:?}"
    );
    assert!(exec("cat ~/.ssh/authorized_keys").expect(0).stdout.starts_with("ssh-ed25519 "));
    exec("test -d /lib/modules/$(uname -r)/kernel && grep -q ' /root ' /proc/mounts").expect(0);

    // What runs is not deleted; its image and kernel neither.
    deck.run(["vm", "delete", "minbase"]).expect(4).says(&["minbase", "next:"]);
    deck.run(["image", "delete", "minbase"]).expect(4).says(&["minbase"]);
    let kernel = vm["kernel"].as_str().unwrap();
    deck.run(["kernel", "delete", kernel]).expect(4).says(&["minbase"]);

    // Survives a stop; what was written is still there.
    exec("echo kept > /var/kept && echo work > /root/work").expect(0);
    let stopped = deck.run(["vm", "stop", "minbase", "--output", "json"]).expect(0).json();
    assert_eq!(stopped[0]["outcome"], "agent", "{stopped}");
    assert_eq!(state(&deck, "minbase"), "stopped");
    deck.run(["vm", "exec", "minbase", "--", "true"]).expect(125).says(&["minbase", "vm start"]);
    deck.run(["vm", "start", "minbase"]).expect(0);
    assert_eq!(exec("cat /var/kept /root/work").expect(0).stdout, "kept\nwork\n");

    deck.run(["vm", "delete", "--force", "minbase"]).expect(0);
    deck.run(["vm", "show", "minbase"]).expect(3);
    deck.run(["image", "delete", "minbase"]).expect(0);
}

#[test]
fn debian_with_systemd_reaches_its_services() {
    if !can_boot() {
        return;
    }
    let deck = Deck::shared();
    let _guard = image(&deck, &fixtures::systemd(), "systemd");
    let ended = deck.run([
        "vm",
        "run",
        "systemd",
        "--name",
        "systemd",
        "--",
        "sh",
        "-c",
        "until [ -S /run/systemd/private ]; do sleep 0.2; done; cat /proc/1/comm; systemctl is-system-running --wait",
    ]);
    // `degraded` (status 1) would name a unit that failed: this machine has none.
    let ended = ended.expect(0);
    assert_eq!(ended.stdout, "systemd\nrunning\n");
    deck.run(["vm", "exec", "systemd", "--", "systemctl", "is-active", "dbus.socket"]).expect(0);
    let stopped = deck.run(["vm", "stop", "systemd", "--output", "json"]).expect(0).json();
    assert_eq!(stopped[0]["outcome"], "agent", "{stopped}");
}

#[test]
fn busybox_boots_with_the_environment_of_its_image() {
    if !can_boot() || !have("busybox") {
        return;
    }
    let deck = Deck::shared();
    let _guard = image(&deck, &fixtures::busybox(), "busybox");
    let ended = deck
        .run(["vm", "run", "busybox", "--name", "busybox", "--", "sh", "-c", "echo $FLAVOUR; id -u"])
        .expect(0);
    assert_eq!(ended.stdout, "plain\n0\n");
    deck.run(["vm", "stop", "busybox"]).expect(0);
}

#[test]
fn an_image_of_one_binary_boots_and_runs_it() {
    if !can_boot() || !have("cc") {
        return;
    }
    let deck = Deck::shared();
    let _guard = image(&deck, &fixtures::single_binary(), "single");
    let ended = deck.run(["vm", "run", "single", "--name", "single", "--", "/hello", "world"]).expect(7);
    assert_eq!(ended.stdout, "hello from pid 1\nworld\n");
    // The agent needs nothing of the image to have the disks written out.
    let snapshot = deck.run(["vm", "snapshot", "create", "single", "--output", "json"]).expect(0).json();
    assert_eq!((&snapshot["running"], &snapshot["synced"]), (&true.into(), &true.into()), "{snapshot}");
    deck.run(["vm", "delete", "--force", "single"]).expect(0);
}

#[test]
fn rm_leaves_no_machine() {
    if !can_boot() || !have("busybox") {
        return;
    }
    let deck = Deck::shared();
    let _image = image(&deck, &fixtures::busybox(), "once");
    let ended =
        deck.run(["vm", "run", "--rm", "once", "--name", "once", "--", "cat", "/proc/version"]).expect(0);
    assert!(ended.stdout.starts_with("Linux version"), "{ended:?}");
    deck.run(["vm", "show", "once"]).expect(3);
}

#[test]
fn a_registered_image_boots_the_kernel_it_brings() {
    if !can_boot() || !have("busybox") {
        return;
    }
    let deck = Arc::new(Deck::new());
    deck.import_kernel();
    let layout = deck.readable(&fixtures::busybox());
    deck.run(["image", "pull", &format!("oci:{}", layout.display()), "--name", "source"]).expect(0);
    // Files that lie somewhere on the host, as somebody who builds kernels has them.
    let [image] = &deck.files("images")[..] else { panic!("{:?}", deck.files("images")) };
    let [kernel] = &deck.files("kernels")[..] else { panic!("{:?}", deck.files("kernels")) };
    let rootfs = deck.readable(&deck.data().join("images").join(image).join("rootfs.ext4"));
    let of_kernel = |name: &str| deck.readable(&deck.data().join("kernels").join(kernel).join(name));
    let (vmlinux, modules) = (of_kernel("vmlinux"), of_kernel("modules.ext4"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (rootfs, vmlinux, modules) = (text(&rootfs), text(&vmlinux), text(&modules));
    deck.run(["image", "register", "own", "--rootfs", &rootfs, "--kernel", &vmlinux, "--modules", &modules])
        .expect(0);
    let _guard = deck.guard("m");
    let ended = deck.run(["vm", "run", "own", "--name", "m", "--", "uname", "-r"]).expect(0);
    let vm = deck.run(["vm", "show", "m", "--output", "json"]).expect(0).json();
    let booted = vm["kernel"].as_str().unwrap().to_owned();
    assert!(booted.starts_with("own-"), "{booted}");
    let own = deck.run(["kernel", "show", &booted, "--output", "json"]).expect(0).json();
    assert_eq!(own["release"].as_str().unwrap(), ended.stdout.trim(), "{own}");
    assert_eq!(own["source"].as_str().unwrap(), format!("file:{vmlinux}"));
    // Made once; and a kernel that is named counts more.
    deck.run(["vm", "create", "again", "--image", "own"]).expect(0);
    deck.run(["vm", "create", "other", "--image", "own", "--kernel", kernel]).expect(0);
    assert_eq!(deck.files("kernels").len(), 2);
    for name in ["again", "other"] {
        deck.run(["vm", "delete", name]).expect(0);
    }
}
