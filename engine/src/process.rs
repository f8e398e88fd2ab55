//! Identity of processes: a pid alone says nothing after a while, so it is kept with the process's
//! start time and the boot of the host it belongs to.

pub mod detached;
mod pidfd;
pub mod tethered;

use std::sync::OnceLock;
use std::{fs, io};

use serde::{Deserialize, Serialize};

pub use pidfd::PidFd;

/// One process of this host, told apart from every later one with the same pid.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessIdentity {
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after the host's boot (proc_pid_stat(5)).
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl ProcessIdentity {
    /// This very process.
    pub fn current() -> io::Result<Self> {
        Self::of(i32::try_from(std::process::id()).map_err(io::Error::other)?)
    }

    /// The process that has this pid now.
    pub fn of(pid: i32) -> io::Result<Self> {
        let Stat { start_time, .. } = stat(pid)?;
        Ok(Self { pid, start_time, boot_id: boot_id().to_owned() })
    }

    /// Whether that very process still runs: any thread of it, of which the first may have ended before
    /// the others. One that only waits to be reaped (a zombie) does not.
    pub fn is_alive(&self) -> bool {
        self.boot_id == boot_id()
            && stat(self.pid).is_ok_and(|stat| stat.start_time == self.start_time && stat.runs())
    }
}

/// The id of this boot of the host; empty where the kernel does not tell.
pub fn boot_id() -> &'static str {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
            .unwrap_or_default()
    })
}

/// What `/proc/PID/stat` says of a process (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    start_time: u64,
    /// Of the first thread.
    state: u8,
    /// With the first one, also when that has ended and cannot go before the others have.
    threads: u64,
}

impl Stat {
    fn runs(&self) -> bool {
        !matches!(self.state, b'Z' | b'X') || self.threads > 1
    }
}

fn stat(pid: i32) -> io::Result<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has an unknown form")))
}

fn parse_stat(text: &[u8]) -> Option<Stat> {
    // The second field is the command in parentheses, which may itself hold blanks and parentheses.
    let after_command = text.iter().rposition(|&byte| byte == b')')? + 1;
    let rest = std::str::from_utf8(text.get(after_command..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    // Fields 20 and 22; the state is the third.
    let threads = fields.nth(16)?.parse().ok()?;
    Some(Stat { start_time: fields.nth(1)?.parse().ok()?, state, threads })
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_command_with_parentheses_does_not_confuse_the_parser() {
        let text = b"7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_stat(text), Some(Stat { start_time: 4711, state: b'S', threads: 17 }));
    }

    #[test]
    fn an_ended_process_and_another_boot_are_not_alive() {
        let current = ProcessIdentity::current().unwrap();
        assert!(current.is_alive());
        assert!(!ProcessIdentity { start_time: current.start_time + 1, ..current.clone() }.is_alive());
        assert!(!ProcessIdentity { boot_id: "other".into(), ..current.clone() }.is_alive());
        let mut child = Command::new("true").spawn().unwrap();
        let identity = ProcessIdentity::of(i32::try_from(child.id()).unwrap()).unwrap();
        child.wait().unwrap();
        assert!(!identity.is_alive());
    }

    #[tokio::test]
    async fn a_process_whose_first_thread_has_ended_is_alive_until_the_last_one_has() {
        // Its first thread ends at once, the other one with its input.
        let source = "#include <pthread.h>\n#include <unistd.h>\n\
            static void *rest(void *none) { char byte; while (read(0, &byte, 1) > 0); _exit(0); }\n\
            int main(void) { pthread_t thread; pthread_create(&thread, 0, rest, 0); pthread_exit(0); }\n";
        let folder = tempfile::tempdir().unwrap();
        let (code, program) = (folder.path().join("threads.c"), folder.path().join("threads"));
        fs::write(&code, source).unwrap();
        let compiled = Command::new("cc").args(["-pthread", "-o"]).arg(&program).arg(&code).status();
        let Ok(compiled) = compiled else {
            eprintln!("skipped: this host has no C compiler");
            return;
        };
        assert!(compiled.success());
        let mut child = Command::new(&program).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let identity = ProcessIdentity::of(pid).unwrap();
        let within = Duration::from_secs(30);
        let first_has_ended = async {
            while stat(pid).unwrap().state != b'Z' {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(within, first_has_ended).await.unwrap();
        assert!(identity.is_alive());
        let process = PidFd::open(&identity).unwrap().unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), process.wait()).await.is_err());
        drop(child.stdin.take());
        tokio::time::timeout(within, process.wait()).await.unwrap().unwrap();
        assert!(!identity.is_alive() && PidFd::open(&identity).unwrap().is_none());
        assert!(child.wait().unwrap().success());
    }
}
