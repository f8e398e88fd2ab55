//! A data directory with the program: every command as an ordinary user, every machine ended.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::small_disk::SmallDisk;
use super::{fixtures, is_root};

/// The user that runs the program where the tests run as root (`nobody`).
pub(crate) const ORDINARY: u32 = 65534;

/// Longest that any one command may take here: a boot of systemd under TCG beside another one.
const PATIENCE: Duration = Duration::from_secs(600);

pub(crate) struct Deck {
    folder: tempfile::TempDir,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The status must be this one.
    #[track_caller]
    pub(crate) fn expect(self, status: i32) -> Self {
        assert_eq!(self.status, status, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Standard error must name all of these.
    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not in:\n{}", self.stderr);
        }
        self
    }
}

impl Deck {
    /// An empty data directory.
    pub(crate) fn new() -> Self {
        // Not below cargo's folder: the ordinary user may have no way into it.
        let folder = tempfile::Builder::new().prefix("vmdeck-e2e-").tempdir().unwrap();
        own(folder.path());
        Self { folder }
    }

    /// The one that boot tests share, with a kernel in it; several tests at once are several users'
    /// processes on one data directory, as DESIGN has it.
    pub(crate) fn shared() -> Arc<Self> {
        // Never dropped: assets/test.sh removes the folder for temporary files that it made.
        static SHARED: OnceLock<Arc<Deck>> = OnceLock::new();
        Arc::clone(SHARED.get_or_init(|| {
            let deck = Arc::new(Self::new());
            deck.import_kernel();
            deck
        }))
    }

    /// Gets Debian's kernel into it.
    pub(crate) fn import_kernel(&self) {
        let package = self.readable(&fixtures::kernel_package());
        self.run(["kernel", "import", "--deb", package.to_str().unwrap()]).expect(0);
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A copy of a file or folder that the ordinary user can read.
    pub(crate) fn readable(&self, path: &Path) -> PathBuf {
        let inputs = self.folder.path().join("inputs");
        fs::create_dir_all(&inputs).unwrap();
        let copy = inputs.join(path.file_name().unwrap());
        if !copy.exists() {
            super::run(Command::new("cp").arg("-r").arg(path).arg(&copy));
            super::run(Command::new("chmod").args(["-R", "a+rX"]).arg(&inputs));
        }
        copy
    }

    /// A file with this content in the user's home, which is the user's own.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let folder = path.parent().unwrap();
        if !folder.exists() {
            fs::create_dir(folder).unwrap();
            own(folder);
        }
        fs::write(&path, content).unwrap();
        own(&path);
        path
    }

