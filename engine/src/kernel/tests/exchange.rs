//! Export, and pulls from archives, registries and URLs.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::sample::{RELEASE, deb_of, files, image, tar, xz};
use super::*;
use crate::error::ErrorKind;
use crate::image::Digest;
use crate::test_support::DockerRegistry;

fn pull(source: impl Into<String>) -> PullKernel {
    PullKernel { source: source.into(), ..PullKernel::default() }
}

/// The names and contents of all files in a kernel's image of modules.
fn modules(kernel: &Kernel) -> Vec<(Vec<u8>, Vec<u8>)> {
    let reader =
        vmdeck_ext4::Reader::open(fs::File::open(kernel.modules.as_ref().unwrap()).unwrap()).unwrap();
    let mut found = Vec::new();
    let mut folders = vec![(Vec::new(), reader.root())];
    while let Some((path, folder)) = folders.pop() {
        for (name, inode) in reader.entries(folder).unwrap() {
            let path = [path.as_slice(), b"/", &name].concat();
            match reader.stat(inode).unwrap().kind {
                vmdeck_ext4::FileKind::Directory => folders.push((path, inode)),
                _ => found.push((path, reader.read(inode, 1 << 20).unwrap())),
            }
        }
    }
    found.sort();
    found
}

fn assert_same_kernel(left: &Kernel, right: &Kernel) {
    assert_eq!(left.release, right.release);
    assert_eq!(left.initrd_modules, right.initrd_modules);
    assert!(fs::read(&left.vmlinux).unwrap() == fs::read(&right.vmlinux).unwrap(), "vmlinux");
    assert!(fs::read(&left.initrd).unwrap() == fs::read(&right.initrd).unwrap(), "initrd");
    assert_eq!(modules(left), modules(right));
}

