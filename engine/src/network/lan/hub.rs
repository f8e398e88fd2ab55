//! The cables and what moves the frames between them.
//!
//! ```text
//! a machine ─ socket ─▶ task: judge ─▶ another's queue ─▶ task: send ─ socket ─▶ the other machine
//! ```
//!
//! A frame is put into a queue at once or not at all: a machine that does not take its frames loses
//! them, and nobody waits for it. The queue is there because the socket of a machine holds ten frames
//! only (`net.unix.max_dgram_qlen`), which TCP would take for a network that loses most of them.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags};
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::frame::{self, Fate, MAX_FRAME, Mac, Offence, Station};
use super::names::Names;
use super::{GUEST_SOCKET, SWITCH_SOCKET, resolver};

/// Hardware address of the switch itself: locally administered, and of no machine (those begin with 5e).
const RESOLVER_MAC: Mac = [0x56, 0x6d, 0x64, 0x65, 0x63, 0x6b];

/// Frames that wait for a machine to take them, at most.
const QUEUE: usize = 256;

/// Pause after a cable failed in a way that is not known.
const FAILED: Duration = Duration::from_millis(100);

/// What a machine is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// As others ask for it.
    pub(super) name: String,
    pub(super) station: Station,
    /// Its folder.
    pub(super) directory: PathBuf,
}

/// All cables. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Hub {
    shared: Arc<Mutex<Table>>,
}

/// Guarded by the hub's mutex, which is held to look at it and to put a frame into queues.
#[derive(Debug, Default)]
struct Table {
    cables: HashMap<Mac, Arc<Cable>>,
    names: Names,
}

/// Keeps a machine connected; dropping it disconnects it.
#[derive(Debug)]
pub(super) struct Connected {
    hub: Hub,
    cable: Arc<Cable>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// What became of a machine's frames.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) passed: AtomicU64,
    pub(super) malformed: AtomicU64,
    pub(super) forged: AtomicU64,
    pub(super) unwanted: AtomicU64,
    /// For nobody, or for one that does not take them.
    pub(super) lost: AtomicU64,
}

#[derive(Debug)]
struct Cable {
    member: Member,
    /// Frames for the machine.
    queue: mpsc::Sender<Box<[u8]>>,
    /// The folder stays reachable however long its path is: a socket's is limited to 108 bytes.
    folder: OwnedFd,
    counters: Counters,
}

impl Hub {
    /// Connects a machine. Must be called within a tokio runtime.
    pub(super) fn connect(&self, member: Member) -> io::Result<Connected> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&member.directory, flags, Mode::empty())?;
        // Left by a switch that was killed.
        match rustix::fs::unlinkat(&folder, SWITCH_SOCKET, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let incoming = UnixDatagram::bind(within(&folder, SWITCH_SOCKET))?;
        let mac = member.station.mac;
        let (queue, waiting) = mpsc::channel(QUEUE);
        let cable = Arc::new(Cable { member, queue, folder, counters: Counters::default() });
        {
            let mut table = self.table();
            table.cables.insert(mac, Arc::clone(&cable));
            table.rename();
        }
        let tasks = [
            tokio::spawn(self.clone().serve(Arc::clone(&cable), incoming)),
            tokio::spawn(Arc::clone(&cable).deliver(waiting)),
        ];
        Ok(Connected { hub: self.clone(), cable, _tasks: tasks.map(AbortOnDropHandle::new) })
    }

    async fn serve(self, cable: Arc<Cable>, incoming: UnixDatagram) {
        // One byte more than is taken tells those that are too long.
        let mut buffer = vec![0; MAX_FRAME + 1];
        loop {
            match incoming.recv(&mut buffer).await {
                Ok(length) => self.forward(&cable, &buffer[..length]),
                Err(error) => {
                    tracing::warn!(machine = cable.member.name, %error, "a machine's frames cannot be read");
                    tokio::time::sleep(FAILED).await;
                }
            }
        }
    }

    fn forward(&self, from: &Cable, frame: &[u8]) {
        let sender = &from.member.station;
        let resolver = Station { mac: RESOLVER_MAC, address: resolver(sender.address) };
        let counters = &from.counters;
        let passed = match frame::judge(frame, sender, &resolver) {
            Fate::To(mac) => {
                let table = self.table();
                table.cables.get(&mac).is_some_and(|to| to.is_beside(sender) && to.send(frame))
            }
            Fate::Everyone => {
                let table = self.table();
                for to in table.cables.values() {
                    if to.member.station.mac != sender.mac && to.is_beside(sender) && !to.send(frame) {
                        to.counters.lost.fetch_add(1, Ordering::Relaxed);
                    }
                }
                true
            }
            Fate::WhoIsResolver => from.send(&frame::resolver_is_at(sender, &resolver)),
            Fate::Asks { port, question } => {
                let answer = self.table().names.answer(question, resolver.address);
                let answer = answer.and_then(|answer| frame::answer(sender, port, &resolver, &answer));
                answer.is_some_and(|answer| from.send(&answer))
            }
            Fate::Dropped(offence) => {
                let counter = match offence {
                    Offence::Malformed => &counters.malformed,
                    Offence::Forged => &counters.forged,
                    Offence::Unwanted => &counters.unwanted,
                };
                if counter.fetch_add(1, Ordering::Relaxed) == 0 && offence == Offence::Forged {
                    // Said once: a guest must not be able to fill the log.
                    tracing::warn!(
                        machine = from.member.name,
                        "a machine sends frames in another one's name"
                    );
                }
                return;
            }
        };
        let counter = if passed { &counters.passed } else { &counters.lost };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn rename(&mut self) {
        let mut machines: Vec<(String, Ipv4Addr)> = self
            .cables
            .values()
            .map(|cable| (cable.member.name.clone(), cable.member.station.address))
            .collect();
        machines.sort();
        self.names = Names::new(machines);
    }
}

