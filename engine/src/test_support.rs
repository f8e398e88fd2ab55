//! What tests stand on while others run beside them, in this process and in others.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;

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
