//! A registry that breaks, stalls, refuses and lies.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vmdeck_engine::ErrorKind;
use vmdeck_engine::image::{CredentialFiles, Platform, Settings};

use crate::fixture::*;
use crate::server::*;

const LAYER: usize = 3 << 20;

/// An image with one layer that does not compress.
fn one_layer() -> TestImage {
    TestImage::new(&[(GZIP, tar_of(&[("big", &noise(LAYER, 7))]))])
}

fn blob_path(image: &TestImage) -> String {
    format!("/v2/app/blobs/{}", image.layers[0].digest())
}

fn starts(server: &Server, image: &TestImage) -> Vec<usize> {
    server.requests(&blob_path(image)).iter().map(|request| request.from().unwrap_or(0)).collect()
}

#[tokio::test]
async fn a_download_goes_on_after_every_reset() {
    let image = one_layer();
    let (shelf, path) = (Shelf::of(&image), blob_path(&image));
    let server = Server::start(move |request, before| {
        let answer = shelf.answer(request);
        if request.path == path && before < 6 { answer.end(End::Reset(300_000)) } else { answer }
    })
    .await;
    let bench = Bench::new();
    let mut task = bench.images.pull(request(&server.reference("app:1"), "app"), None);
    let pulled = task.wait().await.unwrap();
    assert_sound(&pulled.files.rootfs);
    // More failures than are allowed in a row, each after some progress.
    let starts = starts(&server, &image);
    assert_eq!(starts.len(), 7);
    assert!(starts.is_sorted() && starts[6] >= 6 * 100_000, "{starts:?}");
    let part = &task.operation().progress().parts()[0];
    assert_eq!((part.retries(), part.done()), (6, part.total()));
}

#[tokio::test]
async fn a_stall_ends_and_the_download_goes_on() {
    let image = one_layer();
    let (shelf, path) = (Shelf::of(&image), blob_path(&image));
    let server = Server::start(move |request, before| {
        let answer = shelf.answer(request);
        if request.path == path && before == 0 { answer.end(End::Stall(1_000_000)) } else { answer }
    })
    .await;
    let bench = Bench::new();
    bench.pull(&server.reference("app:1"), "app").await.unwrap();
    assert_eq!(starts(&server, &image), [0, 1_000_000]);
}

#[tokio::test]
async fn a_server_that_ignores_ranges_costs_bytes_and_nothing_else() {
    let image = one_layer();
    let (shelf, path) = (Shelf::of(&image), blob_path(&image));
    let server = Server::start(move |request, before| {
        let mut request = request.clone();
        request.headers.remove("range");
        let answer = shelf.answer(&request);
        if request.path == path && before == 0 { answer.end(End::Reset(1_000_000)) } else { answer }
    })
    .await;
    let bench = Bench::new();
    let pulled = bench.pull(&server.reference("app:1"), "app").await.unwrap();
    assert_sound(&pulled.files.rootfs);
    assert_eq!(server.requests(&blob_path(&image)).len(), 2);
}

