//! The host's side of the channel against the real agent, in this process, without a hypervisor.
//! Commands run on this host.

mod commands;
mod hostile;
mod reconnect;
mod services;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use vmdeck_guest::agent::{Agent, Lifetime};
use vmdeck_protocol::message::{Failure, FailureClass, Stage};

use super::*;

/// What takes some tenths of a second has a minute, for a host that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// An agent on a thread, behind sockets in a folder as a hypervisor makes them.
struct Machine {
    folder: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Machine {
    fn start(channels: usize, prepare: impl FnOnce(&mut Agent) + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listeners: Vec<UnixListener> = (0..channels)
            .map(|number| {
                let listener =
                    UnixListener::bind(folder.path().join(format!("channel-{number}.sock"))).unwrap();
                listener.set_nonblocking(true).unwrap();
                listener
            })
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut agent = Agent::new().unwrap();
            prepare(&mut agent);
            while !stopped.load(Ordering::Relaxed) {
                for listener in &listeners {
                    while let Ok((stream, _)) = listener.accept() {
                        agent.add_port(OwnedFd::from(stream), Lifetime::Once).unwrap();
                    }
                }
                agent.turn(Duration::from_millis(10)).unwrap();
            }
        });
        Self { folder, stop, thread: Some(thread) }
    }

    fn ready() -> Self {
        Self::start(1, |agent| {
            agent.set_environment(vec!["FROM_IMAGE=yes".to_owned()]);
            for stage in [Stage::Init, Stage::Root, Stage::Agent, Stage::Ready] {
                agent.reach(stage);
            }
        })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    async fn connect(&self) -> GuestChannel {
        GuestChannel::connect(self.path(), &CancellationToken::new()).await.unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.expect("the agent does not panic");
            }
        }
    }
}

fn request(command: &[&str]) -> ExecRequest {
    ExecRequest { command: command.iter().map(|&word| word.to_owned()).collect(), ..Default::default() }
}

fn shell(script: &str) -> ExecRequest {
    request(&["/bin/sh", "-c", script])
}

/// Tells its pid and waits; a hang-up leaves a mark, a kill does not.
fn marking_its_hang_up(mark: &Path) -> ExecRequest {
    let trap = format!("trap 'echo > {}; exit' HUP", mark.display());
    shell(&format!("{trap}; echo pid=$$=; sleep 1000 & wait"))
}

/// All a command writes, and how it ends.
async fn finish(mut session: ExecSession) -> (Vec<u8>, Vec<u8>, ExecStatus) {
    drop(session.input);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(output) = session.output.recv().await {
        match output {
            ExecOutput::Stdout(data) => stdout.extend(data),
            ExecOutput::Stderr(data) => stderr.extend(data),
        }
    }
    (stdout, stderr, session.end.status().await.unwrap())
}

/// Reads until `mark` was written.
async fn read_until(session: &mut ExecSession, mark: &str) -> String {
    let mut text = String::new();
    while !text.contains(mark) {
        let output = tokio::time::timeout(PATIENCE, session.output.recv()).await;
        let Ok(Some(ExecOutput::Stdout(data) | ExecOutput::Stderr(data))) = output else {
            panic!("no `{mark}` after {text:?}");
        };
        text.push_str(&String::from_utf8_lossy(&data));
    }
    text
}

/// Whether the process ends soon.
async fn ends(pid: u32, within: Duration) -> bool {
    let proc = format!("/proc/{pid}/stat");
    let begin = std::time::Instant::now();
    while begin.elapsed() < within {
        // Something else may have to reap it: a zombie has ended too.
        match std::fs::read_to_string(&proc) {
            Err(_) => return true,
            Ok(stat) if stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")) => return true,
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_and_failure_are_told() {
    let machine = Machine::start(1, |agent| {
        agent.reach(Stage::Init);
        agent.fail(Failure { class: FailureClass::NoRootDevice, message: "no \x1b[31mdisk".to_owned() });
    });
    let channel = machine.connect().await;
    let error = channel.ready().await.unwrap_err();
    assert!(error.full_message().contains("no \\u{1b}[31mdisk"), "{}", error.full_message());
    let progress = channel.progress().borrow().clone();
    assert_eq!(progress.stages.iter().map(|(stage, _)| *stage).collect::<Vec<_>>(), [GuestStage::Init]);
    assert_eq!(progress.failure.unwrap().class, BootFailureClass::NoRootDevice);
    assert!(progress.release.is_some_and(|release| !release.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_waits_for_the_machine() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let machine = Machine::start(1, move |agent| {
        std::thread::spawn(move || go.send(()).ok());
        wait.recv().ok();
        agent.reach(Stage::Ready);
    });
    let channel = machine.connect().await;
    let (stdout, _, status) = finish(channel.exec(request(&["echo", "up"])).await.unwrap()).await;
    assert_eq!((stdout.as_slice(), status), (&b"up\n"[..], ExecStatus::Exited(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn power_off_returns_when_it_was_agreed() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let machine = Machine::start(1, move |agent| {
        agent.set_power_switch(Box::new(move |request| sender.send(request.grace_milliseconds).unwrap()));
    });
    machine.connect().await.power_off().await.unwrap();
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_can_be_read() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    let first = channel.stats().await.unwrap();
    let second = channel.stats().await.unwrap();
    assert!(second.uptime_nanoseconds > first.uptime_nanoseconds);
    assert!(first.memory.total >= first.memory.available && first.memory.total > 0);
    assert!(first.processor.count > 0 && first.processor.user_milliseconds > 0);
    drop(machine);
    assert!(channel.stats().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_takes_a_channel_and_gives_it_back() {
    let machine = Machine::start(2, |agent| agent.reach(Stage::Ready));
    let first = machine.connect().await;
    let second = machine.connect().await;
    first.ready().await.unwrap();
    second.ready().await.unwrap();
    // All are taken: the next one waits, and can be cancelled.
    let cancel = CancellationToken::new();
    let waiting = tokio::spawn({
        let (path, cancel) = (machine.path().to_owned(), cancel.clone());
        async move { GuestChannel::connect(&path, &cancel).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    cancel.cancel();
    assert!(waiting.await.unwrap().unwrap_err().is_cancelled());
    let clone = first.clone();
    drop(first);
    clone.ready().await.unwrap();
    drop(clone);
    machine.connect().await.ready().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_too_deep_for_a_socket_path_is_no_obstacle() {
    let machine = Machine::ready();
    let deep = machine.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    std::fs::rename(machine.path().join("channel-0.sock"), deep.join("channel-0.sock")).unwrap();
    let channel = GuestChannel::connect(&deep, &CancellationToken::new()).await.unwrap();
    channel.ready().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_goes_away_ends_everything() {
    let machine = Machine::ready();
    let channel = machine.connect().await;
    let mut session = channel.exec(shell("echo up; exec sleep 1000")).await.unwrap();
    read_until(&mut session, "up").await;
    let mut progress = channel.progress();
    drop(machine);
    assert!(session.output.recv().await.is_none());
    assert!(session.end.status().await.is_err());
    assert!(session.input.write(Bytes::from_static(b"x")).await.is_err());
    assert!(session.control.signal(15).await.is_err());
    while progress.changed().await.is_ok() {}
    assert!(channel.exec(request(&["true"])).await.is_err());
    assert!(channel.power_off().await.is_err());
}
