//! A deck with something of everything in it, made of the engine's own records: for whole screens in
//! tests, pictures and measurements.
#![allow(dead_code)] // Each of those uses its own part.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::tz::TimeZone;
use vmdeck_engine::clock::Milliseconds;
use vmdeck_engine::disk_usage::{DiskSpace, DiskUsage};
use vmdeck_engine::doctor::{Check, CheckStatus, Report};
use vmdeck_engine::error::{ErrorKind, ErrorReport};
use vmdeck_engine::guest::GuestStats;
use vmdeck_engine::guest::stats::{Disk, FileSystem, Interface, Memory, Processor};
use vmdeck_engine::identifier::{ImageId, OperationId, VmId};
use vmdeck_engine::image::record::{Image, ImageConfig, ImageFiles, ImageLayer};
use vmdeck_engine::image::{CatalogEntry, PruneReport, PrunedItem, PrunedKind};
use vmdeck_engine::kernel::record::Kernel;
use vmdeck_engine::kernel::{CatalogItem, CatalogState};
use vmdeck_engine::operation::progress::{Progress, ProgressState, ProgressUnit};
use vmdeck_engine::operation::record::{OperationKind, OperationPhase, OperationRecord, OperationState};
use vmdeck_engine::process::ProcessIdentity;
use vmdeck_engine::snapshot::{OperationView, Snapshot};
use vmdeck_engine::vm::record::{
    Boot, BootFailure, BootFailureClass, BootPhase, BootPhaseName, BootPhaseStatus, NetworkMode, PortForward,
    Protocol, Vm, VmRun, VmSettings, VmState,
};
use vmdeck_engine::vm::{HostUsage, VmFile, VmStats};
use vmdeck_engine::vmm::Accelerator;
use vmdeck_ui::keymap::{Key, Keymap};
use vmdeck_ui::message::{Effect, HostFacts, Msg};
use vmdeck_ui::model::Model;
use vmdeck_ui::options::ThemeChoice;
use vmdeck_ui::update::update;

/// 2026-11-03 14:05:00 UTC.
pub(crate) const NOW: Milliseconds = 1_793_714_700_000;

const SECOND: Milliseconds = 1000;
const MINUTE: Milliseconds = 60 * SECOND;
const HOUR: Milliseconds = 60 * MINUTE;
const DAY: Milliseconds = 24 * HOUR;

/// A console of some size on a snapshot, its engine open, the host known.
pub(crate) fn model(snapshot: Snapshot, width: u16, height: u16) -> Model {
    themed(snapshot, width, height, ThemeChoice::Terminal, false)
}

pub(crate) fn themed(snapshot: Snapshot, width: u16, height: u16, theme: ThemeChoice, ascii: bool) -> Model {
    let mut model = Model::new(theme, ascii, Keymap::default(), NOW, TimeZone::UTC);
    model.data_label = "~/.local/share/vmdeck".into();
    for msg in [
        Msg::Resize(width, height),
        Msg::Host(HostFacts { cpus: 8, memory_bytes: 24 << 30 }),
        Msg::EngineOpened,
        Msg::Snapshot(Arc::new(snapshot)),
        Msg::Doctor(Ok(report())),
        Msg::Space(
            DiskSpace { total_bytes: 400 << 30, free_bytes: 212 << 30 },
            DiskUsage { allocated_bytes: 5 << 30, ..DiskUsage::default() },
        ),
    ] {
        update(&mut model, NOW, msg);
    }
    model
}

/// Types keys, as they are written in the file of key bindings, separated by blanks.
pub(crate) fn press(model: &mut Model, keys: &str) -> Vec<Effect> {
    let keys = keys.split(' ').filter(|key| !key.is_empty());
    keys.flat_map(|key| {
        let key = Key::parse(key).unwrap_or_else(|| panic!("no key `{key}`"));
        let effects = update(model, model.now, Msg::Key(key));
        answered(model, effects)
    })
    .collect()
}

