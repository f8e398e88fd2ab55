//! Real QEMU with guests of a few instructions: what counts here is the process around them.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use super::*;
use crate::error::ErrorKind;
use crate::process::PidFd;
use crate::test_support::FreePort;
use crate::vm::record::{PortForward, Protocol};
use crate::vmm::{Disk, DiskFormat, DiskOverlay, MachineStatus, NetworkAttachment, UserNetwork, qcow2};

/// 32-bit code for what a guest may do.
mod guest {
    /// `cli; hlt; jmp`
    pub(super) const IDLE: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfc];
    /// `mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt`: soft off by ACPI, at the port where q35's
    /// firmware puts it.
    pub(super) const POWER_OFF: &[u8] =
        &[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0xfa, 0xf4];
    /// `mov dx, 0xcf9; mov al, 6; out dx, al; hlt`: hard reset.
    pub(super) const RESET: &[u8] = &[0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xfa, 0xf4];
    /// `mov dx, 0x3f8; mov al, 'K'; out dx, al; hlt`: a letter on the console.
    pub(super) const SAY_K: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'K', 0xee, 0xfa, 0xf4];

    /// `1: mov dx, 0x3fd; in al, dx; test al, 1; jz 1b; mov dl, 0xf8; in al, dx; out dx, al; jmp 1b`:
    /// gives back what it gets on the console.
    pub(super) const ECHO: &[u8] =
        &[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0xb2, 0xf8, 0xec, 0xee, 0xeb, 0xf1];

    /// A PVH kernel of this code.
    pub(super) fn kernel(code: &[u8]) -> Vec<u8> {
        const ENTRY: u32 = 0x10_0000;
        let mut note = Vec::new();
        note.extend([4_u32, 4, 18].map(u32::to_le_bytes).concat());
        note.extend(b"Xen\0");
        note.extend(ENTRY.to_le_bytes());
        let headers = 52 + 2 * 32;
        let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        elf.extend([2_u16, 3].map(u16::to_le_bytes).concat()); // executable, i386
        elf.extend([1, ENTRY, 52, 0, 0].map(u32::to_le_bytes).concat());
        elf.extend([52_u16, 32, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
        let code_length = code.len() as u32;
        // Type, offset, addresses, lengths, flags, alignment: what is loaded, and the note.
        elf.extend([1, headers, ENTRY, ENTRY, code_length, code_length, 7, 4].map(u32::to_le_bytes).concat());
        let at = headers + code_length.next_multiple_of(4);
        elf.extend([4, at, 0, 0, note.len() as u32, note.len() as u32, 4, 4].map(u32::to_le_bytes).concat());
        elf.extend(code);
        elf.resize(at as usize, 0);
        elf.extend(note);
        elf
    }
}

/// A folder with all that a machine needs, and QEMU.
struct Bench {
    folder: tempfile::TempDir,
    qemu: Qemu,
    spec: MachineSpec,
}

impl Bench {
    /// `None`, with a notice, where there is no QEMU.
    fn new(code: &[u8]) -> Option<Self> {
        if let Err(error) = binary::Binary::find() {
            eprintln!("skipped: {error}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        // Deeper than a socket's address is long.
        let directory = folder.path().join("a,long=name/".repeat(12));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("vmlinux"), guest::kernel(code)).unwrap();
        std::fs::write(directory.join("initrd"), [0; 512]).unwrap();
        qcow2::create_empty(&directory.join("root.qcow2"), 1 << 30).unwrap();
        let spec = MachineSpec {
            name: "bench".into(),
            accelerator: Accelerator::Tcg,
            cpus: 2,
            memory_mib: 64,
            kernel: directory.join("vmlinux"),
            initrd: directory.join("initrd"),
            command_line: "console=ttyS0".into(),
            disks: vec![Disk {
                path: directory.join("root.qcow2"),
                format: DiskFormat::Qcow2,
                read_only: false,
                serial: "vmdeck-root".into(),
            }],
            network: NetworkAttachment::User {
                network: UserNetwork {
                    network: Ipv4Addr::new(10, 7, 7, 0),
                    prefix: 24,
                    gateway: Ipv4Addr::new(10, 7, 7, 1),
                    resolver: Ipv4Addr::new(10, 7, 7, 2),
                    guest: Ipv4Addr::new(10, 7, 7, 15),
                },
                isolated: false,
                mac: "52:54:00:12:34:56".into(),
                forwards: vec![],
            },
            lan: None,
            directory,
        };
        let cache = folder.path().join("cache");
        std::fs::create_dir(&cache).unwrap();
        Some(Self { folder, qemu: Qemu::new(cache), spec })
    }

    async fn launch(&self) -> Result<Running> {
        self.launch_with(&CancellationToken::new()).await
    }

    async fn launch_with(&self, cancel: &CancellationToken) -> Result<Running> {
        let record = Box::new(|_| Box::pin(async { Ok(()) }) as BoxFuture<'static, _>);
        Ok(Running(self.qemu.launch(&self.spec, record, cancel).await?))
    }

    fn forwards(&mut self) -> &mut Vec<PortForward> {
        match &mut self.spec.network {
            NetworkAttachment::User { forwards, .. } => forwards,
            _ => unreachable!("the bench has a user network"),
        }
    }

    /// Processes whose working directory is the machine's folder.
    fn processes(&self) -> Vec<i32> {
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                std::fs::read_link(format!("/proc/{pid}/cwd"))
                    .is_ok_and(|folder| folder.starts_with(self.folder.path()))
            })
            .collect()
    }

    /// Waits until there is none: what was killed is gone when the kernel has taken it apart, and what
    /// writes down its console when that is written.
    async fn nothing_runs(&self) {
        let gone = async {
            while !self.processes().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(gone).await;
    }
}

/// A machine that does not outlive its test.
struct Running(Box<dyn Machine>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(Some(process)) = PidFd::open(self.0.process()) {
            process.kill().unwrap();
        }
    }
}

fn forward(host_port: u16) -> PortForward {
    PortForward { protocol: Protocol::Tcp, host_address: Ipv4Addr::LOCALHOST, host_port, guest_port: 80 }
}

/// What takes some tenths of a second has a minute, for a host that has other things to do.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("it takes too long")
}

