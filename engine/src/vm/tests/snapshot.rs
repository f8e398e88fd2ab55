//! Snapshots and clones, and what a vmdeck leaves that is killed while it makes them.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::layer::{Disk, Layer};
use super::super::record::{Vm, VmState};
use super::fake::{Fake, REFUSES};
use super::life::{Stray, leave};
use super::{Deck, Process};
use crate::error::ErrorKind;
use crate::identifier::LayerId;
use crate::store;
use crate::vmm::{DiskFormat, qcow2};

/// The disks that a first boot makes.
fn give_disks(process: &Process, vm: &Vm) -> PathBuf {
    let folder = process.data.vm(&vm.id);
    fs::create_dir_all(&folder).unwrap();
    let image = fs::read_dir(process.data.images()).unwrap().next().unwrap().unwrap().file_name();
    let backing = Path::new("../../images").join(image).join("rootfs.ext4");
    qcow2::create_overlay(&folder.join("root.qcow2"), &backing, DiskFormat::Raw, 64 << 20).unwrap();
    fs::File::create(folder.join("work.ext4")).unwrap().set_len(1 << 20).unwrap();
    folder
}

/// What a disk lies on, from it down to the image.
fn chain(disk: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut path = disk.to_owned();
    while path.extension().is_some_and(|extension| extension == "qcow2") {
        let backing = qcow2::read_header(&path).unwrap().backing.unwrap();
        path = path.parent().unwrap().join(&backing);
        assert!(path.exists(), "{} lies on nothing: {}", disk.display(), path.display());
        names.push(backing.to_str().unwrap().to_owned());
    }
    names
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| !name.ends_with("lock"))
        .collect();
    names.sort();
    names
}

async fn is_whole(process: &Process) {
    assert_eq!(names(&process.data.layers()).len(), usize::try_from(process.count("layers").await).unwrap());
    assert_eq!(names(&process.data.staging_root()), [""; 0]);
}

#[tokio::test]
async fn a_snapshot_is_kept_restored_and_forgotten() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let vm = process.create("a").await.unwrap();
    let error = process.vms.snapshot("a", None, None).wait().await.unwrap_err();
    assert!(error.to_string().contains("never started"), "{error}");

    let folder = give_disks(&process, &vm);
    let first = process.vms.snapshot("a", None, None).wait().await.unwrap();
    assert_eq!((first.name.as_str(), first.detail.running, first.detail.synced), ("s1", false, true));
    assert_eq!(names(&folder), ["root.qcow2", "work.qcow2"], "the raw disk is an overlay by now");
    assert_eq!(chain(&folder.join("root.qcow2")).len(), 2);
    assert_eq!(chain(&folder.join("work.qcow2")).len(), 1);
    let taken = process.vms.snapshot("a", Some("s1".into()), None).wait().await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict);
    process.vms.snapshot("a", Some("second".into()), None).wait().await.unwrap();
    assert_eq!(chain(&folder.join("root.qcow2")).len(), 3);
    let list = process.vms.snapshots(&vm).await.unwrap();
    assert_eq!(list.iter().map(|snapshot| snapshot.name.as_str()).collect::<Vec<_>>(), ["s1", "second"]);
    is_whole(&process).await;

    // Back to the first: the second still holds its layers.
    process.vms.restore("a", "s1", None).wait().await.unwrap();
    assert_eq!(chain(&folder.join("root.qcow2")).len(), 2);
    assert_eq!(process.count("layers").await, 4);
    let missing = process.vms.restore("a", "third", None).wait().await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let deleted = process.vms.delete_snapshot("a", "second", None).wait().await.unwrap();
    assert_eq!(deleted.kept_for, [""; 0]);
    assert!(deleted.freed_bytes > 0);
    let deleted = process.vms.delete_snapshot("a", "s1", None).wait().await.unwrap();
    assert_eq!((deleted.freed_bytes, deleted.kept_for), (0, vec!["a".to_owned()]));
    is_whole(&process).await;
    assert_eq!(process.count("layers").await, 2);

    // A fresh root lies on the image again, and what it lay on goes.
    process.vms.reset("a", None).wait().await.unwrap();
    assert_eq!(process.count("layers").await, 1);
    process.vms.delete("a", false, None).wait().await.unwrap();
    assert_eq!((process.count("layers").await, process.count("bases").await), (0, 0));
    is_whole(&process).await;
}

