//! A registry that does what a test tells it, down to the bytes: resets, stalls, lies.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::fixture::{Blob, TestImage};

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Start of the range asked for.
    pub(crate) fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What is sent back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All of it, the length stated.
    Whole,
    /// The whole length stated, so many bytes sent, then the connection is reset.
    Reset(usize),
    /// The whole length stated, so many bytes sent, then silence.
    Stall(usize),
    /// No length stated; the body again and again until the client leaves, each time as one chunk: the
    /// client reads up to the end of the first before it sees that there is more.
    Endless,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), end: End::Whole }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn end(self, end: End) -> Self {
        Self { end, ..self }
    }
}

type Handler = Arc<dyn Fn(&Request, usize) -> Answer + Send + Sync>;

/// The server; ends with the value.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// `handler` gets each request and how many there were for the same path before.
    pub(crate) async fn start(handler: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (handler, shared): (Handler, _) = (Arc::new(handler), Arc::clone(&log));
        let task = tokio::spawn(async move {
            // Ends every connection when it is dropped.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                connections.spawn(serve(stream, Arc::clone(&handler), Arc::clone(&shared)));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, log, task }
    }

    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// The requests so far whose path contains `part`.
    pub(crate) fn requests(&self, part: &str) -> Vec<Request> {
        let log = self.log.lock().unwrap();
        log.iter().filter(|request| request.path.contains(part)).cloned().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, handler: Handler, log: Arc<Mutex<Vec<Request>>>) {
    let Some(request) = read_request(&mut stream).await else { return };
    let before = {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|earlier| earlier.path == request.path).count();
        log.push(request.clone());
        before
    };
    let answer = handler(&request, before);
    // A client that leaves is no failure of the server.
    let _ = write_answer(&mut stream, answer).await;
}

async fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec()).ok()?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while bytes.len() < head + 4 + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let body = String::from_utf8_lossy(&bytes[head + 4..]).into_owned();
    Some(Request { method, path, headers, body })
}

async fn write_answer(stream: &mut TcpStream, answer: Answer) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&match answer.end {
        End::Endless => "Transfer-Encoding: chunked\r\n".to_owned(),
        _ => format!("Content-Length: {}\r\n", answer.body.len()),
    });
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    match answer.end {
        End::Whole => {
            stream.write_all(&answer.body).await?;
            stream.shutdown().await
        }
        End::Reset(length) => {
            stream.write_all(&answer.body[..length]).await?;
            stream.flush().await?;
            // Let the client read before the reset throws away what it has not.
            tokio::time::sleep(Duration::from_millis(30)).await;
            stream.set_zero_linger()
        }
        End::Stall(length) => {
            stream.write_all(&answer.body[..length]).await?;
            stream.flush().await?;
            std::future::pending().await
        }
        End::Endless => loop {
            stream.write_all(format!("{:x}\r\n", answer.body.len()).as_bytes()).await?;
            stream.write_all(&answer.body).await?;
            stream.write_all(b"\r\n").await?;
        },
    }
}

/// What a registry holds: manifests by name, blobs by digest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shelf {
    documents: HashMap<String, Blob>,
}

impl Shelf {
    /// One image under the tag `1` of the repository `app`.
    pub(crate) fn of(image: &TestImage) -> Self {
        let mut this = Self::default();
        this.add(image);
        this.tag("1", &image.manifest);
        this
    }

    pub(crate) fn add(&mut self, image: &TestImage) {
        for blob in image.blobs() {
            self.documents.insert(format!("/v2/app/blobs/{}", blob.digest()), blob.clone());
        }
        self.tag(&image.manifest.digest().to_string(), &image.manifest);
    }

    pub(crate) fn tag(&mut self, tag: &str, manifest: &Blob) {
        self.documents.insert(format!("/v2/app/manifests/{tag}"), manifest.clone());
    }

    /// As an honest registry answers.
    pub(crate) fn answer(&self, request: &Request) -> Answer {
        let Some(blob) = self.documents.get(&request.path) else {
            return Answer::new(404, r#"{"errors":[{"code":"X","message":"not on the shelf"}]}"#);
        };
        let answer = |status, body: &[u8]| Answer::new(status, body).header("Content-Type", &blob.media_type);
        match request.from() {
            None => answer(200, &blob.bytes),
            Some(from) if from < blob.bytes.len() => answer(206, &blob.bytes[from..]).header(
                "Content-Range",
                format!("bytes {from}-{}/{}", blob.bytes.len() - 1, blob.bytes.len()),
            ),
            Some(_) => Answer::new(416, ""),
        }
    }
}
