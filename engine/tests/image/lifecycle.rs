//! Register, promote, replace, export, prune.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmdeck_engine::ErrorKind;
use vmdeck_engine::image::record::Image;
use vmdeck_engine::image::{
    Digest, ExportFormat, ExportImage, PromoteImage, PruneImages, PrunedKind, PullImage, RegisterImage,
};

use crate::fixture::*;
use crate::server::*;

/// A file system by mke2fs with a home of root; `None` when there is no mke2fs.
fn make_rootfs(folder: &Path, name: &str) -> Option<PathBuf> {
    if !has("mke2fs") {
        return None;
    }
    let content = folder.join(format!("{name}.d"));
    fs::create_dir_all(content.join("root")).unwrap();
    fs::create_dir_all(content.join("etc")).unwrap();
    fs::write(content.join("etc/name"), "small\n").unwrap();
    fs::write(content.join("root/.profile"), "p\n").unwrap();
    let image = folder.join(name);
    let output = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&content)
        .arg(&image)
        .arg("32M")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(image)
}

fn register(name: &str, rootfs: &Path) -> RegisterImage {
    RegisterImage { name: name.into(), rootfs: rootfs.to_owned(), ..RegisterImage::default() }
}

#[tokio::test]
async fn a_registered_image_is_promoted_in_place_and_under_a_new_name() {
    let bench = Bench::new();
    let Some(rootfs) = make_rootfs(bench.folder.path(), "rootfs") else { return };
    let original = Digest::of(&fs::read(&rootfs).unwrap());
    let registered = bench.images.register(register("mine", &rootfs), None).wait().await.unwrap();
    assert!(!registered.managed);
    assert_eq!(registered.files.rootfs, fs::canonicalize(&rootfs).unwrap());
    assert_eq!(registered.rootfs_bytes, 32 << 20);
    let error = bench.images.register(register("mine", &rootfs), None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);

    let other = PromoteImage { name: "mine".into(), new_name: Some("copy".into()) };
    let copy = bench.images.promote(other, None).wait().await.unwrap();
    assert!(copy.managed && copy.files.rootfs.starts_with(bench.data.images()));
    check_seed(&bench, &copy);
    let mut task = bench.images.promote(PromoteImage { name: "mine".into(), new_name: None }, None);
    let promoted = task.wait().await.unwrap();
    check_seed(&bench, &promoted);
    assert!(task.operation().progress().parts().iter().all(|part| part.done() == part.total()));
    let names: Vec<_> =
        bench.images.list().await.unwrap().into_iter().map(|image| (image.name, image.managed)).collect();
    assert_eq!(names, [("copy".to_owned(), true), ("mine".to_owned(), true)]);
    // What was registered is as it was.
    assert_eq!(Digest::of(&fs::read(&rootfs).unwrap()), original);
    assert_eq!(bench.names("staging"), [""; 0]);
    let error = bench
        .images
        .promote(PromoteImage { name: "copy".into(), new_name: None }, None)
        .wait()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    // What was promoted is nowhere else.
    let pruned = bench.images.prune(PruneImages { dry_run: false, all: true }, None).wait().await.unwrap();
    assert_eq!(pruned.items, []);
    // Deleting an unmanaged image leaves its files.
    bench.images.register(register("again", &rootfs), None).wait().await.unwrap();
    bench.images.delete("again").await.unwrap();
    assert!(rootfs.exists());
}

#[tokio::test]
async fn a_promote_takes_a_given_seed_and_a_kernel_along() {
    let bench = Bench::new();
    let Some(rootfs) = make_rootfs(bench.folder.path(), "rootfs") else { return };
    // A seed with everything one level too deep.
    let seed = bench.folder.path().join("seed");
    let content = bench.folder.path().join("seed.d");
    fs::create_dir_all(content.join("root")).unwrap();
    fs::write(content.join("root/.profile"), "p\n").unwrap();
    let made = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&content)
        .arg(&seed)
        .arg("16M")
        .status();
    assert!(made.unwrap().success());
    let kernel = bench.folder.path().join("vmlinuz");
    let mut header = vec![0u8; 0x400];
    header[0x202..0x206].copy_from_slice(b"HdrS");
    header[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    header[0x236] = 1;
    fs::write(&kernel, &header).unwrap();
    let request = RegisterImage {
        work_seed: Some(seed.clone()),
        kernel: Some(kernel.clone()),
        initrd: Some(kernel.clone()),
        ..register("mine", &rootfs)
    };
    let result = bench.images.register(request, None).wait().await;
    if vmdeck_engine::image::Platform::host().architecture != "amd64" {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Usage);
        return;
    }
    result.unwrap();
    let promoted = bench
        .images
        .promote(PromoteImage { name: "mine".into(), new_name: None }, None)
        .wait()
        .await
        .unwrap();
    check_seed(&bench, &promoted);
    assert_eq!(fs::read(promoted.files.kernel.as_ref().unwrap()).unwrap(), header);
    assert!(promoted.files.initrd.is_some() && promoted.files.modules.is_none());
    let folder = promoted.files.rootfs.parent().unwrap();
    assert!(fs::read_to_string(folder.join("image.json")).unwrap().contains("\"kernel\": \"kernel\""));
}