/// Answers what the runtime would: here, what runs in this console is what the picture says does.
fn answered(model: &mut Model, mut effects: Vec<Effect>) -> Vec<Effect> {
    if !effects.iter().any(|effect| matches!(effect, Effect::AskToQuit)) {
        return effects;
    }
    effects.retain(|effect| !matches!(effect, Effect::AskToQuit));
    let running = model.snapshot.operations.iter();
    let running = running.filter(|view| view.local && view.record.state == OperationState::Running);
    let running = running.map(|view| format!("{} {}", view.record.kind.as_str(), view.record.target));
    let running = running.collect();
    effects.extend(update(model, model.now, Msg::WouldEnd(running)));
    effects
}

/// Types a text, letter for letter.
pub(crate) fn enter(model: &mut Model, text: &str) -> Vec<Effect> {
    let keys = text.chars().map(|letter| Key::plain(crossterm::event::KeyCode::Char(letter)));
    keys.flat_map(|key| update(model, model.now, Msg::Key(key))).collect()
}

pub(crate) fn report() -> Report {
    let check = |name: &str, status, finding: &str, fix: Option<&str>| Check {
        name: name.into(),
        status,
        finding: finding.into(),
        fix: fix.map(str::to_owned),
    };
    Report {
        checks: vec![
            check("qemu", CheckStatus::Ok, "qemu-system-x86_64 7.2.22", None),
            check(
                "accelerator",
                CheckStatus::Warning,
                "TCG: /dev/kvm is there, yet no guest runs under it (this host is itself a virtual machine)",
                Some(
                    "enable nested virtualisation on the machine below, or stay with TCG: boots take seconds",
                ),
            ),
            check("data directory", CheckStatus::Ok, "212 GiB free", None),
        ],
    }
}

pub(crate) fn process(pid: i32) -> ProcessIdentity {
    ProcessIdentity { pid, start_time: 4711, boot_id: "sample".into() }
}

pub(crate) fn image(number: u64, name: &str, reference: Option<&str>, used_bytes: u64) -> Image {
    let digest = format!("sha256:{:064x}", 0x9e37_79b9_7f4a_7c15_u128.wrapping_mul(u128::from(number) + 3));
    Image {
        id: ImageId::from_stored(format!("{number:012x}")),
        name: name.into(),
        managed: reference.is_some(),
        content_id: reference.map(|_| ImageId::from_stored(format!("{number:012x}"))),
        digest: reference.map(|_| digest.clone()),
        created_at: NOW - 3 * DAY - i64::try_from(number).unwrap_or(0) * 5 * HOUR,
        reference: reference.map(str::to_owned),
        architecture: Some("amd64".into()),
        files: ImageFiles {
            rootfs: PathBuf::from(format!("/data/images/{number:012x}/rootfs.ext4")),
            ..ImageFiles::default()
        },
        config: ImageConfig {
            command: vec!["bash".into()],
            environment: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
            ..ImageConfig::default()
        },
        layers: vec![
            ImageLayer {
                digest: digest.clone(),
                media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
                size: used_bytes / 3,
            };
            2
        ],
        rootfs_bytes: used_bytes * 2,
        used_bytes,
    }
}

pub(crate) fn kernel(name: &str, age: Milliseconds) -> Kernel {
    Kernel {
        name: name.into(),
        release: name.into(),
        architecture: "amd64".into(),
        requested: None,
        source: "apt:linux-image-cloud-amd64".into(),
        created_at: NOW - age,
        vmlinux: format!("/data/kernels/{name}/vmlinux").into(),
        initrd: format!("/data/kernels/{name}/initrd").into(),
        modules: Some(format!("/data/kernels/{name}/modules.ext4").into()),
        guest_digest: "sha256:0".into(),
        initrd_modules: ["failover", "net_failover", "virtio_net", "virtio_blk"].map(Into::into).into(),
        warnings: Vec::new(),
    }
}

