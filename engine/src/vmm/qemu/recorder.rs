//! Who writes down what a machine says when no vmdeck process is there: its serial console and its
//! journal of events, each into a file that cannot grow beyond a bound, whatever the guest prints.
//!
//! ```text
//! QEMU ── pipe ────▶ sh: cat ▶ console.log   (full: renamed to console.log.1, begun anew)
//!      ── socket ──▶ sh: cat ▶ journal.out   (likewise)
//! ```
//!
//! QEMU itself would append for ever, and its limit on file sizes is also that of its disks; so it
//! writes into a pipe to a shell whose limit is its own. The shell ends when QEMU does, for then it
//! reaches the end of its input. It holds the lock on `recorder.lock` for as long as it writes.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::command::{JOURNAL, JOURNAL_COMMANDS};
use crate::error::{Error, Result};
use crate::lock::FileLock;
use crate::process::detached::{self, Detached};

const LOCK: &str = "recorder.lock";
/// How long what QEMU wrote last may take to reach the disk.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for a machine that is to start again, which cannot before: better late than not.
const RESTART_TIMEOUT: Duration = Duration::from_secs(30);

/// Writes its input into a file of at most so many blocks of 512 bytes, and keeps one file before
/// it. What was being written when the file was full is lost. The end of the input ends it.
const SCRIPT: &str = "ulimit -c 0
keep() {
    ulimit -f \"$2\"
    until cat >>\"$1\"; do mv -f \"$1\" \"$1.1\" || exit; done
}
keep journal.out 512 <&1 &
keep console.log 32768
wait
";

/// QEMU's ends, to be kept for it.
pub(super) struct Recorded {
    pub(super) console: OwnedFd,
    pub(super) journal: OwnedFd,
}

/// What is to be started before QEMU.
pub(super) struct Recorder {
    command: Command,
    lock: OwnedFd,
}

/// Prepares the recording of a run that is about to begin in this folder.
pub(super) async fn prepare(directory: &Path) -> Result<(Recorder, Recorded)> {
    prepare_within(directory, RESTART_TIMEOUT).await
}

async fn prepare_within(directory: &Path, bound: Duration) -> Result<(Recorder, Recorded)> {
    let fail = |error| Error::io(format!("cannot record what `{}` says", directory.display()), error);
    drained_within(directory, bound).await;
    let lock = open(&directory.join(LOCK)).map_err(fail)?;
    lock.try_lock().map_err(|error| fail(error.into()))?;
    // The journal is of one run.
    let _ = std::fs::remove_file(directory.join(format!("{JOURNAL}.1")));
    let journal = open(&directory.join(JOURNAL)).map_err(fail)?;
    journal.set_len(0).map_err(fail)?;
    let (mut ours, theirs) = UnixStream::pair().map_err(fail)?;
    // QEMU reads this before anything else and tells events from then on.
    ours.write_all(JOURNAL_COMMANDS.as_bytes()).map_err(fail)?;
    let (read, write) = std::io::pipe().map_err(fail)?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", SCRIPT]).current_dir(directory).env_clear().env("PATH", "/usr/bin:/bin");
    command.stdin(read).stdout(OwnedFd::from(ours)).stderr(Stdio::null());
    let recorder = Recorder { command, lock: lock.into() };
    Ok((recorder, Recorded { console: write.into(), journal: theirs.into() }))
}

impl Recorder {
    /// Starts it. It needs no record: it ends when the last process that holds QEMU's ends does.
    pub(super) async fn start(self) -> Result<Detached> {
        detached::spawn(self.command, vec![self.lock], |_| async { Ok(()) }).await
    }
}

/// Waits, for a bounded time, until all that an ended QEMU wrote is in the files.
pub(super) async fn drained(directory: &Path) {
    drained_within(directory, DRAIN_TIMEOUT).await;
}

async fn drained_within(directory: &Path, bound: Duration) {
    let (lock, never) = (directory.join(LOCK), CancellationToken::new());
    if !lock.exists() {
        return;
    }
    match tokio::time::timeout(bound, FileLock::acquire(&lock, &never)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "it is not known whether a console is written down"),
        Err(_) => tracing::warn!(directory = %directory.display(), "a console is still being written down"),
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_flood_is_bounded_and_its_end_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (recorder, recorded) = prepare(folder.path()).await.unwrap();
        let running = recorder.start().await.unwrap();
        let mut console = File::from(recorded.console);
        let mut journal = UnixStream::from(recorded.journal);
        // As QEMU does: what is not read makes the end a reset.
        journal.read_exact(&mut [0; JOURNAL_COMMANDS.len()]).unwrap();
        let place = folder.path().to_owned();
        let flood = tokio::task::spawn_blocking(move || {
            for _ in 0..40 {
                console.write_all(&[b'x'; 1 << 20]).unwrap();
            }
            for _ in 0..2000 {
                journal.write_all(&[b'y'; 1 << 10]).unwrap();
            }
            // What is written while a file is full is lost: it is said until it is heard.
            let end = |name: &str, words: &str, to: &mut dyn Write| {
                let begun = Instant::now();
                while !std::fs::read(place.join(name)).is_ok_and(|text| text.ends_with(words.as_bytes())) {
                    assert!(begun.elapsed() < Duration::from_secs(60), "{name} does not end");
                    to.write_all(words.as_bytes()).unwrap();
                    std::thread::sleep(Duration::from_millis(100));
                }
            };
            end("console.log", "the end", &mut console);
            end("journal.out", "its end", &mut journal);
        });
        flood.await.unwrap();
        running.wait().await.unwrap();
        drained(folder.path()).await;
        for (name, limit, end) in
            [("console.log", 16 << 20, "the end"), ("journal.out", 256 << 10, "its end")]
        {
            let path = folder.path().join(name);
            assert!(std::fs::read(&path).unwrap().ends_with(end.as_bytes()), "{name}");
            assert!(std::fs::metadata(&path).unwrap().len() <= limit, "{name}");
            let before = std::fs::metadata(path.with_file_name(format!("{name}.1"))).unwrap().len();
            assert!(before <= limit && before > 0, "{name}.1");
        }
        let lock = folder.path().join(LOCK);
        let never = CancellationToken::new();
        let free = FileLock::acquire(&lock, &never);
        tokio::time::timeout(Duration::from_secs(60), free).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn it_does_not_start_twice_and_ends_when_it_is_not_needed() {
        let folder = tempfile::tempdir().unwrap();
        let (recorder, recorded) = prepare(folder.path()).await.unwrap();
        let running = recorder.start().await.unwrap();
        assert!(prepare_within(folder.path(), Duration::from_millis(50)).await.is_err());
        drop(recorded);
        tokio::time::timeout(Duration::from_secs(60), running.wait()).await.unwrap().unwrap();
        prepare(folder.path()).await.unwrap();
    }
}
