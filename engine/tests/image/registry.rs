//! Pulls from Debian's `docker-registry`.

use std::time::Instant;

use vmdeck_engine::ErrorKind;

use crate::fixture::*;

#[tokio::test]
async fn an_image_of_several_layers_becomes_a_sound_file_system() {
    let Some(registry) = Registry::start("") else { return };
    let image = TestImage::new(&[
        (
            GZIP,
            tar_of(&[
                ("etc/", b""),
                ("etc/name", b"one\n"),
                ("etc/gone", b"x"),
                ("root/", b""),
                ("root/.profile", b"p\n"),
            ]),
        ),
        (ZSTD, tar_of(&[("etc/name", b"two\n"), ("etc/.wh.gone", b"")])),
        (PLAIN, tar_of(&[("big", &noise(3 << 20, 1))])),
    ]);
    registry.push(&image, "team/app:1", &[]);
    let bench = Bench::new();
    let mut task = bench.images.pull(request(&registry.reference("team/app:1"), "app"), None);
    let pulled = task.wait().await.unwrap();

    assert_eq!(pulled.digest.as_deref(), Some(image.manifest.digest().to_string().as_str()));
    assert_eq!(pulled.config.environment, ["A=b"]);
    assert_eq!(pulled.config.working_directory.as_deref(), Some("/work"));
    assert_eq!(pulled.layers.len(), 3);
    assert_eq!(pulled.architecture.as_deref(), Some("amd64"));
    assert_eq!(bench.images.find("app").await.unwrap(), pulled);
    assert_eq!(bench.names("staging"), [""; 0]);
    assert_eq!(bench.names("cache/blobs/sha256").len(), 3);

    let parts = task.operation().progress().parts();
    assert!(parts.iter().all(|part| part.done() == part.total()), "{parts:?}");
    let record = bench.operations.find(task.operation().id().as_str()).await.unwrap();
    let phases: Vec<_> = record.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(phases, ["resolve", "download", "write", "seed", "publish"]);

    if !has("e2fsck") || !has("debugfs") {
        return;
    }
    let rootfs = &pulled.files.rootfs;
    assert_sound(rootfs);
    assert_eq!(cat(rootfs, "/etc/name"), "two\n");
    assert_eq!(cat(rootfs, "/etc/gone"), "");
    let seed = pulled.files.work_seed.as_ref().unwrap();
    assert_sound(seed);
    assert_eq!(cat(seed, "/.profile"), "p\n");
    let key = vmdeck_engine::keys::installation_key(&bench.data).unwrap();
    assert_eq!(cat(seed, "/.ssh/authorized_keys").trim_end(), key.public_line);
}

#[tokio::test]
async fn the_same_content_under_another_name_shares_its_files_at_once() {
    let Some(registry) = Registry::start("") else { return };
    let image = TestImage::new(&[(GZIP, tar_of(&[("big", &noise(8 << 20, 2))]))]);
    registry.push(&image, "app:1", &[]);
    registry.push(&image, "app:2", &[]);
    let bench = Bench::new();
    let first = bench.pull(&registry.reference("app:1"), "first").await.unwrap();
    let began = Instant::now();
    let second = bench.pull(&registry.reference("app:2"), "second").await.unwrap();
    let took = began.elapsed();
    eprintln!("cached pull of the same digest: {took:?}");
    assert_eq!(second.files, first.files);
    assert_eq!(bench.names("images").len(), 1);
    // The promise is 50 ms on a machine that does nothing else.
    assert!(took.as_millis() < 500, "{took:?}");

    bench.images.delete("first").await.unwrap();
    assert!(second.files.rootfs.exists());
    bench.images.delete("second").await.unwrap();
    assert_eq!(bench.names("images"), [""; 0]);
}

#[tokio::test]
async fn a_name_that_is_there_is_no_conflict_only_for_the_same_image() {
    let Some(registry) = Registry::start("") else { return };
    registry.push(&small_image(), "app:1", &[]);
    registry.push(&TestImage::new(&[(GZIP, tar_of(&[("x", b"y")]))]), "app:2", &[]);
    let bench = Bench::new();
    let first = bench.pull(&registry.reference("app:1"), "app").await.unwrap();
    assert_eq!(bench.pull(&registry.reference("app:1"), "app").await.unwrap(), first);
    let error = bench.pull(&registry.reference("app:2"), "app").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(whole(&error).contains("`app`") && error.hint().is_some(), "{}", whole(&error));
    assert_eq!(bench.names("staging"), [""; 0]);
    assert_eq!(bench.names("images").len(), 1);
}

#[tokio::test]
async fn a_second_image_downloads_only_the_layers_that_are_new() {
    let Some(registry) = Registry::start("") else { return };
    let base = tar_of(&[("base", &noise(2 << 20, 3))]);
    registry.push(&TestImage::new(&[(GZIP, base.clone())]), "base:1", &[]);
    let more = TestImage::new(&[(GZIP, base), (GZIP, tar_of(&[("new", b"n")]))]);
    registry.push(&more, "more:1", &[]);
    let bench = Bench::new();
    bench.pull(&registry.reference("base:1"), "base").await.unwrap();
    let before = bench.names("cache/blobs/sha256");
    let second = bench.pull(&registry.reference("more:1"), "more").await.unwrap();
    let after = bench.names("cache/blobs/sha256");
    assert_eq!((before.len(), after.len()), (1, 2));
    assert_sound(&second.files.rootfs);
    assert_eq!(cat(&second.files.rootfs, "/new"), "n");
}

