//! Several pulls at once, in one process and in two, and what is left when one of them is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vmdeck_engine::ErrorKind;
use vmdeck_engine::identifier::{ImageId, OperationId};
use vmdeck_engine::image::record::Image;
use vmdeck_engine::image::{ImageService, PromoteImage, PruneImages, RegisterImage, Seams, Settings};
use vmdeck_engine::staging::Staging;

use crate::fixture::*;
use crate::server::*;

async fn shelf_server(images: &[(&str, &TestImage)]) -> Server {
    let mut shelf = Shelf::default();
    for (tag, image) in images {
        shelf.add(image);
        shelf.tag(tag, &image.manifest);
    }
    Server::start(move |request, _| shelf.answer(request)).await
}

/// Settings whose flattener does `before` first, which gets the pull's cancellation.
fn flattening_after<F>(before: impl Fn(CancellationToken) -> F + Send + Sync + 'static) -> Settings
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut settings = settings();
    let real = Seams::default().pull_and_flatten;
    settings.seams.pull_and_flatten = Arc::new(move |request| {
        let (waiting, flattening) = (before(request.operation.cancelled().clone()), real(request));
        Box::pin(async move {
            waiting.await;
            flattening.await
        })
    });
    settings
}

fn other_image() -> TestImage {
    TestImage::new(&[(GZIP, tar_of(&[("etc/", b""), ("etc/name", b"other\n")]))])
}

#[tokio::test]
async fn pull_image_does_not_serialise_on_different_names() {
    let server = shelf_server(&[("1", &small_image()), ("2", &other_image())]).await;
    // Each flattens only once the other is there too.
    let barrier = Arc::new(tokio::sync::Barrier::new(2));
    let bench = Bench::with(flattening_after(move |_| {
        let barrier = Arc::clone(&barrier);
        async move {
            barrier.wait().await;
        }
    }));
    let both = async {
        let (one, two) = (server.reference("app:1"), server.reference("app:2"));
        tokio::join!(bench.pull(&one, "one"), bench.pull(&two, "two"))
    };
    let (one, two) =
        tokio::time::timeout(Duration::from_secs(120), both).await.expect("they wait for each other");
    assert_ne!(one.unwrap().content_id, two.unwrap().content_id);
}

#[tokio::test]
async fn pull_image_rejects_name_clash_at_publish() {
    let server = shelf_server(&[("1", &small_image())]).await;
    let mut settings = settings();
    let real = Seams::default().finalize_pulled_rootfs;
    // Somebody who is no pull, and so holds no name's lock, takes the name after the pull looked.
    let bench_store: Arc<std::sync::OnceLock<(vmdeck_engine::store::Store, std::path::PathBuf)>> =
        Arc::default();
    let known = Arc::clone(&bench_store);
    settings.seams.finalize_pulled_rootfs = Arc::new(move |folder, image: Image| {
        let (store, root) = known.get().unwrap().clone();
        let mut other =
            Image { id: ImageId::random(), managed: false, content_id: None, digest: None, ..image.clone() };
        other.files.work_seed = None;
        let finalizing = real(folder, image);
        Box::pin(async move {
            store
                .transaction(move |transaction| {
                    vmdeck_engine::store::images::insert(transaction, &root, &other)
                })
                .await?;
            finalizing.await
        })
    });
    let bench = Bench::with(settings);
    assert!(bench_store.set((bench.store.clone(), bench.data.root().to_owned())).is_ok());
    let error = bench.pull(&server.reference("app:1"), "app").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(whole(&error).contains("`app`"), "{}", whole(&error));
    let images = bench.images.list().await.unwrap();
    assert_eq!(images.len(), 1);
    assert!(!images[0].managed);
    assert_eq!(bench.names("staging"), [""; 0]);
    assert_eq!(bench.names("images"), [""; 0]);
}

