//! Network name spaces as hosts of their own: what happens in them touches no network of this host, and
//! goes with the value.

use std::fs::File;
use std::process::Command;

use super::deck::ORDINARY;
use super::holder::Holder;
use super::{have, is_root};

/// Where helpers for the network lie, whatever the `PATH` of who runs the tests.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

pub(crate) struct Namespace {
    holder: Holder,
}

impl Namespace {
    /// One with its loopback interface up and a `/dev/net/tun` that everybody can open, as udev makes it.
    /// `None`, and a line that says so, where that cannot be made.
    pub(crate) fn new() -> Option<Self> {
        if !is_root() {
            eprintln!("skipped: only root can make networks to try this in");
            return None;
        }
        if !["unshare", "nsenter", "setpriv", "ip", "nft"].into_iter().all(have) {
            return None;
        }
        let script = "mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && \
                      : <> /dev/net/tun && ip link set lo up";
        let holder = Holder::start(&["--net", "--mount"], script, Some(PATH));
        if holder.is_none() {
            eprintln!("skipped: this host makes no network name space with a /dev/net/tun");
        }
        holder.map(|holder| Self { holder })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.holder.pid()
    }

    fn enter(&self) -> Vec<String> {
        ["nsenter".to_owned(), format!("--target={}", self.pid()), "--net".into(), "--mount".into()].into()
    }

    /// What has a program run in it by the ordinary user, who may administer the network.
    pub(crate) fn as_administrator(&self) -> Vec<String> {
        let mut words = self.enter();
        words.extend(["setpriv".to_owned(), format!("--reuid={ORDINARY}"), format!("--regid={ORDINARY}")]);
        words.extend(
            ["--clear-groups", "--inh-caps=+net_admin", "--ambient-caps=+net_admin", "--"].map(str::to_owned),
        );
        words
    }

    /// Runs a line of shell in it as root; it has to succeed.
    #[track_caller]
    pub(crate) fn shell(&self, line: &str) -> String {
        let words = self.enter();
        super::run(Command::new(&words[0]).args(&words[1..]).args(["sh", "-ec", line]).env("PATH", PATH))
    }

    /// Does something with the sockets of this network.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let network = File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        // A thread of its own stays there, and ends.
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                    work()
                })
                .join()
                .unwrap()
        })
    }
}
