//! kill -9 at each step: after the next open, the store and the data directory agree, and nothing of
//! the dead process is left but partial blobs, which are gone on with.
//!
//! The process that is killed is this test binary, run again with a task in its environment.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmdeck_engine::Engine;
use vmdeck_engine::data_directory::DataDirectory;
use vmdeck_engine::image::{
    ExportFormat, ExportImage, ImageService, PromoteImage, PullImage, RegisterImage, Seams, Settings,
};
use vmdeck_engine::operation::Operations;
use vmdeck_engine::operation::record::OperationState;
use vmdeck_engine::store::Store;

use crate::fixture::*;
use crate::server::*;

const TASK: &str = "VMDECK_TEST_CRASH_TASK";

/// What the child does to its data directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Task {
    data: PathBuf,
    what: What,
    /// Where it kills itself; `None`: somebody else does.
    point: Option<Point>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum What {
    Pull { reference: String },
    Replace { reference: String },
    Register { name: String, rootfs: PathBuf },
    Promote { name: String },
    Export { name: String, output: PathBuf },
    Delete { name: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Point {
    BeforeFlatten,
    AfterFlatten,
    BeforeFinalize,
    AfterFinalize,
}

fn die() {
    nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Not a test of its own: what the other tests run as a process.
#[tokio::test]
async fn child() {
    let Ok(text) = std::env::var(TASK) else { return };
    let task: Task = serde_json::from_str(&text).unwrap();
    let point = task.point;
    let at = move |here| {
        if point == Some(here) {
            die();
        }
    };
    let real = Seams::default();
    let mut settings = settings();
    settings.patience.stall = Duration::from_secs(60);
    settings.seams.pull_and_flatten = Arc::new(move |request| {
        at(Point::BeforeFlatten);
        let flattening = (real.pull_and_flatten)(request);
        Box::pin(async move {
            let result = flattening.await;
            at(Point::AfterFlatten);
            result
        })
    });
    settings.seams.finalize_pulled_rootfs = Arc::new(move |folder, image| {
        at(Point::BeforeFinalize);
        let finalizing = (real.finalize_pulled_rootfs)(folder, image);
        Box::pin(async move {
            let result = finalizing.await;
            at(Point::AfterFinalize);
            result
        })
    });
    let (images, _operations) = service(&task.data, settings);
    match task.what {
        What::Pull { reference } => drop(images.pull(request(&reference, "app"), None).wait().await),
        What::Replace { reference } => {
            let request = PullImage { replace: true, ..request(&reference, "app") };
            drop(images.pull(request, None).wait().await);
        }
        What::Register { name, rootfs } => {
            let request = RegisterImage { name, rootfs, ..RegisterImage::default() };
            drop(images.register(request, None).wait().await);
        }
        What::Promote { name } => {
            drop(images.promote(PromoteImage { name, new_name: None }, None).wait().await);
        }
        What::Export { name, output } => {
            let request = ExportImage { name, output, format: ExportFormat::Bundle };
            drop(images.export(request, None).wait().await);
        }
        What::Delete { name } => drop(images.delete(&name).await),
    }
}

fn service(data: &Path, settings: Settings) -> (ImageService, Operations) {
    let data = DataDirectory::open(data).unwrap();
    let store = Store::open(&data.database()).unwrap();
    let operations = Operations::new(store.clone()).unwrap();
    (ImageService::with_settings(data, store, operations.clone(), settings), operations)
}

/// The child; killed with the value.
struct Process(Child);

/// A pull by a process with another home.
pub(crate) async fn pull_with_home(data: &Path, reference: String, home: &Path) {
    let task = Task { data: data.to_owned(), what: What::Pull { reference }, point: None };
    Process::start_in(&task, Some(home)).wait().await;
}

impl Process {
    fn start(task: &Task) -> Self {
        Self::start_in(task, None)
    }

    fn start_in(task: &Task, home: Option<&Path>) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .envs(home.map(|home| ("HOME", home)))
            .args(["--exact", "crash::child"])
            .env(TASK, serde_json::to_string(task).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    async fn wait(&mut self) {
        let began = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < Duration::from_secs(240), "the child does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Opens the engine as the next start does, and compares what it says with what is.
async fn assert_consistent(data: &Path) -> Vec<String> {
    let engine = Engine::open(data.to_owned()).await.unwrap();
    let images = engine.images().list().await.unwrap();
    let names = |folder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(data.join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(names("staging"), [""; 0]);
    for folder in names("images") {
        assert!(
            images.iter().any(|image| image.content_id.as_ref().is_some_and(|id| id.as_str() == folder)),
            "{folder} belongs to no image"
        );
    }
    for image in &images {
        assert_sound(&image.files.rootfs);
        if let Some(seed) = &image.files.work_seed {
            assert_sound(seed);
        }
    }
    let operations = engine.operations().list(100).await.unwrap();
    assert!(operations.iter().all(|operation| operation.state != OperationState::Running), "{operations:?}");
    engine.shutdown().await;
    images.into_iter().map(|image| image.name).collect()
}

#[tokio::test]
async fn a_pull_killed_at_any_step_leaves_nothing_and_the_next_one_succeeds() {
    let image = TestImage::new(&[(GZIP, tar_of(&[("big", &noise(1 << 20, 8))]))]);
    let shelf = Shelf::of(&image);
    let server = Server::start(move |request, _| shelf.answer(request)).await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let what = What::Pull { reference: server.reference("app:1") };
    let points = [Point::BeforeFlatten, Point::AfterFlatten, Point::BeforeFinalize, Point::AfterFinalize];
    for point in points {
        let task = Task { data: data.clone(), what: what.clone(), point: Some(point) };
        Process::start(&task).wait().await;
        assert_eq!(assert_consistent(&data).await, [""; 0], "{point:?}");
    }
    // The blob was whole when the second one died.
    assert_eq!(server.requests(&image.layers[0].digest().to_string()).len(), 1);
    Process::start(&Task { data: data.clone(), what, point: None }).wait().await;
    assert_eq!(assert_consistent(&data).await, ["app"]);
}

#[tokio::test]
async fn a_pull_killed_in_the_middle_of_a_layer_goes_on_there() {
    let image = TestImage::new(&[(GZIP, tar_of(&[("big", &noise(2 << 20, 9))]))]);
    let (shelf, digest) = (Shelf::of(&image), image.layers[0].digest());
    let server = Server::start(move |request, before| {
        let answer = shelf.answer(request);
        let stall = request.path.ends_with(&digest.to_string()) && before == 0;
        if stall { answer.end(End::Stall(1 << 20)) } else { answer }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let task =
        Task { data: data.clone(), what: What::Pull { reference: server.reference("app:1") }, point: None };
    let mut process = Process::start(&task);
    let partial = data.join(format!("cache/blobs/sha256/{}.partial", digest.hex()));
    while std::fs::metadata(&partial).map_or(0, |metadata| metadata.len()) < 1 << 20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    process.kill();
    assert_eq!(assert_consistent(&data).await, [""; 0]);
    Process::start(&task).wait().await;
    assert_eq!(assert_consistent(&data).await, ["app"]);
    let starts: Vec<_> = server.requests(&digest.to_string()).iter().map(|request| request.from()).collect();
    assert_eq!(starts, [None, Some(1 << 20)]);
}

#[tokio::test]
async fn two_processes_that_pull_the_same_reference_fetch_each_blob_once() {
    let image = TestImage::new(&[(GZIP, tar_of(&[("big", &noise(3 << 20, 10))]))]);
    let shelf = Shelf::of(&image);
    let server = Server::start(move |request, _| shelf.answer(request)).await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let task =
        Task { data: data.clone(), what: What::Pull { reference: server.reference("app:1") }, point: None };
    let mut processes = [Process::start(&task), Process::start(&task), Process::start(&task)];
    for process in &mut processes {
        process.wait().await;
    }
    assert_eq!(assert_consistent(&data).await, ["app"]);
    for blob in image.layers.iter().chain([&image.config]) {
        let asked = server.requests(&blob.digest().to_string()).len();
        // Each asks what there is; who comes second finds the layers here.
        assert!(asked == 1 || blob.digest() == image.config.digest(), "{asked}");
    }
}

/// Kills the child after each of many short times, and looks at what is left each time.
async fn walk(task: &Task, prepare: impl AsyncFn(), check: impl AsyncFn(Vec<String>)) {
    prepare().await;
    let began = Instant::now();
    Process::start(task).wait().await;
    let whole = began.elapsed();
    check(assert_consistent(&task.data).await).await;
    for step in 1..12 {
        prepare().await;
        let mut process = Process::start(task);
        tokio::time::sleep(whole * step / 11).await;
        process.kill();
        check(assert_consistent(&task.data).await).await;
    }
}

#[tokio::test]
async fn register_promote_replace_export_and_delete_killed_at_any_time_leave_all_or_nothing() {
    if !has("mke2fs") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (data, rootfs) = (folder.path().join("data"), folder.path().join("rootfs"));
    let content = folder.path().join("content/root");
    std::fs::create_dir_all(&content).unwrap();
    std::fs::write(content.join("big"), noise(20 << 20, 1)).unwrap();
    let made = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(folder.path().join("content"))
        .arg(&rootfs)
        .arg("64M")
        .status();
    assert!(made.unwrap().success());
    let begin = async |promoted: bool| {
        let (images, _operations) = service(&data, settings());
        for image in images.list().await.unwrap() {
            images.delete(&image.name).await.unwrap();
        }
        let request = vmdeck_engine::image::RegisterImage {
            name: "app".into(),
            rootfs: rootfs.clone(),
            ..Default::default()
        };
        images.register(request, None).wait().await.unwrap();
        if promoted {
            let request = PromoteImage { name: "app".into(), new_name: None };
            images.promote(request, None).wait().await.unwrap();
        }
    };
    let task = |what| Task { data: data.clone(), what, point: None };

    let register = task(What::Register { name: "app".into(), rootfs: rootfs.clone() });
    let none = async || {
        let (images, _operations) = service(&data, settings());
        for image in images.list().await.unwrap() {
            images.delete(&image.name).await.unwrap();
        }
    };
    walk(&register, none, async |names| assert!(names == ["app"] || names.is_empty())).await;

    // Registered or managed, always there.
    let promote = task(What::Promote { name: "app".into() });
    walk(&promote, async || begin(false).await, async |names| assert_eq!(names, ["app"])).await;
    // One or the other.
    let layout = folder.path().join("layout");
    let big = noise(8 << 20, 2);
    write_layout(&layout, &[(&TestImage::new(&[(GZIP, tar_of(&[("big", big.as_slice())]))]), None)]);
    let replace = task(What::Replace { reference: format!("oci:{}", layout.display()) });
    walk(&replace, async || begin(true).await, async |names| assert_eq!(names, ["app"])).await;
    // There or not.
    let delete = task(What::Delete { name: "app".into() });
    walk(&delete, async || begin(true).await, async |names| assert!(names == ["app"] || names.is_empty()))
        .await;
    // The image stays; the file is there as a whole or not at all.
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let output = out.join("app.tar.zst");
    let export = task(What::Export { name: "app".into(), output: output.clone() });
    begin(true).await;
    let clean = async || {
        let _ = std::fs::remove_file(&output);
    };
    walk(&export, clean, async |names| {
        assert_eq!(names, ["app"]);
        let entries = std::fs::read_dir(&out).unwrap().count();
        assert_eq!(entries, usize::from(output.exists()));
        if output.exists() {
            let other = Bench::new();
            other.pull(&format!("bundle:{}", output.display()), "app").await.unwrap();
        }
    })
    .await;
}
