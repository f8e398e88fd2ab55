//! Runs apt's programs: as the calling user, without a terminal, with bounded output, and ended with
//! all their helpers when cancelled.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::package::{Package, PackageSpec};
use crate::error::{Error, Result};
use crate::operation::progress::ProgressPart;

/// What apt may print before the rest is passed over, in bytes.
const MOST_OUTPUT: u64 = 1 << 20;
/// The longest line that is looked at, in bytes.
const MOST_LINE: u64 = 4 << 10;

/// Settings for every call. Hooks are for a host that is really updated or installed to.
const SETTINGS: &str = r#"
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
"#;

/// For lists of our own: nothing but what names packages.
const LIST_SETTINGS: &str = r#"
Acquire::Languages "none";
Acquire::IndexTargets::deb-src::Sources::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons-hidpi::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons-large::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons-large-hidpi::DefaultEnabled "false";
Acquire::IndexTargets::deb::CNF::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb-legacy::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-udeb::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-udeb-legacy::DefaultEnabled "false";
"#;

#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error("`{program}` failed: {message}")]
    Failed { program: &'static str, message: String },
    #[error("apt is not installed")]
    NotInstalled,
    #[error("apt cannot be run")]
    Io(#[from] std::io::Error),
    #[error("cancelled")]
    Cancelled,
}

/// apt, with the package lists of the host or with our own.
#[derive(Clone, Debug)]
pub(super) struct Apt {
    settings: PathBuf,
    options: Vec<String>,
    /// Folder of our own lists; empty when the host's are used.
    lists: PathBuf,
}

impl Apt {
    /// With the host's lists. `folder` is ours.
    pub(super) fn host(folder: &Path) -> Result<Self> {
        let settings = folder.join("apt-host.conf");
        write(&settings, SETTINGS)?;
        Ok(Self { settings, options: user_options(), lists: PathBuf::new() })
    }

    /// With lists below `folder`, empty at first. Sources, keys and proxies stay the host's.
    pub(super) fn own_lists(folder: &Path) -> Result<Self> {
        let settings = folder.join("apt-own.conf");
        write(&settings, &format!("{SETTINGS}{LIST_SETTINGS}"))?;
        let (state, cache) = (folder.join("apt-state"), folder.join("apt-cache"));
        for path in [state.join("lists/partial"), cache.join("archives/partial")] {
            std::fs::create_dir_all(&path)
                .map_err(|error| Error::io(format!("cannot create `{}`", path.display()), error))?;
        }
        // What is installed on the host does not matter for what is fetched.
        write(&state.join("status"), "")?;
        let mut options = user_options();
        for (name, path) in [
            ("Dir::State", state.clone()),
            ("Dir::State::lists", state.join("lists")),
            ("Dir::State::status", state.join("status")),
            ("Dir::Cache", cache),
        ] {
            options.push("-o".to_owned());
            options.push(format!("{name}={}", path.display()));
        }
        Ok(Self { settings, options, lists: state.join("lists") })
    }

    pub(super) fn has_own_lists(&self) -> bool {
        !self.lists.as_os_str().is_empty()
    }

    /// Fetches the package lists. A source that does not answer is only warned of; a failure when
    /// none did.
    pub(super) async fn update(&self, cancel: &CancellationToken) -> Result<(), CommandError> {
        let output = self.run("apt-get", &["-q", "update"], None, None, cancel).await?;
        let warnings = output.lines_of("W: Failed to fetch ");
        output.check("apt-get update")?;
        if self.has_no_lists() {
            let message = warnings.first().cloned().unwrap_or_else(|| "no source has packages".to_owned());
            return Err(CommandError::Failed { program: "apt-get update", message });
        }
        Ok(())
    }

    fn has_no_lists(&self) -> bool {
        let lists = std::fs::read_dir(&self.lists).into_iter().flatten().flatten();
        !lists.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    }

    /// What the archive says of the version of a package that apt would install; empty for one it
    /// does not know.
    pub(super) async fn show(
        &self,
        spec: &PackageSpec,
        cancel: &CancellationToken,
    ) -> Result<String, CommandError> {
        let arguments = ["show", "--no-all-versions", spec.as_str()];
        // It fails when there is no such package, which is an answer.
        Ok(self.run("apt-cache", &arguments, None, None, cancel).await?.stdout)
    }

    /// Fetches packages into `folder`; apt verifies them against the signed lists.
    pub(super) async fn download(
        &self,
        packages: &[Package],
        folder: &Path,
        progress: &ProgressPart,
        cancel: &CancellationToken,
    ) -> Result<(), CommandError> {
        let specs: Vec<String> = packages.iter().map(Package::spec).collect();
        let mut arguments = vec!["-qq", "-o", "APT::Status-Fd=1", "download"];
        arguments.extend(specs.iter().map(String::as_str));
        let output = self.run("apt-get", &arguments, Some(folder), Some(progress), cancel).await?;
        output.check("apt-get download")
    }

    async fn run(
        &self,
        program: &'static str,
        arguments: &[&str],
        folder: Option<&Path>,
        progress: Option<&ProgressPart>,
        cancel: &CancellationToken,
    ) -> Result<Output, CommandError> {
        let mut command = Command::new(program);
        command
            .arg("-c")
            .arg(&self.settings)
            .args(&self.options)
            .args(arguments)
            .env("LC_ALL", "C")
            .env_remove("LANGUAGE")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(folder) = folder {
            command.current_dir(folder);
        }
        tracing::debug!(program, ?arguments, "running apt");
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => CommandError::NotInstalled,
            _ => CommandError::Io(error),
        })?;
        // apt's methods (http, gpgv) are processes of their own, in the same group.
        let mut group = Group(child.id());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (stdout, stderr) = tokio::try_join!(read_lines(stdout, progress), read_bounded(stderr))?;
            let status = child.wait().await?;
            // From here on the number may be another process's.
            group.0 = None;
            Ok(Output { status, stdout, stderr })
        };
        tokio::select! {
            output = work => output,
            () = cancel.cancelled() => Err(CommandError::Cancelled),
        }
    }
}

