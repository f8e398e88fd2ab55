//! With the package archive of this host, which every Debian and Ubuntu has, and with the tools whose
//! work is done here in process.

use std::collections::HashMap;
use std::process::{Command, Output, Stdio};

use super::*;
use crate::error::ErrorKind;
use crate::kernel::elf::Elf;

/// Runs a tool; says so when it is not installed.
pub(super) fn tool(name: &str, arguments: &[&str]) -> Option<Output> {
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    match Command::new(name).args(arguments).env("PATH", search).stdin(Stdio::null()).output() {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("skipped: {name} cannot be run: {error}");
            None
        }
    }
}

/// Whether there is an archive to pull from.
fn has_apt() -> bool {
    tool("apt-get", &["--version"]).is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pulled_kernel_is_whole_and_is_pulled_once() {
    if !has_apt() {
        return;
    }
    let fixture = Fixture::new();
    let request = PullKernel { source: DEFAULT_SOURCE.into(), ..PullKernel::default() };
    // Two at once: the second takes the first's result.
    let mut first = fixture.kernels.pull(request.clone(), None);
    let mut second = fixture.kernels.pull(request.clone(), None);
    let (kernel, other) = tokio::join!(first.wait(), second.wait());
    let (kernel, other) = (kernel.unwrap(), other.unwrap());
    assert_eq!(kernel, other);
    let downloads = [&first, &second].map(|task| task.operation().progress().parts().len());
    assert!(downloads.contains(&0), "both downloaded: {downloads:?}");
    // And a third finds it here.
    assert_eq!(fixture.kernels.pull(request, None).wait().await.unwrap(), kernel);

    assert!(kernel.source.starts_with("apt:linux-image-"), "{}", kernel.source);
    assert!(kernel.source.contains('='), "{}", kernel.source);
    assert_eq!(kernel.warnings, Vec::<String>::new());
    assert!(kernel.initrd_modules.iter().any(|module| module == "virtio_blk.ko"), "{kernel:?}");
    let vmlinux = fs::read(&kernel.vmlinux).unwrap();
    assert!(Elf::parse(&vmlinux).unwrap().has_pvh_entry());
    let modules = kernel.modules.clone().unwrap();
    if let Some(check) = tool("e2fsck", &["-fn", modules.to_str().unwrap()]) {
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    }
    compare_with_depmod(&fixture, &kernel);
    fixture.assert_only(&[&kernel.name]);
}

/// Has depmod(8) index the same modules, and compares.
fn compare_with_depmod(fixture: &Fixture, kernel: &Kernel) {
    let ours = fixture.folder.path().join("lib/modules").join(&kernel.release);
    fs::create_dir_all(&ours).unwrap();
    let image = kernel.modules.clone().unwrap();
    let dump = format!("rdump / {}", ours.display());
    if tool("debugfs", &["-R", &dump, image.to_str().unwrap()]).is_none() || tool("depmod", &["-V"]).is_none()
    {
        return;
    }
    let read = |name: &str| fs::read(ours.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let made: HashMap<&str, Vec<u8>> = crate::kernel::modules::depmod::GENERATED
        .iter()
        .filter(|name| ours.join(name).exists())
        .map(|name| (*name, read(name)))
        .collect();
    assert_eq!(made.len(), 10);
    let base = fixture.folder.path().to_str().unwrap();
    assert!(tool("depmod", &["-b", base, &kernel.release]).unwrap().status.success());
    for name in [
        "modules.alias",
        "modules.alias.bin",
        "modules.symbols.bin",
        "modules.builtin.bin",
        "modules.builtin.alias.bin",
        "modules.softdep",
        "modules.devname",
    ] {
        assert!(made[name] == read(name), "{name} differs from what depmod writes");
    }
    let lines = |text: &[u8]| {
        let mut lines: Vec<String> =
            String::from_utf8(text.to_vec()).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&made["modules.symbols"]), lines(&read("modules.symbols")));

    // Where nothing decides between two orders, depmod may have chosen the other one.
    let dependencies = |text: &[u8]| -> HashMap<String, Vec<String>> {
        let text = String::from_utf8(text.to_vec()).unwrap();
        text.lines()
            .map(|line| {
                let (path, needs) = line.split_once(':').unwrap();
                (path.to_owned(), needs.split_whitespace().map(str::to_owned).collect())
            })
            .collect()
    };
    let (mine, theirs) = (dependencies(&made["modules.dep"]), dependencies(&read("modules.dep")));
    assert!(mine.len() > 100 && mine.len() == theirs.len());
    for (path, needs) in &mine {
        let mut sorted = [needs.clone(), theirs[path].clone()];
        sorted.iter_mut().for_each(|needs| needs.sort());
        assert_eq!(sorted[0], sorted[1], "{path}");
        for (position, needed) in needs.iter().enumerate() {
            // Loaded from the last to the first: what one needs stands behind it.
            assert!(mine[needed].iter().all(|below| needs[position..].contains(below)), "{path}: {needs:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_that_is_not_in_the_archive_is_not_found() {
    if !has_apt() {
        return;
    }
    let fixture = Fixture::new();
    let request =
        PullKernel { source: "apt:linux-image-vmdeck-no-such-thing".into(), ..PullKernel::default() };
    let error = fixture.kernels.pull(request, None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.full_message());
    assert!(error.hint().unwrap().contains("apt-cache"), "{error:?}");
    fixture.assert_only(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_without_a_kernel_is_refused() {
    if !has_apt() {
        return;
    }
    let fixture = Fixture::new();
    let request = PullKernel { source: "apt:hostname".into(), ..PullKernel::default() };
    let error = fixture.kernels.pull(request, None).wait().await.unwrap_err();
    assert!(error.full_message().contains("no kernel image"), "{}", error.full_message());
    fixture.assert_only(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_download_ends_apt_and_leaves_nothing() {
    if !has_apt() {
        return;
    }
    let fixture = Fixture::new();
    let request = PullKernel { source: DEFAULT_SOURCE.into(), ..PullKernel::default() };
    let mut task = fixture.kernels.pull(request, None);
    while task.operation().current_phase().as_deref() != Some("download") {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    task.operation().cancel();
    let cancelled = std::time::Instant::now();
    assert!(task.wait().await.unwrap_err().is_cancelled());
    assert!(cancelled.elapsed() < std::time::Duration::from_secs(30), "{:?}", cancelled.elapsed());
    fixture.assert_only(&[]);
    let staging = fixture.data.staging_root();
    let mine = |entry: fs::DirEntry| {
        fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&staging))
    };
    // A killed process may still be on its way out.
    let gone = (0..3000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        !fs::read_dir("/proc").unwrap().flatten().any(mine)
    });
    assert!(gone, "apt still runs");
}
