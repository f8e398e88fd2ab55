//! Changing what a machine is.

use std::collections::BTreeMap;

use super::super::layer::{Disk, Layer};
use super::super::pending::{Pending, StartedWith};
use super::super::record::{PortForward, VmRun, VmSettings, VmState};
use super::super::{ChangeEffect, ChangeVm, CreateVm, Setting, TakesEffect};
use super::fake::Fake;
use super::life::{Stray, leave};
use super::{Deck, request, tcp};
use crate::error::ErrorKind;
use crate::identifier::LayerId;
use crate::store;
use crate::vmm::DiskFormat;

#[tokio::test]
async fn settings_change_at_once_and_say_when_they_count() {
    let deck = Deck::new().await;
    let process = deck.open();
    let created = CreateVm { environment: vec!["A=1".into(), "B=2".into()], ..request("a") };
    let before = process.vms.create(created, None).wait().await.unwrap();
    let change = ChangeVm {
        name: Some("b".into()),
        memory_mib: Some(256),
        disk_gib: Some(9),
        environment: vec!["A=3".into(), "B".into()],
        labels: BTreeMap::from([("tier".into(), Some("web".into()))]),
        ..ChangeVm::default()
    };
    let changed = process.vms.change("a", change, None).wait().await.unwrap();
    let expected = VmSettings {
        memory_mib: 256,
        disk_bytes: 9 << 30,
        environment: vec!["A=3".into()],
        ..before.settings
    };
    assert_eq!(changed.vm.settings, expected);
    assert_eq!(changed.vm.name, "b");
    assert_eq!(changed.vm.labels, BTreeMap::from([("tier".into(), "web".into())]));
    assert_eq!(process.vms.find("b").await.unwrap(), changed.vm);
    let now = changed.effects.iter().all(|effect| effect.takes_effect == TakesEffect::Now);
    assert!(now, "{:?}", changed.effects);
    assert_eq!(changed.effects.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_runs_is_shown_with_what_it_runs_with() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let vm = process.create("a").await.unwrap();
    let stray = Stray::in_folder(&process.data.vm(&vm.id));
    let run = VmRun { started_with: Some(StartedWith::of(&vm)), ..stray.run() };
    leave(&process, &vm, VmState::Running, Some(run)).await;
    let memory = |mebibytes| ChangeVm { memory_mib: Some(mebibytes), ..ChangeVm::default() };
    let has = vm.settings.memory_mib;
    let set = async |mebibytes| {
        let changed = process.vms.change("a", memory(mebibytes), None).wait().await.unwrap();
        assert_eq!(changed.vm.settings.memory_mib, has);
        assert_eq!(changed.vm.next_settings().memory_mib, mebibytes);
        let [ChangeEffect { setting: Setting::MemoryMib(step), takes_effect }] = &changed.effects[..] else {
            panic!("{:?}", changed.effects)
        };
        ((step.from, step.to), *takes_effect, changed.vm)
    };
    let (step, when, _) = set(has + 64).await;
    assert_eq!((step, when), ((has, has + 64), TakesEffect::NextStart));
    // From what it has, whatever was meant in between.
    let (step, when, now) = set(has + 128).await;
    assert_eq!((step, when), ((has, has + 128), TakesEffect::NextStart));
    assert_eq!(now.pending, Some(Pending { memory_mib: Some(has + 128), ..Pending::default() }));
    // A clone is not made to run as the original happens to.
    let clone = process.vms.clone_vm("a", Some("b".into()), None).wait().await.unwrap();
    assert_eq!((clone.settings.memory_mib, clone.pending), (has + 128, None));
    // Ports are opened and closed without a word about the rest.
    let ports = ChangeVm { add_ports: vec![tcp(0, 80)], ..ChangeVm::default() };
    let changed = process.vms.change("a", ports, None).wait().await.unwrap();
    assert_eq!((changed.vm.settings.ports.len(), &changed.vm.pending), (1, &now.pending));
    // Put back to what it has: nothing is left to wait for.
    let (step, when, now) = set(has).await;
    assert_eq!((step, when, now.pending), ((has + 128, has), TakesEffect::Now, None));
}

#[tokio::test]
async fn a_change_that_cannot_be_made_changes_nothing() {
    let deck = Deck::new().await;
    let process = deck.open();
    let ports = |port| vec![tcp(port, 80)];
    let other = CreateVm { ports: ports(0), ..request("other") };
    let theirs = process.vms.create(other, None).wait().await.unwrap().settings.ports[0].host_port;
    let before = process.vms.create(CreateVm { ports: ports(0), ..request("a") }, None).wait().await.unwrap();
    let mine = before.settings.ports[0].host_port;
    let check = async |change: ChangeVm, kind| {
        let error = process.vms.change("a", change, None).wait().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.full_message());
        assert!(error.hint().is_some(), "{error}");
        assert_eq!(process.vms.find("a").await.unwrap(), before);
    };
    check(ChangeVm { name: Some("other".into()), ..ChangeVm::default() }, ErrorKind::Conflict).await;
    check(ChangeVm { cpus: Some(100_000), ..ChangeVm::default() }, ErrorKind::Usage).await;
    check(ChangeVm { disk_gib: Some(1), ..ChangeVm::default() }, ErrorKind::Usage).await;
    for (variable, kind) in [("=x", ErrorKind::Usage), ("", ErrorKind::Usage), ("NONE", ErrorKind::NotFound)]
    {
        check(ChangeVm { environment: vec![variable.into()], ..ChangeVm::default() }, kind).await;
    }
    let labels = BTreeMap::from([("none".into(), None), ("tier".into(), Some("web".into()))]);
    check(ChangeVm { labels, ..ChangeVm::default() }, ErrorKind::NotFound).await;
    check(ChangeVm { kernel: Some("none".into()), ..ChangeVm::default() }, ErrorKind::NotFound).await;
    check(
        ChangeVm { add_ports: ports(theirs), memory_mib: Some(256), ..ChangeVm::default() },
        ErrorKind::Conflict,
    )
    .await;
    check(ChangeVm { add_ports: ports(mine), ..ChangeVm::default() }, ErrorKind::Conflict).await;
    check(ChangeVm { remove_ports: ports(theirs), ..ChangeVm::default() }, ErrorKind::NotFound).await;
    assert_eq!(process.count("leases").await, 4);
}

