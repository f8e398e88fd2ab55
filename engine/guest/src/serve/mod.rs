//! Services of the agent: what it does in a process of its own instead of running a program of the
//! image, which may have none.

mod connect;
mod disks;
mod sftp;

use std::ffi::OsStr;
use std::io::{self, BufReader, Write};
use std::path::Path;
use std::process::ExitCode;

use vmdeck_protocol::service::{STATUS_NOT_FOUND, STATUS_PARTLY, Service};
use vmdeck_transfer::{Policy, Target, TransferError};

/// Most lines of warnings: the engine shows them to a person.
const MAX_WARNINGS: usize = 1000;

/// Runs a service on standard input and output. `request` is the JSON of a [`Service`].
pub fn run(request: &str) -> ExitCode {
    let result = match serde_json::from_str(request) {
        Ok(Service::Send { path }) => send(Path::new(&path)),
        Ok(Service::Receive { path, name }) => receive(Path::new(&path), name.as_deref().map(OsStr::new)),
        Ok(Service::Sftp) => sftp::serve(io::stdin().lock(), io::stdout().lock()).map_err(Into::into),
        Ok(Service::Connect { host, port }) => connect::serve(&host, port).map_err(Into::into),
        Ok(Service::Sync) => disks::sync().map_err(Into::into),
        Ok(Service::Grow { bytes }) => disks::grow(bytes).map_err(Into::into),
        Err(error) => Err(Failed::Other(format!("this is no request for a service: {error}"))),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(failed) => {
            let (text, status) = match failed {
                Failed::NotFound(text) => (text, STATUS_NOT_FOUND),
                Failed::Other(text) => (text, 1),
            };
            // Without its standard error nobody is there to be told.
            let _ = writeln!(io::stderr(), "{text}");
            ExitCode::from(status)
        }
    }
}

enum Failed {
    NotFound(String),
    Other(String),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<TransferError> for Failed {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::File { path, source } if source.kind() == io::ErrorKind::NotFound => {
                Self::NotFound(format!("there is no `{}` in the machine", path.escape_debug()))
            }
            TransferError::NoFolder(path) => {
                Self::NotFound(format!("there is no folder `{}` in the machine", path.escape_debug()))
            }
            TransferError::Stream(error) => Self::Other(error.to_string()),
            error => Self::Other(error.to_string()),
        }
    }
}

fn send(path: &Path) -> Result<u8, Failed> {
    vmdeck_transfer::pack(path, io::stdout().lock(), &mut |_| {})?;
    Ok(0)
}

fn receive(path: &Path, name: Option<&OsStr>) -> Result<u8, Failed> {
    let target = Target::resolve(path, name)?;
    let mut warnings = 0;
    let mut warn = |text: String| {
        warnings += 1;
        if warnings <= MAX_WARNINGS {
            let _ = writeln!(io::stderr(), "{}", text.escape_debug());
        }
    };
    let input = BufReader::with_capacity(128 * 1024, io::stdin().lock());
    let summary = vmdeck_transfer::unpack(input, &target, Policy::Trusted, &mut warn, &mut |_| {})?;
    Ok(if summary.skipped > 0 { STATUS_PARTLY } else { 0 })
}