#[tokio::test]
async fn two_processes_that_pull_different_images_under_one_name_have_one_winner() {
    let server = shelf_server(&[("1", &small_image()), ("2", &other_image())]).await;
    let bench = Bench::new();
    let (there, _operations) = bench.neighbour(settings());
    let (one, two) = (server.reference("app:1"), server.reference("app:2"));
    let mut second = there.pull(request(&two, "app"), None);
    let (first, second) = tokio::join!(bench.pull(&one, "app"), second.wait());
    let winners = [&first, &second].into_iter().filter(|result| result.is_ok()).count();
    assert_eq!(winners, 1);
    let error = first.err().or(second.err()).unwrap();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(bench.names("staging"), [""; 0]);
    assert_eq!(bench.names("images").len(), 1);
}

#[tokio::test]
async fn the_same_image_pulled_many_times_at_once_is_fetched_and_made_once() {
    let image = TestImage::new(&[(GZIP, tar_of(&[("big", &noise(2 << 20, 5))]))]);
    let server = shelf_server(&[("1", &image)]).await;
    let made = Arc::new(AtomicUsize::new(0));
    let counting = |made: &Arc<AtomicUsize>| {
        let made = Arc::clone(made);
        flattening_after(move |_| {
            made.fetch_add(1, Ordering::Relaxed);
            async {}
        })
    };
    let bench = Bench::with(counting(&made));
    let (there, _operations) = bench.neighbour(counting(&made));
    let reference = server.reference("app:1");
    let mut tasks = Vec::new();
    for service in [&bench.images, &there] {
        for name in ["app", "app", "other"] {
            tasks.push(service.pull(request(&reference, name), None));
        }
    }
    let mut images = Vec::new();
    for task in &mut tasks {
        images.push(task.wait().await.unwrap());
    }
    assert_eq!(made.load(Ordering::Relaxed), 1);
    assert_eq!(server.requests(&image.layers[0].digest().to_string()).len(), 1);
    assert!(images.iter().all(|image| image.files == images[0].files));
    assert_eq!(bench.images.list().await.unwrap().len(), 2);
    assert_eq!(bench.names("images").len(), 1);
    assert_eq!(bench.names("staging"), [""; 0]);
}

#[tokio::test]
async fn layers_that_two_images_share_are_downloaded_once_also_at_the_same_time() {
    let base = tar_of(&[("base", &noise(2 << 20, 6))]);
    let with = |name: &str| TestImage::new(&[(GZIP, base.clone()), (GZIP, tar_of(&[(name, b"x")]))]);
    let (one, two) = (with("one"), with("two"));
    let server = shelf_server(&[("1", &one), ("2", &two)]).await;
    let bench = Bench::new();
    let (first, second) = (server.reference("app:1"), server.reference("app:2"));
    let (first, second) = tokio::join!(bench.pull(&first, "one"), bench.pull(&second, "two"));
    for (image, name) in [(first.unwrap(), "/one"), (second.unwrap(), "/two")] {
        assert_sound(&image.files.rootfs);
        assert_eq!(cat(&image.files.rootfs, name), "x");
    }
    assert_eq!(server.requests(&one.layers[0].digest().to_string()).len(), 1);
}

#[tokio::test]
async fn a_waiter_behind_a_cancelled_pull_goes_on_by_itself() {
    let server = shelf_server(&[("1", &small_image())]).await;
    let begun = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&begun);
    // The first one to flatten never would.
    let bench = Bench::with(flattening_after(move |cancel| {
        let number = counter.fetch_add(1, Ordering::Relaxed);
        async move {
            if number == 0 {
                cancel.cancelled().await;
            }
        }
    }));
    let reference = server.reference("app:1");
    let mut first = bench.images.pull(request(&reference, "app"), None);
    while begun.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut second = bench.images.pull(request(&reference, "app"), None);
    let mut third = bench.images.pull(request(&reference, "app"), None);
    tokio::time::sleep(Duration::from_millis(100)).await;
    // A waiter can be cancelled while it waits.
    third.operation().cancel();
    assert!(third.wait().await.unwrap_err().is_cancelled());
    assert_eq!(begun.load(Ordering::Relaxed), 1);
    first.operation().cancel();
    assert!(first.wait().await.unwrap_err().is_cancelled());
    assert_eq!(second.wait().await.unwrap().name, "app");
    assert_eq!(bench.names("staging"), [""; 0]);
}