#[tokio::test]
async fn ports_come_and_go_with_their_leases() {
    let deck = Deck::new().await;
    let process = deck.open();
    let created = CreateVm { ports: vec![tcp(0, 80)], ..request("a") };
    let vm = process.vms.create(created, None).wait().await.unwrap();
    let first = vm.settings.ports[0].clone();
    let change = ChangeVm {
        // The same host port for another port of the guest.
        remove_ports: vec![first.clone()],
        add_ports: vec![PortForward { guest_port: 8080, ..first.clone() }, tcp(0, 22)],
        ..ChangeVm::default()
    };
    let changed = process.vms.change("a", change, None).wait().await.unwrap();
    let ports = &changed.vm.settings.ports;
    assert_eq!((ports.len(), ports[0].host_port, ports[0].guest_port), (2, first.host_port, 8080));
    assert_ne!(ports[1].host_port, 0);
    assert_eq!(process.count("leases").await, 3);
    let all = ChangeVm { remove_ports: ports.clone(), ..ChangeVm::default() };
    process.vms.change("a", all, None).wait().await.unwrap();
    assert_eq!(process.count("leases").await, 1, "the address stays");
}

#[tokio::test]
async fn a_reset_takes_the_root_disk_and_leaves_the_work_disk() {
    let deck = Deck::new().await;
    let process = deck.open();
    let vm = process.create("a").await.unwrap();
    // Never booted: nothing is there to be thrown away.
    process.vms.reset("a", None).wait().await.unwrap();
    let folder = process.data.vm(&vm.id);
    for file in ["root.qcow2", "work.qcow2"] {
        std::fs::write(folder.join(file), "disk").unwrap();
    }
    process.vms.reset("a", None).wait().await.unwrap();
    assert!(!folder.join("root.qcow2").exists() && folder.join("work.qcow2").exists());
}

#[tokio::test]
async fn a_reset_that_was_killed_is_finished_or_taken_back() {
    let deck = Deck::new().await;
    let process = deck.open();
    let rename = |name: &str| ChangeVm { name: Some(name.into()), ..ChangeVm::default() };
    let vm = process.create("a").await.unwrap();
    let folder = process.data.vm(&vm.id);
    process.vms.change("a", rename("b"), None).wait().await.unwrap();
    let discarded = folder.join("root.discarded");
    // What lay on the image only: nothing tells how far it came, and to be reset was what was asked for.
    std::fs::write(&discarded, "disk").unwrap();
    process.vms.change("b", rename("a"), None).wait().await.unwrap();
    assert!(!discarded.exists() && !folder.join("root.qcow2").exists());
    // What lies on a layer that is still on record is a disk.
    let layer = Layer { id: LayerId::random(), parent: None, format: DiskFormat::Qcow2 };
    std::fs::create_dir(process.data.layer(&layer.id)).unwrap();
    let id = vm.id.clone();
    let record = move |transaction: &store::Transaction<'_>| {
        store::layers::insert(transaction, &layer)?;
        store::layers::set_base(transaction, &id, Disk::Root, &layer.id)
    };
    process.store.transaction(record).await.unwrap();
    std::fs::write(&discarded, "disk").unwrap();
    process.vms.change("a", rename("b"), None).wait().await.unwrap();
    assert!(!discarded.exists());
    assert_eq!(std::fs::read_to_string(folder.join("root.qcow2")).unwrap(), "disk");
    process.vms.reset("b", None).wait().await.unwrap();
    assert!(!discarded.exists() && !folder.join("root.qcow2").exists());
    assert_eq!((process.count("layers").await, process.count("bases").await), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_that_a_killed_vmdeck_was_changing_are_settled() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let vm = process.create("a").await.unwrap();
    process
        .vms
        .change("a", ChangeVm { add_ports: vec![tcp(0, 80)], ..ChangeVm::default() }, None)
        .wait()
        .await
        .unwrap();
    let folder = process.data.vm(&vm.id);
    let stray = Stray::in_folder(&folder);
    // As it was before the hypervisor was told.
    let run = VmRun { forwards: Some(Vec::new()), ..stray.run() };
    leave(&process, &vm, VmState::Running, Some(run)).await;
    process.vms.reconcile().await.unwrap();
    let now = process.vms.find("a").await.unwrap();
    assert_eq!(now.run.unwrap().forwards, Some(now.settings.ports));
    assert_eq!(now.state, VmState::Running);
}
