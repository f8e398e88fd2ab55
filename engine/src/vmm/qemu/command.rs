//! QEMU's command line as a function of a machine: no file is looked at and nothing is started.
//!
//! Where QEMU splits a value at commas, JSON is given instead, or the value holds nothing that
//! comes from outside: paths within the machine's folder are relative names of our own, since QEMU
//! runs with that folder as its working directory.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::super::{
    Accelerator, Disk, DiskFormat, LanAttachment, MachineSpec, NetworkAttachment, UserNetwork,
};
use crate::error::{Error, Result};
use crate::vm::record::{PortForward, Protocol};

/// Names within the machine's folder.
pub(super) const CONTROL_SOCKET: &str = "qmp.sock";
pub(super) const CONSOLE_SOCKET: &str = "console.sock";
pub(super) const JOURNAL: &str = "journal.out";
/// What makes QEMU tell events on the journal's monitor.
pub(super) const JOURNAL_COMMANDS: &str = "{\"execute\":\"qmp_capabilities\"}\n";

/// Number of virtio-serial ports that lead to the guest's agent.
pub const CHANNELS: u32 = 8;

/// The netdev's id, by which forwards are added and removed.
pub(super) const NETDEV: &str = "net0";
const LAN_NETDEV: &str = "lan0";

/// What the command line depends on besides the machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    /// Descriptor of a connected socket on which QEMU talks QMP to the process that starts it.
    pub(super) launch_socket: i32,
    /// Descriptor of the pipe into which what the console prints is copied.
    pub(super) console_pipe: i32,
    /// Descriptor of a connected socket on which QEMU tells events.
    pub(super) journal_socket: i32,
    /// Descriptor of the machine's tap, where it has one.
    pub(super) tap: Option<i32>,
    /// Whether this QEMU was built with the filter of system calls.
    pub(super) sandbox: bool,
}

/// The arguments of QEMU, without its own name.
pub(super) fn arguments(spec: &MachineSpec, start: Start) -> Result<Vec<OsString>> {
    let mut line = Line::default();
    // Nothing that is not asked for: no devices, no display, no configuration of the user's.
    line.flag("-nodefaults").flag("-no-user-config").pair("-display", "none");
    // A reset ends the process: whether to boot again is not for the guest to say. Its CPUs stand
    // still until the start is on record.
    line.flag("-no-reboot").flag("-S");
    line.pair("-name", format!("guest={0},process=vmdeck-{0},debug-threads=on", spec.name));
    if start.sandbox {
        let filter = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
        line.pair("-sandbox", filter);
    }
    machine(&mut line, spec);
    line.pair("-kernel", spec.kernel.as_os_str()).pair("-initrd", spec.initrd.as_os_str());
    line.pair("-append", &spec.command_line);
    monitors(&mut line, start);
    console(&mut line, start);
    channels(&mut line);
    for (index, disk) in spec.disks.iter().enumerate() {
        self::disk(&mut line, &spec.directory, index, disk)?;
    }
    network(&mut line, &spec.network, start.tap)?;
    if let Some(attachment) = &spec.lan {
        lan(&mut line, attachment);
    }
    line.pair("-object", "rng-builtin,id=rng0");
    line.device(json!({"driver": "virtio-rng-pci", "rng": "rng0", "disable-legacy": "on"}));
    // The kernel's panic arrives as an event, if it has the driver.
    line.device(json!({"driver": "pvpanic-pci"}));
    Ok(line.0)
}

fn machine(line: &mut Line, spec: &MachineSpec) {
    // q35 for both accelerators: `microvm` saves some milliseconds of firmware under KVM but hangs
    // now and then under TCG, and two machine types are two sets of bugs. What it brings and no
    // guest here needs is switched off, but for `graphics`: without it the firmware takes the serial
    // console for its screen.
    line.pair("-machine", "q35,usb=off,sata=off,smbus=off,vmport=off,dump-guest-core=off");
    match spec.accelerator {
        Accelerator::Kvm => line.pair("-accel", "kvm").pair("-cpu", "host"),
        Accelerator::Tcg => line.pair("-accel", "tcg,thread=multi").pair("-cpu", "max"),
    };
    line.pair("-smp", format!("cpus={0},sockets=1,cores={0},threads=1", spec.cpus));
    line.pair("-m", format!("size={}M", spec.memory_mib));
}