/// A kernel in `from`, exported; also the path of the archive.
async fn exported(from: &Fixture) -> (Kernel, ExportedKernel) {
    let mut files = files();
    files.push((format!("./boot/config-{RELEASE}"), b"CONFIG_BLK_DEV_INITRD=y\n".to_vec()));
    let kernel = from.import_deb(&deb_of(&files)).await.unwrap();
    let to = format!("oci-archive:{}", from.folder.path().join("kernel.tar").display());
    let request = ExportKernel { name: kernel.name.clone(), to };
    (kernel, from.kernels.export(request, None).wait().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_kernel_comes_back_the_same() {
    let (here, there) = (Fixture::new(), Fixture::new());
    let (kernel, export) = exported(&here).await;
    assert_eq!(export.bytes, fs::metadata(&export.path).unwrap().len());
    let source = format!("oci-archive:{}", export.path.display());
    let back = there.kernels.pull(pull(&source), None).wait().await.unwrap();
    assert_eq!(back.source, format!("{source}@{}", export.digest));
    assert_eq!(back.warnings, kernel.warnings);
    assert_same_kernel(&kernel, &back);
    there.assert_only(&[RELEASE]);
    // A second pull of the same changes nothing.
    assert_eq!(there.kernels.pull(pull(&source), None).wait().await.unwrap(), back);

    // The same kernel gives the same image, and no file is written over.
    let to = format!("oci-archive:{}:mine", here.folder.path().join("again.tar").display());
    let again = ExportKernel { name: kernel.name.clone(), to };
    let again_made = here.kernels.export(again.clone(), None).wait().await.unwrap();
    assert_eq!((again_made.digest, again_made.tag.as_str()), (export.digest, "mine"));
    assert_eq!(here.kernels.export(again, None).wait().await.unwrap_err().kind(), ErrorKind::Conflict);
    for (name, to, kind) in
        [("none", "oci-archive:x", ErrorKind::NotFound), (RELEASE, "oci:x", ErrorKind::Usage)]
    {
        let request = ExportKernel { name: name.into(), to: to.into() };
        assert_eq!(here.kernels.export(request, None).wait().await.unwrap_err().kind(), kind);
    }
    here.assert_only(&[RELEASE]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_archive_is_refused_or_does_not_matter() {
    let (here, there) = (Fixture::new(), Fixture::new());
    let (kernel, export) = exported(&here).await;
    let whole = fs::read(&export.path).unwrap();
    let mut refused = 0;
    for at in (0..whole.len()).step_by(whole.len() / 24) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        let path = there.file("damaged.tar", &bytes);
        let source = format!("oci-archive:{}", path.display());
        match there.kernels.pull(pull(&source), None).wait().await {
            // A header's field that nothing depends on, or padding.
            Ok(pulled) => {
                assert_same_kernel(&kernel, &pulled);
                there.kernels.delete(RELEASE).await.unwrap();
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Failed, "{at}: {}", error.full_message());
                refused += 1;
            }
        }
        there.assert_only(&[]);
        let blobs = there.data.blobs();
        for blob in names(&blobs) {
            fs::remove_file(blobs.join(blob)).unwrap();
        }
    }
    assert!(refused > 8, "only {refused} damages were noticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_goes_through_a_registry() {
    let Some(registry) = DockerRegistry::start("") else { return };
    let (here, there) = (Fixture::new(), Fixture::new());
    let (kernel, export) = exported(&here).await;
    let repository = format!("docker://127.0.0.1:{}/kernels/test:{RELEASE}", registry.port());
    let from = format!("oci-archive:{}", export.path.display());
    let copy = ["--insecure-policy", "copy", "--dest-tls-verify=false", &from, &repository];
    let Some(copied) = archive::tool("skopeo", &copy) else { return };
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));

    let mut first = there.kernels.pull(pull(&repository), None);
    let mut second = there.kernels.pull(pull(&repository), None);
    let (first, second) = (first.wait().await.unwrap(), second.wait().await.unwrap());
    assert_eq!(first, second);
    assert_same_kernel(&kernel, &first);
    there.assert_only(&[RELEASE]);

    // Deleted and pulled again: the layer is in the cache, damaged or not.
    there.kernels.delete(RELEASE).await.unwrap();
    for damaged in [false, true] {
        let blobs = there.data.blobs();
        for blob in names(&blobs).iter().filter(|_| damaged) {
            let path = blobs.join(blob);
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::remove_file(&path).unwrap();
            fs::write(&path, bytes).unwrap();
        }
        let again = there.kernels.pull(pull(&repository), None).wait().await.unwrap();
        assert_same_kernel(&kernel, &again);
        there.kernels.delete(RELEASE).await.unwrap();
    }
    let missing = format!("docker://127.0.0.1:{}/kernels/none:1", registry.port());
    let error = there.kernels.pull(pull(missing), None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.full_message());
    there.assert_only(&[]);
}

/// Serves one file over HTTP; breaks the first `resets` answers in their middle.
struct FileServer {
    port: u16,
    requests: Arc<AtomicUsize>,
}

impl FileServer {
    fn start(content: Vec<u8>, resets: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        // The thread ends with the test's process.
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let mut request = [0; 4096];
                let _ = connection.read(&mut request);
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", content.len());
                let _ = connection.write_all(head.as_bytes());
                let end = if number < resets { content.len() / 2 } else { content.len() };
                let _ = connection.write_all(&content[..end]);
            }
        });
        Self { port, requests }
    }

    fn url(&self, content: &[u8]) -> String {
        format!("http://127.0.0.1:{}/pool/kernel@{}", self.port, Digest::of(content))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_at_a_url_is_told_by_its_bytes() {
    let archive = xz(&tar(&files()));
    for (content, modules) in [(deb_of(&files()), 4), (archive, 4), (image(), 0)] {
        let fixture = Fixture::new();
        let server = FileServer::start(content.clone(), 0);
        let url = server.url(&content);
        let kernel = fixture.kernels.pull(pull(&url), None).wait().await.unwrap();
        assert_eq!((kernel.release.as_str(), kernel.initrd_modules.len()), (RELEASE, modules));
        assert_eq!(kernel.source, url);
        // Known by its digest: nothing is fetched again.
        let requests = server.requests.load(Ordering::SeqCst);
        fixture.kernels.pull(pull(&url), None).wait().await.unwrap();
        assert_eq!(server.requests.load(Ordering::SeqCst), requests);
        fixture.assert_only(&[RELEASE]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on_and_a_wrong_one_is_refused() {
    let fixture = Fixture::new();
    let content = deb_of(&files());
    let server = FileServer::start(content.clone(), 1);
    fixture.kernels.pull(pull(server.url(&content)), None).wait().await.unwrap();
    assert_eq!(server.requests.load(Ordering::SeqCst), 2);
    fixture.kernels.delete(RELEASE).await.unwrap();

    let error = fixture.kernels.pull(pull(server.url(b"other")), None).wait().await.unwrap_err();
    assert!(error.to_string().contains("promised digest"), "{error}");
    fixture.assert_only(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_names_what_can_be_pulled_and_what_is_here() {
    let content = deb_of(&files());
    let server = FileServer::start(content.clone(), 0);
    let mut fixture = Fixture::new();
    let catalog = fixture.file(
        "kernels.toml",
        format!(
            "[[kernel]]\nname = \"mine\"\narchitecture = \"amd64\"\nversion = \"6.12.1\"\n\
             source = \"http://127.0.0.1:{}/kernel\"\nsha256 = \"{}\"\nnote = \"my own\"\n",
            server.port,
            Digest::of(&content).hex()
        )
        .as_bytes(),
    );
    let settings = Settings { catalog: Some(catalog), ..Settings::default() };
    let operations = Operations::new(fixture.store.clone()).unwrap();
    fixture.kernels =
        KernelService::with_settings(fixture.data.clone(), fixture.store.clone(), operations, settings);
    let mine = |items: Vec<CatalogItem>| items.into_iter().find(|item| item.entry.name == "mine").unwrap();
    let before = fixture.kernels.catalog().await.unwrap();
    assert!(before.len() > 4);
    assert_eq!(mine(before).state, CatalogState::Available);
    let kernel = fixture.kernels.pull(pull("mine"), None).wait().await.unwrap();
    assert_eq!(kernel.requested.as_deref(), Some("mine"));
    let after = mine(fixture.kernels.catalog().await.unwrap());
    assert_eq!((after.state, after.installed), (CatalogState::Installed, vec![RELEASE.to_owned()]));
    let error = fixture.kernels.pull(pull("nobody"), None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    fixture.assert_only(&[RELEASE]);
}
