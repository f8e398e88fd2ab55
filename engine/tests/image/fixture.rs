//! Images made from scratch, a registry to hold them, and a service to pull them.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use vmdeck_engine::data_directory::DataDirectory;
use vmdeck_engine::image::record::Image;
use vmdeck_engine::image::{
    CredentialFiles, Digest, ExportFormat, ExportImage, ImageService, Patience, PullImage, Settings,
};
use vmdeck_engine::operation::Operations;
use vmdeck_engine::store::Store;
use vmdeck_engine::{Error, Result};

use crate::test_support::DockerRegistry;

pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A layer as tar, from names and contents; a name that ends in `/` is a folder.
pub(crate) fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mtime(1_700_000_000);
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
        } else {
            header.set_mode(0o644);
        }
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Bytes that do not compress, the same every time.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A blob with its type.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

impl Blob {
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    pub(crate) fn descriptor(&self) -> serde_json::Value {
        serde_json::json!({
            "mediaType": self.media_type, "digest": self.digest().to_string(), "size": self.bytes.len()
        })
    }
}

/// One image: a manifest and what it points to.
#[derive(Clone, Debug)]
pub(crate) struct TestImage {
    pub(crate) manifest: Blob,
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Blob>,
}

impl TestImage {
    /// From layers as plain tar, each with the media type it is to be packed as.
    pub(crate) fn new(layers: &[(&str, Vec<u8>)]) -> Self {
        Self::for_architecture("amd64", layers)
    }

    pub(crate) fn for_architecture(architecture: &str, layers: &[(&str, Vec<u8>)]) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|(_, tar)| Digest::of(tar).to_string()).collect();
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Env": ["A=b"], "WorkingDir": "/work", "Labels": null},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let layers = layers
            .iter()
            .map(|(media_type, tar)| Blob {
                media_type: (*media_type).to_owned(),
                bytes: match *media_type {
                    GZIP => gzip(tar),
                    ZSTD => zstd::encode_all(tar.as_slice(), 1).unwrap(),
                    _ => tar.clone(),
                },
            })
            .collect();
        Self::of_blobs(
            Blob {
                media_type: "application/vnd.oci.image.config.v1+json".into(),
                bytes: config.to_string().into_bytes(),
            },
            layers,
        )
    }

    pub(crate) fn of_blobs(config: Blob, layers: Vec<Blob>) -> Self {
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        let manifest = Blob { media_type: MANIFEST.into(), bytes: manifest.to_string().into_bytes() };
        Self { manifest, config, layers }
    }

    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Blob> {
        [&self.manifest, &self.config].into_iter().chain(&self.layers)
    }
}

/// A small image with one layer of two files.
pub(crate) fn small_image() -> TestImage {
    TestImage::new(&[(GZIP, tar_of(&[("etc/", b""), ("etc/name", b"small\n"), ("root/", b"")]))])
}

/// An index of images with their platforms.
pub(crate) fn index_of(images: &[(&TestImage, &str, &str)]) -> Blob {
    let entries: Vec<_> = images
        .iter()
        .map(|(image, os, architecture)| {
            let mut entry = image.manifest.descriptor();
            entry["platform"] = serde_json::json!({"os": os, "architecture": architecture});
            entry
        })
        .collect();
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    Blob { media_type: INDEX.into(), bytes: index.to_string().into_bytes() }
}

/// Writes an OCI layout; each image gets its tag.
pub(crate) fn write_layout(folder: &Path, images: &[(&TestImage, Option<&str>)]) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let mut entries = Vec::new();
    for (image, tag) in images {
        for blob in image.blobs() {
            fs::write(blobs.join(blob.digest().hex()), &blob.bytes).unwrap();
        }
        let mut entry = image.manifest.descriptor();
        if let Some(tag) = tag {
            entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": tag});
        }
        entries.push(entry);
    }
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
}

/// A service on a data directory of its own.
pub(crate) struct Bench {
    pub(crate) folder: TempDir,
    pub(crate) data: DataDirectory,
    pub(crate) store: Store,
    pub(crate) operations: Operations,
    pub(crate) images: ImageService,
}