/// Three monitors, because each serves one client: the process that starts QEMU has one of its own,
/// every later command comes by the socket, and the journal's tells all events to the recorder.
fn monitors(line: &mut Line, start: Start) {
    line.pair("-chardev", format!("socket,id=launch,fd={}", start.launch_socket));
    line.pair("-mon", "chardev=launch,mode=control");
    line.pair("-chardev", format!("socket,id=qmp,path={CONTROL_SOCKET},server=on,wait=off"));
    line.pair("-mon", "chardev=qmp,mode=control");
    line.pair("-chardev", format!("socket,id=journal,fd={}", start.journal_socket));
    line.pair("-mon", "chardev=journal,mode=control");
}

fn console(line: &mut Line, start: Start) {
    let socket = format!("socket,id=console,path={CONSOLE_SOCKET},server=on,wait=off");
    // A client of the socket and the log get the same.
    line.pair("-chardev", format!("{socket},logfile=/proc/self/fd/{},logappend=on", start.console_pipe));
    line.pair("-serial", "chardev:console");
}

fn channels(line: &mut Line) {
    // Port 0 is for a console, by the virtio specification.
    line.device(json!({
        "driver": "virtio-serial-pci", "id": "channels", "max_ports": CHANNELS + 1, "disable-legacy": "on",
    }));
    for channel in 0..CHANNELS {
        line.pair(
            "-chardev",
            format!("socket,id=channel{channel},path=channel-{channel}.sock,server=on,wait=off"),
        );
        line.device(json!({
            "driver": "virtserialport", "bus": "channels.0", "nr": channel + 1,
            "chardev": format!("channel{channel}"), "name": format!("vmdeck.{channel}"),
        }));
    }
}

fn disk(line: &mut Line, directory: &Path, index: usize, disk: &Disk) -> Result<()> {
    let path = disk.path.strip_prefix(directory).unwrap_or(&disk.path);
    let path = path.to_str().ok_or_else(|| {
        Error::usage(format!("the path of the disk `{}` is no UTF-8", disk.path.display()))
            .with_hint("QEMU takes no such path: use a data directory with a plain name")
    })?;
    if !is_serial(&disk.serial) {
        return Err(Error::usage(format!("`{}` is no serial of a disk", disk.serial.escape_default())));
    }
    // The host's page cache stays in use: the images below the overlays are shared by all their
    // machines. The guest's flushes are obeyed. What it trims is given back to the host.
    let node = format!("disk{index}");
    let mut file = json!({"driver": "file", "filename": path, "read-only": disk.read_only});
    if !disk.read_only {
        file["discard"] = "unmap".into();
    }
    let driver = match disk.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    let mut block = json!({"driver": driver, "node-name": node, "read-only": disk.read_only, "file": file});
    if !disk.read_only {
        block["discard"] = "unmap".into();
    }
    line.json("-blockdev", &block);
    line.device(json!({
        "driver": "virtio-blk-pci", "id": disk.serial, "drive": node, "serial": disk.serial,
        "disable-legacy": "on",
    }));
    Ok(())
}

/// What virtio-blk takes (20 bytes), and QEMU as an id (`id_wellformed` in util/id.c).
fn is_serial(serial: &str) -> bool {
    serial.len() <= 20
        && serial.starts_with(|first: char| first.is_ascii_alphabetic())
        && serial.chars().all(|other| other.is_ascii_alphanumeric() || matches!(other, '-' | '.' | '_'))
}

fn network(line: &mut Line, network: &NetworkAttachment, tap: Option<i32>) -> Result<()> {
    let mac = match network {
        NetworkAttachment::None => return Ok(()),
        NetworkAttachment::User { network, isolated, mac, forwards } => {
            line.pair("-netdev", user_netdev(network, *isolated, forwards));
            mac
        }
        NetworkAttachment::Tap { mac, .. } => {
            let tap = tap.ok_or_else(|| Error::failed("the hypervisor was not given the machine's tap"))?;
            line.pair("-netdev", format!("tap,id={NETDEV},fd={tap}"));
            mac
        }
    };
    network_card(line, NETDEV, mac);
    Ok(())
}

/// Datagrams need no connection: the other end may come later, and go and come again.
fn lan(line: &mut Line, LanAttachment { mac, guest_socket, switch_socket }: &LanAttachment) {
    line.pair(
        "-netdev",
        format!(
            "dgram,id={LAN_NETDEV},local.type=unix,local.path={guest_socket},\
             remote.type=unix,remote.path={switch_socket}"
        ),
    );
    network_card(line, LAN_NETDEV, mac);
}

fn network_card(line: &mut Line, netdev: &str, mac: &str) {
    // No option ROM: nobody boots from the network, and Debian has the ROMs in another package.
    line.device(json!({
        "driver": "virtio-net-pci", "id": format!("{netdev}-device"), "netdev": netdev, "mac": mac, "romfile": "",
        "disable-legacy": "on",
    }));
}