    /// A folder in the user's home, which is the user's own.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir(&path).unwrap();
        own(&path);
        path
    }

    /// The program with these arguments, ready to be started.
    pub(crate) fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.ordinary(Command::new(program()));
        command.args(arguments);
        command
    }

    /// The same in a session of its own. Not as one that controls the terminal: the end of such a
    /// session throws away what the terminal has not read yet.
    #[allow(dead_code)] // For the tests of the console.
    pub(crate) fn on_terminal<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.ordinary(Command::new("setsid"));
        command.arg(program()).args(arguments);
        command.env("TERM", "xterm-256color").env("LANG", "C.UTF-8");
        command
    }

    /// The console in control of its terminal, where SIGHUP is ignored, as `nohup` has it.
    #[allow(dead_code)] // As well.
    pub(crate) fn on_terminal_without_hangups(&self) -> Command {
        let mut command = self.ordinary(Command::new("setsid"));
        command.args(["-c", "env", "--ignore-signal=HUP"]).arg(program());
        command.env("TERM", "xterm-256color").env("LANG", "C.UTF-8");
        command
    }

    /// Run by the ordinary user.
    pub(crate) fn ordinary(&self, command: Command) -> Command {
        let mut command = self.prepared(command);
        if is_root() {
            command.uid(ORDINARY).gid(ORDINARY);
        }
        command
    }

    fn prepared(&self, mut command: Command) -> Command {
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.folder.path())
            .env("VMDECK_DATA_DIR", self.data())
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    #[track_caller]
    pub(crate) fn run<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Ended {
        finish(self.command(arguments).spawn().unwrap())
    }

    /// Runs a command where a small disk is mounted.
    #[track_caller]
    pub(crate) fn run_on<'a>(&self, disk: &SmallDisk, arguments: impl IntoIterator<Item = &'a str>) -> Ended {
        finish(self.command_behind(&disk.enter(), arguments).spawn().unwrap())
    }

    /// The program with these arguments, run by another one that sees to who runs it and where.
    pub(crate) fn command_behind<'a>(
        &self,
        words: &[String],
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Command {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program()).args(arguments);
        self.prepared(command)
    }

    /// Names of what lies in a folder of the data directory.
    pub(crate) fn files(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.data().join(folder))
            .map(|entries| {
                entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
            })
            .unwrap_or_default();
        names.sort();
        names
    }

    /// Processes that belong to this data directory, by their working folder: hypervisors, and what
    /// writes down their consoles.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let data = self.data();
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid: &i32| {
                fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&data))
            })
            .collect()
    }

    /// That none is left. One that was killed with its parent is gone once the kernel has taken its
    /// memory apart, which a busy host lets wait.
    #[track_caller]
    pub(crate) fn expect_no_processes(&self) {
        let end = Instant::now() + PATIENCE;
        while !self.processes().is_empty() {
            assert!(Instant::now() < end, "left behind: {:?}", self.processes());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills a process and returns when it has ended: until then a machine of it is rightly said to run.
    ///
    /// One that is on its way out has no folder any more and may take a while yet: a busy kernel takes its
    /// time to close a tap. It is over when its first thread only waits to be reaped, and the others are gone.
    #[track_caller]
    pub(crate) fn kill(&self, pid: i32) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        let end = Instant::now() + PATIENCE;
        let runs = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
            state.is_some_and(|state| !"ZX".contains(state)) || threads > 1
        };
        while runs() {
            assert!(Instant::now() < end, "process {pid} does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Those that are hypervisors.
    pub(crate) fn hypervisors(&self) -> Vec<i32> {
        let is_qemu = |pid: &i32| {
            fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("qemu"))
            })
        };
        self.processes().into_iter().filter(is_qemu).collect()
    }

    /// A guard that deletes a machine whatever becomes of the test.
    pub(crate) fn guard(self: &Arc<Self>, name: &str) -> Machine {
        Machine { deck: Arc::clone(self), name: name.to_owned() }
    }
}

impl Drop for Deck {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// A machine of a test.
pub(crate) struct Machine {
    deck: Arc<Deck>,
    name: String,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let ended = self.deck.run(["vm", "delete", "--force", &self.name]);
        if !matches!(ended.status, 0 | 3) && !std::thread::panicking() {
            panic!("{} could not be deleted: {ended:?}", self.name);
        }
    }
}

/// Waits for a process with patience, then ends it and fails the test.
#[track_caller]
pub(crate) fn finish(mut child: Child) -> Ended {
    let mut pipes = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let stdout = std::thread::spawn(move || read(&mut pipes.0));
    let stderr = std::thread::spawn(move || read(&mut pipes.1));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            panic!("no end within {PATIENCE:?}; stderr:\n{}", stderr.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let code = std::os::unix::process::ExitStatusExt::signal(&status)
        .map_or_else(|| status.code().unwrap(), |signal| -signal);
    Ended { status: code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn read(pipe: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The program where the ordinary user can run it.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    &PROGRAM
        .get_or_init(|| {
            let folder = tempfile::Builder::new().prefix("vmdeck-bin-").tempdir().unwrap();
            let path = folder.path().join("vmdeck");
            // By a process of its own: what another test has just forked must not have it open for writing.
            super::run(Command::new("install").args(["-m", "755", env!("CARGO_BIN_EXE_vmdeck")]).arg(&path));
            super::run(Command::new("chmod").arg("755").arg(folder.path()));
            (folder, path)
        })
        .1
}

fn own(path: &Path) {
    if is_root() {
        std::os::unix::fs::chown(path, Some(ORDINARY), Some(ORDINARY)).unwrap();
    }
}
