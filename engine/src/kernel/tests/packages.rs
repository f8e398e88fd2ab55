//! Imports of packages and files, good and bad.

use std::io::Write;

use super::sample::{RELEASE, deb, deb_of, files, image, module, tar, xz};
use super::*;
use crate::cpio;
use crate::error::ErrorKind;
use crate::kernel::boot_image::tests::zstd;

#[tokio::test(flavor = "multi_thread")]
async fn a_package_becomes_a_kernel_whatever_its_compression() {
    let tar = tar(&files());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    for (name, data) in [
        ("data.tar", tar.clone()),
        ("data.tar.xz", xz(&tar)),
        ("data.tar.zst", zstd(&tar)),
        ("data.tar.gz", gzip.finish().unwrap()),
    ] {
        let fixture = Fixture::new();
        let kernel = fixture.import_deb(&deb(name, &data)).await.unwrap();
        assert_eq!((kernel.name.as_str(), kernel.release.as_str()), (RELEASE, RELEASE));
        assert_eq!(
            kernel.initrd_modules,
            ["virtio.ko", "virtio_blk.ko", "virtio_console.ko", "virtio_net.ko"]
        );
        assert_eq!(kernel.warnings, Vec::<String>::new());
        assert!(fs::read(&kernel.vmlinux).unwrap().starts_with(b"\x7fELF"));
        let initrd = fs::read(&kernel.initrd).unwrap();
        let entry =
            cpio::entries(&initrd).map(|entry| entry.unwrap()).find(|e| e.name.ends_with("virtio_blk.ko"));
        assert_eq!(entry.unwrap().content, module("depends=virtio"));
        assert_eq!(fixture.kernels.list().await.unwrap(), [kernel]);
        fixture.assert_only(&[RELEASE]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_modules_image_is_sound_and_holds_what_modprobe_needs() {
    let fixture = Fixture::new();
    let kernel = fixture.import_deb(&deb_of(&files())).await.unwrap();
    let image = kernel.modules.unwrap();
    let Some(check) = archive::tool("e2fsck", &["-fn", image.to_str().unwrap()]) else { return };
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    let cat = |path: &str| {
        let output =
            archive::tool("debugfs", &["-R", &format!("cat {path}"), image.to_str().unwrap()]).unwrap();
        output.stdout
    };
    assert_eq!(cat("/kernel/virtio-blk.ko"), module("depends=virtio"));
    assert_eq!(
        String::from_utf8(cat("/modules.dep")).unwrap(),
        "kernel/virtio.ko:\nkernel/virtio-blk.ko: kernel/virtio.ko\n\
         kernel/virtio_console.ko: kernel/virtio.ko\nkernel/virtio_net.ko: kernel/virtio.ko\n"
    );
    assert!(cat("/modules.alias").ends_with(b"alias virtio:d1v* virtio_net\n"));
    assert!(cat("/modules.builtin").starts_with(b"kernel/fs/ext4/ext4.ko"));
    assert_eq!(cat("/modules.dep.bin")[..4], [0xb0, 0x07, 0xf4, 0x57]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_without_the_root_driver_is_taken_and_says_so() {
    let fixture = Fixture::new();
    let files: Vec<_> = files().into_iter().filter(|(path, _)| !path.contains("virtio-blk")).collect();
    let kernel = fixture.import_deb(&deb_of(&files)).await.unwrap();
    assert_eq!(kernel.warnings.len(), 1, "{:?}", kernel.warnings);
    assert!(kernel.warnings[0].starts_with("cannot reach the root disk: there is no driver virtio_blk"));
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_paths_and_links_go_nowhere() {
    let fixture = Fixture::new();
    let mut files = files();
    for path in [
        "../../escaped.ko",
        "/lib/modules/6.12.1-test/escaped.ko",
        "./lib/modules/6.12.1-test/../../../escaped.ko",
        "./lib/modules/../escaped.ko",
        "./etc/cron.d/escaped.ko",
    ] {
        files.push((path.to_owned(), module("depends=")));
    }
    let mut archive = tar::Builder::new(tar(&files));
    // A link in the place of a folder, and a module behind it.
    let mut link = tar::Header::new_gnu();
    link.as_old_mut().name[..33].copy_from_slice(b"./lib/modules/6.12.1-test/updates");
    link.as_old_mut().linkname[..4].copy_from_slice(b"/tmp");
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    link.set_cksum();
    // The end mark of the first archive has to go.
    let end = archive.get_ref().len() - 1024;
    archive.get_mut().truncate(end);
    archive.append(&link, &b""[..]).unwrap();
    let kernel = fixture.import_deb(&deb("data.tar", &archive.into_inner().unwrap())).await.unwrap();
    let image = kernel.modules.unwrap();
    let Some(listing) = archive::tool("debugfs", &["-R", "ls -p /", image.to_str().unwrap()]) else { return };
    let listing = String::from_utf8(listing.stdout).unwrap();
    assert!(!listing.contains("escaped") && !listing.contains("updates"), "{listing}");
    fixture.assert_only(&[RELEASE]);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_longer_than_a_tar_header_are_read() {
    let fixture = Fixture::new();
    let long = format!("lib/modules/{RELEASE}/kernel/{}/deep.ko", "d".repeat(120));
    for pax in [false, true] {
        let mut builder = tar::Builder::new(Vec::new());
        let content = module("depends=");
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        if pax {
            builder.append_pax_extensions([("path", long.as_bytes())]).unwrap();
            header.as_old_mut().name[..5].copy_from_slice(b"short");
            header.set_cksum();
            builder.append(&header, content.as_slice()).unwrap();
        } else {
            builder.append_data(&mut header, &long, content.as_slice()).unwrap();
        }
        let mut image_header = tar::Header::new_gnu();
        image_header.set_size(image().len() as u64);
        builder
            .append_data(&mut image_header, format!("boot/vmlinuz-{RELEASE}"), image().as_slice())
            .unwrap();
        let kernel = fixture.import_deb(&deb("data.tar", &builder.into_inner().unwrap())).await.unwrap();
        let path = format!("stat /kernel/{}/deep.ko", "d".repeat(120));
        let Some(stat) = archive::tool("debugfs", &["-R", &path, kernel.modules.unwrap().to_str().unwrap()])
        else {
            return;
        };
        assert!(String::from_utf8_lossy(&stat.stdout).contains("Type: regular"), "pax: {pax}");
        fixture.kernels.delete(RELEASE).await.unwrap();
    }
}

/// Each bad input ends in an error that says what is wrong, and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn bad_packages_are_refused_and_leave_nothing() {
    let good = deb_of(&files());
    let without =
        |what: &str| files().into_iter().filter(|(path, _)| !path.contains(what)).collect::<Vec<_>>();
    let replaced = |what: &str, content: Vec<u8>| {
        let mut files = files();
        files
            .iter_mut()
            .filter(|(path, _)| path.contains(what))
            .for_each(|(_, old)| old.clone_from(&content));
        files
    };
    let mut two = files();
    two.push(("./lib/modules/6.99/kernel/a.ko".into(), module("depends=")));
    let mut arm64 = vec![0u8; 64];
    arm64[56..60].copy_from_slice(b"ARM\x64");
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"#!/bin/sh".to_vec(), "no Debian package"),
        (good[..good.len() / 2].to_vec(), "ends before"),
        (deb("data.tar.lzma", b"x"), "not supported"),
        (deb("data.tar.xz", b"\xfd7zXZ\0damage"), "damaged"),
        (deb("other", b""), "no data.tar"),
        (deb_of(&without("vmlinuz")), "no kernel image"),
        (deb_of(&replaced("vmlinuz", arm64)), "arm64"),
        (deb_of(&replaced("vmlinuz", b"text".to_vec())), "neither a bzImage nor a vmlinux"),
        (deb_of(&two), "two kernels"),
        (
            deb_of(&replaced(
                "virtio.ko",
                xz(&crate::kernel::elf::tests::build(
                    &[(".modinfo", 1, 0, b"vermagic=5.4.0 SMP\0".to_vec())],
                    false,
                )),
            )),
            "5.4.0",
        ),
    ];
    let fixture = Fixture::new();
    for (package, expected) in cases {
        let error = fixture.import_deb(&package).await.unwrap_err();
        assert!(error.full_message().contains(expected), "{expected}: {}", error.full_message());
        fixture.assert_only(&[]);
    }
    let error = fixture.import(ImportSource::Deb("/nowhere.deb".into()), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(fixture.kernels.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_trees_are_kernels_too() {
    let fixture = Fixture::new();
    let root = fixture.folder.path().join("tree");
    for (path, content) in files() {
        let path = root.join(&path[2..]);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    // A link to the kernel's source code, as every such tree has one.
    std::os::unix::fs::symlink("/", root.join("lib/modules").join(RELEASE).join("build")).unwrap();
    let vmlinuz = root.join("boot").join(format!("vmlinuz-{RELEASE}"));
    let modules = Some(root.join("lib/modules").join(RELEASE));
    let with = ImportSource::Files { vmlinuz: vmlinuz.clone(), modules };
    let with = fixture.import(with, Some("with")).await.unwrap();
    assert_eq!(with.initrd_modules.len(), 4);
    let tree = ImportSource::Files { vmlinuz: root.clone(), modules: None };
    assert_eq!(fixture.import(tree, Some("tree")).await.unwrap().initrd_modules, with.initrd_modules);
    let bare = ImportSource::Files { vmlinuz, modules: None };
    let bare = fixture.import(bare, Some("bare")).await.unwrap();
    assert_eq!((bare.modules, bare.release.as_str()), (None, RELEASE));
    assert!(bare.warnings[0].contains("could not be checked"), "{:?}", bare.warnings);
    fixture.assert_only(&["bare", "tree", "with"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_imports_under_one_name_exactly_one_wins() {
    let fixture = Fixture::new();
    let path = fixture.file("kernel.deb", &deb_of(&files()));
    let mut tasks: Vec<_> = (0..4)
        .map(|_| {
            let from = ImportSource::Deb(path.clone());
            fixture.kernels.import(ImportKernel { from, name: Some("same".into()) }, None)
        })
        .collect();
    let mut won = 0;
    for task in &mut tasks {
        match task.wait().await {
            Ok(_) => won += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}"),
        }
    }
    assert_eq!(won, 1);
    fixture.assert_only(&["same"]);
    assert!(fixture.kernels.find("same").await.unwrap().initrd.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_in_use_is_not_deleted_and_an_unused_one_leaves_nothing() {
    let fixture = Fixture::new();
    fixture.import_deb(&deb_of(&files())).await.unwrap();
    let insert = |transaction: &crate::store::Transaction<'_>| {
        transaction.execute_batch(&format!(
            "PRAGMA defer_foreign_keys = on;
             INSERT INTO images (id, name, created_at, detail) VALUES ('i', 'debian', 0, '{{}}');
             INSERT INTO vms (id, name, state, image_id, kernel_name, created_at, settings)
                 VALUES ('v', 'web', 'stopped', 'i', '{RELEASE}', 0, '{{}}');"
        ))?;
        Ok(())
    };
    fixture.store.transaction(insert).await.unwrap();
    let error = fixture.kernels.delete(RELEASE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("is used by web"), "{error}");
    fixture.assert_only(&[RELEASE]);

    let free = |transaction: &crate::store::Transaction<'_>| Ok(transaction.execute("DELETE FROM vms", [])?);
    fixture.store.transaction(free).await.unwrap();
    fixture.kernels.delete(RELEASE).await.unwrap();
    fixture.assert_only(&[]);
    assert_eq!(fixture.kernels.delete(RELEASE).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_without_a_row_are_removed_and_do_not_stand_in_the_way() {
    let fixture = Fixture::new();
    let orphan = |name: &str| {
        fs::create_dir_all(fixture.data.kernel(name)).unwrap();
        fs::write(fixture.data.kernel(name).join("vmlinux"), "half").unwrap();
    };
    orphan(RELEASE);
    let kernel = fixture.import_deb(&deb_of(&files())).await.unwrap();
    assert!(fs::read(&kernel.vmlinux).unwrap().starts_with(b"\x7fELF"));
    orphan("left-over");
    fixture.kernels.reconcile().await.unwrap();
    fixture.assert_only(&[RELEASE]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_initrd_of_an_earlier_vmdeck_is_renewed_once() {
    let fixture = Fixture::new();
    let mut kernel = fixture.import_deb(&deb_of(&files())).await.unwrap();
    let current = fs::read(&kernel.initrd).unwrap();
    // As an earlier version would have left it: with another init.
    let mut old = cpio::Archive::new();
    for entry in cpio::entries(&current).map(|entry| entry.unwrap()) {
        let content = if entry.name == "init" { b"old init" } else { entry.content };
        if entry.mode & 0o170000 == 0o100000 {
            old.file(entry.name, entry.mode & 0o7777, content).unwrap();
        }
    }
    fs::write(&kernel.initrd, old.finish()).unwrap();
    kernel.guest_digest = "sha256:old".into();
    let (stored, root) = (kernel.clone(), fixture.data.root().to_owned());
    fixture
        .store
        .transaction(move |transaction| crate::store::kernels::update(transaction, &root, &stored))
        .await
        .unwrap();

    let both = tokio::join!(fixture.kernels.ensure_current(&kernel), fixture.kernels.ensure_current(&kernel));
    assert_eq!(both.0.unwrap(), both.1.unwrap());
    assert_eq!(fs::read(&kernel.initrd).unwrap(), current);
    assert_ne!(fixture.kernels.find(RELEASE).await.unwrap().guest_digest, "sha256:old");
    assert_eq!(names(&fixture.data.kernel(RELEASE)), ["initrd", "modules.ext4", "vmlinux"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_import_leaves_nothing() {
    let fixture = Fixture::new();
    let mut files = files();
    for number in 0..2000 {
        files
            .push((format!("./lib/modules/{RELEASE}/kernel/m{number}.ko.xz"), xz(&module("depends=virtio"))));
    }
    let path = fixture.file("kernel.deb", &deb_of(&files));
    let request = ImportKernel { from: ImportSource::Deb(path), name: None };
    let mut task = fixture.kernels.import(request, None);
    while task.operation().current_phase().as_deref() != Some("unpack") {
        tokio::task::yield_now().await;
    }
    task.operation().cancel();
    assert!(task.wait().await.unwrap_err().is_cancelled());
    fixture.assert_only(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_are_none_are_refused() {
    let fixture = Fixture::new();
    for source in ["", "deb:x", "apt:", "apt:-o=x", "apt:../x.deb", "apt:Linux Image"] {
        let request = PullKernel { source: source.into(), ..PullKernel::default() };
        let error = fixture.kernels.pull(request, None).wait().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{source}");
        assert!(error.hint().is_some());
    }
    fixture.assert_only(&[]);
}
