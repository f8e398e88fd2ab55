//! Running a program for its result: it ends when nobody waits for the result any more, when it
//! takes too long, and when this process dies.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{PidFd, ProcessIdentity, detached};

/// As much of what the program prints as is kept.
const OUTPUT_LIMIT: usize = 64 << 10;

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    /// What it printed on its standard error.
    pub output: String,
    /// It was ended because it took too long.
    pub timed_out: bool,
}

/// Kills the program when dropped. Whoever drops it does not wait: the program may live on for the moment
/// that the kernel takes to end it, and the thread that started it reaps it then. What it is doing to the
/// kernel is done by then or is not: `nft` hands over its rules in one piece.
#[derive(Debug)]
struct Tether(PidFd);

impl Drop for Tether {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill() {
            tracing::warn!(%error, "a program that is not waited for any more could not be ended");
        }
    }
}

/// Runs `command` for at most `bound`. It gets `kept` under their numbers here. It is ended early
/// when `enough` says so of what it has printed so far.
pub async fn run(
    mut command: Command,
    kept: Vec<OwnedFd>,
    bound: Duration,
    enough: fn(&str) -> bool,
) -> io::Result<Finished> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    detached::tether(&mut command, kept);
    let (started, starting) = oneshot::channel();
    let (ended, ending) = oneshot::channel();
    // A thread of its own: the program is tied to the life of the thread that starts it.
    std::thread::Builder::new().name("program".into()).spawn(move || {
        let _ = ended.send(attend(command, started, enough));
    })?;
    // Without one it could not be started, or has ended; the result says how.
    let tether = starting.await.unwrap_or_default();
    tokio::pin!(ending);
    let mut timed_out = false;
    let result = match tokio::time::timeout(bound, &mut ending).await {
        Ok(result) => result,
        Err(_) => {
            timed_out = true;
            drop(tether);
            ending.await
        }
    };
    let (status, output) = result.map_err(io::Error::other)??;
    Ok(Finished { status, output, timed_out })
}

fn attend(
    mut command: Command,
    started: oneshot::Sender<Option<Tether>>,
    enough: fn(&str) -> bool,
) -> io::Result<(ExitStatus, String)> {
    let mut child = command.spawn()?;
    let process = i32::try_from(child.id())
        .map_err(io::Error::other)
        .and_then(ProcessIdentity::of)
        .and_then(|identity| PidFd::open(&identity));
    // Nobody waits any more when this fails: then it must end now. It also ends when what is sent is not
    // received any more.
    let abandoned = match process {
        Ok(process) => started.send(process.map(Tether)).is_err(),
        Err(_) => true,
    };
    if abandoned {
        child.kill()?;
    }
    let mut output = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        let mut part = [0; 4096];
        loop {
            match stderr.read(&mut part) {
                Ok(0) => break,
                Ok(count) => output.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    child.kill()?;
                    child.wait()?;
                    return Err(error);
                }
            }
            if output.len() >= OUTPUT_LIMIT || enough(&String::from_utf8_lossy(&output)) {
                child.kill()?;
                break;
            }
        }
    }
    let status = child.wait()?;
    Ok((status, String::from_utf8_lossy(&output).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_result_a_timeout_and_an_early_end() {
        let begin = Instant::now();
        let finished = run(shell("echo said >&2; exit 7"), vec![], Duration::from_secs(20), |_| false).await;
        let finished = finished.unwrap();
        assert_eq!((finished.status.code(), finished.output.as_str()), (Some(7), "said\n"));
        let finished =
            run(shell("exec sleep 60"), vec![], Duration::from_millis(100), |_| false).await.unwrap();
        assert!(finished.timed_out && finished.status.code().is_none());
        let enough = |said: &str| said.contains("enough");
        let finished =
            run(shell("echo enough >&2; exec sleep 60"), vec![], Duration::from_secs(20), enough).await;
        assert!(!finished.unwrap().timed_out);
        // They would take a minute.
        assert!(begin.elapsed() < Duration::from_secs(45));
        assert!(
            run(Command::new("/nowhere/program"), vec![], Duration::from_secs(1), |_| false).await.is_err()
        );
    }

    #[tokio::test]
    async fn it_ends_when_nobody_waits() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("echo $$ > {}; echo up >&2; exec sleep 60", pid.display());
        let running = tokio::spawn(run(shell(&script), vec![], Duration::from_secs(60), |_| false));
        let read = || std::fs::read_to_string(&pid).ok()?.trim().parse::<i32>().ok();
        let pid = loop {
            if let Some(pid) = read() {
                break pid;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        running.abort();
        tokio::time::timeout(Duration::from_secs(45), async {
            while ProcessIdentity::of(pid).is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
    }
}