#[tokio::test]
async fn an_image_in_use_is_not_deleted_and_the_error_names_the_machines() {
    let server = shelf_server(&[("1", &small_image())]).await;
    let bench = Bench::new();
    let image = bench.pull(&server.reference("app:1"), "app").await.unwrap();
    let id = image.id.clone();
    bench
        .store
        .transaction(move |transaction| {
            transaction.execute_batch("INSERT INTO kernels VALUES ('k', 0, '{}')")?;
            for name in ["web", "db"] {
                let sql = "INSERT INTO vms (id, name, state, image_id, kernel_name, created_at, settings)
                           VALUES (?1, ?1, 'stopped', ?2, 'k', 0, '{}')";
                transaction.execute(sql, (name, id.as_str()))?;
            }
            Ok(())
        })
        .await
        .unwrap();
    let error = bench.images.delete("app").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(whole(&error).contains("in use by db, web"), "{}", whole(&error));
    assert!(image.files.rootfs.exists());
    bench.store.transaction(|transaction| Ok(transaction.execute_batch("DELETE FROM vms")?)).await.unwrap();
    bench.images.delete("app").await.unwrap();
    assert!(!image.files.rootfs.exists());
    assert_eq!(bench.images.delete("app").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_image_is_deleted_while_another_name_of_it_is_being_pulled() {
    let server = shelf_server(&[("1", &small_image())]).await;
    let bench = Bench::new();
    let reference = server.reference("app:1");
    for round in 0..8 {
        let first = bench.pull(&reference, "first").await.unwrap();
        let (deleted, second) = tokio::join!(bench.images.delete("first"), bench.pull(&reference, "second"));
        deleted.unwrap();
        let second = second.unwrap();
        // Either it shares the files, which stayed, or it made its own.
        assert!(second.files.rootfs.exists(), "{round}: {}", second.files == first.files);
        assert_eq!(bench.names("images").len(), 1);
        bench.images.delete("second").await.unwrap();
    }
    assert_eq!(bench.names("images"), [""; 0]);
}

#[tokio::test]
async fn reconcile_takes_away_halves_and_leaves_the_work_of_the_living() {
    let server = shelf_server(&[("1", &small_image()), ("2", &other_image())]).await;
    let bench = Bench::new();
    let kept = bench.pull(&server.reference("app:1"), "kept").await.unwrap();
    let lost = bench.pull(&server.reference("app:2"), "lost").await.unwrap();
    std::fs::remove_dir_all(lost.files.rootfs.parent().unwrap()).unwrap();
    let orphan = bench.data.image(&ImageId::random());
    std::fs::create_dir(&orphan).unwrap();
    std::fs::write(orphan.join("rootfs.ext4"), b"half").unwrap();
    let living = Staging::create(&bench.data, &OperationId::random()).await.unwrap();
    bench.images.reconcile().await.unwrap();
    assert!(!orphan.exists() && living.path().exists() && kept.files.rootfs.exists());
    let names: Vec<_> = bench.images.list().await.unwrap().into_iter().map(|image| image.name).collect();
    assert_eq!(names, ["kept"]);
}

#[tokio::test]
async fn ensure_takes_what_is_there_and_pulls_the_rest_once() {
    use vmdeck_engine::operation::record::OperationKind;
    let server = shelf_server(&[("1", &small_image()), ("2", &other_image())]).await;
    let bench = Bench::new();
    let ensure = |reference: String| {
        let images = bench.images.clone();
        bench.operations.spawn(OperationKind::VmCreate, "vm", None, |operation| async move {
            images.ensure(&reference, &operation).await
        })
    };
    let (mut one, mut two) = (ensure(server.reference("app:1")), ensure(server.reference("app:1")));
    let (one, two) = (one.wait().await.unwrap(), two.wait().await.unwrap());
    assert_eq!((one.name.as_str(), &one), ("app", &two));
    let other = ensure(server.reference("app:2")).wait().await.unwrap();
    assert_eq!(other.name, "app-2");
    // Known references and names need no registry.
    let asked = server.requests("").len();
    for known in
        [server.reference("app:1"), format!("docker://{}", server.reference("app:1")), "app".to_owned()]
    {
        assert_eq!(ensure(known).wait().await.unwrap(), one);
    }
    assert_eq!(server.requests("").len(), asked);
    assert_eq!(ensure("no such thing".into()).wait().await.unwrap_err().kind(), ErrorKind::NotFound);
}

/// A registered image `app` of a file system of its own; `None` when nothing here makes one.
async fn registered(bench: &Bench) -> Option<std::path::PathBuf> {
    if !has("mke2fs") {
        return None;
    }
    let rootfs = bench.folder.path().join("rootfs");
    let made = std::process::Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4"])
        .arg(&rootfs)
        .arg("16M")
        .status();
    assert!(made.unwrap().success());
    let request = RegisterImage { name: "app".into(), rootfs: rootfs.clone(), ..RegisterImage::default() };
    bench.images.register(request, None).wait().await.unwrap();
    Some(rootfs)
}

#[tokio::test]
async fn a_registered_image_that_is_deleted_while_it_is_promoted_does_not_come_back() {
    let begun = Arc::new(tokio::sync::Notify::new());
    let go_on = Arc::new(tokio::sync::Notify::new());
    let mut settings = settings();
    let real = Seams::default().finalize_pulled_rootfs;
    let (there, wait) = (Arc::clone(&begun), Arc::clone(&go_on));
    settings.seams.finalize_pulled_rootfs = Arc::new(move |folder, image| {
        let finalizing = real(folder, image);
        let (there, wait) = (Arc::clone(&there), Arc::clone(&wait));
        Box::pin(async move {
            there.notify_one();
            wait.notified().await;
            finalizing.await
        })
    });
    let bench = Bench::with(settings);
    let Some(rootfs) = registered(&bench).await else { return };
    let mut promoting = bench.images.promote(PromoteImage { name: "app".into(), new_name: None }, None);
    begun.notified().await;
    bench.images.delete("app").await.unwrap();
    go_on.notify_one();
    let error = promoting.wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", whole(&error));
    bench.assert_clean().await;
    assert!(rootfs.exists());
}

#[tokio::test]
async fn pulls_go_on_while_others_prune_and_delete() {
    let base = tar_of(&[("base", &noise(1 << 20, 7))]);
    let with = |name: &str| TestImage::new(&[(GZIP, base.clone()), (GZIP, tar_of(&[(name, b"x")]))]);
    let (one, two) = (with("one"), with("two"));
    let server = shelf_server(&[("1", &one), ("2", &two)]).await;
    let bench = Bench::new();
    let (there, _operations) = bench.neighbour(settings());
    let done = CancellationToken::new();
    let pruning = |images: ImageService, all: bool| {
        let done = done.clone();
        async move {
            let mut rounds = 0;
            while !done.is_cancelled() {
                images.prune(PruneImages { dry_run: false, all }, None).wait().await.unwrap();
                rounds += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            rounds
        }
    };
    let (first, second) = (server.reference("app:1"), server.reference("app:2"));
    let pulling = async {
        for _ in 0..6 {
            let (one, two) = tokio::join!(bench.pull(&first, "one"), bench.pull(&second, "two"));
            one.unwrap();
            two.unwrap();
            for name in ["one", "two"] {
                // The prune of everything may have been first.
                let deleted = bench.images.delete(name).await;
                assert!(deleted.is_ok() || deleted.unwrap_err().kind() == ErrorKind::NotFound);
            }
        }
        done.cancel();
    };
    let ((), gentle, thorough) =
        tokio::join!(pulling, pruning(bench.images.clone(), false), pruning(there.clone(), true));
    assert!(gentle > 3 && thorough > 3, "{gentle} {thorough}");
    bench.assert_clean().await;
}