/// Who apt is to run its helpers as. Only root is asked: apt would hand them to `_apt`, who cannot
/// reach our folders.
fn user_options() -> Vec<String> {
    if nix::unistd::geteuid().is_root() {
        vec!["-o".to_owned(), "APT::Sandbox::User=root".to_owned()]
    } else {
        Vec::new()
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|error| Error::io(format!("cannot write `{}`", path.display()), error))
}

/// Ends a process group when dropped, unless its leader has ended before.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.0.and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}

struct Output {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl Output {
    fn check(self, program: &'static str) -> Result<(), CommandError> {
        if self.status.success() {
            return Ok(());
        }
        // The first errors are the most specific.
        let mut errors = self.lines_of("E: ");
        errors.truncate(3);
        if errors.is_empty() {
            errors.push(
                self.stderr.lines().last().unwrap_or("it says nothing more").escape_debug().to_string(),
            );
        }
        Err(CommandError::Failed { program, message: errors.join("; ") })
    }

    /// What follows a mark at the beginning of lines of standard error, safe to be shown.
    fn lines_of(&self, mark: &str) -> Vec<String> {
        let lines = self.stderr.lines().filter_map(|line| line.strip_prefix(mark));
        lines.map(|line| line.trim_end().escape_debug().to_string()).collect()
    }
}

/// Reads to the end; keeps the beginning.
async fn read_bounded(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<String> {
    let Some(mut pipe) = pipe else { return Ok(String::new()) };
    let mut kept = Vec::new();
    (&mut pipe).take(MOST_OUTPUT).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(String::from_utf8_lossy(&kept).into_owned())
}

/// As [`read_bounded`], but with `progress` it takes the lines of `APT::Status-Fd` for that.
async fn read_lines(
    pipe: Option<impl AsyncRead + Unpin>,
    progress: Option<&ProgressPart>,
) -> std::io::Result<String> {
    let Some(progress) = progress else { return read_bounded(pipe).await };
    let Some(pipe) = pipe else { return Ok(String::new()) };
    let mut lines = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut lines).take(MOST_LINE).read_until(b'\n', &mut line).await? == 0 {
            return Ok(String::new());
        }
        if let Some(percent) = percent(&line) {
            let done = progress.total() as f64 * percent / 100.0;
            progress.set_done(done as u64);
        }
    }
}

/// `dlstatus:1:45.3:Retrieving file 1 of 1` → 45.3 (apt's `README.progress-reporting`).
fn percent(line: &[u8]) -> Option<f64> {
    let mut fields = std::str::from_utf8(line).ok()?.split(':');
    let percent: f64 = fields.next().filter(|kind| *kind == "dlstatus").and(fields.nth(1))?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_status_lines() {
        assert_eq!(percent(b"dlstatus:1:45.3:Retrieving file 1 of 1 (1s remaining)\n"), Some(45.3));
        assert_eq!(percent(b"pmstatus:x:45.3:Installing\n"), None);
        assert_eq!(percent(b"dlstatus:1:1e300:x\n"), None);
    }
}
