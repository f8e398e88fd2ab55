//! The agent: serves the channels, runs commands, switches the machine off.
//!
//! One thread and one epoll set. Descriptors are registered edge-triggered and remembered as
//! "readable" until a read says otherwise: a virtio-serial port without an engine is in a permanent
//! state of hang-up, which level-triggered polling would report for ever, and a session that may not
//! send now must not wake anybody.

mod discovery;
mod port;
mod session;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::time::{ClockId, clock_gettime};
use vmdeck_protocol::frame::Frame;
use vmdeck_protocol::message::{
    Exec, Failure, GuestMessage, Hello, HostMessage, MessageError, PowerOff, Reached, Refusal, RefusalReason,
    Stage,
};

use vmdeck_protocol::service::{SERVICE_ARGUMENT, Service};

use crate::command;
use discovery::Discovery;
pub use port::Lifetime;
use port::{Port, PortEvent};
use session::{Ends, Session};

/// Commands that one engine can have running at once.
const SESSIONS_PER_PORT: usize = 256;

/// Warnings kept for engines that connect later: the first ones, which have their causes nearest.
const MAX_WARNINGS: usize = 16;

/// Longest text sent in a refusal or failure.
const MAX_TEXT: usize = 2000;

/// A port that takes no more is tried again after this time, should its wake-up have been missed.
const FLUSH_RETRY: Duration = Duration::from_millis(50);

/// Turns of work before the descriptors are looked at again.
const ROUNDS: usize = 16;

/// What is called when an engine asks for the power to be switched off.
pub type PowerSwitch = Box<dyn FnMut(&PowerOff) + Send>;

/// The agent's state.
pub struct Agent {
    epoll: Epoll,
    ports: Vec<Port>,
    sessions: BTreeMap<u32, Session>,
    next_session: u32,
    discovery: Option<Discovery>,
    release: String,
    stages: Vec<Reached>,
    failure: Option<Failure>,
    warnings: Vec<String>,
    environment: Vec<String>,
    /// The program that services are run by: this one.
    service_program: String,
    power: Option<PowerSwitch>,
    /// There is work that waits for no descriptor.
    busy: bool,
    buffer: Vec<u8>,
}

/// What an epoll event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Port(usize),
    Session(u32, Role),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Process,
    Input,
    Output(u8),
    Terminal,
}