/// A boot whose phases took so long, in milliseconds, in their order; the last as `status` says.
pub(crate) fn boot(id: i64, started_at: Milliseconds, taken: &[u64], status: BootPhaseStatus) -> Boot {
    let mut at = started_at;
    let phases = BootPhaseName::ALL.iter().enumerate().map(|(index, &name)| {
        let Some(&took) = taken.get(index) else {
            return BootPhase { name, status: BootPhaseStatus::Pending, started_at: None, duration_ms: None };
        };
        let from = at;
        at += i64::try_from(took).unwrap_or(0);
        let last = index + 1 == taken.len();
        let status = if last { status } else { BootPhaseStatus::Done };
        let duration_ms = (status != BootPhaseStatus::Active).then_some(took);
        BootPhase { name, status, started_at: Some(from), duration_ms }
    });
    Boot {
        id,
        started_at,
        accelerator: Some(Accelerator::Tcg),
        phases: phases.collect(),
        failure: None,
        warnings: Vec::new(),
    }
}

const WHOLE: [u64; 9] = [3, 8, 21, 2, 640, 2480, 930, 410, 35];

pub(crate) fn vm(number: u8, name: &str, state: VmState, image: &Image, age: Milliseconds) -> Vm {
    let started_at = NOW - age;
    Vm {
        id: VmId::from_stored(format!("{number:012x}")),
        name: name.into(),
        state,
        image_id: image.id.clone(),
        image: image.name.clone(),
        kernel: "6.12.48+deb12-cloud-amd64".into(),
        created_at: NOW - 2 * DAY,
        settings: VmSettings {
            cpus: 1 + u32::from(number % 2),
            memory_mib: 512 << (number % 3),
            disk_bytes: 8 << 30,
            network: NetworkMode::User,
            ports: vec![PortForward {
                protocol: Protocol::Tcp,
                host_address: Ipv4Addr::LOCALHOST,
                host_port: 8000 + u16::from(number),
                guest_port: 80,
            }],
            command: Vec::new(),
            environment: Vec::new(),
            work_disk: true,
        },
        pending: None,
        run: state.has_process().then(|| VmRun {
            process: process(2000 + i32::from(number)),
            accelerator: Accelerator::Tcg,
            started_at,
            console_start: 0,
            forwards: None,
            started_with: None,
        }),
        address: Some(Ipv4Addr::new(10, 86, number, 15)),
        boot: (state != VmState::Created)
            .then(|| boot(i64::from(number), started_at, &WHOLE, BootPhaseStatus::Done)),
        ended: None,
        creation: None,
        labels: std::collections::BTreeMap::new(),
    }
}

pub(crate) fn operation(
    number: u32,
    kind: OperationKind,
    target: &str,
    state: OperationState,
    age: Milliseconds,
) -> OperationView {
    let started_at = NOW - age;
    let ended_at = (state != OperationState::Running).then_some(started_at + 4200 + i64::from(number) * 310);
    let phase = |name: &str, from: Milliseconds, to: Option<Milliseconds>| OperationPhase {
        name: name.into(),
        started_at: from,
        ended_at: to,
    };
    let phases = match kind {
        OperationKind::ImagePull => vec![
            phase("resolve", started_at, Some(started_at + 180)),
            phase("layers", started_at + 180, ended_at),
        ],
        _ => vec![phase("boot", started_at, ended_at)],
    };
    OperationView {
        record: OperationRecord {
            id: OperationId::from_stored(format!("{number:012x}")),
            parent: None,
            kind,
            target: target.into(),
            state,
            owner: process(1234),
            started_at,
            ended_at,
            cancel_requested: false,
            phases,
            error: None,
        },
        progress: Arc::default(),
        local: true,
    }
}

