//! What tests stand on while others run beside them, in this process and in others.

use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt,
};

/// A free port of the loopback interface that nobody else is given while this lives.
///
/// It is bound and not listened on, so that a connection is refused until the program that it is for
/// listens: the kernel lets that one have it, too, if it sets SO_REUSEADDR (socket(7)), as QEMU and
/// programs in Go do.
#[derive(Debug)]
pub(crate) struct FreePort {
    socket: OwnedFd,
}

impl FreePort {
    pub(crate) fn new() -> Self {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
        bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        Self { socket }
    }

    pub(crate) fn number(&self) -> u16 {
        getsockname::<SockaddrIn>(self.socket.as_raw_fd()).unwrap().port()
    }
}

/// Writes a program that can be executed at once.
///
/// By a process of its own: a child that another test has just forked from this one would have the file
/// open for writing until it executes something, and what is open so is not executed (ETXTBSY).
#[allow(dead_code, reason = "not every test binary makes programs")]
pub(crate) fn write_program(path: &Path, content: impl AsRef<[u8]>) {
    let source = path.with_extension("content");
    std::fs::write(&source, content).unwrap();
    let status = Command::new("install").args(["-m", "755"]).arg(&source).arg(path).status().unwrap();
    assert!(status.success(), "{} is not written: {status}", path.display());
    std::fs::remove_file(source).unwrap();
}

/// For what takes tenths of a second on a host that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Debian's `docker-registry` (CNCF distribution) on a port of its own; ends with the value.
#[derive(Debug)]
pub(crate) struct DockerRegistry {
    process: Child,
    held: FreePort,
    _folder: tempfile::TempDir,
}

impl DockerRegistry {
    /// `more` goes on in the configuration's section `http`, other sections may follow. `None`, and a line
    /// that says so, where the host has none.
    pub(crate) fn start(more: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let held = FreePort::new();
        let config = folder.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
             rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{}\n{more}",
            folder.path().join("data").display(),
            held.number()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = match command.spawn() {
            Ok(process) => process,
            Err(error) => {
                eprintln!("skipped: docker-registry cannot be run: {error}");
                return None;
            }
        };
        let mut this = Self { process, held, _folder: folder };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", this.port())).is_err() {
            let ended = this.process.try_wait().unwrap();
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "the registry does not start: {ended:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(this)
    }

    pub(crate) fn port(&self) -> u16 {
        self.held.number()
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
