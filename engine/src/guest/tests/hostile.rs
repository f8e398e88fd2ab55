//! Guests that do not keep to the rules.

use std::io::{Read, Write};

use vmdeck_protocol::flow::WINDOW;
use vmdeck_protocol::message::{GuestMessage, Hello, Reached};

use super::*;

/// A guest that answers the handshake, and then says what it is told to.
fn guest(folder: &Path, speak: impl FnOnce(std::os::unix::net::UnixStream) + Send + 'static) {
    let listener = UnixListener::bind(folder.join("channel-0.sock")).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut preamble = [0; 48];
        stream.read_exact(&mut preamble).unwrap();
        stream.write_all(&preamble).unwrap();
        speak(stream);
    });
}

fn hello() -> Vec<u8> {
    let stages = vec![Reached { stage: Stage::Ready, nanoseconds: u64::MAX }];
    let hello =
        Hello { version: vmdeck_protocol::VERSION, release: "r".repeat(20_000), stages, ..Hello::default() };
    wire(&[GuestMessage::Hello { hello }])
}

fn wire(messages: &[GuestMessage]) -> Vec<u8> {
    let mut wire = Vec::new();
    for message in messages {
        message.encode(&mut wire).unwrap();
    }
    wire
}

async fn connect(folder: &Path) -> GuestChannel {
    GuestChannel::connect(folder, &CancellationToken::new()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_breaks_the_connection_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    guest(folder.path(), |mut stream| {
        let _ = stream.write_all(&[0xee; 100_000]);
        std::thread::sleep(Duration::from_secs(5));
    });
    let error = connect(folder.path()).await.ready().await.unwrap_err().full_message();
    assert!(error.contains("not one"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_is_said() {
    let folder = tempfile::tempdir().unwrap();
    guest(folder.path(), |mut stream| {
        let hello = Hello { version: 999, ..Hello::default() };
        let _ = stream.write_all(&wire(&[GuestMessage::Hello { hello }]));
        std::thread::sleep(Duration::from_secs(5));
    });
    let error = connect(folder.path()).await.ready().await.unwrap_err().full_message();
    assert!(error.contains("version 999"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_cut_and_repeats_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    guest(folder.path(), move |mut stream| {
        let reached = Reached { stage: Stage::Root, nanoseconds: 1 };
        let _ = stream.write_all(&wire(&vec![GuestMessage::Reached { reached }; 5000]));
        let _ = stream.write_all(&hello());
        let _ = wait.recv();
    });
    let channel = connect(folder.path()).await;
    channel.ready().await.unwrap();
    let progress = channel.progress().borrow().clone();
    assert_eq!(progress.stages.len(), 2);
    assert!(progress.release.unwrap().len() <= 4000);
    drop(done);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_output_than_was_granted_breaks_the_connection() {
    for flood in [vec![7; 30_000], vec![]] {
        let folder = tempfile::tempdir().unwrap();
        guest(folder.path(), move |mut stream| {
            let _ = stream.write_all(&hello());
            let _ = stream.read(&mut [0; 1000]);
            let started = GuestMessage::Started { stream: 1, pid: 1 };
            let _ = stream.write_all(&wire(&[started]));
            let output = wire(&[GuestMessage::Stdout { stream: 1, data: flood }]);
            // Until the other side closes.
            while stream.write_all(&output).is_ok() {}
        });
        let channel = connect(folder.path()).await;
        let mut session = channel.exec(request(&["x"])).await.unwrap();
        let mut received = 0;
        // A reader that takes its time.
        tokio::time::sleep(Duration::from_millis(300)).await;
        while let Some(ExecOutput::Stdout(data)) = session.output.recv().await {
            received += data.len();
        }
        assert!(received <= WINDOW as usize, "{received}");
        let error = session.end.status().await.unwrap_err().full_message();
        assert!(error.contains("beyond the credit"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_credit_than_the_window_breaks_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    guest(folder.path(), |mut stream| {
        let _ = stream.write_all(&hello());
        // The request: an answer before it would be one to nothing.
        let _ = stream.read(&mut [0; 1000]);
        let _ = stream.write_all(&wire(&[
            GuestMessage::Started { stream: 1, pid: 1 },
            GuestMessage::Credit { stream: 1, bytes: u32::MAX },
        ]));
        std::thread::sleep(Duration::from_secs(5));
    });
    let channel = connect(folder.path()).await;
    let mut session = channel.exec(request(&["x"])).await.unwrap();
    let error = session.end.status().await.unwrap_err().full_message();
    assert!(error.contains("beyond the window"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_for_streams_that_are_not_there_are_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    guest(folder.path(), move |mut stream| {
        let _ = stream.write_all(&wire(&[
            GuestMessage::Started { stream: 77, pid: 1 },
            GuestMessage::Stdout { stream: 77, data: vec![0; 60_000] },
            GuestMessage::Credit { stream: 0, bytes: 9 },
            GuestMessage::Pong { number: 3 },
        ]));
        let _ = stream.write_all(&hello());
        let _ = wait.recv();
    });
    connect(folder.path()).await.ready().await.unwrap();
    drop(done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_answers_can_be_left() {
    let folder = tempfile::tempdir().unwrap();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    guest(folder.path(), move |mut stream| {
        let _ = stream.write_all(&hello());
        let _ = wait.recv();
    });
    let channel = connect(folder.path()).await;
    let waiting = tokio::time::timeout(Duration::from_millis(200), channel.exec(request(&["x"])));
    assert!(waiting.await.is_err());
    drop(channel);
    drop(done);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_agent_refuses_what_it_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    guest(folder.path(), move |mut stream| {
        let _ = stream.write_all(&hello());
        let _ = stream.read(&mut [0; 1000]);
        let refusal = vmdeck_protocol::message::Refusal {
            reason: vmdeck_protocol::message::RefusalReason::Unknown,
            message: "no request 0x0a".to_owned(),
        };
        let _ = stream.write_all(&wire(&[GuestMessage::Refused { stream: 1, refusal }]));
        let _ = wait.recv();
    });
    let error = connect(folder.path()).await.stats().await.unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("older vmdeck")), "{error}");
    assert!(is_unknown(&error));
    drop(done);
}