/// Layers of a pull: their lengths and how much of each is there, in MiB.
pub(crate) fn layers(progress: &Progress, parts: &[(u64, u64)]) {
    for (index, &(total, done)) in parts.iter().enumerate() {
        let part = progress.add(
            format!("layer {:07x}", 0x00a3_f19c + index * 0x1_2345),
            ProgressUnit::Bytes,
            total << 20,
        );
        part.set_done(done << 20);
        part.set_state(match done {
            0 => ProgressState::Waiting,
            done if done == total => ProgressState::Done,
            _ => ProgressState::Active,
        });
        if index == 1 {
            part.add_retry();
        }
    }
}

/// A deck in the middle of a working day.
pub(crate) fn busy() -> Snapshot {
    let images = vec![
        image(1, "alpine", Some("alpine:3.22"), 8 << 20),
        image(2, "debian", Some("docker.io/library/debian:12"), 121 << 20),
        image(3, "devbox", Some("ghcr.io/example/devbox@sha256:5b0c…"), 1535 << 20),
        image(4, "golden", None, 2 << 30),
        image(5, "postgres", Some("postgres:17-bookworm"), 438 << 20),
    ];
    let vm_of = |number, name, state, at: usize, age| vm(number, name, state, &images[at], age);
    let mut booting = vm_of(3, "ci-runner-7", VmState::Starting, 1, 2100);
    booting.boot = Some(boot(3, NOW - 2100, &[3, 8, 21, 2, 640, 1426], BootPhaseStatus::Active));
    let mut broken = vm_of(6, "old-kernel", VmState::Failed, 3, 3 * HOUR);
    let mut failed = boot(6, NOW - 3 * HOUR, &[2, 7, 19, 2, 610, 8110], BootPhaseStatus::Failed);
    failed.failure = Some(BootFailure {
        class: BootFailureClass::NoRootDevice,
        message: "the kernel found no disk with the root file system".into(),
        hint: "this kernel has no virtio_blk driver: boot the machine with a cloud kernel, \
               `vmdeck vm set old-kernel --kernel …`"
            .into(),
        console_tail: [
            "[    1.214803] vmdeck: modules loaded: 0 of 1",
            "[    1.220114] vmdeck: waiting for disk vmdeck-root",
            "[    9.310221] vmdeck: no block device has the serial vmdeck-root",
            "[    9.311871] vmdeck: giving up: no root device",
        ]
        .map(Into::into)
        .into(),
    });
    broken.boot = Some(failed);
    let vms = vec![
        vm_of(1, "api", VmState::Running, 2, 2 * DAY + 3 * HOUR),
        vm_of(2, "build-arm", VmState::Stopped, 2, 5 * HOUR),
        booting,
        vm_of(4, "db", VmState::Running, 4, 26 * HOUR),
        vm_of(5, "fresh", VmState::Created, 0, 0),
        broken,
        vm_of(7, "scratch", VmState::Running, 0, 42 * SECOND),
        vm_of(8, "web", VmState::Stopping, 1, 3 * HOUR + 25 * MINUTE),
    ];
    let operation_of = |number, kind, target, state, age| operation(number, kind, target, state, age);
    let mut pulling = operation_of(
        40,
        OperationKind::ImagePull,
        "docker.io/library/node:22",
        OperationState::Running,
        9 * SECOND,
    );
    layers(&pulling.progress, &[(48, 48), (23, 19), (61, 22), (201, 31), (3, 0)]);
    let second =
        operation_of(41, OperationKind::ImagePull, "postgres:18", OperationState::Running, 4 * SECOND);
    layers(&second.progress, &[(28, 28), (110, 64)]);
    pulling.local = false;
    let mut failed = operation_of(
        37,
        OperationKind::ImagePull,
        "registry.example.org/team/app:latest",
        OperationState::Failed,
        40 * MINUTE,
    );
    failed.record.error = Some(ErrorReport {
        kind: ErrorKind::Failed,
        message: "registry.example.org refuses: 401 unauthorized for team/app".into(),
        hint: Some(
            "log in with `docker login registry.example.org` or `podman login`, then pull again".into(),
        ),
    });
    let operations = vec![
        second,
        operation_of(42, OperationKind::VmStart, "ci-runner-7", OperationState::Running, 2100),
        pulling,
        operation_of(39, OperationKind::VmStop, "web", OperationState::Running, 800),
        operation_of(38, OperationKind::VmStart, "scratch", OperationState::Done, 46 * SECOND),
        failed,
        operation_of(
            36,
            OperationKind::KernelPull,
            "apt:linux-image-cloud-amd64",
            OperationState::Done,
            5 * HOUR,
        ),
        operation_of(35, OperationKind::ImagePull, "debian:12", OperationState::Cancelled, 6 * HOUR),
        operation_of(34, OperationKind::VmCreate, "api", OperationState::Interrupted, 2 * DAY),
    ];
    Snapshot {
        missing: Arc::default(),
        generation: 7,
        images: Arc::new(images),
        kernels: Arc::new(vec![
            kernel("6.12.48+deb12-cloud-amd64", 5 * HOUR),
            Kernel {
                warnings: vec!["no module reaches a virtio disk: machines cannot find their root".into()],
                ..kernel("5.4.0-custom", 90 * DAY)
            },
        ]),
        vms: Arc::new(vms),
        operations: Arc::new(operations),
    }
}

