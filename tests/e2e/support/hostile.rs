//! A registry that lies, as far as a test tells it to.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::layout::sha256;

/// What is sent back.
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Bytes that are announced; none: until the connection ends.
    announced: Option<u64>,
    /// Sends the body again and again until the client leaves.
    repeats: bool,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self { status, headers: Vec::new(), announced: Some(body.len() as u64), body, repeats: false }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Announces another length than the body has.
    pub(crate) fn announcing(self, bytes: u64) -> Self {
        Self { announced: Some(bytes), ..self }
    }

    /// Announces nothing and never ends.
    pub(crate) fn endless(self) -> Self {
        Self { announced: None, repeats: true, ..self }
    }
}

/// An image of one layer in a repository, as an honest registry has it.
pub(crate) struct Shelf {
    documents: HashMap<String, (&'static str, Vec<u8>)>,
    /// Path of the layer below the repository.
    pub(crate) layer: String,
}

impl Shelf {
    /// `tar` is the layer unpacked, `packed` what is stored.
    pub(crate) fn new(tar: &[u8], packed: Vec<u8>, media_type: &str) -> Self {
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [sha256(tar)] },
        });
        let config = serde_json::to_vec(&config).unwrap();
        let layer = sha256(&packed);
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": sha256(&config), "size": config.len() },
            "layers": [{ "mediaType": media_type, "digest": layer, "size": packed.len() }],
        });
        let layer = format!("blobs/{layer}");
        let documents = HashMap::from([
            (format!("blobs/{}", sha256(&config)), (CONFIG, config)),
            (layer.clone(), ("application/octet-stream", packed)),
            ("manifests/1".to_owned(), (MANIFEST, serde_json::to_vec(&manifest).unwrap())),
        ]);
        Self { documents, layer }
    }

    /// The stored bytes of the layer.
    pub(crate) fn layer_bytes(&self) -> &[u8] {
        &self.documents[&self.layer].1
    }

    pub(crate) fn honest(&self, path: &str) -> Reply {
        match self.documents.get(path) {
            Some((media_type, body)) => Reply::new(200, body.clone()).header("Content-Type", *media_type),
            None => Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not here"}]}"#),
        }
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

type Handler = dyn Fn(&str, &str) -> Reply + Send + Sync;

/// The server; ends with the value.
pub(crate) struct Hostile {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
}

impl Hostile {
    /// `handler` gets the repository and the path below it.
    pub(crate) fn start(handler: impl Fn(&str, &str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let (handler, end): (Arc<Handler>, _) = (Arc::new(handler), Arc::clone(&ended));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let handler = Arc::clone(&handler);
                // A client that leaves ends the thread.
                std::thread::spawn(move || serve(stream, &*handler));
            }
        });
        Self { address, ended }
    }

    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the one that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut stream: TcpStream, handler: &Handler) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let (repository, below) = path.trim_start_matches("/v2/").split_once('/').unwrap_or_default();
    let reply = handler(repository, below);
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(length) = reply.announced {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    loop {
        stream.write_all(&reply.body)?;
        if !reply.repeats {
            return stream.shutdown(std::net::Shutdown::Write);
        }
    }
}
