//! A client of QEMU's control protocol (QMP: docs/interop/qmp-spec.txt).
//!
//! A monitor serves one client at a time and lets others wait unanswered, so a client here is
//! connected for a few commands and dropped; who waits for something watches the process or the
//! journal instead.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Longest line taken from QEMU. Its longest answers are some hundred KiB (schemas, which are not
/// asked for).
const LINE_LIMIT: u64 = 1 << 20;
/// How long QEMU may take to answer. It answers at once unless its main loop hangs in I/O.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A connected client that is in command mode.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
    next_id: u64,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    #[error("the hypervisor closed its control socket")]
    Closed,
    #[error("the hypervisor's control socket failed")]
    Io(#[source] std::io::Error),
    #[error("the hypervisor did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
    #[error("the hypervisor sent what is no QMP: {0}")]
    Protocol(String),
    #[error("the hypervisor refused `{command}`: {description}")]
    Refused { command: String, description: String },
}

impl From<std::io::Error> for QmpError {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
        match error.kind() {
            BrokenPipe | ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// Something that happened to the machine.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Event {
    pub(super) event: String,
    #[serde(default)]
    pub(super) data: Map<String, Value>,
}

/// A line from QEMU.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Message {
    Greeting {
        #[serde(rename = "QMP")]
        _greeting: Value,
    },
    // Events pass by: the journal keeps them.
    Event(#[allow(dead_code, reason = "only told apart from answers")] Event),
    Error {
        error: ErrorBody,
        id: Option<u64>,
    },
    Return {
        #[serde(rename = "return")]
        value: Value,
        id: Option<u64>,
    },
}

#[derive(Debug, Deserialize)]
struct ErrorBody {
    desc: String,
}

impl Qmp {
    /// Reads the greeting and leaves the negotiation of capabilities behind.
    pub(super) async fn negotiate(stream: UnixStream) -> Result<Self, QmpError> {
        let mut this = Self { stream: BufReader::new(stream), next_id: 0 };
        match timeout(this.read()).await? {
            Message::Greeting { .. } => {}
            other => return Err(QmpError::Protocol(format!("{other:?} in place of a greeting"))),
        }
        this.execute("qmp_capabilities", json!({})).await?;
        Ok(this)
    }

    /// Runs a command and returns what it returns.
    pub(super) async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        timeout(async {
            let id = self.next_id;
            self.next_id += 1;
            let mut line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
            line.push('\n');
            self.stream.write_all(line.as_bytes()).await?;
            loop {
                match self.read().await? {
                    Message::Return { value, id: Some(answered) } if answered == id => return Ok(value),
                    Message::Error { error, id: answered } if answered.is_none_or(|other| other == id) => {
                        return Err(QmpError::Refused {
                            command: command.to_owned(),
                            description: error.desc,
                        });
                    }
                    _ => {}
                }
            }
        })
        .await
    }

    /// A command of the human monitor, for the few things QMP has no command for. Returns what it
    /// prints.
    pub(super) async fn human(&mut self, line: &str) -> Result<String, QmpError> {
        match self.execute("human-monitor-command", json!({"command-line": line})).await? {
            Value::String(text) => Ok(text.trim().to_owned()),
            other => Err(QmpError::Protocol(format!("{other} in place of text"))),
        }
    }

    async fn read(&mut self) -> Result<Message, QmpError> {
        let mut line = Vec::new();
        (&mut self.stream).take(LINE_LIMIT).read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return Err(if line.len() as u64 == LINE_LIMIT {
                QmpError::Protocol(format!("a line of more than {LINE_LIMIT} bytes"))
            } else {
                QmpError::Closed
            });
        }
        serde_json::from_slice(&line).map_err(|error| QmpError::Protocol(error.to_string()))
    }
}

async fn timeout<T>(work: impl Future<Output = Result<T, QmpError>>) -> Result<T, QmpError> {
    tokio::time::timeout(ANSWER_TIMEOUT, work).await.unwrap_or(Err(QmpError::Timeout))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that sends `lines`, whatever it is asked, and then closes.
    fn peer(lines: &'static str) -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            theirs.write_all(lines.as_bytes()).await.unwrap();
            theirs.shutdown().await.unwrap();
            let mut asked = Vec::new();
            theirs.read_to_end(&mut asked).await.unwrap();
        });
        ours
    }

    const HELLO: &str = "{\"QMP\": {}}\n{\"return\": {}, \"id\": 0}\n";

    #[tokio::test]
    async fn answers_are_told_from_events_and_from_answers_to_others() {
        let lines = concat!(
            "{\"QMP\": {}}\n{\"return\": {}, \"id\": 0}\n",
            "{\"event\": \"STOP\", \"timestamp\": {}}\n{\"return\": 1, \"id\": 9}\n",
            "{\"return\": {\"status\": \"running\"}, \"id\": 1}\n",
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such device\"}, \"id\": 2}\n",
        );
        let mut qmp = Qmp::negotiate(peer(lines)).await.unwrap();
        assert_eq!(qmp.execute("query-status", json!({})).await.unwrap()["status"], "running");
        let error = qmp.execute("device_del", json!({})).await.unwrap_err();
        assert_eq!(error.to_string(), "the hypervisor refused `device_del`: no such device");
        assert!(matches!(qmp.execute("quit", json!({})).await, Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn what_is_no_qmp_is_an_error() {
        for lines in ["", "hello\n", "{\"return\": {}}\n", "{\"QMP\": {}"] {
            assert!(Qmp::negotiate(peer(lines)).await.is_err(), "{lines}");
        }
        let mut qmp = Qmp::negotiate(peer(HELLO)).await.unwrap();
        assert!(qmp.execute("query-status", json!({})).await.is_err());
    }

    #[tokio::test]
    async fn an_endless_line_is_not_kept() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let writer = tokio::spawn(async move { while theirs.write_all(&[b'x'; 4096]).await.is_ok() {} });
        assert!(matches!(Qmp::negotiate(ours).await, Err(QmpError::Protocol(_))));
        writer.await.unwrap();
    }
}
