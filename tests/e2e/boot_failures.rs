//! Boots that fail: each is classified, says why and what to do, and leaves no process.

use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;

use crate::support::deck::{Deck, Ended};
use crate::support::layout::{Layout, TarBuilder};
use crate::support::{can_boot, fixtures, run};

/// Starts a machine that cannot boot; its failure's class.
#[track_caller]
fn failure(deck: &Arc<Deck>, name: &str, ended: &Ended) -> String {
    assert!(ended.stderr.contains("next:"), "no next step: {}", ended.stderr);
    let vm = deck.run(["vm", "show", name, "--output", "json"]).expect(0).json();
    assert_eq!(vm["state"], "failed", "{vm}");
    assert!(vm["run"].is_null(), "{vm}");
    let failure = &vm["boot"]["failure"];
    // Seen only when the test fails.
    eprintln!("{failure:#}");
    failure["class"].as_str().unwrap().to_owned()
}

fn busybox(deck: &Arc<Deck>, name: &str) {
    let layout = deck.readable(&fixtures::busybox());
    deck.run(["image", "pull", &format!("oci:{}", layout.display()), "--name", name]).expect(0);
}

#[test]
fn a_command_that_the_image_does_not_hold_is_named() {
    if !can_boot() {
        return;
    }
    let deck = Deck::shared();
    let folder = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(folder.path());
    // It names a program that it does not hold.
    layout.config = serde_json::json!({ "Entrypoint": ["/missing"] });
    layout.layer(&TarBuilder::default().file("etc/motd", 0o644, b"hello\n").finish()).finish();
    let layout = deck.readable(folder.path());
    deck.run(["image", "pull", &format!("oci:{}", layout.display()), "--name", "no-init"]).expect(0);
    let _guard = deck.guard("no-init");
    // The machine is up and can be looked into; its console says what did not run.
    deck.run(["vm", "run", "no-init", "--name", "no-init", "--", "/missing"]).expect(127).says(&["/missing"]);
    let logs = deck.run(["vm", "logs", "no-init"]).expect(0);
    assert!(logs.stdout.contains("the image's command cannot be run: `/missing` was not found"), "{logs:?}");
}

#[test]
fn a_root_that_is_no_file_system_says_so() {
    if !can_boot() {
        return;
    }
    let deck = Deck::new();
    deck.import_kernel();
    let deck = Arc::new(deck);
    busybox(&deck, "no-fs");
    let image = deck.run(["image", "show", "no-fs", "--output", "json"]).expect(0).json();
    // Damaged after the pull, as a failing disk would.
    let rootfs =
        std::fs::OpenOptions::new().write(true).open(image["files"]["rootfs"].as_str().unwrap()).unwrap();
    rootfs.write_all_at(&[0xa5; 8192], 0).unwrap();
    let _guard = deck.guard("no-fs");
    let ended = deck.run(["vm", "run", "no-fs", "--name", "no-fs"]).expect(1);
    assert_eq!(failure(&deck, "no-fs", &ended), "root_not_a_file_system");
    deck.expect_no_processes();
}

#[test]
fn a_kernel_without_the_driver_of_the_root_disk_says_so() {
    if !can_boot() {
        return;
    }
    // Not in the shared one: other tests would boot this kernel.
    let deck = Arc::new(Deck::new());
    busybox(&deck, "no-driver");
    // Debian's kernel has virtio_blk as a module only: without its modules it cannot reach a disk.
    let folder = tempfile::tempdir().unwrap();
    run(Command::new("dpkg-deb").arg("-x").arg(fixtures::kernel_package()).arg(folder.path()));
    let boot = std::fs::read_dir(folder.path().join("boot")).unwrap();
    let vmlinuz = boot
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_string_lossy().starts_with("vmlinuz"))
        .unwrap();
    let vmlinuz = deck.readable(&vmlinuz);
    deck.run(["kernel", "import", "--vmlinuz", vmlinuz.to_str().unwrap(), "--name", "bare"])
        .expect(0)
        .says(&["warning", "virtio_blk"]);
    {
        let _guard = deck.guard("no-driver");
        let ended = deck.run(["vm", "run", "no-driver", "--kernel", "bare", "--name", "no-driver"]).expect(1);
        assert_eq!(failure(&deck, "no-driver", &ended), "no_root_device");
    }
    deck.run(["kernel", "delete", "bare"]).expect(0);
}

#[test]
fn a_kernel_of_another_architecture_is_refused() {
    let deck = Deck::new();
    // An arm64 Image: its magic at offset 56 (Documentation/arch/arm64/booting.rst).
    let mut image = vec![0; 65536];
    image[56..60].copy_from_slice(b"ARM\x64");
    let path = deck.data().parent().unwrap().join("Image");
    std::fs::write(&path, image).unwrap();
    let ended =
        deck.run(["kernel", "import", "--vmlinuz", path.to_str().unwrap(), "--name", "arm"]).expect(1);
    assert!(ended.stderr.contains("arm64") && ended.stderr.contains("next:"), "{}", ended.stderr);
    assert_eq!(deck.files("kernels"), [""; 0]);
    assert_eq!(deck.files("staging"), [""; 0]);
}

#[test]
fn too_little_memory_says_so() {
    if !can_boot() {
        return;
    }
    let deck = Deck::shared();
    busybox(&deck, "small");
    // Refused where it is known beforehand, classified where the guest finds out.
    deck.run(["vm", "create", "small", "--image", "small", "--memory", "8"])
        .expect(2)
        .says(&["8 MiB", "next:"]);
    let _guard = deck.guard("small");
    let ended = deck.run(["vm", "run", "small", "--name", "small", "--memory", "64"]);
    assert_ne!(ended.status, 0);
    if ended.status == 1 {
        assert_eq!(failure(&deck, "small", &ended), "out_of_memory");
    } else {
        assert_eq!(ended.status, 2, "{}", ended.stderr);
    }
}

#[test]
fn without_qemu_the_fix_is_named() {
    if !can_boot() {
        return;
    }
    let deck = Deck::shared();
    busybox(&deck, "no-qemu");
    let _guard = deck.guard("no-qemu");
    deck.run(["vm", "create", "no-qemu", "--image", "no-qemu"]).expect(0);
    let mut command = deck.command(["vm", "start", "no-qemu"]);
    // QEMU is also looked for where distributions put it, so an empty PATH alone hides none.
    command.env("PATH", "/nonexistent").env("VMDECK_QEMU", "/nonexistent");
    let ended = crate::support::deck::finish(command.spawn().unwrap()).expect(5).says(&["QEMU", "next:"]);
    assert_eq!(failure(&deck, "no-qemu", &ended), "hypervisor_missing");
    let mut command = deck.command(["doctor"]);
    command.env("PATH", "/nonexistent").env("VMDECK_QEMU", "/nonexistent");
    let doctor = crate::support::deck::finish(command.spawn().unwrap()).expect(5);
    assert!(doctor.stdout.contains("qemu"), "{doctor:?}");
}
