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
        let (start_time, _) = stat(pid)?;
        Ok(Self { pid, start_time, boot_id: boot_id().to_owned() })
    }

    /// Whether that very process still runs (a zombie does not).
    pub fn is_alive(&self) -> bool {
        self.boot_id == boot_id()
            && stat(self.pid)
                .is_ok_and(|(start, state)| start == self.start_time && !matches!(state, b'Z' | b'X'))
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

/// Start time and state letter of a process.
fn stat(pid: i32) -> io::Result<(u64, u8)> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has an unknown form")))
}

fn parse_stat(text: &[u8]) -> Option<(u64, u8)> {
    // The second field is the command in parentheses, which may itself hold blanks and parentheses.
    let after_command = text.iter().rposition(|&byte| byte == b')')? + 1;
    let rest = std::str::from_utf8(text.get(after_command..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((fields.nth(18)?.parse().ok()?, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_parentheses_does_not_confuse_the_parser() {
        let text = b"7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_stat(text), Some((4711, b'S')));
    }

    #[test]
    fn an_ended_process_and_another_boot_are_not_alive() {
        let current = ProcessIdentity::current().unwrap();
        assert!(current.is_alive());
        assert!(!ProcessIdentity { start_time: current.start_time + 1, ..current.clone() }.is_alive());
        assert!(!ProcessIdentity { boot_id: "other".into(), ..current.clone() }.is_alive());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let identity = ProcessIdentity::of(i32::try_from(child.id()).unwrap()).unwrap();
        child.wait().unwrap();
        assert!(!identity.is_alive());
    }
}
