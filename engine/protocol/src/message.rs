//! What the frames carry.
//!
//! Structured messages are JSON, so that a field can be added; what flows often is a few plain
//! bytes. Numbers are little-endian. Stream numbers are chosen by the engine, each is used once
//! per connection.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::frame::{self, Frame, PayloadTooLong};
use crate::service::Serve;
use crate::stats::Stats;

/// From the engine to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMessage {
    /// Start a command. Answered by [`GuestMessage::Started`] or [`GuestMessage::Refused`].
    Exec {
        stream: u32,
        exec: Exec,
    },
    /// Start a service of the agent's own, which runs like a command; an agent that is older
    /// refuses it.
    Serve {
        stream: u32,
        serve: Serve,
    },
    /// Data for its standard input.
    Stdin {
        stream: u32,
        data: Vec<u8>,
    },
    /// There is no more standard input.
    StdinEnd {
        stream: u32,
    },
    /// So many bytes more of output may be sent ([`crate::flow`]).
    Credit {
        stream: u32,
        bytes: u32,
    },
    /// Linux signal number, for the process group.
    Signal {
        stream: u32,
        signal: i32,
    },
    Resize {
        stream: u32,
        columns: u16,
        rows: u16,
    },
    /// The engine has lost interest: hang the command up.
    HangUp {
        stream: u32,
    },
    /// Stop everything and power off. Answered by [`GuestMessage::PoweringOff`].
    PowerOff {
        power_off: PowerOff,
    },
    /// Answered by [`GuestMessage::Stats`], or refused by an agent that is older.
    Stats {
        stream: u32,
    },
    /// Write out what the file systems of the machine's disks hold in memory. Runs like a service, with
    /// an exit status; an agent that is older refuses it.
    Sync {
        stream: u32,
    },
    /// Grow them to disks that have become longer, in the same way.
    Grow {
        stream: u32,
        grow: Grow,
    },
    /// Answered by [`GuestMessage::Pong`] with the same number.
    Ping {
        number: u64,
    },
}

/// From the agent to the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestMessage {
    /// The first message of a connection.
    Hello {
        hello: Hello,
    },
    /// A stage was reached.
    Reached {
        reached: Reached,
    },
    /// The guest's init gave up.
    Failed {
        failure: Failure,
    },
    /// Something did not work that the machine can do without.
    Warned {
        text: String,
    },
    /// The command runs.
    Started {
        stream: u32,
        pid: u32,
    },
    /// It was not started, and why. Ends the stream.
    Refused {
        stream: u32,
        refusal: Refusal,
    },
    Stdout {
        stream: u32,
        data: Vec<u8>,
    },
    Stderr {
        stream: u32,
        data: Vec<u8>,
    },
    /// So many bytes more of standard input may be sent.
    Credit {
        stream: u32,
        bytes: u32,
    },
    /// The command ended and all it wrote was sent. Ends the stream.
    Exited {
        stream: u32,
        status: ExitStatus,
    },
    /// What the machine is doing. Ends the stream.
    Stats {
        stream: u32,
        stats: Stats,
    },
    /// The guest is going down.
    PoweringOff,
    Pong {
        number: u64,
    },
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments; empty for the login shell.
    pub command: Vec<String>,
    /// `NAME=value`, over the environment of the image.
    #[serde(default)]
    pub environment: Vec<String>,
    #[serde(default)]
    pub working_directory: Option<String>,
    /// `user`, `uid`, `user:group`, `uid:gid`; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub terminal: Option<Terminal>,
}

/// A pseudo-terminal for a command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    pub columns: u16,
    pub rows: u16,
    /// `TERM`.
    #[serde(default)]
    pub term: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grow {
    /// Length that the disks have now: the guest's kernel may hear of it a moment later.
    pub bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerOff {
    /// How long the services of the guest may take to stop before the power goes off regardless.
    pub grace_milliseconds: u64,
}

/// How far the guest has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Our init runs in the initramfs.
    Init,
    /// The root and work disks are mounted, the network is set.
    Root,
    /// Handed over to the image's init, or staying as the init itself; the agent answers.
    Agent,
    /// Commands can be run.
    Ready,
}