/// Lets the machines that run use something, for a minute.
pub(crate) fn use_some(model: &mut Model) {
    for second in 0..60 {
        let seen = model.snapshot.vms.iter().filter(|vm| vm.run.is_some()).enumerate().map(|(index, vm)| {
            let second = second as u64;
            let cpu_ms = second * 120 * (index as u64 + 1) + (second * second * 7) % 100;
            let usage = HostUsage {
                at: NOW + 1000 * second as i64,
                cpu_ms,
                resident_bytes: (180 + 3 * second) << 20,
                read_bytes: second * 900_000,
                written_bytes: second * 120_000,
            };
            (vm.id.clone(), usage)
        });
        let seen = seen.collect();
        model.usage.take(seen);
    }
    model.usage.ask(NOW);
}

/// Files of a machine.
pub(crate) fn files() -> Vec<VmFile> {
    let file = |name: &str, logical: u64, allocated: u64| VmFile {
        name: name.into(),
        logical_bytes: logical,
        allocated_bytes: allocated,
    };
    vec![
        file("root.qcow2", 8 << 30, 311 << 20),
        file("work.qcow2", 8 << 30, 12 << 20),
        file("console.log", 41_200, 45_056),
    ]
}

/// Short names of images.
pub(crate) fn catalog() -> Vec<CatalogEntry> {
    let entry = |name: &str, description: &str, reference: &str| CatalogEntry {
        name: name.into(),
        description: description.into(),
        reference: reference.into(),
        origin: "built in".into(),
    };
    vec![
        entry("alpine-edge", "Alpine Linux, rolling", "docker.io/library/alpine:edge"),
        entry("almalinux", "AlmaLinux 9", "docker.io/library/almalinux:9"),
        entry("debian-sid", "Debian unstable", "docker.io/library/debian:sid"),
    ]
}

/// Kernels that can be had.
pub(crate) fn kernel_catalog() -> Vec<CatalogItem> {
    let item = |name: &str, source: &str, note: &str, installed: &[&str], state| CatalogItem {
        entry: vmdeck_engine::kernel::CatalogEntry {
            name: name.into(),
            architecture: "amd64".into(),
            version: None,
            source: format!("apt:{source}"),
            sha256: None,
            note: note.into(),
            origin: "built in".into(),
        },
        available: (state != CatalogState::Unavailable).then(|| format!("apt:{source}=6.12.48-1")),
        installed: installed.iter().map(|name| (*name).to_owned()).collect(),
        state,
    };
    let cloud = "6.12.48+deb12-cloud-amd64";
    vec![
        item(
            "debian-cloud",
            "linux-image-cloud-amd64",
            "small, virtio only",
            &[cloud],
            CatalogState::Installed,
        ),
        item("debian", "linux-image-amd64", "for every machine", &[], CatalogState::Available),
        item("debian-rt", "linux-image-rt-amd64", "with PREEMPT_RT", &[], CatalogState::Available),
        item("ubuntu-virtual", "linux-image-virtual", "for virtual machines", &[], CatalogState::Unavailable),
    ]
}

