//! Machines that stand still.

use super::super::record::VmState;
use super::Deck;
use super::fake::{Fake, PAUSED};
use super::life::{Stray, leave};
use crate::error::ErrorKind;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_stands_still_until_it_is_told_to_go_on() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let vm = process.create("a").await.unwrap();
    let error = process.vms.pause("a", None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.hint().unwrap().contains("vm start"), "{error}");
    let folder = process.data.vm(&vm.id);
    let stray = Stray::in_folder(&folder);
    let run = stray.run();
    leave(&process, &vm, VmState::Running, Some(run.clone())).await;
    for _ in 0..2 {
        let paused = process.vms.pause("a", None).wait().await.unwrap();
        assert_eq!((paused.state, paused.run), (VmState::Paused, Some(run.clone())));
    }
    assert!(folder.join(PAUSED).exists());
    let error = process.vms.exec("a", Default::default()).await.unwrap_err();
    assert!(error.hint().unwrap().contains("vm resume"), "{error}");
    assert_eq!(process.vms.delete("a", false, None).wait().await.unwrap_err().kind(), ErrorKind::Conflict);
    for _ in 0..2 {
        assert_eq!(process.vms.resume("a", None).wait().await.unwrap().state, VmState::Running);
    }
    // To start what stands still is to let it go on.
    process.vms.pause("a", None).wait().await.unwrap();
    assert_eq!(process.vms.start("a", None).wait().await.unwrap().state, VmState::Running);
    // A stop lets it go on first: only so can it sync its disks.
    process.vms.pause("a", None).wait().await.unwrap();
    process.vms.stop("a", false, None).wait().await.unwrap();
    assert!(!folder.join(PAUSED).exists());
    assert_eq!(process.vms.find("a").await.unwrap().state, VmState::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_hypervisor_wrote_down_counts() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let vm = process.create("a").await.unwrap();
    let folder = process.data.vm(&vm.id);
    let stray = Stray::in_folder(&folder);
    // As a vmdeck leaves it that is killed after the command and before the record.
    leave(&process, &vm, VmState::Running, Some(stray.run())).await;
    std::fs::write(folder.join(PAUSED), "").unwrap();
    process.vms.reconcile().await.unwrap();
    assert_eq!(process.vms.find("a").await.unwrap().state, VmState::Paused);
    std::fs::remove_file(folder.join(PAUSED)).unwrap();
    process.vms.reconcile().await.unwrap();
    assert_eq!(process.vms.find("a").await.unwrap().state, VmState::Running);
    // And a stop that was not carried out.
    leave(&process, &vm, VmState::Stopping, Some(stray.run())).await;
    std::fs::write(folder.join(PAUSED), "").unwrap();
    process.vms.reconcile().await.unwrap();
    assert_eq!(process.vms.find("a").await.unwrap().state, VmState::Paused);
}