/// A stage with the time since the guest's kernel started (`CLOCK_BOOTTIME`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    pub stage: Stage,
    pub nanoseconds: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::VERSION`] of the agent.
    pub version: u32,
    /// `uname -r`.
    pub release: String,
    /// Stages reached so far, in order.
    #[serde(default)]
    pub stages: Vec<Reached>,
    #[serde(default)]
    pub failure: Option<Failure>,
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Why the guest's init gave up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub class: FailureClass,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The settings are missing or make no sense.
    Settings,
    NoRootDevice,
    RootNotAFileSystem,
    WrongArchitecture,
    NoInit,
    Network,
    /// Anything else; the message says what.
    #[serde(other)]
    Other,
}

impl FailureClass {
    /// As in messages and on the console.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::NoRootDevice => "no_root_device",
            Self::RootNotAFileSystem => "root_not_a_file_system",
            Self::WrongArchitecture => "wrong_architecture",
            Self::NoInit => "no_init",
            Self::Network => "network",
            Self::Other => "other",
        }
    }
}

/// Why a command was not started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub reason: RefusalReason,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// No such program: what a shell reports as 127.
    NotFound,
    /// It is there but cannot be run: what a shell reports as 126.
    NotExecutable,
    /// No such user, group or directory, or a malformed request.
    Invalid,
    /// This agent is older and does not know the request.
    Unknown,
    #[serde(other)]
    Failed,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    Exited(u8),
    Signalled(u8),
}

/// A frame that is no message.
#[derive(Debug, Error)]
pub enum MessageError {
    /// Newer peers may send what this one does not know.
    #[error("a message of unknown kind {kind:#04x}")]
    Unknown { kind: u8, stream: u32 },
    #[error("a message of kind {kind:#04x} with {length} bytes")]
    Length { kind: u8, length: usize },
    #[error("a message of kind {kind:#04x} that is not what it should be")]
    Json { kind: u8, source: serde_json::Error },
}

mod kind {
    pub(super) const EXEC: u8 = 0x01;
    pub(super) const STDIN: u8 = 0x02;
    pub(super) const STDIN_END: u8 = 0x03;
    pub(super) const HOST_CREDIT: u8 = 0x04;
    pub(super) const SIGNAL: u8 = 0x05;
    pub(super) const RESIZE: u8 = 0x06;
    pub(super) const HANG_UP: u8 = 0x07;
    pub(super) const POWER_OFF: u8 = 0x08;
    pub(super) const PING: u8 = 0x09;
    pub(super) const ASK_STATS: u8 = 0x0a;
    pub(super) const SERVE: u8 = 0x0b;
    pub(super) const SYNC: u8 = 0x0c;
    pub(super) const GROW: u8 = 0x0d;

    pub(super) const HELLO: u8 = 0x41;
    pub(super) const REACHED: u8 = 0x42;
    pub(super) const FAILED: u8 = 0x43;
    pub(super) const STARTED: u8 = 0x44;
    pub(super) const REFUSED: u8 = 0x45;
    pub(super) const STDOUT: u8 = 0x46;
    pub(super) const STDERR: u8 = 0x47;
    pub(super) const GUEST_CREDIT: u8 = 0x48;
    pub(super) const EXITED: u8 = 0x49;
    pub(super) const POWERING_OFF: u8 = 0x4a;
    pub(super) const PONG: u8 = 0x4b;
    pub(super) const WARNED: u8 = 0x4c;
    pub(super) const STATS: u8 = 0x4d;
}

impl HostMessage {
    /// Appends the frame of this message to `out`.
    ///
    /// Data must have been cut by [`crate::handshake::chunk`].
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), PayloadTooLong> {
        match self {
            Self::Exec { stream, exec } => frame::encode(kind::EXEC, *stream, &json(exec), out),
            Self::Serve { stream, serve } => frame::encode(kind::SERVE, *stream, &json(serve), out),
            Self::Stdin { stream, data } => frame::encode(kind::STDIN, *stream, data, out),
            Self::StdinEnd { stream } => frame::encode(kind::STDIN_END, *stream, &[], out),
            Self::Credit { stream, bytes } => {
                frame::encode(kind::HOST_CREDIT, *stream, &bytes.to_le_bytes(), out)
            }
            Self::Signal { stream, signal } => {
                frame::encode(kind::SIGNAL, *stream, &signal.to_le_bytes(), out)
            }
            Self::Resize { stream, columns, rows } => {
                let ([a, b], [c, d]) = (columns.to_le_bytes(), rows.to_le_bytes());
                frame::encode(kind::RESIZE, *stream, &[a, b, c, d], out)
            }
            Self::HangUp { stream } => frame::encode(kind::HANG_UP, *stream, &[], out),
            Self::PowerOff { power_off } => frame::encode(kind::POWER_OFF, 0, &json(power_off), out),
            Self::Stats { stream } => frame::encode(kind::ASK_STATS, *stream, &[], out),
            Self::Sync { stream } => frame::encode(kind::SYNC, *stream, &[], out),
            Self::Grow { stream, grow } => frame::encode(kind::GROW, *stream, &json(grow), out),
            Self::Ping { number } => frame::encode(kind::PING, 0, &number.to_le_bytes(), out),
        }
    }

    pub fn decode(frame: Frame) -> Result<Self, MessageError> {
        let stream = frame.stream;
        Ok(match frame.kind {
            kind::EXEC => Self::Exec { stream, exec: parsed(&frame)? },
            kind::SERVE => Self::Serve { stream, serve: parsed(&frame)? },
            kind::STDIN => Self::Stdin { stream, data: frame.payload },
            kind::STDIN_END => Self::StdinEnd { stream },
            kind::HOST_CREDIT => Self::Credit { stream, bytes: u32::from_le_bytes(exactly(&frame)?) },
            kind::SIGNAL => Self::Signal { stream, signal: i32::from_le_bytes(exactly(&frame)?) },
            kind::RESIZE => {
                let [a, b, c, d] = exactly(&frame)?;
                Self::Resize { stream, columns: u16::from_le_bytes([a, b]), rows: u16::from_le_bytes([c, d]) }
            }
            kind::HANG_UP => Self::HangUp { stream },
            kind::POWER_OFF => Self::PowerOff { power_off: parsed(&frame)? },
            kind::ASK_STATS => Self::Stats { stream },
            kind::SYNC => Self::Sync { stream },
            kind::GROW => Self::Grow { stream, grow: parsed(&frame)? },
            kind::PING => Self::Ping { number: u64::from_le_bytes(exactly(&frame)?) },
            kind => return Err(MessageError::Unknown { kind, stream }),
        })
    }
}

impl GuestMessage {
    /// Appends the frame of this message to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), PayloadTooLong> {
        match self {
            Self::Hello { hello } => frame::encode(kind::HELLO, 0, &json(hello), out),
            Self::Reached { reached } => frame::encode(kind::REACHED, 0, &json(reached), out),
            Self::Failed { failure } => frame::encode(kind::FAILED, 0, &json(failure), out),
            Self::Warned { text } => frame::encode(kind::WARNED, 0, &json(text), out),
            Self::Started { stream, pid } => frame::encode(kind::STARTED, *stream, &pid.to_le_bytes(), out),
            Self::Refused { stream, refusal } => frame::encode(kind::REFUSED, *stream, &json(refusal), out),
            Self::Stdout { stream, data } => frame::encode(kind::STDOUT, *stream, data, out),
            Self::Stderr { stream, data } => frame::encode(kind::STDERR, *stream, data, out),
            Self::Credit { stream, bytes } => {
                frame::encode(kind::GUEST_CREDIT, *stream, &bytes.to_le_bytes(), out)
            }
            Self::Exited { stream, status } => {
                let payload = match *status {
                    ExitStatus::Exited(code) => [0, code],
                    ExitStatus::Signalled(signal) => [1, signal],
                };
                frame::encode(kind::EXITED, *stream, &payload, out)
            }
            Self::Stats { stream, stats } => frame::encode(kind::STATS, *stream, &json(stats), out),
            Self::PoweringOff => frame::encode(kind::POWERING_OFF, 0, &[], out),
            Self::Pong { number } => frame::encode(kind::PONG, 0, &number.to_le_bytes(), out),
        }
    }

    pub fn decode(frame: Frame) -> Result<Self, MessageError> {
        let stream = frame.stream;
        Ok(match frame.kind {
            kind::HELLO => Self::Hello { hello: parsed(&frame)? },
            kind::REACHED => Self::Reached { reached: parsed(&frame)? },
            kind::FAILED => Self::Failed { failure: parsed(&frame)? },
            kind::WARNED => Self::Warned { text: parsed(&frame)? },
            kind::STARTED => Self::Started { stream, pid: u32::from_le_bytes(exactly(&frame)?) },
            kind::REFUSED => Self::Refused { stream, refusal: parsed(&frame)? },
            kind::STDOUT => Self::Stdout { stream, data: frame.payload },
            kind::STDERR => Self::Stderr { stream, data: frame.payload },
            kind::GUEST_CREDIT => Self::Credit { stream, bytes: u32::from_le_bytes(exactly(&frame)?) },
            kind::EXITED => {
                let status = match exactly(&frame)? {
                    [0, code] => ExitStatus::Exited(code),
                    [_, signal] => ExitStatus::Signalled(signal),
                };
                Self::Exited { stream, status }
            }
            kind::STATS => Self::Stats { stream, stats: parsed(&frame)? },
            kind::POWERING_OFF => Self::PoweringOff,
            kind::PONG => Self::Pong { number: u64::from_le_bytes(exactly(&frame)?) },
            kind => return Err(MessageError::Unknown { kind, stream }),
        })
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("structs of strings and numbers always make JSON")
}

fn parsed<T: DeserializeOwned>(frame: &Frame) -> Result<T, MessageError> {
    serde_json::from_slice(&frame.payload).map_err(|source| MessageError::Json { kind: frame.kind, source })
}

fn exactly<const N: usize>(frame: &Frame) -> Result<[u8; N], MessageError> {
    frame
        .payload
        .as_slice()
        .try_into()
        .map_err(|_| MessageError::Length { kind: frame.kind, length: frame.payload.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameDecoder;
    use proptest::prelude::*;

    fn frame_of(wire: &[u8]) -> Frame {
        FrameDecoder::new().next(&mut &wire[..]).unwrap().unwrap()
    }

    fn host_message() -> impl Strategy<Value = HostMessage> {
        let exec = (
            prop::collection::vec(".{0,20}", 0..5),
            prop::collection::vec("[A-Z]{1,5}=.{0,9}", 0..3),
            prop::option::of("/.{0,9}"),
            prop::option::of(".{0,9}"),
            prop::option::of((any::<u16>(), any::<u16>(), prop::option::of("[a-z-]{0,9}"))),
        )
            .prop_map(|(command, environment, working_directory, user, terminal)| Exec {
                command,
                environment,
                working_directory,
                user,
                terminal: terminal.map(|(columns, rows, term)| Terminal { columns, rows, term }),
            });
        let stream = 1..=frame::MAX_STREAM;
        prop_oneof![
            (stream.clone(), exec).prop_map(|(stream, exec)| HostMessage::Exec { stream, exec }),
            (stream.clone(), prop::collection::vec(any::<u8>(), 0..99))
                .prop_map(|(stream, data)| HostMessage::Stdin { stream, data }),
            stream.clone().prop_map(|stream| HostMessage::StdinEnd { stream }),
            (stream.clone(), any::<u32>()).prop_map(|(stream, bytes)| HostMessage::Credit { stream, bytes }),
            (stream.clone(), any::<i32>())
                .prop_map(|(stream, signal)| HostMessage::Signal { stream, signal }),
            (stream.clone(), any::<u16>(), any::<u16>())
                .prop_map(|(stream, columns, rows)| HostMessage::Resize { stream, columns, rows }),
            stream.clone().prop_map(|stream| HostMessage::HangUp { stream }),
            stream.clone().prop_map(|stream| HostMessage::Stats { stream }),
            stream.clone().prop_map(|stream| HostMessage::Sync { stream }),
            (stream.clone(), any::<u64>())
                .prop_map(|(stream, bytes)| HostMessage::Grow { stream, grow: Grow { bytes } }),
            (stream, ".{0,9}", prop::option::of(".{0,9}")).prop_map(|(stream, path, name)| {
                let service = crate::service::Service::Receive { path, name };
                HostMessage::Serve { stream, serve: Serve { service, user: None } }
            }),
            any::<u64>().prop_map(|grace_milliseconds| HostMessage::PowerOff {
                power_off: PowerOff { grace_milliseconds }
            }),
            any::<u64>().prop_map(|number| HostMessage::Ping { number }),
        ]
    }

    fn guest_message() -> impl Strategy<Value = GuestMessage> {
        let failure = ".{0,30}".prop_map(|message| Failure { class: FailureClass::NoRootDevice, message });
        let reached = any::<u64>().prop_map(|nanoseconds| Reached { stage: Stage::Root, nanoseconds });
        let hello = (
            any::<u32>(),
            ".{0,20}",
            prop::collection::vec(reached.clone(), 0..4),
            prop::option::of(failure.clone()),
            prop::collection::vec(".{0,20}", 0..3),
        )
            .prop_map(|(version, release, stages, failure, warnings)| Hello {
                version,
                release,
                stages,
                failure,
                warnings,
            });
        let stream = 1..=frame::MAX_STREAM;
        let data = (stream.clone(), prop::collection::vec(any::<u8>(), 0..99));
        let status = prop_oneof![
            any::<u8>().prop_map(ExitStatus::Exited),
            any::<u8>().prop_map(ExitStatus::Signalled)
        ];
        prop_oneof![
            hello.prop_map(|hello| GuestMessage::Hello { hello }),
            reached.prop_map(|reached| GuestMessage::Reached { reached }),
            failure.prop_map(|failure| GuestMessage::Failed { failure }),
            ".{0,30}".prop_map(|text| GuestMessage::Warned { text }),
            (stream.clone(), any::<u32>()).prop_map(|(stream, pid)| GuestMessage::Started { stream, pid }),
            (stream.clone(), ".{0,20}").prop_map(|(stream, message)| GuestMessage::Refused {
                stream,
                refusal: Refusal { reason: RefusalReason::NotFound, message }
            }),
            data.clone().prop_map(|(stream, data)| GuestMessage::Stdout { stream, data }),
            data.prop_map(|(stream, data)| GuestMessage::Stderr { stream, data }),
            (stream.clone(), any::<u32>()).prop_map(|(stream, bytes)| GuestMessage::Credit { stream, bytes }),
            (stream, status).prop_map(|(stream, status)| GuestMessage::Exited { stream, status }),
            (1..=frame::MAX_STREAM, any::<u64>(), ".{0,9}").prop_map(|(stream, number, name)| {
                let disks = vec![crate::stats::Disk { name, read: number, written: 1 }];
                let stats = Stats {
                    uptime_nanoseconds: number,
                    load_thousandths: [500, 1250, 2000],
                    disks,
                    ..Stats::default()
                };
                GuestMessage::Stats { stream, stats }
            }),
            Just(GuestMessage::PoweringOff),
            any::<u64>().prop_map(|number| GuestMessage::Pong { number }),
        ]
    }

    #[test]
    fn what_a_newer_peer_says_is_still_understood() {
        let newer = br#"{"class":"not_thought_of","message":"m","more":1}"#;
        let failure: Failure = serde_json::from_slice(newer).unwrap();
        assert_eq!(failure.class, FailureClass::Other);
        let unknown = Frame { kind: 0x3f, stream: 5, payload: vec![] };
        assert!(matches!(HostMessage::decode(unknown), Err(MessageError::Unknown { stream: 5, .. })));
    }

    proptest! {
        #[test]
        fn host_messages_survive(message in host_message()) {
            let mut wire = Vec::new();
            message.encode(&mut wire).unwrap();
            prop_assert_eq!(HostMessage::decode(frame_of(&wire)).unwrap(), message);
        }

        #[test]
        fn guest_messages_survive(message in guest_message()) {
            let mut wire = Vec::new();
            message.encode(&mut wire).unwrap();
            prop_assert_eq!(GuestMessage::decode(frame_of(&wire)).unwrap(), message);
        }

        #[test]
        fn noise_never_panics(
            kind in 0_u8..0x80, stream in 0..=frame::MAX_STREAM,
            payload in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let frame = Frame { kind, stream, payload };
            let _ = HostMessage::decode(frame.clone());
            let _ = GuestMessage::decode(frame);
        }
    }
}