impl Cable {
    /// Queues a frame, at once or not at all.
    fn send(&self, frame: &[u8]) -> bool {
        self.queue.try_send(frame.into()).is_ok()
    }

    /// Sends what is queued, as fast as the machine takes it.
    async fn deliver(self: Arc<Self>, mut waiting: mpsc::Receiver<Box<[u8]>>) {
        let mut socket: Option<UnixDatagram> = None;
        while let Some(frame) = waiting.recv().await {
            if let Some(socket) = &socket
                && socket.send(&frame).await.is_ok()
            {
                continue;
            }
            // The hypervisor had not made its end yet, or has ended.
            socket = self.plug().ok();
            let sent = match &socket {
                Some(socket) => socket.send(&frame).await.is_ok(),
                None => false,
            };
            if !sent {
                self.counters.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// A socket connected to the machine's: only such a one tells when more can be sent.
    fn plug(&self) -> io::Result<UnixDatagram> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(within(&self.folder, GUEST_SOCKET))?;
        Ok(socket)
    }

    /// Whether it is of the same network: an older one may still have machines that run.
    fn is_beside(&self, other: &Station) -> bool {
        resolver(self.member.station.address) == resolver(other.address)
    }
}

impl Connected {
    pub(super) fn member(&self) -> &Member {
        &self.cable.member
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.cable.counters
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut table = self.hub.table();
        // Another run of the machine may have its place.
        if table
            .cables
            .get(&self.cable.member.station.mac)
            .is_some_and(|cable| Arc::ptr_eq(cable, &self.cable))
        {
            table.cables.remove(&self.cable.member.station.mac);
            table.rename();
            drop(table);
            // The folder may be gone already.
            let _ = rustix::fs::unlinkat(&self.cable.folder, SWITCH_SOCKET, AtFlags::empty());
        }
    }
}

fn within(folder: &OwnedFd, name: &str) -> PathBuf {
    Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::lan::frame::tests::{A, B, packet};

    /// A machine's end of its cable.
    struct Guest {
        folder: tempfile::TempDir,
        socket: UnixDatagram,
        _connected: Connected,
    }

    impl Guest {
        fn new(hub: &Hub, name: &str, station: Station) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let socket = UnixDatagram::bind(folder.path().join(GUEST_SOCKET)).unwrap();
            let member = Member { name: name.into(), station, directory: folder.path().into() };
            Self { socket, _connected: hub.connect(member).unwrap(), folder }
        }

        async fn send(&self, frame: &[u8]) {
            self.socket.send_to(frame, self.folder.path().join(SWITCH_SOCKET)).await.unwrap();
        }

        async fn receive(&self) -> Vec<u8> {
            let mut buffer = vec![0; 4096];
            let length = tokio::time::timeout(Duration::from_secs(10), self.socket.recv(&mut buffer))
                .await
                .unwrap()
                .unwrap();
            buffer.truncate(length);
            buffer
        }

        fn counters(&self) -> &Counters {
            self._connected.counters()
        }
    }

    fn everybody(station: Station) -> Station {
        Station { mac: [0xff; 6], ..station }
    }

    const C: Station = Station { mac: [0x5e, 0, 0, 0, 0, 3], address: Ipv4Addr::new(10, 80, 0, 4) };

    #[tokio::test]
    async fn frames_reach_whom_they_are_for_and_nobody_else() {
        let hub = Hub::default();
        let (a, b, c) = (Guest::new(&hub, "a", A), Guest::new(&hub, "b", B), Guest::new(&hub, "c", C));
        let other = Station { address: Ipv4Addr::new(10, 81, 0, 2), mac: [0x5e, 0, 0, 0, 0, 4] };
        let elsewhere = Guest::new(&hub, "d", other);
        a.send(&packet(&A, &B, b"to b")).await;
        assert!(b.receive().await.ends_with(b"to b"));
        a.send(&packet(&A, &everybody(B), b"to all")).await;
        assert!(b.receive().await.ends_with(b"to all"));
        // The first that they get: neither their own nor what was for another.
        assert!(c.receive().await.ends_with(b"to all"));
        c.send(&packet(&C, &A, b"to a")).await;
        assert!(a.receive().await.ends_with(b"to a"));
        elsewhere.send(&packet(&other, &A, b"not beside")).await;
        elsewhere.send(&packet(&other, &everybody(A), b"nor by shouting")).await;
        c.send(&packet(&C, &A, b"next")).await;
        assert!(a.receive().await.ends_with(b"next"));
    }

    #[tokio::test]
    async fn forged_and_long_frames_are_dropped_and_counted() {
        let hub = Hub::default();
        let (a, b) = (Guest::new(&hub, "a", A), Guest::new(&hub, "b", B));
        for forged in [packet(&C, &B, b"x"), packet(&Station { mac: A.mac, ..C }, &B, b"x")] {
            a.send(&forged).await;
        }
        let mut long = packet(&A, &B, &[0; 1472]);
        long.extend([0; 2000]);
        a.send(&long).await;
        a.send(&packet(&A, &B, b"honest")).await;
        assert!(b.receive().await.ends_with(b"honest"));
        let counters = a.counters();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!((count(&counters.forged), count(&counters.malformed), count(&counters.passed)), (2, 1, 1));
    }

    #[tokio::test]
    async fn a_machine_that_takes_nothing_holds_up_nobody() {
        let hub = Hub::default();
        let (a, b, c) = (Guest::new(&hub, "a", A), Guest::new(&hub, "b", B), Guest::new(&hub, "c", C));
        for number in 0..2000_u32 {
            a.send(&packet(&A, &B, &number.to_be_bytes())).await;
        }
        a.send(&packet(&A, &C, b"to c")).await;
        assert!(c.receive().await.ends_with(b"to c"));
        assert!(a.counters().lost.load(Ordering::Relaxed) > 0);
        assert!(b.receive().await.ends_with(&0_u32.to_be_bytes()));
    }

    #[tokio::test]
    async fn a_switch_that_is_started_anew_goes_on_with_the_machines_there_are() {
        let hub = Hub::default();
        let (a, b) = (Guest::new(&hub, "a", A), Guest::new(&hub, "b", B));
        // As a killed one leaves them: its sockets lie there and nobody reads them.
        let Guest { folder: of_a, socket: guest_a, _connected: first } = a;
        std::mem::forget(first);
        let anew = Hub::default();
        let member = |name: &str, station, directory: &Path| Member {
            name: name.into(),
            station,
            directory: directory.into(),
        };
        let _a = anew.connect(member("a", A, of_a.path())).unwrap();
        let _b = anew.connect(member("b", B, b.folder.path())).unwrap();
        guest_a.send_to(&packet(&A, &B, b"goes on"), of_a.path().join(SWITCH_SOCKET)).await.unwrap();
        assert!(b.receive().await.ends_with(b"goes on"));
    }

    #[tokio::test]
    async fn names_follow_who_is_there() {
        let hub = Hub::default();
        let a = Guest::new(&hub, "a", A);
        let resolver = Station { mac: RESOLVER_MAC, address: resolver(A.address) };
        let question = b"\xab\xcd\x01\0\0\x01\0\0\0\0\0\0\x01b\x06vmdeck\0\0\x01\0\x01";
        let ask = async || {
            let mut frame = frame::answer(&resolver, 53, &A, question).unwrap();
            frame[34..36].copy_from_slice(&4000_u16.to_be_bytes());
            a.send(&frame).await;
            a.receive().await
        };
        assert_eq!(ask().await[42 + 3], 3, "no such name");
        let b = Guest::new(&hub, "b", B);
        assert!(ask().await.ends_with(&B.address.octets()));
        drop(b);
        assert_eq!(ask().await[42 + 3], 3, "no such name any more");
        // Who has its address is answered by the switch as well.
        let mut asks = frame::resolver_is_at(&everybody(resolver), &A);
        asks[21] = 1;
        a.send(&asks).await;
        let answer = a.receive().await;
        assert_eq!((&answer[22..28], &answer[28..32]), (&RESOLVER_MAC[..], &resolver.address.octets()[..]));
    }
}
