//! What a screen shows of a machine beside its record, taken from the host: what its hypervisor uses,
//! what its files take, what its serial console printed.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::record::Vm;
use super::{VmService, disk};
use crate::clock::{self, Milliseconds};
use crate::error::{Error, Result};
use crate::identifier::VmId;
use crate::vmm::{DiskFormat, qcow2};

/// As much of a console's end is read at first, and as much at a time.
const CONSOLE_BYTES: u64 = 256 << 10;

/// What the hypervisor's process has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HostUsage {
    /// When it was looked at.
    pub at: Milliseconds,
    /// Time of all processors since the process began, in milliseconds.
    pub cpu_ms: u64,
    /// Memory of the host it holds, in bytes.
    pub resident_bytes: u64,
    /// Bytes that reached or left the host's disks.
    pub read_bytes: u64,
    pub written_bytes: u64,
}

/// One file of a machine's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmFile {
    pub name: String,
    /// Length of the file, or of the disk in it, in bytes.
    pub logical_bytes: u64,
    /// Bytes it takes on the host's disk.
    pub allocated_bytes: u64,
}

impl VmService {
    /// What the hypervisors of these machines use. Machines without a process are left out.
    pub async fn usage(&self, vms: Vec<Vm>) -> Vec<(VmId, HostUsage)> {
        let look = move || {
            let running = vms.into_iter().filter_map(|vm| {
                let process = vm.run.filter(|_| vm.state.has_process())?.process;
                let usage = process_usage(process.pid).ok()?;
                // Asked last: figures of another process with its pid are thrown away.
                process.is_alive().then_some((vm.id, usage))
            });
            running.collect()
        };
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    /// The files that hold a machine's disks and what its console printed. None before its first start.
    pub async fn files(&self, vm: &Vm) -> Result<Vec<VmFile>> {
        let directory = self.shared.data.vm(&vm.id);
        tokio::task::spawn_blocking(move || files(&directory))
            .await
            .map_err(|error| Error::failed("looking at the machine's files failed").with_source(error))?
    }

    /// What a machine's serial console printed since its last boot began, and goes on printing.
    pub fn console_output(&self, vm: &Vm) -> ConsoleOutput {
        let start = vm.run.as_ref().map_or(0, |run| run.console_start);
        ConsoleOutput { path: self.console_log(vm), start, position: None }
    }
}

fn files(directory: &Path) -> Result<Vec<VmFile>> {
    let mut files = Vec::new();
    for name in [disk::ROOT, disk::WORK_OVERLAY, disk::WORK_RAW, "console.log"] {
        let path = directory.join(name);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io(format!("cannot look at `{}`", path.display()), error)),
        };
        let logical_bytes = if name.ends_with(".qcow2") {
            qcow2::virtual_size(&path, DiskFormat::Qcow2)?
        } else {
            metadata.len()
        };
        let allocated_bytes = metadata.blocks() * 512;
        files.push(VmFile { name: name.to_owned(), logical_bytes, allocated_bytes });
    }
    Ok(files)
}

fn process_usage(pid: i32) -> io::Result<HostUsage> {
    let unknown = || io::Error::other(format!("/proc/{pid} has an unknown form"));
    let (ticks, pages) = parse_stat(&fs::read(format!("/proc/{pid}/stat"))?).ok_or_else(unknown)?;
    // Only root may read another user's; then they count as nothing.
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let (read_bytes, written_bytes) = parse_io(&io);
    Ok(HostUsage {
        at: clock::now(),
        cpu_ms: ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1),
        resident_bytes: pages.saturating_mul(rustix::param::page_size() as u64),
        read_bytes,
        written_bytes,
    })
}

/// Ticks in user and kernel mode, and resident pages (proc_pid_stat(5): fields 14, 15 and 24).
fn parse_stat(text: &[u8]) -> Option<(u64, u64)> {
    let after_command = text.iter().rposition(|&byte| byte == b')')? + 1;
    let rest = std::str::from_utf8(text.get(after_command..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some((number(14)?.saturating_add(number(15)?), number(24)?))
}

/// `read_bytes` and `write_bytes` (proc_pid_io(5)).
fn parse_io(text: &str) -> (u64, u64) {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
    };
    (value("read_bytes"), value("write_bytes"))
}

/// A reader of `console.log`, which QEMU writes whoever is connected to the console.
#[derive(Clone, Debug)]
pub struct ConsoleOutput {
    path: PathBuf,
    /// Where the boot begins that is of interest.
    start: u64,
    position: Option<u64>,
}

/// What came since the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsoleChunk {
    /// What was read before does not lead up to this: begin with a blank screen.
    pub anew: bool,
    /// Bytes from a guest, at most 256 KiB of them.
    pub bytes: Vec<u8>,
}

impl ConsoleOutput {
    /// What was printed since the last call; at first the end of what there is. A reader that comes
    /// too seldom gets the newest part.
    pub async fn read(&mut self) -> Result<ConsoleChunk> {
        let mut this = self.clone();
        let (this, chunk) = tokio::task::spawn_blocking(move || {
            let chunk = this.look();
            (this, chunk)
        })
        .await
        .map_err(|error| Error::failed("reading the console failed").with_source(error))?;
        *self = this;
        chunk.map_err(|error| Error::io(format!("cannot read `{}`", self.path.display()), error))
    }

    fn look(&mut self) -> io::Result<ConsoleChunk> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            // Not started yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ConsoleChunk::default()),
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        let mut anew = self.position.is_none();
        let mut from = self.position.unwrap_or(self.start);
        if from > length {
            (from, anew) = (0, true);
        }
        if length - from > CONSOLE_BYTES {
            (from, anew) = (length - CONSOLE_BYTES, true);
        }
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(CONSOLE_BYTES).read_to_end(&mut bytes)?;
        self.position = Some(from + bytes.len() as u64);
        Ok(ConsoleChunk { anew, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let stat = b"7 (a) b) S 1 2 3 4 5 6 7 8 9 10 100 20 13 14 15 16 17 18 4711 20 99 21";
        assert_eq!(parse_stat(stat), Some((120, 99)));
        assert_eq!(parse_stat(b"7 (a"), None);
        assert_eq!(parse_io("rchar: 1\nread_bytes: 4096\nwrite_bytes: 512\n"), (4096, 512));
        assert_eq!(parse_io(""), (0, 0));
        let own = process_usage(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.resident_bytes > 0);
    }

    #[tokio::test]
    async fn a_console_is_read_from_its_boot_on_and_anew_when_it_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut output = ConsoleOutput { path: path.clone(), start: 4, position: None };
        assert_eq!(output.read().await.unwrap(), ConsoleChunk::default());
        fs::write(&path, "old\nboot\n").unwrap();
        let chunk = output.read().await.unwrap();
        assert_eq!((chunk.anew, chunk.bytes.as_slice()), (true, b"boot\n".as_slice()));
        fs::write(&path, "old\nboot\nmore").unwrap();
        let chunk = output.read().await.unwrap();
        assert_eq!((chunk.anew, chunk.bytes.as_slice()), (false, b"more".as_slice()));
        fs::write(&path, "new").unwrap();
        let chunk = output.read().await.unwrap();
        assert_eq!((chunk.anew, chunk.bytes.as_slice()), (true, b"new".as_slice()));
        // A flood is skipped to its end.
        fs::write(&path, vec![b'x'; 2 << 20]).unwrap();
        let chunk = output.read().await.unwrap();
        assert_eq!((chunk.anew, chunk.bytes.len() as u64), (true, CONSOLE_BYTES));
    }
}