#[tokio::test]
async fn the_wait_a_registry_asks_for_is_kept() {
    let image = small_image();
    let shelf = Shelf::of(&image);
    let server = Server::start(move |request, before| match (before, request.path.as_str()) {
        (0, "/v2/app/manifests/1") => Answer::new(429, "").header("Retry-After", "1"),
        (0, _) => Answer::new(503, ""),
        _ => shelf.answer(request),
    })
    .await;
    let began = Instant::now();
    Bench::new().pull(&server.reference("app:1"), "app").await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));

    let patient = Server::start(|_, _| {
        let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"\u001b[31mslow down"}]}"#;
        Answer::new(429, body).header("Retry-After", "3600")
    })
    .await;
    let began = Instant::now();
    let error = Bench::new().pull(&patient.reference("app:1"), "app").await.unwrap_err();
    assert!(whole(&error).contains(r"asked too often: \u{1b}[31mslow down"), "{}", whole(&error));
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn bytes_that_are_not_the_promised_ones_are_refused_and_not_kept() {
    let image = one_layer();
    let path = blob_path(&image);
    let expect = async |change: fn(Answer) -> Answer, expected: &str| {
        let (shelf, path) = (Shelf::of(&image), path.clone());
        let server = Server::start(move |request, _| {
            let answer = shelf.answer(request);
            if request.path == path { change(answer) } else { answer }
        })
        .await;
        let bench = Bench::new();
        let error = bench.pull(&server.reference("app:1"), "app").await.unwrap_err();
        assert!(whole(&error).contains(expected), "{}", whole(&error));
        bench.assert_clean().await;
        bench
    };
    let flipped: fn(Answer) -> Answer = |mut answer| {
        let middle = answer.body.len() / 2;
        answer.body[middle] ^= 0x10;
        answer
    };
    let bench = expect(flipped, "does not have the promised digest").await;
    assert_eq!(bench.names("cache/blobs/sha256"), [""; 0]);
    let page: fn(Answer) -> Answer = |mut answer| {
        answer.body =
            b"<html>log in first</html>".repeat(answer.body.len() / 25 + 1)[..answer.body.len()].to_vec();
        answer
    };
    let bench = expect(page, "does not have the promised digest").await;
    assert_eq!(bench.names("cache/blobs/sha256"), [""; 0]);
    let short: fn(Answer) -> Answer = |mut answer| {
        answer.body.truncate(1000);
        answer
    };
    expect(short, "bytes by the manifest, and 1000 by").await;
    let endless: fn(Answer) -> Answer = |answer| answer.end(End::Endless);
    let bench = expect(endless, "has more than the").await;
    // Not even where its first bytes are the right ones: the next pull is to ask again.
    assert_eq!(bench.names("cache/blobs/sha256"), [""; 0]);
    let wrong_range: fn(Answer) -> Answer =
        |answer| Answer { status: 206, ..answer }.header("Content-Range", "bytes 5-9/10");
    expect(wrong_range, "answers the request for bytes 0 and up").await;
}

#[tokio::test]
async fn a_pull_that_died_at_ninety_percent_starts_at_ninety_percent() {
    let image = one_layer();
    let (shelf, path) = (Shelf::of(&image), blob_path(&image));
    let broken = Arc::new(AtomicBool::new(true));
    let switch = Arc::clone(&broken);
    let length = image.layers[0].bytes.len();
    let cut = length * 9 / 10;
    let server = Server::start(move |request, _| {
        let answer = shelf.answer(request);
        if request.path != path || !switch.load(Ordering::Relaxed) {
            return answer;
        }
        let rest = cut.saturating_sub(request.from().unwrap_or(0));
        answer.end(End::Reset(rest))
    })
    .await;
    let bench = Bench::new();
    let error = bench.pull(&server.reference("app:1"), "app").await.unwrap_err();
    assert!(whole(&error).contains("broke") && error.hint().is_some(), "{}", whole(&error));
    bench.assert_clean().await;
    let name = format!("{}.partial", image.layers[0].digest().hex());
    assert_eq!(bench.names("cache/blobs/sha256"), std::slice::from_ref(&name));
    let kept = fs::metadata(bench.data.blobs().join(&name)).unwrap().len() as usize;
    assert!(kept >= cut * 9 / 10, "{kept} of {cut}");

    broken.store(false, Ordering::Relaxed);
    let before = starts(&server, &image).len();
    // Another service, as after the process died.
    let (images, _operations) = bench.neighbour(settings());
    let pulled = images.pull(request(&server.reference("app:1"), "app"), None).wait().await.unwrap();
    assert_eq!(starts(&server, &image)[before..], [kept]);
    assert_sound(&pulled.files.rootfs);
    assert_eq!(bench.names("cache/blobs/sha256"), [image.layers[0].digest().hex()]);
}

#[tokio::test]
async fn damage_in_the_blob_cache_heals_by_itself() {
    let image = one_layer();
    let shelf = Shelf::of(&image);
    let server = Server::start(move |request, _| shelf.answer(request)).await;
    let (hex, bytes) = (image.layers[0].digest().hex(), &image.layers[0].bytes);
    let mut flipped = bytes.clone();
    flipped[LAYER / 2] ^= 1;
    let garbage = noise(1_000_000, 99);
    let cases: [(String, &[u8]); 4] = [
        (hex.clone(), &flipped),
        (hex.clone(), &bytes[..1000]),
        (format!("{hex}.partial"), &garbage),
        (format!("{hex}.partial"), &flipped),
    ];
    for (name, content) in cases {
        let bench = Bench::new();
        fs::write(bench.data.blobs().join(&name), content).unwrap();
        let pulled = bench.pull(&server.reference("app:1"), "app").await.unwrap();
        assert_sound(&pulled.files.rootfs);
        assert_eq!(bench.names("cache/blobs/sha256"), std::slice::from_ref(&hex), "{name}");
        assert_eq!(&fs::read(bench.data.blobs().join(&hex)).unwrap(), bytes);
        assert_eq!(bench.names("staging"), [""; 0]);
    }
}