#[tokio::test]
async fn a_clone_lives_on_without_its_original() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let change = super::super::CreateVm {
        ports: vec![super::tcp(0, 80)],
        labels: [("tier".to_owned(), "web".to_owned())].into(),
        ..super::request("a")
    };
    let vm = process.vms.create(change, None).wait().await.unwrap();
    // Of one that never ran there is nothing to share.
    let early = process.vms.clone_vm("a", Some("early".into()), None).wait().await.unwrap();
    assert_eq!(process.count("layers").await, 0);
    let folder = give_disks(&process, &vm);
    process.vms.snapshot("a", None, None).wait().await.unwrap();
    let clone = process.vms.clone_vm("a", Some("b".into()), None).wait().await.unwrap();
    assert_eq!((clone.state, clone.labels.clone()), (VmState::Created, vm.labels.clone()));
    assert_ne!((clone.address, &clone.settings.ports), (vm.address, &vm.settings.ports));
    assert_eq!(clone.settings.ports[0].guest_port, 80);
    assert_ne!(early.address, clone.address);
    let taken = process.vms.clone_vm("a", Some("b".into()), None).wait().await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict);
    assert_eq!(chain(&folder.join("root.qcow2")).len(), 3, "the refused clone froze nothing");
    // A clone of a clone that never ran freezes nothing more.
    process.vms.clone_vm("b", Some("c".into()), None).wait().await.unwrap();
    assert_eq!(process.count("layers").await, 4);

    process.vms.delete("a", false, None).wait().await.unwrap();
    assert_eq!(process.count("layers").await, 4, "the clones lie on them");
    is_whole(&process).await;
    // Its overlay is made at its first start, over the layer.
    let mut start = process.vms.start("b", None);
    let disk = process.data.vm(&clone.id).join("root.qcow2");
    for _ in 0..6000 {
        if disk.exists() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(chain(&disk).len(), 3);
    start.operation().cancel();
    assert!(start.wait().await.unwrap_err().is_cancelled());
    for name in ["b", "c"] {
        process.vms.delete(name, true, None).wait().await.unwrap();
    }
    assert_eq!(process.count("layers").await, 0);
    is_whole(&process).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_runs_goes_on_with_its_overlays() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let vm = process.create("a").await.unwrap();
    let folder = give_disks(&process, &vm);
    let stray = Stray::in_folder(&folder);
    leave(&process, &vm, VmState::Running, Some(stray.run())).await;
    // What cannot be handed over is taken back.
    fs::write(folder.join(REFUSES), "").unwrap();
    let error = process.vms.snapshot("a", None, None).wait().await.unwrap_err();
    assert!(error.to_string().contains("no snapshots now"), "{error}");
    assert_eq!(names(&folder), ["refuses", "root.qcow2", "work.ext4"]);
    assert_eq!((process.count("layers").await, process.count("bases").await), (0, 0));
    is_whole(&process).await;
    fs::remove_file(folder.join(REFUSES)).unwrap();
    let snapshot = process.vms.snapshot("a", None, None).wait().await.unwrap();
    assert!(snapshot.detail.running && !snapshot.detail.synced, "no agent answers");
    assert_eq!(chain(&folder.join("root.qcow2")).len(), 2);
    assert!(!folder.join("work.ext4").exists());
    let handed_over = fs::read_to_string(folder.join("vmdeck-root")).unwrap();
    assert!(handed_over.contains("/run-root-") && handed_over.ends_with(".qcow2"), "{handed_over}");
    // One whose file had a name that may be another file's by now is left alone.
    fs::write(folder.join("vmdeck-root"), "root.qcow2").unwrap();
    let error = process.vms.snapshot("a", None, None).wait().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains("earlier vmdeck"), "{error}");
    fs::write(folder.join("vmdeck-root"), handed_over).unwrap();
    process.vms.snapshot("a", Some("again".into()), None).wait().await.unwrap();
    assert_eq!(chain(&folder.join("root.qcow2")).len(), 3);
    process.vms.delete_snapshot("a", "again", None).wait().await.unwrap();
    // Running, it cannot be restored.
    assert_eq!(process.vms.restore("a", "s1", None).wait().await.unwrap_err().kind(), ErrorKind::Conflict);
}

