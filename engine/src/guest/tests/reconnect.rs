//! A port outlives the processes that use it: a stand-in for the hypervisor keeps one agent's port
//! and lets clients come and go.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use vmdeck_protocol::handshake::Nonce;
use vmdeck_protocol::message::{Exec, HostMessage};

use super::*;

/// Relays between one client at a time and the agent's port, which never sees that one went away:
/// the worst case, as when the next client comes before the guest has looked.
struct Hypervisor {
    machine: Machine,
}

impl Hypervisor {
    fn start() -> Self {
        let (port, agents) = UnixStream::pair().unwrap();
        let machine = Machine::start(0, move |agent| {
            agent.add_port(OwnedFd::from(agents), Lifetime::Once).unwrap();
            agent.reach(Stage::Ready);
        });
        let listener = UnixListener::bind(machine.path().join("channel-0.sock")).unwrap();
        let client: Arc<Mutex<Option<UnixStream>>> = Arc::default();
        let mut from_guest = port.try_clone().unwrap();
        let to_client = Arc::clone(&client);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = from_guest.read(&mut buffer) {
                let current = to_client.lock().unwrap().as_ref().map(|client| client.try_clone().unwrap());
                // What cannot be delivered is lost in part, as it is in a hypervisor.
                if let Some(mut client) = current {
                    drop(client.write_all(&buffer[..length]));
                }
            }
        });
        std::thread::spawn(move || {
            let mut to_guest = port;
            while let Ok((mut stream, _)) = listener.accept() {
                *client.lock().unwrap() = Some(stream.try_clone().unwrap());
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if to_guest.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
                *client.lock().unwrap() = None;
            }
        });
        Self { machine }
    }
}

/// A client that dies in the middle of what it says.
fn die_within(path: &Path, cut: usize) {
    let mut stream = UnixStream::connect(path.join("channel-0.sock")).unwrap();
    let mut wire = Nonce::new([0x5a; 16]).preamble().to_vec();
    let exec = Exec { command: vec!["yes".to_owned()], ..Exec::default() };
    HostMessage::Exec { stream: 1, exec }.encode(&mut wire).unwrap();
    HostMessage::Stdin { stream: 1, data: vec![0x11; 30_000] }.encode(&mut wire).unwrap();
    stream.write_all(&wire[..wire.len().min(cut)]).unwrap();
    // Takes some of what the agent answers, and leaves the rest to the next one.
    let mut some = [0; 100];
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let _ = stream.read(&mut some);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_client_is_understood_wherever_the_one_before_stopped() {
    let hypervisor = Hypervisor::start();
    let path = hypervisor.machine.path();
    for cut in [0, 1, 15, 16, 17, 40, 48, 49, 55, 60, 90, 200, 5000, 30_000, 100_000] {
        die_within(path, cut);
        let channel = GuestChannel::connect(path, &CancellationToken::new()).await.unwrap();
        let answered = tokio::time::timeout(PATIENCE, channel.exec(shell("echo fine")));
        let session = answered.await.unwrap_or_else(|_| panic!("no answer after {cut} bytes")).unwrap();
        assert_eq!(finish(session).await.0, b"fine\n", "after {cut} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_client_started_is_hung_up_by_the_next() {
    let hypervisor = Hypervisor::start();
    let path = hypervisor.machine.path();
    let channel = GuestChannel::connect(path, &CancellationToken::new()).await.unwrap();
    let mark = path.join("hung-up");
    let mut session = channel.exec(marking_its_hang_up(&mark)).await.unwrap();
    let text = read_until(&mut session, "=\n").await;
    let pid: u32 = text.split('=').nth(1).unwrap().parse().unwrap();
    drop((session, channel));
    let channel = GuestChannel::connect(path, &CancellationToken::new()).await.unwrap();
    channel.ready().await.unwrap();
    assert!(ends(pid, PATIENCE).await);
    assert!(mark.exists(), "it was killed");
}