#[tokio::test]
async fn a_redirect_to_a_storage_host_does_not_get_the_credentials() {
    use base64::Engine as _;
    let image = one_layer();
    let shelf = Shelf::of(&image);
    let storage = Server::start({
        let shelf = shelf.clone();
        move |request, _| shelf.answer(request)
    })
    .await;
    let to = storage.address;
    let server = Server::start(move |request, _| {
        if request.header("authorization").is_none() {
            return Answer::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\"");
        }
        let answer = shelf.answer(request);
        match request.path.contains("/blobs/") {
            true => Answer::new(307, "").header("Location", format!("http://{to}{}", request.path)),
            false => answer,
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("auth.json");
    let auth = base64::engine::general_purpose::STANDARD.encode("user:secret");
    let text = serde_json::json!({"auths": {server.address.to_string(): {"auth": auth}}});
    fs::write(&file, text.to_string()).unwrap();
    let bench = Bench::with(Settings { credentials: CredentialFiles(vec![file]), ..settings() });
    bench.pull(&server.reference("app:1"), "app").await.unwrap();
    let reached = storage.requests("");
    assert!(reached.len() >= 2);
    assert!(reached.iter().all(|request| request.header("authorization").is_none()), "{reached:?}");
    assert!(server.requests("").iter().any(|request| request.header("authorization").is_some()));
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let server =
        Server::start(|request, _| Answer::new(302, "").header("Location", request.path.clone())).await;
    let bench = Bench::new();
    let error = bench.pull(&server.reference("app:1"), "app").await.unwrap_err();
    assert!(whole(&error).contains("redirects"), "{}", whole(&error));
    assert!(server.requests("").len() < 20);
    bench.assert_clean().await;
}

/// A token service: tokens are numbered; only the newest is valid, the first for `uses` requests only.
async fn token_registry(image: &TestImage, uses: usize) -> Server {
    let shelf = Shelf::of(image);
    let (issued, left) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Server::start(move |request, _| {
        if request.path.starts_with("/token") {
            let number = issued.fetch_add(1, Ordering::Relaxed) + 1;
            left.store(if number == 1 { uses } else { usize::MAX }, Ordering::Relaxed);
            return Answer::new(200, format!(r#"{{"token":"token-{number}"}}"#));
        }
        let valid = format!("Bearer token-{}", issued.load(Ordering::Relaxed));
        let used = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if request.header("authorization") != Some(valid.as_str()) || used.is_err() {
            let host = request.header("host").unwrap();
            return Answer::new(401, "").header(
                "WWW-Authenticate",
                format!(r#"Bearer realm="http://{host}/token",service="test",scope="repository:app:pull""#),
            );
        }
        shelf.answer(request)
    })
    .await
}

#[tokio::test]
async fn a_token_that_expires_in_the_middle_of_a_pull_is_renewed() {
    let layers: Vec<_> = (0..4).map(|seed| (GZIP, tar_of(&[("x", &noise(100_000, seed))]))).collect();
    let server = token_registry(&TestImage::new(&layers), 2).await;
    Bench::new().pull(&server.reference("app:1"), "app").await.unwrap();
    let tokens = server.requests("/token");
    assert_eq!(tokens.len(), 2);
    assert!(
        tokens[0].path.contains("scope=repository%3Aapp%3Apull") && tokens[0].path.contains("service=test")
    );
    assert!(tokens[0].header("authorization").is_none());
}

#[tokio::test]
async fn an_identity_token_is_exchanged_at_the_token_service() {
    let server = token_registry(&small_image(), 100).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("auth.json");
    let text = serde_json::json!({"auths": {server.address.to_string(): {"identitytoken": "refresh&me"}}});
    fs::write(&file, text.to_string()).unwrap();
    let bench = Bench::with(Settings { credentials: CredentialFiles(vec![file]), ..settings() });
    bench.pull(&server.reference("app:1"), "app").await.unwrap();
    let tokens = server.requests("/token");
    assert_eq!((tokens.len(), tokens[0].method.as_str()), (1, "POST"));
    assert!(tokens[0].body.contains("grant_type=refresh_token"), "{}", tokens[0].body);
    assert!(tokens[0].body.contains("refresh_token=refresh%26me"), "{}", tokens[0].body);
}

#[tokio::test]
async fn a_registry_that_never_lets_in_is_asked_once_more_and_not_for_ever() {
    let server = Server::start(|request, _| match request.path.starts_with("/token") {
        true => Answer::new(200, r#"{"access_token":"t"}"#),
        false => Answer::new(401, r#"{"errors":[{"code":"DENIED","message":"go away"}]}"#).header(
            "WWW-Authenticate",
            format!(r#"Bearer realm="http://{}/token""#, request.header("host").unwrap()),
        ),
    })
    .await;
    let bench = Bench::new();
    let error = bench.pull(&server.reference("app:1"), "app").await.unwrap_err();
    assert!(whole(&error).contains("refuses access to `app`: go away"), "{}", whole(&error));
    assert_eq!(server.requests("/v2/").len(), 2);
    bench.assert_clean().await;
}

#[tokio::test]
async fn a_manifest_without_an_end_is_refused_early() {
    let server = Server::start(|request, _| match request.path.as_str() {
        "/v2/app/manifests/endless" => Answer::new(200, vec![b' '; 1 << 16]).end(End::Endless),
        _ => Answer::new(200, vec![b' '; 5 << 20]),
    })
    .await;
    for tag in ["endless", "long"] {
        let bench = Bench::new();
        let error = bench.pull(&server.reference(&format!("app:{tag}")), "app").await.unwrap_err();
        assert!(whole(&error).contains("answers with more than the 4194304 bytes"), "{}", whole(&error));
        bench.assert_clean().await;
    }
}

#[tokio::test]
async fn an_index_leads_to_the_image_for_this_host() {
    let host = Platform::host();
    let (mine, other) = (small_image(), TestImage::for_architecture("s390x", &[(GZIP, tar_of(&[]))]));
    let mut shelf = Shelf::default();
    shelf.add(&mine);
    shelf.add(&other);
    let index = index_of(&[
        (&other, "unknown", "unknown"),
        (&other, "linux", "s390x"),
        (&mine, "linux", &host.architecture),
    ]);
    shelf.tag("1", &index);
    shelf.tag("other", &index_of(&[(&other, "linux", "s390x"), (&other, "windows", "amd64")]));
    shelf.tag(&index.digest().to_string(), &index);
    let server = Server::start(move |request, _| shelf.answer(request)).await;
    let bench = Bench::new();
    let by_tag = bench.pull(&server.reference("app:1"), "tag").await.unwrap();
    assert_eq!(by_tag.digest, Some(mine.manifest.digest().to_string()));
    let by_digest =
        bench.pull(&server.reference(&format!("app@{}", index.digest())), "digest").await.unwrap();
    assert_eq!(by_digest.files, by_tag.files);
    let error = bench.pull(&server.reference("app:other"), "other").await.unwrap_err();
    assert!(whole(&error).contains("there are: linux/s390x, windows/amd64"), "{}", whole(&error));
    let wrong = server.reference(&format!("app@{}", mine.config.digest()));
    let error = bench.pull(&wrong, "other").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn cancel_stops_at_once_wherever_the_pull_is() {
    let image = one_layer();
    let path = blob_path(&image);
    for stalled in ["manifests", "blobs"] {
        let (shelf, blob) = (Shelf::of(&image), path.clone());
        let server = Server::start(move |request, _| {
            let answer = shelf.answer(request);
            match stalled {
                "manifests" if request.path.contains("manifests") => answer.end(End::Stall(1)),
                "blobs" if request.path == blob => answer.end(End::Stall(500_000)),
                _ => answer,
            }
        })
        .await;
        let mut patient = settings();
        patient.patience.stall = Duration::from_secs(60);
        let bench = Bench::with(patient);
        let mut task = bench.images.pull(request(&server.reference("app:1"), "app"), None);
        while server.requests(stalled).iter().all(|request| stalled == "blobs" && request.path != path) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let began = Instant::now();
        task.operation().cancel();
        assert!(task.wait().await.unwrap_err().is_cancelled());
        // It would wait for a minute.
        assert!(began.elapsed() < Duration::from_secs(30), "{stalled}: {:?}", began.elapsed());
        bench.assert_clean().await;
        let expected = if stalled == "blobs" { 1 } else { 0 };
        assert_eq!(bench.names("cache/blobs/sha256").len(), expected);
    }
}