/// IPv6 is off: the guest's addresses are leases of ours, and a guest that is told of an IPv6 route
/// on a host that has none waits for it.
fn user_netdev(network: &UserNetwork, isolated: bool, forwards: &[PortForward]) -> String {
    let mut value = format!(
        "user,id={NETDEV},ipv6=off,net={}/{},host={},dns={},dhcpstart={}",
        network.network, network.prefix, network.gateway, network.resolver, network.guest
    );
    if isolated {
        value.push_str(",restrict=on");
    }
    for forward in forwards {
        write!(value, ",hostfwd={}-:{}", host_side(forward), forward.guest_port)
            .expect("text can be written");
    }
    value
}

/// `tcp:127.0.0.1:8080`: how QEMU names a forward.
pub(super) fn host_side(forward: &PortForward) -> String {
    let protocol = match forward.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{protocol}:{}:{}", forward.host_address, forward.host_port)
}

/// A command line in the making.
#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.push(option.into());
        self.0.push(value.into());
        self
    }

    fn json(&mut self, option: &str, value: &Value) -> &mut Self {
        self.pair(option, value.to_string())
    }

    fn device(&mut self, device: Value) -> &mut Self {
        self.json("-device", &device)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn spec() -> MachineSpec {
        MachineSpec {
            directory: "/data/vms/v1".into(),
            name: "web".into(),
            accelerator: Accelerator::Tcg,
            cpus: 2,
            memory_mib: 512,
            kernel: "/data/kernels/k,1/vmlinux".into(),
            initrd: "/data/vms/v1/initrd".into(),
            command_line: "console=ttyS0 x=a,b".into(),
            disks: vec![
                Disk {
                    path: "/data/vms/v1/root.qcow2".into(),
                    format: DiskFormat::Qcow2,
                    read_only: false,
                    serial: "vmdeck-root".into(),
                },
                Disk {
                    path: "/data/kernels/k,1/modules.ext4".into(),
                    format: DiskFormat::Raw,
                    read_only: true,
                    serial: "vmdeck-modules".into(),
                },
            ],
            network: NetworkAttachment::User {
                network: UserNetwork {
                    network: Ipv4Addr::new(10, 1, 2, 0),
                    prefix: 24,
                    gateway: Ipv4Addr::new(10, 1, 2, 1),
                    resolver: Ipv4Addr::new(10, 1, 2, 2),
                    guest: Ipv4Addr::new(10, 1, 2, 15),
                },
                isolated: false,
                mac: "52:54:00:00:00:01".into(),
                forwards: vec![
                    PortForward {
                        protocol: Protocol::Tcp,
                        host_address: Ipv4Addr::LOCALHOST,
                        host_port: 8080,
                        guest_port: 80,
                    },
                    PortForward {
                        protocol: Protocol::Udp,
                        host_address: Ipv4Addr::LOCALHOST,
                        host_port: 5353,
                        guest_port: 53,
                    },
                ],
            },
            lan: None,
        }
    }

    const START: Start =
        Start { launch_socket: 9, console_pipe: 10, journal_socket: 11, tap: None, sandbox: true };

    fn text(spec: &MachineSpec, start: Start) -> Vec<String> {
        arguments(spec, start).unwrap().into_iter().map(|value| value.into_string().unwrap()).collect()
    }

    /// All values of an option.
    fn values<'a>(line: &'a [String], option: &str) -> Vec<&'a str> {
        line.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
    }

    /// The device with this driver.
    fn devices(line: &[String], driver: &str) -> Vec<Value> {
        values(line, "-device")
            .into_iter()
            .map(|device| serde_json::from_str::<Value>(device).unwrap())
            .filter(|device| device["driver"] == driver)
            .collect()
    }

    #[test]
    fn a_machine_in_full() {
        let line = text(&spec(), START);
        let mut expected = vec![
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-S",
            "-name",
            "guest=web,process=vmdeck-web,debug-threads=on",
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-machine",
            "q35,usb=off,sata=off,smbus=off,vmport=off,dump-guest-core=off",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "cpus=2,sockets=1,cores=2,threads=1",
            "-m",
            "size=512M",
            "-kernel",
            "/data/kernels/k,1/vmlinux",
            "-initrd",
            "/data/vms/v1/initrd",
            "-append",
            "console=ttyS0 x=a,b",
            "-chardev",
            "socket,id=launch,fd=9",
            "-mon",
            "chardev=launch,mode=control",
            "-chardev",
            "socket,id=qmp,path=qmp.sock,server=on,wait=off",
            "-mon",
            "chardev=qmp,mode=control",
            "-chardev",
            "socket,id=journal,fd=11",
            "-mon",
            "chardev=journal,mode=control",
            "-chardev",
            "socket,id=console,path=console.sock,server=on,wait=off,logfile=/proc/self/fd/10,logappend=on",
            "-serial",
            "chardev:console",
        ];
        expected.truncate(line.len());
        assert_eq!(line[..expected.len()], expected);
    }

    #[test]
    fn disks_keep_their_commas_and_only_writable_ones_are_trimmed() {
        let line = text(&spec(), START);
        let blocks: Vec<Value> =
            values(&line, "-blockdev").iter().map(|block| serde_json::from_str(block).unwrap()).collect();
        assert_eq!(
            blocks,
            [
                json!({
                    "driver": "qcow2", "node-name": "disk0", "read-only": false, "discard": "unmap",
                    "file": {
                        "driver": "file", "filename": "root.qcow2", "read-only": false, "discard": "unmap",
                    },
                }),
                json!({
                    "driver": "raw", "node-name": "disk1", "read-only": true,
                    "file": {
                        "driver": "file", "filename": "/data/kernels/k,1/modules.ext4", "read-only": true,
                    },
                }),
            ]
        );
        let serials: Vec<_> =
            devices(&line, "virtio-blk-pci").iter().map(|device| device["serial"].clone()).collect();
        assert_eq!(serials, ["vmdeck-root", "vmdeck-modules"]);
    }

    #[test]
    fn serials_that_are_ids() {
        assert!(is_serial("vmdeck-root") && is_serial("a.b_c-9"));
        assert!(!is_serial("") && !is_serial("9") && !is_serial("a,b") && !is_serial(&"a".repeat(21)));
        let mut machine = spec();
        machine.disks[0].serial = "a=b".into();
        assert!(arguments(&machine, START).is_err());
    }

    #[test]
    fn networks() {
        let mut machine = spec();
        let line = text(&machine, START);
        assert_eq!(
            values(&line, "-netdev"),
            ["user,id=net0,ipv6=off,net=10.1.2.0/24,host=10.1.2.1,dns=10.1.2.2,dhcpstart=10.1.2.15,\
              hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=udp:127.0.0.1:5353-:53"]
        );
        assert_eq!(devices(&line, "virtio-net-pci")[0]["romfile"], "");
        machine.lan = Some(LanAttachment {
            mac: "5e:00:00:00:00:01".into(),
            guest_socket: "guest.sock",
            switch_socket: "switch.sock",
        });
        let with_lan = text(&machine, START);
        assert_eq!(
            values(&with_lan, "-netdev")[1],
            "dgram,id=lan0,local.type=unix,local.path=guest.sock,remote.type=unix,remote.path=switch.sock"
        );
        let cards = devices(&with_lan, "virtio-net-pci");
        assert_eq!((&cards[1]["id"], &cards[1]["mac"]), (&json!("lan0-device"), &json!("5e:00:00:00:00:01")));
        machine.lan = None;
        if let NetworkAttachment::User { isolated, .. } = &mut machine.network {
            *isolated = true;
        }
        let isolated = text(&machine, START);
        assert!(values(&isolated, "-netdev")[0].contains(",dhcpstart=10.1.2.15,restrict=on,hostfwd="));
        let device = std::sync::Arc::new(std::fs::File::open("/dev/null").unwrap().into());
        machine.network = NetworkAttachment::Tap { device, mac: "52:54:00:00:00:02".into() };
        let line = text(&machine, Start { tap: Some(12), ..START });
        assert_eq!(values(&line, "-netdev"), ["tap,id=net0,fd=12"]);
        assert_eq!(devices(&line, "virtio-net-pci")[0]["mac"], "52:54:00:00:00:02");
        machine.network = NetworkAttachment::None;
        let line = text(&machine, START);
        assert!(values(&line, "-netdev").is_empty() && devices(&line, "virtio-net-pci").is_empty());
    }

    #[test]
    fn every_channel_has_its_port_and_socket() {
        let line = text(&spec(), START);
        let ports = devices(&line, "virtserialport");
        assert_eq!(ports.len(), 8);
        assert_eq!(ports[7]["name"], "vmdeck.7");
        assert_eq!(ports[7]["nr"], 8);
        assert!(
            values(&line, "-chardev").contains(&"socket,id=channel7,path=channel-7.sock,server=on,wait=off")
        );
    }

    #[test]
    fn accelerators_and_a_qemu_without_filter() {
        let machine = MachineSpec { accelerator: Accelerator::Kvm, ..spec() };
        let line = text(&machine, Start { sandbox: false, ..START });
        assert_eq!((values(&line, "-accel"), values(&line, "-cpu")), (vec!["kvm"], vec!["host"]));
        assert!(values(&line, "-sandbox").is_empty());
    }
}
