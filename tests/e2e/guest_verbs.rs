//! Files and counters of a machine, by its agent alone.

use std::os::unix::fs::symlink;

use crate::support::deck::Deck;
use crate::support::{fixtures, have};

#[test]
fn files_and_counters_need_nothing_of_the_image() {
    if !have("qemu-system-x86_64") || !have("apt-get") || !have("busybox") {
        return;
    }
    let deck = Deck::shared();
    let layout = deck.readable(&fixtures::busybox());
    deck.run(["image", "pull", &format!("oci:{}", layout.display()), "--name", "verbs"]).expect(0);
    let _guard = deck.guard("verbs");
    deck.run(["vm", "run", "verbs", "--name", "verbs", "--", "id"]).expect(0);

    // A tree goes in, and comes back as it was.
    let here = deck.folder("verbs-files");
    std::fs::create_dir_all(here.join("tree/sub")).unwrap();
    let content: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(here.join("tree/sub/data"), &content).unwrap();
    symlink("data", here.join("tree/sub/link")).unwrap();
    let (tree, back) = (here.join("tree"), here.join("back"));
    let (tree, back) = (tree.to_str().unwrap(), back.to_str().unwrap());
    deck.run(["vm", "cp", tree, "verbs:/root"]).expect(0);
    let size = deck.run(["vm", "exec", "verbs", "--", "wc", "-c", "/root/tree/sub/link"]).expect(0);
    assert!(size.stdout.starts_with("1600000 "), "{size:?}");
    deck.run(["vm", "cp", "verbs:/root/tree", back]).expect(0);
    assert_eq!(std::fs::read(here.join("back/sub/data")).unwrap(), content);
    assert_eq!(std::fs::read_link(here.join("back/sub/link")).unwrap().to_str(), Some("data"));
    deck.run(["vm", "cp", "verbs:/no/such", back]).expect(3).says(&["/no/such"]);
    // A device is no file to be copied, and its neighbours are.
    deck.run([
        "vm",
        "exec",
        "verbs",
        "--",
        "sh",
        "-c",
        "busybox mkdir /root/odd; busybox mknod /root/odd/n c 1 3; echo x > /root/odd/x",
    ])
    .expect(0);
    let odd = here.join("odd");
    deck.run(["vm", "cp", "verbs:/root/odd", odd.to_str().unwrap()]).expect(0).says(&["device"]);
    assert_eq!(std::fs::read_to_string(odd.join("x")).unwrap(), "x\n");
    assert!(!odd.join("n").exists());

    let stats = deck.run(["vm", "stats", "verbs", "--output", "json"]).expect(0).json();
    let stats = &stats[0];
    assert_eq!(stats["name"], "verbs");
    assert!(stats["guest"]["memory"]["total"].as_u64() > Some(64 << 20), "{stats}");
    assert!(stats["host"]["resident_bytes"].as_u64() > Some(32 << 20), "{stats}");
    assert!(stats["guest"]["file_systems"][0]["total"].as_u64() > Some(1 << 20), "{stats}");

    deck.run(["vm", "delete", "--force", "verbs"]).expect(0);
}