impl Agent {
    /// An agent without a channel that refuses commands until it has [reached](Self::reach)
    /// [`Stage::Ready`].
    pub fn new() -> io::Result<Self> {
        let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            ports: Vec::new(),
            sessions: BTreeMap::new(),
            next_session: 1,
            discovery: None,
            release,
            stages: Vec::new(),
            failure: None,
            warnings: Vec::new(),
            environment: Vec::new(),
            service_program: "/proc/self/exe".to_owned(),
            power: None,
            busy: false,
            buffer: vec![0; 64 * 1024],
        })
    }

    /// An agent to follow this one, which died: it knows what was told, and finds the channels anew.
    pub fn successor(&self) -> io::Result<Self> {
        let mut successor = Self::new()?;
        // The last stages are reached once more, by the successor.
        successor.stages =
            self.stages.iter().filter(|reached| reached.stage < Stage::Agent).copied().collect();
        successor.warnings.clone_from(&self.warnings);
        successor.environment.clone_from(&self.environment);
        successor.discover();
        Ok(successor)
    }

    /// Looks for the machine's virtio-serial ports from now on.
    pub fn discover(&mut self) {
        self.discovery = Some(Discovery::new());
        self.scan();
    }

    /// Serves a channel.
    pub fn add_port(&mut self, descriptor: OwnedFd, lifetime: Lifetime) -> io::Result<()> {
        command::set_nonblocking(&descriptor)?;
        let token = Token::Port(self.ports.len());
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP;
        self.epoll.add(&descriptor, EpollEvent::new(flags | EpollFlags::EPOLLET, token.pack()))?;
        self.ports.push(Port::new(descriptor, lifetime));
        self.busy = true;
        Ok(())
    }

    /// The environment of the image, `NAME=value`.
    pub fn set_environment(&mut self, environment: Vec<String>) {
        self.environment = environment;
    }

    /// Which program to run services by, where that is not this one.
    pub fn set_service_program(&mut self, program: String) {
        self.service_program = program;
    }

    /// What to do when an engine wants the power off.
    pub fn set_power_switch(&mut self, power: PowerSwitch) {
        self.power = Some(power);
    }

    /// Tells all engines, now and later, that a stage is reached.
    pub fn reach(&mut self, stage: Stage) {
        // Whoever waits for the stage knows by then what went wrong before it.
        self.warn();
        let reached = Reached { stage, nanoseconds: nanoseconds_since_boot() };
        self.stages.push(reached);
        self.tell_all(&GuestMessage::Reached { reached });
    }

    /// Tells all engines, now and later, that the machine cannot go on.
    pub fn fail(&mut self, mut failure: Failure) {
        failure.message = cut(failure.message);
        self.tell_all(&GuestMessage::Failed { failure: failure.clone() });
        self.failure = Some(failure);
    }

    /// Closes all channels: another process serves them now.
    pub fn release(&mut self) {
        self.ports.clear();
        self.discovery = None;
    }

    /// Whether an engine is connected and everything meant for the connected ones was written.
    pub fn has_told(&self) -> bool {
        self.ports.iter().any(|port| port.open) && !self.ports.iter().any(Port::has_output)
    }

    /// Whether no channel can ever become active again: all were sockets and are closed.
    pub fn is_abandoned(&self) -> bool {
        self.discovery.is_none() && self.ports.iter().all(|port| port.dead) && self.sessions.is_empty()
    }

    /// Waits up to `longest` for something to do and does it.
    pub fn turn(&mut self, longest: Duration) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        let timeout = self.timeout(longest);
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            self.note(Token::unpack(event.data()), event.events());
        }
        self.scan();
        self.busy = true;
        for _ in 0..ROUNDS {
            if !self.busy {
                break;
            }
            self.busy = self.work();
        }
        self.warn();
        let now = Instant::now();
        let mut events = Vec::new();
        for index in 0..self.ports.len() {
            self.ports[index].expire(now, &mut events);
            for event in events.drain(..) {
                self.handle(index, event);
            }
        }
        for session in self.sessions.values_mut() {
            session.expire(now);
        }
        self.sessions.retain(|_, session| !session.is_gone());
        Ok(())
    }

    fn tell_all(&mut self, message: &GuestMessage) {
        for port in &mut self.ports {
            port.send(message);
            port.flush();
        }
    }

    fn warn(&mut self) {
        for text in crate::log::take_warnings().into_iter().map(cut) {
            self.tell_all(&GuestMessage::Warned { text: text.clone() });
            if self.warnings.len() < MAX_WARNINGS {
                self.warnings.push(text);
            }
        }
    }

    fn scan(&mut self) {
        let Some(discovery) = &mut self.discovery else { return };
        for descriptor in discovery.scan() {
            if let Err(error) = self.add_port(descriptor, Lifetime::Reconnects) {
                crate::log::warning(&format!("a channel cannot be served: {error}"));
            }
        }
    }

    fn timeout(&self, longest: Duration) -> EpollTimeout {
        if self.busy {
            return EpollTimeout::ZERO;
        }
        let now = Instant::now();
        let deadlines = self.sessions.values().filter_map(Session::deadline);
        let deadlines = deadlines.chain(self.discovery.as_ref().and_then(Discovery::next_scan));
        let deadlines = deadlines.chain(self.ports.iter().filter_map(Port::deadline));
        let mut wait = deadlines.map(|at| at.saturating_duration_since(now)).fold(longest, Duration::min);
        if self.ports.iter().any(Port::has_output) {
            wait = wait.min(FLUSH_RETRY);
        }
        // Rounded up: a deadline must have passed when the wait ends.
        let milliseconds = i32::try_from(wait.as_millis() + 1).unwrap_or(i32::MAX);
        EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::ZERO)
    }

    /// Remembers what an event says.
    fn note(&mut self, token: Token, flags: EpollFlags) {
        match token {
            Token::Port(index) => {
                if let Some(port) = self.ports.get_mut(index) {
                    port.readable = true;
                }
            }
            Token::Session(number, role) => {
                let Some(session) = self.sessions.get_mut(&number) else { return };
                match role {
                    Role::Process => session.reap(),
                    Role::Input => session.input_writable = true,
                    Role::Output(output) => {
                        if let Some(output) = session.outputs().get_mut(usize::from(output)) {
                            output.readable = true;
                        }
                    }
                    Role::Terminal => {
                        session.input_writable |= flags.contains(EpollFlags::EPOLLOUT);
                        for output in session.outputs() {
                            output.readable = true;
                        }
                    }
                }
            }
        }
    }

    /// One share of all that can be done now. Returns whether there is more.
    fn work(&mut self) -> bool {
        let mut more = false;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut events = Vec::new();
        for index in 0..self.ports.len() {
            if !self.ports[index].readable || self.ports[index].dead {
                continue;
            }
            self.ports[index].receive(&mut buffer, &mut events);
            for event in events.drain(..) {
                self.handle(index, event);
            }
            more |= self.ports[index].readable;
        }
        for session in self.sessions.values_mut() {
            let port = session.port.and_then(|index| self.ports.get_mut(index));
            more |= session.pump(port, &mut buffer);
        }
        for port in &mut self.ports {
            let congested = port.is_congested();
            port.flush();
            // Those who waited for it can go on.
            more |= congested && !port.is_congested();
        }
        self.buffer = buffer;
        more
    }

    fn handle(&mut self, index: usize, event: PortEvent) {
        match event {
            PortEvent::Opened => {
                let hello = Hello {
                    version: vmdeck_protocol::VERSION,
                    release: self.release.clone(),
                    stages: self.stages.clone(),
                    failure: self.failure.clone(),
                    warnings: self.warnings.clone(),
                };
                self.ports[index].send(&GuestMessage::Hello { hello });
            }
            PortEvent::Closed => {
                for session in std::mem::take(&mut self.ports[index].sessions).into_values() {
                    if let Some(session) = self.sessions.get_mut(&session) {
                        session.hang_up();
                    }
                }
            }
            PortEvent::Frame(frame) => self.frame(index, frame),
        }
    }

    fn frame(&mut self, index: usize, frame: Frame) {
        let message = match HostMessage::decode(frame) {
            Ok(message) => message,
            Err(MessageError::Unknown { stream: 0, .. }) => return,
            Err(MessageError::Unknown { stream, kind }) => {
                // Only what begins a stream wants an answer; the rest belongs to a refused one.
                if !self.ports[index].sessions.contains_key(&stream) {
                    let message =
                        format!("the agent of this machine is older and has no request {kind:#04x}");
                    self.refuse(index, stream, Refusal { reason: RefusalReason::Unknown, message });
                }
                return;
            }
            Err(error) => return crate::log::warning(&format!("a request was not understood: {error}")),
        };
        match message {
            HostMessage::Exec { stream, exec } => self.exec(index, stream, &exec),
            HostMessage::Serve { stream, serve } => self.serve(index, stream, serve.service, serve.user),
            HostMessage::Sync { stream } => self.serve(index, stream, Service::Sync, None),
            HostMessage::Grow { stream, grow } => {
                self.serve(index, stream, Service::Grow { bytes: grow.bytes }, None);
            }
            HostMessage::PowerOff { power_off } => {
                self.ports[index].send(&GuestMessage::PoweringOff);
                self.ports[index].flush();
                if let Some(power) = &mut self.power {
                    power(&power_off);
                }
            }
            HostMessage::Stats { stream } => {
                self.ports[index].send(&GuestMessage::Stats { stream, stats: crate::stats::read() });
            }
            HostMessage::Ping { number } => self.ports[index].send(&GuestMessage::Pong { number }),
            HostMessage::HangUp { stream } => {
                if let Some(session) = self.ports[index].sessions.remove(&stream)
                    && let Some(session) = self.sessions.get_mut(&session)
                {
                    session.hang_up();
                }
            }
            HostMessage::Stdin { stream, data } => {
                self.session(index, stream, |session| session.input(data));
            }
            HostMessage::StdinEnd { stream } => self.session(index, stream, |session| {
                session.end_input();
                Ok(())
            }),
            HostMessage::Credit { stream, bytes } => {
                self.session(index, stream, |session| session.grant(bytes));
            }
            HostMessage::Signal { stream, signal } => self.session(index, stream, |session| {
                session.signal(signal);
                Ok(())
            }),
            HostMessage::Resize { stream, columns, rows } => self.session(index, stream, |session| {
                session.resize(columns, rows);
                Ok(())
            }),
        }
    }

    /// Does something with a session, if it is still there. One whose engine breaks the rules of flow
    /// control is hung up.
    fn session(
        &mut self,
        index: usize,
        stream: u32,
        act: impl FnOnce(&mut Session) -> Result<(), vmdeck_protocol::flow::FlowError>,
    ) {
        let Some(session) = self.ports[index].sessions.get(&stream) else { return };
        let Some(session) = self.sessions.get_mut(session) else { return };
        if let Err(error) = act(session) {
            session.hang_up();
            self.ports[index].sessions.remove(&stream);
            self.refuse(index, stream, Refusal { reason: RefusalReason::Failed, message: error.to_string() });
        }
    }

    fn serve(&mut self, index: usize, stream: u32, service: Service, user: Option<String>) {
        let request = serde_json::to_string(&service).unwrap_or_default();
        let command = vec![self.service_program.clone(), SERVICE_ARGUMENT.to_owned(), request];
        // Paths that do not begin with `/` begin in the user's home.
        let takes_paths = matches!(service, Service::Send { .. } | Service::Receive { .. } | Service::Sftp);
        let working_directory = Some("/".to_owned()).filter(|_| !takes_paths);
        self.exec(index, stream, &Exec { command, working_directory, user, ..Exec::default() });
    }

    fn exec(&mut self, index: usize, stream: u32, exec: &Exec) {
        let busy = |message: &str| Refusal { reason: RefusalReason::Failed, message: message.to_owned() };
        let sessions = &self.ports[index].sessions;
        let started = if !self.stages.iter().any(|reached| reached.stage == Stage::Ready) {
            Err(busy("the machine is still booting"))
        } else if stream == 0 || sessions.contains_key(&stream) {
            Err(busy("the stream is in use"))
        } else if sessions.len() >= SESSIONS_PER_PORT {
            Err(busy("too many commands run at once"))
        } else {
            command::start(exec, &self.environment)
        };
        let running = match started {
            Ok(running) => running,
            Err(refusal) => return self.refuse(index, stream, refusal),
        };
        let pid = u32::try_from(running.pid.as_raw()).unwrap_or_default();
        let number = self.next_session;
        self.next_session = self.next_session.wrapping_add(1);
        let mut session = Session::new(index, stream, running);
        if let Err(error) = self.register(number, &mut session) {
            session.hang_up();
            self.sessions.insert(number, session);
            return self.refuse(index, stream, busy(&format!("the command cannot be watched: {error}")));
        }
        self.sessions.insert(number, session);
        self.ports[index].sessions.insert(stream, number);
        self.ports[index].send(&GuestMessage::Started { stream, pid });
    }

    fn refuse(&mut self, index: usize, stream: u32, mut refusal: Refusal) {
        refusal.message = cut(refusal.message);
        self.ports[index].send(&GuestMessage::Refused { stream, refusal });
    }

    fn register(&self, number: u32, session: &mut Session) -> nix::Result<()> {
        let (input, output) = (EpollFlags::EPOLLOUT, EpollFlags::EPOLLIN);
        let add = |descriptor: Option<&OwnedFd>, role: Role, flags: EpollFlags| match descriptor {
            Some(descriptor) => {
                let event = EpollEvent::new(flags | EpollFlags::EPOLLET, Token::Session(number, role).pack());
                self.epoll.add(descriptor.as_fd(), event)
            }
            None => Ok(()),
        };
        match &session.ends {
            Ends::Pipes { stdin, outputs: [stdout, stderr] } => {
                add(stdin.as_ref(), Role::Input, input)?;
                add(stdout.descriptor.as_ref(), Role::Output(0), output)?;
                add(stderr.descriptor.as_ref(), Role::Output(1), output)?;
            }
            Ends::Terminal(terminal) => {
                add(terminal.descriptor.as_ref(), Role::Terminal, input | output)?;
            }
        }
        add(session.pidfd.as_ref(), Role::Process, output)
    }
}

