//! Pulls from what lies on this host.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::time::timeout;
use vmdeck_engine::ErrorKind;

use crate::fixture::*;

fn check_small(image: &vmdeck_engine::image::record::Image) {
    if has("e2fsck") && has("debugfs") {
        assert_sound(&image.files.rootfs);
        assert_eq!(cat(&image.files.rootfs, "/etc/name"), "small\n");
    }
}

/// A tar file of a folder.
fn pack(folder: &Path, file: &Path) {
    let mut builder = tar::Builder::new(fs::File::create(file).unwrap());
    builder.append_dir_all(".", folder).unwrap();
    builder.finish().unwrap();
}

#[tokio::test]
async fn a_layout_and_an_archive_of_it_give_the_same_image() {
    let bench = Bench::new();
    let layout = bench.folder.path().join("layout");
    write_layout(&layout, &[(&small_image(), Some("12"))]);
    let archive = bench.folder.path().join("archive.tar");
    pack(&layout, &archive);
    let packed = bench.folder.path().join("archive.tar.gz");
    fs::write(&packed, gzip(&fs::read(&archive).unwrap())).unwrap();

    let first = bench.pull(&format!("oci:{}:12", layout.display()), "layout").await.unwrap();
    check_small(&first);
    // Nothing of a local image is kept twice.
    assert_eq!(bench.names("cache/blobs/sha256"), [""; 0]);
    for (name, file) in [("archive", &archive), ("packed", &packed)] {
        let image = bench.pull(&format!("oci-archive:{}", file.display()), name).await.unwrap();
        assert_eq!(image.digest, first.digest);
        assert_eq!(image.files, first.files);
    }
}

#[tokio::test]
async fn a_tag_chooses_among_the_images_of_a_layout() {
    let bench = Bench::new();
    let layout = bench.folder.path().join("layout");
    let other = TestImage::new(&[(GZIP, tar_of(&[("etc/", b""), ("etc/name", b"other\n")]))]);
    write_layout(&layout, &[(&small_image(), Some("small")), (&other, Some("other"))]);
    let reference = |tag: &str| format!("oci:{}{tag}", layout.display());
    check_small(&bench.pull(&reference(":small"), "a").await.unwrap());
    let error = bench.pull(&reference(""), "b").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(whole(&error).contains("`:other`, `:small`"), "{}", whole(&error));
    let error = bench.pull(&reference(":none"), "b").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(whole(&error).contains("`none`"), "{}", whole(&error));
    let error = bench.pull(&format!("oci:{}", bench.folder.path().display()), "b").await.unwrap_err();
    assert!(whole(&error).contains("holds no OCI image layout"), "{}", whole(&error));
}