#[tokio::test]
async fn what_is_no_root_file_system_is_not_registered() {
    let bench = Bench::new();
    let check = async |path: &Path, expected: &str| {
        let error = bench.images.register(register("x", path), None).wait().await.unwrap_err();
        assert!(whole(&error).contains(expected), "{}", whole(&error));
    };
    check(bench.folder.path(), "is a folder").await;
    check(&bench.folder.path().join("none"), "there is no root file system").await;
    let text = bench.folder.path().join("text");
    fs::write(&text, "hello").unwrap();
    check(&text, "is no ext4 file system").await;
    let error = bench.images.register(register("../x", &text), None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(bench.images.list().await.unwrap().is_empty());
    let Some(rootfs) = make_rootfs(bench.folder.path(), "rootfs") else { return };
    bench.images.register(register("mine", &rootfs), None).wait().await.unwrap();
    let managed = bench
        .images
        .promote(PromoteImage { name: "mine".into(), new_name: None }, None)
        .wait()
        .await
        .unwrap();
    check(&managed.files.rootfs, "belongs to an image of vmdeck").await;
}

#[tokio::test]
async fn a_tag_that_moved_takes_the_place_of_its_image() {
    let bench = Bench::new();
    let layout = bench.folder.path().join("layout");
    let reference = format!("oci:{}", layout.display());
    let move_to = |version: &str| {
        let _ = fs::remove_dir_all(&layout);
        let files: &[(&str, &[u8])] = &[("etc/", b""), ("etc/version", version.as_bytes())];
        write_layout(&layout, &[(&TestImage::new(&[(GZIP, tar_of(files))]), None)]);
    };
    let replace = async || {
        let request = PullImage { replace: true, ..request(&reference, "app") };
        bench.images.pull(request, None).wait().await.unwrap()
    };
    let version = |image: &Image| cat(&image.files.rootfs, "/etc/version");
    move_to("1");
    let first = replace().await;
    assert_eq!(replace().await, first);

    move_to("2");
    let error = bench.pull(&reference, "app").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(whole(&error).contains("--replace"), "{}", whole(&error));
    let second = replace().await;
    assert_eq!((second.name.as_str(), version(&second).as_str()), ("app", "2"));
    assert_eq!(bench.names("images").len(), 1);
    assert!(!first.files.rootfs.exists());

    // A machine keeps what it is made of.
    let database = rusqlite::Connection::open(bench.data.database()).unwrap();
    database.pragma_update(None, "foreign_keys", false).unwrap();
    let insert = "INSERT INTO vms (id, name, state, image_id, kernel_name, created_at, settings)
                  VALUES ('1', 'web', 'stopped', ?1, 'k', 0, '{}')";
    database.execute(insert, [second.id.as_str()]).unwrap();
    move_to("3");
    let third = replace().await;
    assert_eq!(version(&third), "3");
    let digest = second.digest.as_ref().unwrap().replace("sha256:", "");
    let kept = bench.images.find(&format!("app-{}", &digest[..12])).await.unwrap();
    assert_eq!((&kept.id, version(&kept).as_str()), (&second.id, "2"));

    // And where the tag goes back, both are of the same files.
    move_to("2");
    let fourth = replace().await;
    assert_eq!(fourth.files, kept.files);
    assert_eq!(bench.names("images").len(), 1);
    assert_eq!(bench.names("staging"), [""; 0]);

    // A bundle has no tag, but may have become another file.
    let path = bench.folder.path().join("app.tar.zst");
    export(&bench, "app", &path).await.unwrap();
    let bundle = |replace| PullImage { replace, ..request(&format!("bundle:{}", path.display()), "packed") };
    let packed = bench.images.pull(bundle(false), None).wait().await.unwrap();
    for replace in [false, true] {
        assert_eq!(bench.images.pull(bundle(replace), None).wait().await.unwrap(), packed);
    }
    // Its digest says no more than is known of it.
    let pinned = format!("bundle:{}@{}", path.display(), Digest::of(&fs::read(&path).unwrap()));
    assert_eq!(bench.pull(&pinned, "packed").await.unwrap(), packed);
    // Exported again it is the same file.
    let again = bench.folder.path().join("again.tar.zst");
    export(&bench, "app", &again).await.unwrap();
    assert_eq!(Digest::of(&fs::read(&again).unwrap()), Digest::of(&fs::read(&path).unwrap()));
    fs::remove_file(&path).unwrap();
    move_to("4");
    replace().await;
    export(&bench, "app", &path).await.unwrap();
    let error = bench.images.pull(bundle(false), None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(whole(&error).contains("--replace"), "{}", whole(&error));
    let other = bench.images.pull(bundle(true), None).wait().await.unwrap();
    assert_eq!(version(&other), "4");
}

/// Names in a folder of an ext4 image, by debugfs.
fn names_in(image: &Path, folder: &str) -> Vec<String> {
    let mut command = Command::new("/usr/sbin/debugfs");
    let output = command.args(["-R", &format!("ls -p {folder}")]).arg(image).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<String> =
        text.lines().filter_map(|line| line.split('/').nth(5)).map(str::to_owned).collect();
    names.sort();
    names
}

/// Puts a file into the root folder of an ext4 image, by debugfs.
fn write_into(image: &Path, name: &str, content: &[u8]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), content).unwrap();
    let request = format!("write {} {name}", file.path().display());
    let status = Command::new("/usr/sbin/debugfs").args(["-w", "-R", &request]).arg(image).output().unwrap();
    assert!(status.status.success());
}