#[tokio::test]
async fn a_machine_is_launched_attached_to_and_terminated() {
    let Some(bench) = Bench::new(guest::IDLE) else { return };
    let begin = Instant::now();
    let recorded = std::sync::Arc::new(std::sync::Mutex::new(None));
    let record = {
        let recorded = std::sync::Arc::clone(&recorded);
        Box::new(move |identity| {
            *recorded.lock().unwrap() = Some(identity);
            Box::pin(async { Ok(()) }) as BoxFuture<'static, _>
        })
    };
    let machine = Running(bench.qemu.launch(&bench.spec, record, &CancellationToken::new()).await.unwrap());
    eprintln!("launched in {:?}", begin.elapsed());
    let identity = recorded.lock().unwrap().clone().unwrap();
    assert_eq!(machine.0.process(), &identity);
    assert!(identity.is_alive());
    assert_eq!(machine.0.status().await.unwrap(), MachineStatus::Running);

    for name in ["qmp.sock", "console.sock", "channel-0.sock", "channel-7.sock", "console.log", "qemu.log"] {
        let mode = std::fs::metadata(bench.spec.directory.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name} is open to others");
    }

    let second = bench.qemu.attach(&bench.spec.directory, &identity).await.unwrap();
    // Neither the pid of another process nor another folder is taken for it.
    let elsewhere = bench.qemu.attach(bench.folder.path(), &identity).await;
    assert_eq!(elsewhere.err().unwrap().kind(), ErrorKind::NotFound);
    let stranger = ProcessIdentity::current().unwrap();
    assert!(bench.qemu.attach(&bench.spec.directory, &stranger).await.is_err());

    // Many clients at once: each has its turn.
    let asked = futures_util::future::join_all((0..12).map(|index| {
        let machine = if index % 2 == 0 { &machine.0 } else { &second };
        machine.status()
    }));
    for status in soon(asked).await {
        assert_eq!(status.unwrap(), MachineStatus::Running);
    }

    second.press_power_button().await.unwrap();
    assert_eq!(bench.qemu.ending(&bench.spec.directory), Ending::Unknown);
    let begin = Instant::now();
    soon(machine.0.terminate()).await.unwrap();
    eprintln!("terminated in {:?}", begin.elapsed());
    soon(second.wait()).await.unwrap();
    assert_eq!(bench.qemu.ending(&bench.spec.directory), Ending::Quit);
    assert_eq!(second.status().await.err().unwrap().kind(), ErrorKind::NotFound);
    second.terminate().await.unwrap();
    assert!(bench.qemu.attach(&bench.spec.directory, &identity).await.is_err());
    let gone = async {
        while ProcessIdentity::of(identity.pid).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(gone).await;
    bench.nothing_runs().await;
}

#[tokio::test]
async fn a_killed_hypervisor_is_noticed_at_once() {
    let Some(bench) = Bench::new(guest::IDLE) else { return };
    let machine = bench.launch().await.unwrap();
    let attached = bench.qemu.attach(&bench.spec.directory, machine.0.process()).await.unwrap();
    let waiting = machine.0.wait();
    PidFd::open(machine.0.process()).unwrap().unwrap().kill().unwrap();
    let status = soon(waiting).await.unwrap();
    assert_eq!(status.and_then(|status| status.signal()), Some(9), "{status:?}");
    // Only who started it knows.
    assert_eq!(soon(attached.wait()).await.unwrap(), None);
    assert_eq!(bench.qemu.ending(&bench.spec.directory), Ending::Unknown);
    assert!(!machine.0.process().is_alive());
    // It can be started again as it is.
    let again = bench.launch().await.unwrap();
    assert_eq!(again.0.status().await.unwrap(), MachineStatus::Running);
}

#[tokio::test]
async fn a_hung_hypervisor_is_killed_after_a_bound() {
    let Some(bench) = Bench::new(guest::IDLE) else { return };
    let machine = bench.launch().await.unwrap();
    let pid = nix::unistd::Pid::from_raw(machine.0.process().pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    soon(machine.0.terminate()).await.unwrap();
    assert!(!machine.0.process().is_alive());
}

#[tokio::test]
async fn a_guest_that_ends_itself_is_told_from_one_that_is_ended() {
    for (code, ending) in [(guest::POWER_OFF, Ending::PoweredOff), (guest::RESET, Ending::Reset)] {
        let Some(bench) = Bench::new(code) else { return };
        let machine = bench.launch().await.unwrap();
        soon(machine.0.wait()).await.unwrap();
        assert_eq!(bench.qemu.ending(&bench.spec.directory), ending);
    }
}

#[tokio::test]
async fn the_console_is_kept_across_runs() {
    let Some(bench) = Bench::new(guest::SAY_K) else { return };
    for run in 1..=2 {
        let machine = bench.launch().await.unwrap();
        let said = async {
            loop {
                let said = std::fs::read_to_string(bench.spec.directory.join("console.log")).unwrap();
                if said.matches('K').count() == run {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon(said).await;
        machine.0.terminate().await.unwrap();
    }
}

#[tokio::test]
async fn a_machine_is_paused_and_its_disks_grow_and_are_snapshot() {
    let Some(bench) = Bench::new(guest::IDLE) else { return };
    let machine = bench.launch().await.unwrap();
    machine.0.pause().await.unwrap();
    machine.0.pause().await.unwrap();
    assert_eq!(machine.0.status().await.unwrap(), MachineStatus::Paused);
    machine.0.resume().await.unwrap();
    assert_eq!(machine.0.status().await.unwrap(), MachineStatus::Running);

    let disk = |name: &str| bench.spec.directory.join(name);
    machine.0.grow_disk("vmdeck-root", 2 << 30).await.unwrap();
    assert_eq!(qcow2::virtual_size(&disk("root.qcow2"), DiskFormat::Qcow2).unwrap(), 2 << 30);
    assert_eq!(machine.0.grow_disk("vmdeck-root", 1 << 30).await.unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(machine.0.grow_disk("vmdeck-none", 1 << 30).await.unwrap_err().kind(), ErrorKind::NotFound);

    for (lower, upper) in [("root.qcow2", "root.1.qcow2"), ("root.1.qcow2", "root.2.qcow2")] {
        qcow2::create_overlay(&disk(upper), Path::new(lower), DiskFormat::Qcow2, 2 << 30).unwrap();
        let overlay = DiskOverlay { serial: "vmdeck-root".into(), path: disk(upper) };
        machine.0.snapshot_disks(&[overlay]).await.unwrap();
    }
    // What is taken cannot be taken again, and a failure changes nothing.
    let taken = DiskOverlay { serial: "vmdeck-root".into(), path: disk("root.2.qcow2") };
    machine.0.snapshot_disks(&[taken]).await.unwrap_err();
    let missing = DiskOverlay { serial: "vmdeck-root".into(), path: disk("root.3.qcow2") };
    machine.0.snapshot_disks(&[missing]).await.unwrap_err();
    // From now on the newest overlay is the one that changes.
    machine.0.grow_disk("vmdeck-root", 3 << 30).await.unwrap();
    machine.0.terminate().await.unwrap();
    let sizes = ["root.qcow2", "root.1.qcow2", "root.2.qcow2"]
        .map(|name| qcow2::virtual_size(&disk(name), DiskFormat::Qcow2).unwrap() >> 30);
    assert_eq!(sizes, [2, 2, 3]);
}

#[tokio::test]
async fn the_console_has_one_client_and_talks_both_ways() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Some(bench) = Bench::new(guest::ECHO) else { return };
    let machine = bench.launch().await.unwrap();
    for _ in 0..2 {
        let mut console = machine.0.console().await.unwrap();
        assert_eq!(machine.0.console().await.err().unwrap().kind(), ErrorKind::Conflict);
        console.stream.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        soon(console.stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"ping");
    }
}

#[tokio::test]
async fn forwards_come_and_go_while_it_runs() {
    let Some(mut bench) = Bench::new(guest::IDLE) else { return };
    let held = [FreePort::new(), FreePort::new()];
    let [first, second] = held.each_ref().map(FreePort::number);
    bench.forwards().push(forward(first));
    let machine = bench.launch().await.unwrap();
    let connects = |port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
    assert!(connects(first) && !connects(second));
    machine.0.add_forward(&forward(second)).await.unwrap();
    assert!(connects(second));
    let taken = machine.0.add_forward(&forward(second)).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict);
    machine.0.remove_forward(&forward(second)).await.unwrap();
    assert!(!connects(second));
    assert_eq!(machine.0.remove_forward(&forward(second)).await.unwrap_err().kind(), ErrorKind::NotFound);
}

/// Each start that fails says why, and leaves no process.
#[tokio::test]
async fn failing_starts() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    type Spoil = Box<dyn Fn(&mut Bench)>;
    let cases: [(&str, Spoil, ErrorKind, &str); 7] = [
        (
            "a taken port",
            Box::new(move |bench| bench.forwards().push(forward(port))),
            ErrorKind::Conflict,
            "is in use",
        ),
        (
            "more memory than an address space has",
            Box::new(|bench| bench.spec.memory_mib = 1 << 27),
            ErrorKind::Failed,
            "no 134217728 MiB of memory",
        ),
        (
            "no kernel",
            Box::new(|bench| std::fs::remove_file(&bench.spec.kernel).unwrap()),
            ErrorKind::Failed,
            "kernel",
        ),
        (
            "a kernel that is none",
            Box::new(|bench| std::fs::write(&bench.spec.kernel, [b'x'; 100_000]).unwrap()),
            ErrorKind::Failed,
            "no kernel that this machine can boot",
        ),
        (
            "no disk",
            Box::new(|bench| std::fs::remove_file(bench.spec.directory.join("root.qcow2")).unwrap()),
            ErrorKind::Failed,
            "root.qcow2",
        ),
        (
            "a disk that is none",
            Box::new(|bench| std::fs::write(bench.spec.directory.join("root.qcow2"), "x").unwrap()),
            ErrorKind::Failed,
            "qcow2",
        ),
        (
            "no folder",
            Box::new(|bench| bench.spec.directory = "/nowhere".into()),
            ErrorKind::Failed,
            "/nowhere",
        ),
    ];
    for (what, spoil, kind, message) in cases {
        let Some(mut bench) = Bench::new(guest::IDLE) else { return };
        spoil(&mut bench);
        let error = bench.launch().await.err().unwrap_or_else(|| panic!("{what}: it starts"));
        let said = error.full_message();
        assert_eq!(error.kind(), kind, "{what}: {said}");
        assert!(said.contains(message), "{what}: {said}");
        bench.nothing_runs().await;
    }
}

#[tokio::test]
async fn a_disk_has_one_machine() {
    let Some(bench) = Bench::new(guest::IDLE) else { return };
    let Some(mut other) = Bench::new(guest::IDLE) else { return };
    other.spec.disks[0].path = bench.spec.disks[0].path.clone();
    let _machine = bench.launch().await.unwrap();
    let error = other.launch().await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.full_message());
}

#[tokio::test]
async fn a_cancelled_or_unrecorded_start_leaves_no_process() {
    let Some(bench) = Bench::new(guest::IDLE) else { return };
    // Cancelled at every point of a start that takes some tens of milliseconds.
    for pause in [0, 2, 5, 10, 20, 30, 40] {
        let cancel = CancellationToken::new();
        let later = cancel.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            later.cancel();
        });
        match bench.launch_with(&cancel).await {
            Ok(machine) => drop(machine),
            Err(error) => {
                assert!(error.is_cancelled(), "{}", error.full_message());
                let hypervisor = |pid: &i32| {
                    std::fs::read_to_string(format!("/proc/{pid}/comm"))
                        .is_ok_and(|name| name.starts_with("qemu"))
                };
                assert!(!bench.processes().iter().any(hypervisor), "it runs after its start has failed");
            }
        }
        bench.nothing_runs().await;
    }
    let record = Box::new(|_| Box::pin(async { Err(Error::failed("no room")) }) as BoxFuture<'static, _>);
    let error = bench.qemu.launch(&bench.spec, record, &CancellationToken::new()).await.err().unwrap();
    assert_eq!(error.to_string(), "no room");
    bench.nothing_runs().await;
}
