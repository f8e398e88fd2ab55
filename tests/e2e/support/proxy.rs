//! A forward proxy (RFC 9110, section 7.7): absolute URLs for plain HTTP, CONNECT for the rest. It
//! leads every host to one port of this machine, and writes down what it was asked for.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub(crate) struct Proxy {
    port: u16,
    /// Request lines. Held for one push or one look.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Its threads end with the test's process.
    pub(crate) fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let log = Arc::clone(&log);
                std::thread::spawn(move || serve(client, upstream, &log));
            }
        });
        Self { port, asked }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// One connection. Plain requests are told to be the only one on theirs, so that only its first
/// line needs to be rewritten.
fn serve(client: TcpStream, upstream: u16, log: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        head.push(line);
    }
    let Some(request) = head.first().map(|line| line.trim_end().to_owned()) else { return Ok(()) };
    log.lock().unwrap().push(request.clone());
    let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
    let mut client = client;
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if method == "CONNECT" {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    } else {
        let path = target.splitn(4, '/').nth(3).unwrap_or_default();
        let mut rewritten = format!("{method} /{path} HTTP/1.1\r\nConnection: close\r\n");
        rewritten.extend(head[1..].iter().map(String::as_str));
        rewritten.push_str("\r\n");
        server.write_all(rewritten.as_bytes())?;
    }
    let (mut back, mut to_client) = (server.try_clone()?, client.try_clone()?);
    let answers = std::thread::spawn(move || {
        let copied = io::copy(&mut back, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Write);
        copied
    });
    let _ = io::copy(&mut reader, &mut server);
    let _ = server.shutdown(Shutdown::Write);
    let _ = answers.join();
    Ok(())
}
