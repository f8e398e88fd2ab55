//! Files and counters of a machine, by its agent alone.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

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

    copies_begin_at_home_and_keep_what_files_are(&deck, &here);
    connections_come_and_go(&deck);

    let stats = deck.run(["vm", "stats", "verbs", "--output", "json"]).expect(0).json();
    let stats = &stats[0];
    assert_eq!(stats["name"], "verbs");
    assert!(stats["guest"]["memory"]["total"].as_u64() > Some(64 << 20), "{stats}");
    assert!(stats["host"]["resident_bytes"].as_u64() > Some(32 << 20), "{stats}");
    assert!(stats["guest"]["file_systems"][0]["total"].as_u64() > Some(1 << 20), "{stats}");

    deck.run(["vm", "delete", "--force", "verbs"]).expect(0);
}

fn copies_begin_at_home_and_keep_what_files_are(deck: &Deck, here: &Path) {
    let folder = here.join("rich");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("a"), "content").unwrap();
    std::fs::hard_link(folder.join("a"), folder.join("b")).unwrap();
    let has_attributes = xattr::set(folder.join("a"), "user.origin", b"host").is_ok()
        && xattr::set(&folder, "user.of-folder", b"yes").is_ok();
    if !has_attributes {
        eprintln!("skipped in part: no extended attributes in {}", here.display());
    }
    let path = |name: &str| here.join(name).to_str().unwrap().to_owned();
    deck.run(["vm", "cp", &path("rich"), "verbs:"]).expect(0);
    let inodes =
        deck.run(["vm", "exec", "verbs", "--", "stat", "-c", "%i %h", "/root/rich/a", "/root/rich/b"]);
    let inodes = inodes.expect(0).stdout;
    let [one, other] = inodes.lines().collect::<Vec<_>>()[..] else { panic!("{inodes}") };
    assert!(one == other && one.ends_with(" 2"), "{inodes}");
    deck.run(["vm", "cp", "verbs:rich", &path("returned")]).expect(0);
    let inode = |name: &str| std::fs::metadata(here.join(name)).unwrap().ino();
    assert_eq!(inode("returned/a"), inode("returned/b"));
    if has_attributes {
        let value =
            |name: &str, attribute| xattr::get(here.join(name), attribute).unwrap().unwrap_or_default();
        assert_eq!(value("returned/b", "user.origin"), b"host");
        assert_eq!(value("returned", "user.of-folder"), b"yes");
    }
    deck.run(["vm", "cp", &path("rich/a"), "verbs:~/rich/c"]).expect(0);
    assert_eq!(deck.run(["vm", "exec", "verbs", "--", "cat", "rich/c"]).expect(0).stdout, "content");
    for (source, target, says) in [
        (path("none"), "verbs:".to_owned(), "none"),
        (path("rich/a"), "verbs:no/where".to_owned(), "`no`"),
        ("verbs:none".to_owned(), path("x"), "none"),
        ("verbs:rich/a".to_owned(), path("no/where"), "no"),
        ("none:x".to_owned(), path("x"), "`none`"),
    ] {
        deck.run(["vm", "cp", &source, &target]).expect(3).says(&[says]);
    }
}

/// Connections as many shells and scripts make them, a third of them cut off: none may hang, and nothing
/// of them stays.
fn connections_come_and_go(deck: &Deck) {
    const WORKERS: usize = 3;
    const EACH: usize = 80;
    // One that hangs is ended by the patience of `Deck::run`; this is for all of them on a busy host.
    const BOUND: Duration = Duration::from_secs(900);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            scope.spawn(move || {
                for turn in 0..EACH {
                    let number = worker * EACH + turn;
                    if turn % 3 == 2 {
                        let command = ["vm", "exec", "verbs", "--", "sleep", "7777"];
                        let mut child = deck.command(command).spawn().unwrap();
                        // At another moment each time: before, while and after it connects.
                        std::thread::sleep(Duration::from_millis(number as u64 * 7 % 150));
                        child.kill().unwrap();
                        child.wait().unwrap();
                    } else {
                        let text = format!("turn {number}");
                        let ended = deck.run(["vm", "exec", "verbs", "--", "echo", &text]).expect(0);
                        assert_eq!(ended.stdout, format!("{text}\n"));
                    }
                    assert!(begun.elapsed() < BOUND, "{number} turns took {:?}", begun.elapsed());
                }
            });
        }
    });
    eprintln!("{} connections in {:?}", WORKERS * EACH, begun.elapsed());
    let sleeping = || {
        let list = "for p in /proc/[0-9]*/cmdline; do cat $p 2> /dev/null; echo; done";
        let list = deck.run(["vm", "exec", "verbs", "--", "sh", "-c", list]).expect(0).stdout;
        list.matches("7777").count()
    };
    // Those that were cut off get a moment to end.
    while sleeping() > 0 {
        assert!(begun.elapsed() < BOUND, "commands outlive their connections");
        std::thread::sleep(Duration::from_millis(500));
    }
}