/// What a guest tells of itself, so many seconds after it started.
pub(crate) fn guest(seconds: u64) -> VmStats {
    let memory = Memory { total: 1012 << 20, available: (700 - 3 * seconds) << 20, ..Memory::default() };
    let processor = Processor {
        count: 2,
        user_milliseconds: seconds * 240 + (seconds * seconds * 7) % 100,
        system_milliseconds: seconds * 60,
        idle_milliseconds: seconds * 1700,
        ..Processor::default()
    };
    let guest = GuestStats {
        uptime_nanoseconds: seconds * 1_000_000_000,
        load_thousandths: [340, 120, 40],
        threads: 61,
        processor,
        memory,
        file_systems: vec![FileSystem { mount_point: "/".into(), total: 8 << 30, available: 7 << 30 }],
        disks: vec![Disk { name: "vda".into(), read: seconds * 900_000, written: seconds * 120_000 }],
        interfaces: vec![Interface { name: "eth0".into(), received: seconds * 4100, sent: seconds * 900 }],
    };
    let at = NOW + 1000 * i64::try_from(seconds).unwrap_or(0);
    let host = HostUsage { at, cpu_ms: seconds * 300, resident_bytes: 0, read_bytes: 0, written_bytes: 0 };
    VmStats { name: "api".into(), guest, host }
}

/// What freeing everything would free.
pub(crate) fn prunable() -> PruneReport {
    let item = |kind, name: &str, bytes| PrunedItem { kind, name: name.into(), bytes };
    PruneReport {
        dry_run: true,
        items: vec![
            item(PrunedKind::Image, "postgres", 438 << 20),
            item(PrunedKind::Blob, &format!("sha256:{:064x}", 0x5b0c_u32), 48 << 20),
            item(PrunedKind::PartialBlob, &format!("sha256:{:064x}", 0x77_u32), 9 << 20),
        ],
        bytes: 495 << 20,
    }
}

/// A deck on which nothing has been done yet.
pub(crate) fn empty() -> Snapshot {
    Snapshot { generation: 1, ..Snapshot::default() }
}

/// A deck of many machines that run and images.
pub(crate) fn large(vms: usize, images: usize) -> Snapshot {
    let images: Vec<_> = (0..images.max(1))
        .map(|n| image(n as u64, &format!("image-{n}"), Some("debian:12"), 121 << 20))
        .collect();
    let all = (0..vms).map(|n| {
        let mut vm = vm(1, &format!("vm-{n}"), VmState::Running, &images[n % images.len()], 3 * HOUR);
        vm.id = VmId::from_stored(format!("{n:012x}"));
        vm
    });
    Snapshot {
        missing: Arc::default(),
        generation: 1,
        vms: Arc::new(all.collect()),
        images: Arc::new(images),
        kernels: Arc::new(vec![kernel("6.12.48+deb12-cloud-amd64", HOUR)]),
        operations: Arc::default(),
    }
}

/// A deck with so many pulls at once.
pub(crate) fn pulls(count: u32) -> Snapshot {
    let views = (0..count).map(|number| {
        let target = format!("registry.example.org/team/app-{number}:latest");
        let view = operation(number, OperationKind::ImagePull, &target, OperationState::Running, 5 * SECOND);
        layers(&view.progress, &[(48, 48), (200, 20 + u64::from(number)), (90, 9)]);
        view
    });
    Snapshot { operations: Arc::new(views.collect()), ..busy() }
}
