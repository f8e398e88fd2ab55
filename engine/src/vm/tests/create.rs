//! The reservation: who wins, and what a loser leaves.

use std::collections::HashSet;
use std::net::TcpListener;

use super::super::record::{BootPhaseName, NetworkMode, VmState};
use super::super::{ChangeVm, CreateVm};
use super::{Deck, IMAGE, KERNEL, request, tcp};
use crate::error::ErrorKind;
use crate::store;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_creates_of_one_name_exactly_one_wins() {
    let deck = Deck::new().await;
    let processes = [deck.open(), deck.open(), deck.open()];
    let mut tasks: Vec<_> = (0..12)
        .map(|index| {
            let with_port = CreateVm { ports: vec![tcp(0, 80)], ..request("same") };
            processes[index % 3].vms.create(with_port, None)
        })
        .collect();
    let mut won = 0;
    for task in &mut tasks {
        match task.wait().await {
            Ok(_) => won += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.full_message());
                assert!(error.to_string().contains("`same`"));
            }
        }
    }
    assert_eq!(won, 1);
    assert_eq!(processes[0].count("vms").await, 1);
    assert_eq!(processes[0].count("leases").await, 2, "the losers hold an address or a port");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_creates_at_once_get_names_addresses_and_ports_of_their_own() {
    let deck = Deck::new().await;
    let processes = [deck.open(), deck.open()];
    let mut tasks: Vec<_> = (0..24)
        .map(|index| {
            let unnamed = CreateVm { name: None, ports: vec![tcp(0, 22), tcp(0, 80)], ..request("") };
            processes[index % 2].vms.create(unnamed, None)
        })
        .collect();
    let (mut names, mut addresses, mut ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    for task in &mut tasks {
        let vm = task.wait().await.unwrap();
        assert_eq!(vm.state, VmState::Created);
        names.insert(vm.name);
        addresses.insert(vm.address.unwrap());
        ports.extend(vm.settings.ports.iter().map(|forward| forward.host_port));
    }
    assert_eq!((names.len(), addresses.len(), ports.len()), (24, 24, 48));
    assert!(!ports.contains(&0));
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_its_owner() {
    let deck = Deck::new().await;
    let process = deck.open();
    let first = CreateVm { ports: vec![tcp(0, 80)], ..request("first") };
    let port = process.vms.create(first, None).wait().await.unwrap().settings.ports[0].host_port;
    let second = CreateVm { ports: vec![tcp(port, 80)], ..request("second") };
    let error = process.vms.create(second, None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("`first`"), "{error}");
    // By a program that has nothing to do with vmdeck.
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = listener.local_addr().unwrap().port();
    let third = CreateVm { ports: vec![tcp(taken, 80)], ..request("third") };
    let error = process.vms.create(third, None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("another program"), "{error}");
    assert_eq!(process.count("vms").await, 1);
    assert_eq!(process.count("leases").await, 2);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_anything_is_resolved() {
    let deck = Deck::new().await;
    let process = deck.open();
    let check = async |request: CreateVm, word: &str| {
        let error = process.vms.create(request, None).wait().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{}", error.full_message());
        assert!(error.to_string().contains(word), "{error}");
        assert!(error.hint().is_some(), "{error}");
    };
    check(request("../x"), "../x").await;
    check(CreateVm { cpus: Some(0), ..request("a") }, "CPUs").await;
    check(CreateVm { cpus: Some(100_000), ..request("a") }, "100000").await;
    check(CreateVm { memory_mib: Some(8), ..request("a") }, "8 MiB").await;
    check(CreateVm { memory_mib: Some(u64::MAX), ..request("a") }, "MiB").await;
    check(CreateVm { disk_gib: Some(0), ..request("a") }, "GiB").await;
    check(CreateVm { disk_gib: Some(u64::MAX), ..request("a") }, "GiB").await;
    check(CreateVm { environment: vec!["=x".into()], ..request("a") }, "=x").await;
    let ports = vec![tcp(0, 80)];
    check(CreateVm { network: Some(NetworkMode::None), ports, ..request("a") }, "network").await;
    check(CreateVm { ports: vec![tcp(8080, 0)], ..request("a") }, "port").await;
    assert_eq!(process.count("vms").await, 0);
    assert_eq!(process.count("leases").await, 0);
}

#[tokio::test]
async fn a_machine_without_a_network_has_no_address() {
    let deck = Deck::new().await;
    let process = deck.open();
    let request = CreateVm { network: Some(NetworkMode::None), ..request("a") };
    let vm = process.vms.create(request, None).wait().await.unwrap();
    assert_eq!(vm.address, None);
    assert_eq!(process.count("leases").await, 0);
}

#[tokio::test]
async fn machines_of_the_lan_are_neighbours_and_others_are_not() {
    let deck = Deck::new().await;
    let process = deck.open();
    let create = async |name: &str, network| {
        let request = CreateVm { network: Some(network), ..request(name) };
        process.vms.create(request, None).wait().await.unwrap().address.unwrap().octets()
    };
    let alone = create("alone", NetworkMode::User).await;
    let [a, b, c, first] = create("first", NetworkMode::Lan).await;
    assert_eq!(create("second", NetworkMode::Lan).await, [a, b, c, first + 1]);
    assert_ne!(alone[..3], [a, b, c]);
    assert_ne!(create("later", NetworkMode::User).await[..3], [a, b, c]);
    // A clone is one of them too, and what is given back is given out again.
    let clone = process.vms.clone_vm("second", Some("clone".into()), None).wait().await.unwrap();
    assert_eq!(clone.address.unwrap().octets(), [a, b, c, first + 2]);
    process.vms.delete("first", false, None).wait().await.unwrap();
    assert_eq!(create("third", NetworkMode::Lan).await, [a, b, c, first]);
}

#[tokio::test]
async fn bridged_machines_share_a_network_of_their_own_where_there_can_be_any() {
    let deck = Deck::new().await;
    let process = deck.open();
    let bridged = |name: &str| CreateVm { network: Some(NetworkMode::Bridge), ..request(name) };
    let with_port = CreateVm { ports: vec![tcp(0, 80)], ..bridged("port") };
    let error = process.vms.create(with_port, None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    if crate::network::bridge::obstacle().is_some() {
        let error = process.vms.create(bridged("a"), None).wait().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostCannot, "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("--network lan")), "{error:?}");
        return eprintln!("not tried: {error}");
    }
    let create = async |request: CreateVm| {
        process.vms.create(request, None).wait().await.unwrap().address.unwrap().octets()
    };
    let [a, b, c, first] = create(bridged("first")).await;
    assert_eq!(create(bridged("second")).await, [a, b, c, first + 1]);
    assert_eq!(first, 2, "the host is the first of the network");
    let lan = CreateVm { network: Some(NetworkMode::Lan), ..request("lan") };
    assert_ne!(create(lan).await[..3], [a, b, c]);
    let clone = process.vms.clone_vm("second", Some("clone".into()), None).wait().await.unwrap();
    assert_eq!(clone.address.unwrap().octets(), [a, b, c, first + 2]);
    let change = ChangeVm { add_ports: vec![tcp(0, 80)], ..ChangeVm::default() };
    let error = process.vms.change("first", change, None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.hint().is_some_and(|hint| hint.contains(&format!("{a}.{b}.{c}.{first}"))), "{error:?}");
}

#[tokio::test]
async fn unknown_images_and_kernels_are_not_found() {
    let deck = Deck::new().await;
    let process = deck.open();
    let unknown = CreateVm { kernel: Some("none".into()), ..request("a") };
    assert_eq!(process.vms.create(unknown, None).wait().await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(process.vms.find("a").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_image_for_another_architecture_is_refused() {
    let deck = Deck::new().await;
    let process = deck.open();
    process
        .store
        .transaction(|transaction| {
            transaction
                .execute("UPDATE images SET detail = json_set(detail, '$.architecture', 'riscv64')", [])?;
            Ok(())
        })
        .await
        .unwrap();
    let error = process.create("a").await.unwrap_err();
    assert!(error.to_string().contains("riscv64"), "{error}");
}

#[tokio::test]
async fn a_create_cancelled_before_its_reservation_leaves_nothing() {
    let deck = Deck::new().await;
    let process = deck.open();
    let mut task = process.vms.create(request("a"), None);
    task.operation().cancel();
    assert!(task.wait().await.unwrap_err().is_cancelled());
    assert_eq!(process.count("vms").await, 0);
    assert_eq!(process.count("leases").await, 0);
    assert_eq!(std::fs::read_dir(process.data.vms()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_delete_frees_what_was_leased_and_leaves_no_file() {
    let deck = Deck::new().await;
    let (process, other) = (deck.open(), deck.open());
    let with_port = CreateVm { ports: vec![tcp(0, 80)], ..request("a") };
    let vm = process.vms.create(with_port.clone(), None).wait().await.unwrap();
    let creation = vm.creation.unwrap();
    assert!(creation.started_at <= vm.created_at);
    assert_eq!(vm.boot, None, "{:?} come with the boot", BootPhaseName::ALL);
    other.vms.delete("a", false, None).wait().await.unwrap();
    assert_eq!(process.vms.find("a").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(process.count("leases").await, 0);
    for folder in [process.data.vms(), process.data.staging_root()] {
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
    }
    let again = CreateVm { ports: vec![tcp(vm.settings.ports[0].host_port, 80)], ..with_port };
    let again = process.vms.create(again, None).wait().await.unwrap();
    assert_eq!(again.address, vm.address);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_deletes_of_one_machine_exactly_one_succeeds() {
    let deck = Deck::new().await;
    let processes = [deck.open(), deck.open()];
    processes[0].create("a").await.unwrap();
    let mut tasks: Vec<_> =
        (0..8).map(|index| processes[index % 2].vms.delete("a", index % 3 == 0, None)).collect();
    let mut deleted = 0;
    for task in &mut tasks {
        match task.wait().await {
            Ok(()) => deleted += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.full_message()),
        }
    }
    assert_eq!(deleted, 1);
    assert_eq!(std::fs::read_dir(processes[0].data.vms()).unwrap().count(), 0);
}

#[tokio::test]
async fn an_image_deleted_while_it_is_resolved_is_not_used() {
    let deck = Deck::new().await;
    let process = deck.open();
    process.create("a").await.unwrap();
    // The row of a used image cannot go: the store itself refuses.
    let refused = process
        .store
        .transaction(|transaction| {
            transaction.execute("DELETE FROM images WHERE name = ?1", [IMAGE])?;
            Ok(())
        })
        .await;
    assert!(refused.is_err());
    process.vms.delete("a", false, None).wait().await.unwrap();
    process.store.transaction(|transaction| store::kernels::delete(transaction, KERNEL)).await.unwrap();
    let named = CreateVm { kernel: Some(KERNEL.into()), ..request("b") };
    let error = process.vms.create(named, None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.full_message());
}