#[tokio::test]
async fn an_archive_of_docker_save_is_read_in_all_its_forms() {
    let bench = Bench::new();
    let layer = tar_of(&[("etc/", b""), ("etc/name", b"small\n")]);
    let image = TestImage::new(&[(GZIP, layer.clone())]);
    let config_name = format!("{}.json", image.config.digest().hex());
    let write = |file: &str, layer_name: &str, layer: &[u8], tags: &str| {
        let manifest =
            format!(r#"[{{"Config":"{config_name}","RepoTags":{tags},"Layers":["{layer_name}"]}}]"#);
        let path = bench.folder.path().join(file);
        let bytes = tar_of(&[
            ("manifest.json", manifest.as_bytes()),
            (&config_name, &image.config.bytes),
            (layer_name, layer),
        ]);
        fs::write(&path, bytes).unwrap();
        format!("docker-archive:{}", path.display())
    };
    let plain = write("plain.tar", "abc/layer.tar", &layer, r#"["app:1"]"#);
    let packed = write("packed.tar", "abc.tar.gz", &image.layers[0].bytes, "null");
    let first = bench.pull(&plain, "plain").await.unwrap();
    check_small(&first);
    let second = bench.pull(&packed, "packed").await.unwrap();
    assert_eq!(second.digest, first.digest);
    assert_eq!(
        bench.pull(&format!("{plain}:docker.io/library/app:1"), "tagged").await.unwrap().files,
        first.files
    );
    let error = bench.pull(&format!("{plain}:app:2"), "none").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(whole(&error).contains("`app:1`"), "{}", whole(&error));

    // A layer that is not what the config says.
    let wrong = write("wrong.tar", "abc/layer.tar", &tar_of(&[("x", b"y")]), "null");
    let other = Bench::new();
    let error = other.pull(&wrong, "wrong").await.unwrap_err();
    assert!(whole(&error).contains("the image's config says"), "{}", whole(&error));
    other.assert_clean().await;
}

#[tokio::test]
async fn skopeo_writes_what_is_read() {
    if !has("skopeo") {
        return;
    }
    let bench = Bench::new();
    let layout = bench.folder.path().join("layout");
    write_layout(&layout, &[(&small_image(), Some("x"))]);
    for form in ["oci-archive", "docker-archive"] {
        let file = bench.folder.path().join(form);
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy"])
            .arg(format!("oci:{}:x", layout.display()))
            .arg(format!("{form}:{}:app:1", file.display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let image = bench.pull(&format!("{form}:{}", file.display()), form).await.unwrap();
        check_small(&image);
    }
}

#[tokio::test]
async fn an_image_of_another_architecture_is_refused_naming_both() {
    let bench = Bench::new();
    let layout = bench.folder.path().join("layout");
    let host = vmdeck_engine::image::Platform::host();
    let other = if host.architecture == "s390x" { "riscv64" } else { "s390x" };
    write_layout(&layout, &[(&TestImage::for_architecture(other, &[]), None)]);
    let error = bench.pull(&format!("oci:{}", layout.display()), "a").await.unwrap_err();
    let text = whole(&error);
    assert!(text.contains(&format!("linux/{other}")) && text.contains(&host.to_string()), "{text}");
    bench.assert_clean().await;
}

#[tokio::test]
async fn a_damaged_layout_is_found_by_its_digests_and_lengths() {
    let image = small_image();
    let damage = async |what: &Blob, bytes: &[u8]| {
        let bench = Bench::new();
        let layout = bench.folder.path().join("layout");
        write_layout(&layout, &[(&image, None)]);
        fs::write(layout.join("blobs/sha256").join(what.digest().hex()), bytes).unwrap();
        let error = bench.pull(&format!("oci:{}", layout.display()), "a").await.unwrap_err();
        bench.assert_clean().await;
        whole(&error)
    };
    let flipped = |blob: &Blob| {
        let mut bytes = blob.bytes.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bytes
    };
    let layer = &image.layers[0];
    let text = damage(layer, &flipped(layer)).await;
    assert!(text.contains("digest") || text.contains("layer"), "{text}");
    let text = damage(layer, &layer.bytes[1..]).await;
    assert!(text.contains("bytes by the manifest"), "{text}");
    let text = damage(&image.config, &flipped(&image.config)).await;
    assert!(text.contains("config") && text.contains("digest"), "{text}");
    let text = damage(&image.manifest, &flipped(&image.manifest)).await;
    assert!(text.contains("manifest") && text.contains("damaged"), "{text}");
}

#[tokio::test]
async fn of_several_images_none_is_taken_without_being_asked_for() {
    let bench = Bench::new();
    let other = TestImage::new(&[(GZIP, tar_of(&[("etc/", b""), ("etc/name", b"other\n")]))]);
    for (folder, tags) in [("untagged", [None, None]), ("mixed", [None, Some("a")])] {
        let layout = bench.folder.path().join(folder);
        write_layout(&layout, &[(&other, tags[0]), (&small_image(), tags[1])]);
        let error = bench.pull(&format!("oci:{}", layout.display()), "x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        let digest = other.manifest.digest();
        assert!(whole(&error).contains(&format!("`@{digest}`")), "{}", whole(&error));
        let archive = bench.folder.path().join(format!("{folder}.tar"));
        pack(&layout, &archive);
        for place in [format!("oci:{}", layout.display()), format!("oci-archive:{}", archive.display())] {
            let image = bench.pull(&format!("{place}@{digest}"), "other").await.unwrap();
            assert_eq!(image.digest, Some(digest.to_string()));
            assert_eq!(image.reference, Some(format!("{place}@{digest}")));
            bench.images.delete("other").await.unwrap();
        }
        let none = format!("oci:{}@sha256:{}", layout.display(), "0".repeat(64));
        assert_eq!(bench.pull(&none, "x").await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    // Two names of one image are no choice.
    let layout = bench.folder.path().join("twice");
    write_layout(&layout, &[(&small_image(), Some("1")), (&small_image(), Some("1.0"))]);
    check_small(&bench.pull(&format!("oci:{}", layout.display()), "x").await.unwrap());
}

#[tokio::test]
async fn an_entry_that_does_not_say_what_it_is_for_is_looked_into() {
    let bench = Bench::new();
    let layout = bench.folder.path().join("layout");
    let foreign = TestImage::for_architecture("s390x", &[(GZIP, tar_of(&[("etc/", b"")]))]);
    write_layout(&layout, &[(&foreign, None), (&small_image(), None)]);
    // As an index within the index, which is one image for several platforms.
    let index = fs::read(layout.join("index.json")).unwrap();
    let nested = Blob { media_type: INDEX.into(), bytes: index };
    fs::write(layout.join("blobs/sha256").join(nested.digest().hex()), &nested.bytes).unwrap();
    let top = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [nested.descriptor()]});
    fs::write(layout.join("index.json"), top.to_string()).unwrap();
    check_small(&bench.pull(&format!("oci:{}", layout.display()), "x").await.unwrap());
}

#[tokio::test]
async fn a_fifo_is_not_waited_for() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let bench = Bench::new();
    let fifo = bench.folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for form in ["oci-archive", "docker-archive", "bundle"] {
        let reference = format!("{form}:{}", fifo.display());
        let error = timeout(PATIENCE, bench.pull(&reference, "x")).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{form}");
        assert!(whole(&error).contains("is no regular file"), "{}", whole(&error));
    }
    let layout = bench.folder.path().join("layout");
    write_layout(&layout, &[(&small_image(), None)]);
    fs::remove_file(layout.join("index.json")).unwrap();
    fs::rename(&fifo, layout.join("index.json")).unwrap();
    let reference = format!("oci:{}", layout.display());
    let error = timeout(PATIENCE, bench.pull(&reference, "x")).await.unwrap().unwrap_err();
    assert!(whole(&error).contains("no regular file"), "{}", whole(&error));
    bench.assert_clean().await;
}