impl Token {
    fn pack(self) -> u64 {
        match self {
            Self::Port(index) => index as u64,
            Self::Session(number, role) => {
                let role = match role {
                    Role::Process => 1,
                    Role::Input => 2,
                    Role::Terminal => 3,
                    Role::Output(output) => 4 + u64::from(output),
                };
                1 << 63 | u64::from(number) << 8 | role
            }
        }
    }

    fn unpack(packed: u64) -> Self {
        if packed >> 63 == 0 {
            return Self::Port(usize::try_from(packed).unwrap_or(usize::MAX));
        }
        let number = u32::try_from(packed >> 8 & u64::from(u32::MAX)).unwrap_or_default();
        let role = match packed & 0xff {
            1 => Role::Process,
            2 => Role::Input,
            3 => Role::Terminal,
            4 => Role::Output(0),
            _ => Role::Output(1),
        };
        Self::Session(number, role)
    }
}

/// Time since the kernel started, suspension included.
fn nanoseconds_since_boot() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .ok()
        .and_then(|time| u64::try_from(Duration::from(time).as_nanos()).ok())
        .unwrap_or_default()
}

/// A text that surely fits a message.
fn cut(text: String) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_packing() {
        for token in [
            Token::Port(0),
            Token::Port(7),
            Token::Session(1, Role::Process),
            Token::Session(u32::MAX, Role::Output(1)),
            Token::Session(9, Role::Terminal),
            Token::Session(9, Role::Input),
        ] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