#[tokio::test]
async fn an_oci_archive_holds_the_same_tree() {
    let bench = Bench::new();
    let image = pulled(&bench).await;
    let path = bench.folder.path().join("small.tar");
    let request =
        ExportImage { name: "small".into(), output: path.clone(), format: ExportFormat::OciArchive };
    bench.images.export(request, None).wait().await.unwrap();
    assert_eq!(bench.names("staging"), [""; 0]);
    let back = bench.pull(&format!("oci-archive:{}", path.display()), "back").await.unwrap();
    assert_eq!(back.config, image.config);
    check_seed(&bench, &back);
    if !has("debugfs") {
        return;
    }
    let stat = |image: &Image, path: &str| {
        let output = Command::new("/usr/sbin/debugfs")
            .args(["-R", &format!("stat {path}")])
            .arg(&image.files.rootfs)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        // Type, mode, owner, size and time; not where it lies.
        let kept = |line: &&str| ["Inode:", "User:", " mtime:"].iter().any(|start| line.starts_with(start));
        let lines: Vec<String> = text.lines().filter(kept).map(|line| line.replace("Inode: ", "")).collect();
        lines.join("\n").split_once("Type").unwrap().1.to_owned()
    };
    for path in ["etc", "etc/name", "root", "root/.profile"] {
        assert_eq!(stat(&image, path), stat(&back, path), "{path}");
    }
    assert_eq!(cat(&back.files.rootfs, "/etc/name"), "small\n");
    assert_eq!(names_in(&back.files.rootfs, "/root"), [".", "..", ".profile"]);
    // What machines have at the home of root lies in the work seed.
    let seed = image.files.work_seed.as_ref().unwrap();
    write_into(seed, "notes", b"kept\n");
    let second = bench.folder.path().join("second.tar");
    let request =
        ExportImage { name: "small".into(), output: second.clone(), format: ExportFormat::OciArchive };
    bench.images.export(request, None).wait().await.unwrap();
    let back = bench.pull(&format!("oci-archive:{}", second.display()), "second").await.unwrap();
    assert_eq!(names_in(&back.files.rootfs, "/root"), [".", "..", ".profile", "notes"]);
    assert_eq!(cat(&back.files.rootfs, "/root/notes"), "kept\n");
    assert_eq!(cat(&back.files.rootfs, "/etc/name"), "small\n");
    // Another tool reads it too.
    if has("skopeo") {
        let output = Command::new("skopeo")
            .args(["inspect", &format!("oci-archive:{}:small", path.display())])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// As systems of ostree have it.
#[tokio::test]
async fn an_oci_archive_keeps_a_home_of_root_that_is_a_link() {
    let bench = Bench::new();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    // As Python's tarfile writes them.
    header.set_mode(0o644);
    builder.append_link(&mut header, "root", "var/roothome").unwrap();
    let layer = [
        &tar_of(&[("var/", b""), ("var/roothome/", b""), ("var/roothome/x", b"x\n")])[..2048],
        &builder.into_inner().unwrap(),
    ]
    .concat();
    let layout = bench.folder.path().join("layout");
    write_layout(&layout, &[(&TestImage::new(&[(GZIP, layer)]), None)]);
    let image = bench.pull(&format!("oci:{}", layout.display()), "linked").await.unwrap();
    if !has("debugfs") {
        return;
    }
    write_into(image.files.work_seed.as_ref().unwrap(), "notes", b"kept\n");
    let path = bench.folder.path().join("linked.tar");
    let request =
        ExportImage { name: "linked".into(), output: path.clone(), format: ExportFormat::OciArchive };
    bench.images.export(request, None).wait().await.unwrap();
    let back = bench.pull(&format!("oci-archive:{}", path.display()), "back").await.unwrap();
    assert_eq!(names_in(&back.files.rootfs, "/var/roothome"), [".", "..", "notes", "x"]);
    let output =
        Command::new("/usr/sbin/debugfs").args(["-R", "stat /root"]).arg(&back.files.rootfs).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(text.contains("Type: symlink") && text.contains("Mode:  0777"), "{text}");
    assert!(text.contains("\"var/roothome\""), "{text}");
}

#[tokio::test]
async fn what_is_on_the_disk_adds_up() {
    let bench = Bench::new();
    let image = pulled(&bench).await;
    bench.pull(&format!("oci:{}", bench.folder.path().join("layout").display()), "other").await.unwrap();
    fs::write(bench.data.blobs().join(Digest::of(b"x").hex()), [1; 10_000]).unwrap();
    let engine = vmdeck_engine::Engine::open(bench.data.root().to_owned()).await.unwrap();
    let usage = engine.disk_usage().await.unwrap();
    let of = |name: &str| usage.items.iter().find(|item| item.name == name).unwrap();
    let (first, second) = (of("other"), of("small"));
    assert!(first.logical_bytes >= image.rootfs_bytes && first.allocated_bytes < 16 << 20, "{usage:?}");
    assert_eq!(first.reclaimable_bytes, first.allocated_bytes);
    // The same files under a second name.
    assert_eq!((second.logical_bytes, second.allocated_bytes), (0, 0));
    assert!(of("layers").reclaimable_bytes >= 10_000);
    assert_eq!(usage.allocated_bytes, usage.items.iter().map(|item| item.allocated_bytes).sum::<u64>());
    engine.shutdown().await;
}

#[tokio::test]
async fn prune_frees_what_nothing_needs_and_a_dry_run_nothing() {
    let (kept, gone) = (small_image(), TestImage::new(&[(GZIP, tar_of(&[("x", &noise(100_000, 1))]))]));
    let mut shelf = Shelf::default();
    shelf.add(&kept);
    shelf.add(&gone);
    shelf.tag("kept", &kept.manifest);
    shelf.tag("gone", &gone.manifest);
    let server = Server::start(move |request, _| shelf.answer(request)).await;
    let bench = Bench::new();
    bench.pull(&server.reference("app:kept"), "kept").await.unwrap();
    bench.pull(&server.reference("app:gone"), "gone").await.unwrap();
    bench.images.delete("gone").await.unwrap();
    let abandoned = bench.data.blobs().join(format!("{}.partial", Digest::of(b"abandoned").hex()));
    fs::write(&abandoned, [1; 5000]).unwrap();
    let busy = bench.data.blobs().join(format!("{}.partial", Digest::of(b"busy").hex()));
    let holder = fs::File::create(&busy).unwrap();
    holder.try_lock().unwrap();

    let prune =
        async |dry_run, all| bench.images.prune(PruneImages { dry_run, all }, None).wait().await.unwrap();
    let planned = prune(true, false).await;
    let kinds: Vec<_> = planned.items.iter().map(|item| item.kind).collect();
    assert_eq!(kinds.len(), 2, "{planned:?}");
    assert!(kinds.contains(&PrunedKind::Blob) && kinds.contains(&PrunedKind::PartialBlob));
    assert!(planned.bytes >= 100_000);
    assert!(abandoned.exists());
    let done = prune(false, false).await;
    assert_eq!((&done.items, done.bytes), (&planned.items, planned.bytes));
    assert!(!abandoned.exists() && busy.exists());
    assert_eq!(bench.names("cache/blobs/sha256").len(), 2);
    assert!(prune(false, false).await.items.is_empty());
    // Two names share one content: what it takes is freed once, with the last of them.
    bench.pull(&server.reference("app:kept"), "twin").await.unwrap();
    let planned = prune(true, true).await;
    let all = prune(false, true).await;
    assert_eq!((&all.items, all.bytes), (&planned.items, planned.bytes));
    let images = all.items.iter().filter(|item| item.kind == PrunedKind::Image);
    let bytes: Vec<bool> = images.map(|item| item.bytes > 0).collect();
    assert_eq!(bytes, [false, true]);
    assert_eq!(bench.names("images"), [""; 0]);
    assert!(bench.images.list().await.unwrap().is_empty());
}