#[tokio::test]
async fn what_is_not_there_is_said_by_name() {
    let Some(registry) = Registry::start("") else { return };
    registry.push(&small_image(), "app:1", &[]);
    let bench = Bench::new();
    let error = bench.pull(&registry.reference("app:99"), "a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(whole(&error).contains("`app`") && whole(&error).contains("`99`"), "{}", whole(&error));
    let error = bench.pull(&registry.reference("other:1"), "a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);

    let port = registry.port();
    drop(registry);
    let error = bench.pull(&format!("127.0.0.1:{port}/app:1"), "a").await.unwrap_err();
    assert!(
        whole(&error).contains(&format!("cannot connect to the registry 127.0.0.1:{port}")),
        "{}",
        whole(&error)
    );
    bench.assert_clean().await;
}

#[tokio::test]
async fn basic_authentication_takes_the_credentials_of_podman() {
    use base64::Engine as _;
    if !has("htpasswd") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("htpasswd");
    let made =
        std::process::Command::new("htpasswd").args(["-Bbc"]).arg(&file).args(["user", "secret"]).output();
    assert!(made.unwrap().status.success());
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display());
    let Some(registry) = Registry::start(&auth) else { return };
    registry.push(&small_image(), "app:1", &["--dest-creds=user:secret"]);

    let bench = Bench::new();
    let error = bench.pull(&registry.reference("app:1"), "app").await.unwrap_err();
    assert!(whole(&error).contains("refuses access to `app`"), "{}", whole(&error));
    assert!(error.hint().unwrap().contains("podman login 127.0.0.1"), "{}", whole(&error));

    let auth_file = folder.path().join("auth.json");
    let with = |password: &str| {
        let encoded = base64::engine::general_purpose::STANDARD.encode(format!("user:{password}"));
        let text =
            serde_json::json!({"auths": {format!("127.0.0.1:{}", registry.port()): {"auth": encoded}}});
        std::fs::write(&auth_file, text.to_string()).unwrap();
        let credentials = vmdeck_engine::image::CredentialFiles(vec![auth_file.clone()]);
        Bench::with(vmdeck_engine::image::Settings { credentials, ..settings() })
    };
    let error = with("wrong").pull(&registry.reference("app:1"), "app").await.unwrap_err();
    assert!(
        whole(&error).contains("refuses access")
            && whole(&error).contains("the password on record for `user`")
            && !whole(&error).contains("wrong"),
        "{}",
        whole(&error)
    );
    with("secret").pull(&registry.reference("app:1"), "app").await.unwrap();
}

/// A certificate authority, and a certificate of it for 127.0.0.1; `None` when there is no openssl.
fn certificates(folder: &std::path::Path) -> Option<()> {
    if !has("openssl") {
        return None;
    }
    let openssl = |arguments: &[&str]| {
        let output =
            std::process::Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    std::fs::write(folder.join("san"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let mut authority =
        vec!["req", "-x509", "-days", "2", "-subj", "/CN=test", "-keyout", "ca.key", "-out", "ca.crt"];
    authority.extend(key);
    openssl(&authority);
    let mut request = vec!["req", "-subj", "/CN=registry", "-keyout", "server.key", "-out", "server.csr"];
    request.extend(key);
    openssl(&request);
    openssl(&[
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "san",
        "-out",
        "server.crt",
    ]);
    Some(())
}

#[tokio::test]
async fn a_registry_with_a_private_authority_is_trusted_by_its_certificate_file() {
    let folder = tempfile::tempdir().unwrap();
    let Some(()) = certificates(folder.path()) else { return };
    let path = |name: &str| folder.path().join(name).display().to_string();
    let tls = format!("  tls:\n    certificate: {}\n    key: {}\n", path("server.crt"), path("server.key"));
    let Some(registry) = Registry::start(&tls) else { return };
    registry.push(&small_image(), "app:1", &[]);

    let bench = Bench::new();
    let error = bench.pull(&registry.reference("app:1"), "app").await.unwrap_err();
    let text = whole(&error);
    assert!(text.contains("no secure connection to the registry 127.0.0.1"), "{text}");
    assert!(text.contains("containers/certs.d/127.0.0.1"), "{text}");
    bench.assert_clean().await;

    // The file is looked for in the user's home, so another process with another home pulls.
    let home = folder.path().join("home");
    let place = home.join(format!(".config/containers/certs.d/127.0.0.1:{}", registry.port()));
    std::fs::create_dir_all(&place).unwrap();
    std::fs::copy(folder.path().join("ca.crt"), place.join("ca.crt")).unwrap();
    crate::crash::pull_with_home(bench.data.root(), registry.reference("app:1"), &home).await;
    assert_eq!(bench.images.find("app").await.unwrap().name, "app");
}