/// Short enough for tests, long enough for a busy machine.
pub(crate) fn settings() -> Settings {
    Settings {
        patience: Patience {
            connect: Duration::from_secs(5),
            stall: Duration::from_millis(700),
            attempts: 4,
            first_pause: Duration::from_millis(10),
            longest_pause: Duration::from_millis(50),
            longest_retry_after: Duration::from_secs(5),
        },
        credentials: CredentialFiles::default(),
        catalog: None,
        ..Settings::default()
    }
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(settings())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::on(folder, settings)
    }

    pub(crate) fn on(folder: TempDir, settings: Settings) -> Self {
        let data = DataDirectory::open(folder.path().join("data")).unwrap();
        let store = Store::open(&data.database()).unwrap();
        let operations = Operations::new(store.clone()).unwrap();
        let images = ImageService::with_settings(data.clone(), store.clone(), operations.clone(), settings);
        Self { folder, data, store, operations, images }
    }

    /// A second service on the same data directory, as another process has it.
    pub(crate) fn neighbour(&self, settings: Settings) -> (ImageService, Operations) {
        let store = Store::open(&self.data.database()).unwrap();
        let operations = Operations::new(store.clone()).unwrap();
        let images = ImageService::with_settings(self.data.clone(), store, operations.clone(), settings);
        (images, operations)
    }

    pub(crate) async fn pull(&self, reference: &str, name: &str) -> Result<Image> {
        self.images.pull(request(reference, name), None).wait().await
    }

    /// Names of what lies in a folder of the data directory.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.data.root().join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Nothing of a pull that failed may be left but partial blobs.
    pub(crate) async fn assert_clean(&self) {
        assert_eq!(self.names("staging"), [""; 0]);
        assert_eq!(self.names("images"), [""; 0]);
        assert!(self.images.list().await.unwrap().is_empty());
    }
}

pub(crate) fn request(reference: &str, name: &str) -> PullImage {
    PullImage { reference: reference.into(), name: Some(name.into()), ..PullImage::default() }
}

/// The message with all causes and the hint.
pub(crate) fn whole(error: &Error) -> String {
    format!("{} [{}]", error.full_message(), error.hint().unwrap_or_default())
}

/// Whether a program is here; says what is skipped otherwise.
pub(crate) fn has(program: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|folder| folder.join(program).is_file())
    });
    if !found {
        eprintln!("skipped: `{program}` is not installed");
    }
    found
}

/// The content of a file in an ext4 image, read by debugfs.
pub(crate) fn cat(image: &Path, path: &str) -> String {
    let output = Command::new("/usr/sbin/debugfs")
        .args(["-R", &format!("cat {path}")])
        .arg(image)
        .stderr(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The file system is clean.
pub(crate) fn assert_sound(image: &Path) {
    let output = Command::new("/usr/sbin/e2fsck").arg("-fn").arg(image).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Debian's registry on a port of this host, to which skopeo pushes; ends with the value.
pub(crate) struct Registry {
    server: DockerRegistry,
}

impl Registry {
    /// `more` is appended to the registry's configuration.
    pub(crate) fn start(more: &str) -> Option<Self> {
        if !has("skopeo") {
            return None;
        }
        DockerRegistry::start(more).map(|server| Self { server })
    }

    pub(crate) fn port(&self) -> u16 {
        self.server.port()
    }

    pub(crate) fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port())
    }

    /// Pushes an image by skopeo.
    pub(crate) fn push(&self, image: &TestImage, name: &str, more: &[&str]) {
        let layout = tempfile::tempdir().unwrap();
        write_layout(layout.path(), &[(image, Some("x"))]);
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false"])
            .args(more)
            .arg(format!("oci:{}:x", layout.path().display()))
            .arg(format!("docker://{}", self.reference(name)))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The file systems are sound, and the seed has the home of root and the key.
pub(crate) fn check_seed(bench: &Bench, image: &Image) {
    let seed = image.files.work_seed.as_ref().unwrap();
    assert_sound(&image.files.rootfs);
    assert_sound(seed);
    assert_eq!(cat(seed, "/.profile"), "p\n");
    let key = vmdeck_engine::keys::installation_key(&bench.data).unwrap();
    assert!(cat(seed, "/.ssh/authorized_keys").contains(&key.public_line));
}

/// Exports as a bundle.
pub(crate) async fn export(bench: &Bench, name: &str, path: &Path) -> vmdeck_engine::Result<()> {
    let request = ExportImage { name: name.into(), output: path.to_owned(), format: ExportFormat::Bundle };
    let exported = bench.images.export(request, None).wait().await?;
    assert_eq!(exported.bytes, fs::metadata(&exported.path).unwrap().len());
    Ok(())
}

/// An image that was pulled from a layout.
pub(crate) async fn pulled(bench: &Bench) -> Image {
    let layout = bench.folder.path().join("layout");
    let files: &[(&str, &[u8])] =
        &[("etc/", b""), ("etc/name", b"small\n"), ("root/", b""), ("root/.profile", b"p\n")];
    write_layout(&layout, &[(&TestImage::new(&[(GZIP, tar_of(files))]), None)]);
    bench.pull(&format!("oci:{}", layout.display()), "small").await.unwrap()
}