/// A freeze as far as it gets before the hypervisor is told.
async fn begin(process: &Process, vm: &Vm) -> LayerId {
    let folder = process.data.vm(&vm.id);
    let layer = Layer { id: LayerId::random(), parent: None, format: DiskFormat::Qcow2 };
    fs::create_dir_all(process.data.layer(&layer.id)).unwrap();
    let frozen = process.data.layer(&layer.id).join("disk.qcow2");
    fs::hard_link(folder.join("root.qcow2"), &frozen).unwrap();
    let backing = Path::new("../../layers").join(layer.id.as_str()).join("disk.qcow2");
    let overlay = folder.join(format!("root-{}.qcow2", layer.id));
    qcow2::create_overlay(&overlay, &backing, DiskFormat::Qcow2, 64 << 20).unwrap();
    let (vm, id) = (vm.id.clone(), layer.id.clone());
    process
        .store
        .transaction(move |transaction| {
            store::layers::insert(transaction, &layer)?;
            store::layers::begin_switch(transaction, &vm, Disk::Root, &layer.id)
        })
        .await
        .unwrap();
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_vmdeck_began_is_finished_or_taken_back() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    // Without a process the overlay shows what the disk holds, or is what was written last.
    let vm = process.create("stopped").await.unwrap();
    let stopped = give_disks(&process, &vm);
    begin(&process, &vm).await;
    // And once more, killed after the overlay got its place.
    let vm = process.create("nearly").await.unwrap();
    let nearly = give_disks(&process, &vm);
    let layer = begin(&process, &vm).await;
    fs::rename(nearly.join(format!("root-{layer}.qcow2")), nearly.join("root.qcow2")).unwrap();
    // A hypervisor that was not told goes on with the disk, one that was with the overlay.
    let vm = process.create("untold").await.unwrap();
    let untold = give_disks(&process, &vm);
    let stray = Stray::in_folder(&untold);
    begin(&process, &vm).await;
    leave(&process, &vm, VmState::Running, Some(stray.run())).await;
    let vm = process.create("told").await.unwrap();
    let told = give_disks(&process, &vm);
    let other = Stray::in_folder(&told);
    let layer = begin(&process, &vm).await;
    fs::write(told.join("vmdeck-root"), format!("root-{layer}.qcow2")).unwrap();
    leave(&process, &vm, VmState::Running, Some(other.run())).await;
    // And a layer that was put in its place by a transaction that never ended.
    fs::create_dir(process.data.layer(&LayerId::random())).unwrap();

    let later = deck.open_with(Fake::hanging());
    later.vms.reconcile().await.unwrap();
    for (folder, layers) in [(&stopped, 2), (&nearly, 2), (&untold, 1), (&told, 2)] {
        assert_eq!(chain(&folder.join("root.qcow2")).len(), layers, "{}", folder.display());
        assert!(!names(folder).iter().any(|name| name.starts_with("root-")), "{:?}", names(folder));
    }
    assert_eq!(later.count("layers").await, 3);
    is_whole(&later).await;
}

#[tokio::test]
async fn what_a_reset_keeps_is_cloned_and_frozen_too() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let vm = process.create("a").await.unwrap();
    let folder = give_disks(&process, &vm);
    process.vms.reset("a", None).wait().await.unwrap();
    assert!(!names(&folder).contains(&"root.qcow2".to_owned()));
    let clone = process.vms.clone_vm("a", Some("b".into()), None).wait().await.unwrap();
    // Both go on from one root and one work disk.
    assert_eq!((process.count("layers").await, process.count("bases").await), (2, 4));
    is_whole(&process).await;
    // The clone has no disks of its own yet: a reset leaves it what its work disk lies on.
    process.vms.reset("b", None).wait().await.unwrap();
    process.vms.clone_vm("b", Some("c".into()), None).wait().await.unwrap();
    assert_eq!(process.count("bases WHERE disk = 'work' AND layer_id IS NOT NULL").await, 3);
    assert!(names(&process.data.vm(&clone.id)).contains(&"root.qcow2".to_owned()));
    process.vms.reset("a", None).wait().await.unwrap();
    process.vms.snapshot("a", None, None).wait().await.unwrap();
    is_whole(&process).await;
}
