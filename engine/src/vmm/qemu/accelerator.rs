//! Which accelerator runs guests on this host.
//!
//! That `/dev/kvm` opens says little: on a host that is a guest itself it may create machines that
//! die in their first instructions. So KVM is proved by a guest of our own that does what kernels
//! do when they begin (`proof/guest.S`), and distrusted again when a real guest fails. The verdict
//! is kept until the host boots, QEMU is replaced or the access to `/dev/kvm` changes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::super::{Accelerator, AcceleratorVerdict};
use super::binary::Binary;
use super::failure::last_words;
use crate::clock::{self, Milliseconds};
use crate::error::{Error, Result};
use crate::lock::FileLock;
use crate::process::tethered::{self, Finished};
use crate::process::{boot_id, detached};

/// The guest, assembled.
const GUEST: &[u8] = include_bytes!("proof/guest.elf");
/// What it writes to the exit port when all went well, as QEMU makes an exit status of it.
const PROVED: i32 = (0x2a << 1) | 1;
/// It takes some tens of milliseconds under KVM.
const PROOF_TIMEOUT: Duration = Duration::from_secs(6);
/// How long a proof that proved nothing is believed.
const INCONCLUSIVE_MS: i64 = 10 * 60 * 1000;

/// What a verdict was found under; it is void under anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Circumstances {
    boot_id: String,
    qemu: Binary,
    processor: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    circumstances: Circumstances,
    verdict: AcceleratorVerdict,
    found_at: Milliseconds,
    /// False when the proof ran out of time, which a busy host may be to blame for.
    conclusive: bool,
}

/// What this process may do with `/dev/kvm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KvmAccess {
    Missing,
    Denied,
    /// It is there, and its driver says no.
    Broken,
    Open,
}

impl KvmAccess {
    pub(crate) fn of_this_process() -> Self {
        match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            Ok(_) => Self::Open,
            Err(error) => match error.kind() {
                std::io::ErrorKind::NotFound => Self::Missing,
                std::io::ErrorKind::PermissionDenied => Self::Denied,
                _ => Self::Broken,
            },
        }
    }

    /// Why KVM is not used, where that is all there is to say.
    fn refusal(self) -> Option<&'static str> {
        match self {
            Self::Missing => Some("this host has no /dev/kvm"),
            Self::Denied => Some("this user may not open /dev/kvm"),
            Self::Broken => Some("/dev/kvm does not open"),
            Self::Open => None,
        }
    }
}

/// The verdict, proved now when it is not known. Concurrent calls, also of other processes, wait for
/// one proof.
pub(super) async fn verdict(cache: &Path, cancel: &CancellationToken) -> Result<AcceleratorVerdict> {
    // First of all: without QEMU there is nothing to choose for.
    let circumstances = circumstances()?;
    if let Some(why) = KvmAccess::of_this_process().refusal() {
        return Ok(translator(why));
    }
    if let Some(verdict) = known(cache, &circumstances) {
        return Ok(verdict);
    }
    let _one_at_a_time = FileLock::acquire(&cache.join("accelerator.lock"), cancel).await?;
    if let Some(verdict) = known(cache, &circumstances) {
        return Ok(verdict);
    }
    let (verdict, conclusive) = tokio::select! {
        result = prove(&circumstances.qemu) => result?,
        () = cancel.cancelled() => return Err(Error::cancelled()),
    };
    tracing::info!(accelerator = ?verdict.accelerator, reason = verdict.reason, "the accelerator was proved");
    keep(cache, circumstances, verdict.clone(), conclusive)?;
    Ok(verdict)
}

/// Takes KVM for broken until the circumstances change.
pub(super) fn distrust(cache: &Path, accelerator: Accelerator, reason: &str) -> Result<()> {
    match accelerator {
        // There is nothing else left to trust.
        Accelerator::Tcg => Ok(()),
        Accelerator::Kvm => {
            let verdict = translator(&format!("KVM failed with a real guest ({reason})"));
            keep(cache, circumstances()?, verdict, true)
        }
    }
}

/// Forgets the verdict, so that it is proved anew.
pub(super) fn forget(cache: &Path) -> Result<()> {
    match std::fs::remove_file(cache.join("accelerator.json")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("cannot forget the accelerator's verdict", error))
        }
        _ => Ok(()),
    }
}

fn translator(why: &str) -> AcceleratorVerdict {
    AcceleratorVerdict { accelerator: Accelerator::Tcg, reason: why.to_owned() }
}

fn circumstances() -> Result<Circumstances> {
    Ok(Circumstances { boot_id: boot_id().to_owned(), qemu: Binary::find()?, processor: processor() })
}

/// `model name` of the first processor; a host may be moved to another one while it runs.
fn processor() -> String {
    let mut text = Vec::new();
    // The file has as many paragraphs as there are processors, and each takes its time.
    let read = File::open("/proc/cpuinfo").and_then(|file| file.take(2048).read_to_end(&mut text));
    let text = if read.is_ok() { String::from_utf8_lossy(&text) } else { "".into() };
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    line.unwrap_or_default().trim_start_matches([' ', '\t', ':']).to_owned()
}

fn known(cache: &Path, circumstances: &Circumstances) -> Option<AcceleratorVerdict> {
    let text = std::fs::read(cache.join("accelerator.json")).ok()?;
    let kept: Kept = serde_json::from_slice(&text).ok()?;
    let fresh = kept.conclusive || clock::now() - kept.found_at < INCONCLUSIVE_MS;
    (fresh && kept.circumstances == *circumstances).then_some(kept.verdict)
}

fn keep(
    cache: &Path,
    circumstances: Circumstances,
    verdict: AcceleratorVerdict,
    conclusive: bool,
) -> Result<()> {
    let kept = Kept { circumstances, verdict, found_at: clock::now(), conclusive };
    super::write_json(&cache.join("accelerator.json"), &kept)
}

/// Runs the guest under KVM. True beside the verdict when it would come out the same again.
async fn prove(qemu: &Binary) -> Result<(AcceleratorVerdict, bool)> {
    let finished = run(qemu, &["-accel", "kvm", "-cpu", "host"]).await?;
    Ok(match judge(&finished) {
        None => {
            let reason = "a guest of vmdeck's own was seen to run under KVM".to_owned();
            (AcceleratorVerdict { accelerator: Accelerator::Kvm, reason }, true)
        }
        Some(why) => (translator(&format!("KVM does not run guests here ({why})")), !finished.timed_out),
    })
}

async fn run(qemu: &Binary, accelerator: &[&str]) -> Result<Finished> {
    let fail = |error| Error::io("cannot prove the accelerator", error);
    let guest = memfd_create("vmdeck-proof", MemfdFlags::CLOEXEC).map_err(|error| fail(error.into()))?;
    let mut guest = File::from(guest);
    guest.write_all(GUEST).map_err(fail)?;
    let guest = OwnedFd::from(guest);
    let mut command = Command::new(&qemu.path);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "64"])
        .args(["-machine", "q35,usb=off,sata=off,smbus=off,vmport=off"])
        .args(accelerator)
        .arg("-kernel")
        .arg(format!("/proc/self/fd/{}", detached::number(&guest)))
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .env("LC_ALL", "C");
    // QEMU stays alive with a dead guest then.
    let dead = |said: &str| said.contains("KVM internal error") || said.contains("emulation failure");
    tethered::run(command, vec![guest], PROOF_TIMEOUT, dead).await.map_err(fail)
}

/// What went wrong; `None` when it is proved.
fn judge(finished: &Finished) -> Option<String> {
    if finished.status.code() == Some(PROVED) {
        return None;
    }
    let said = finished.output.lines().find(|line| line.contains("error")).unwrap_or(&finished.output);
    let said = last_words(said);
    let said = said.strip_prefix("error: ").unwrap_or(&said).to_owned();
    let step = finished.status.code().filter(|code| code & 1 == 1 && *code > 1).map(|code| code >> 1);
    Some(match step {
        _ if finished.timed_out => format!("the guest hung for {} s", PROOF_TIMEOUT.as_secs()),
        Some(step) => format!("the guest failed at step {step} of its start"),
        None if said.is_empty() => format!("QEMU ended: {}", finished.status),
        None => said,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[tokio::test]
    async fn the_guest_passes_where_guests_run() {
        let Ok(qemu) = Binary::find() else {
            eprintln!("skipped: QEMU is not installed");
            return;
        };
        for processor in ["max", "qemu64"] {
            let finished = run(&qemu, &["-accel", "tcg", "-cpu", processor]).await.unwrap();
            assert_eq!(judge(&finished), None, "{processor}: {finished:?}");
        }
    }

    #[tokio::test]
    async fn a_verdict_is_found_once_and_holds_until_distrusted() {
        if Binary::find().is_err() {
            eprintln!("skipped: QEMU is not installed");
            return;
        }
        let cache = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let (one, two) = tokio::join!(verdict(cache.path(), &cancel), verdict(cache.path(), &cancel));
        let one = one.unwrap();
        assert_eq!(one, two.unwrap());
        eprintln!("this host: {one:?}");
        if KvmAccess::of_this_process() != KvmAccess::Open {
            assert_eq!(one.accelerator, Accelerator::Tcg);
            return;
        }
        assert_eq!(known(cache.path(), &circumstances().unwrap()), Some(one));
        distrust(cache.path(), Accelerator::Kvm, "it died").unwrap();
        let later = verdict(cache.path(), &cancel).await.unwrap();
        assert_eq!(later.accelerator, Accelerator::Tcg);
        assert!(later.reason.contains("it died"));
        forget(cache.path()).unwrap();
        forget(cache.path()).unwrap();
        assert_eq!(known(cache.path(), &circumstances().unwrap()), None);
    }

    #[test]
    fn a_verdict_of_other_circumstances_or_out_of_date_is_void() {
        let cache = tempfile::tempdir().unwrap();
        let Ok(now) = circumstances() else {
            eprintln!("skipped: QEMU is not installed");
            return;
        };
        keep(cache.path(), now.clone(), translator("x"), true).unwrap();
        assert!(known(cache.path(), &now).is_some());
        let rebooted = Circumstances { boot_id: "other".into(), ..now.clone() };
        assert!(known(cache.path(), &rebooted).is_none());
        let kept = Kept {
            circumstances: now.clone(),
            verdict: translator("x"),
            found_at: clock::now() - INCONCLUSIVE_MS,
            conclusive: false,
        };
        super::super::write_json(&cache.path().join("accelerator.json"), &kept).unwrap();
        assert!(known(cache.path(), &now).is_none());
        std::fs::write(cache.path().join("accelerator.json"), "{").unwrap();
        assert!(known(cache.path(), &now).is_none());
    }

    #[test]
    fn reasons() {
        let check = |raw: i32, output: &str, timed_out, expected: Option<&str>| {
            let status = ExitStatus::from_raw(raw);
            assert_eq!(judge(&Finished { status, output: output.into(), timed_out }).as_deref(), expected);
        };
        check(PROVED << 8, "", false, None);
        check(11 << 8, "", false, Some("the guest failed at step 5 of its start"));
        check(
            6,
            "qemu-system-x86_64: error: failed to set MSR 0x10a to 0x69\nqemu: kvm.c:3: Assertion failed.",
            false,
            Some("failed to set MSR 0x10a to 0x69"),
        );
        check(9, "KVM internal error. Suberror: 1\nRAX=0", false, Some("KVM internal error. Suberror: 1"));
        check(9, "", true, Some("the guest hung for 6 s"));
    }

    /// The guest in the tree is the one its source makes.
    #[test]
    fn the_guest_is_what_its_source_says() {
        let folder = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/vmm/qemu/proof/guest.S");
        let run = |program: &str, arguments: &[&str]| {
            Command::new(program).args(arguments).current_dir(folder.path()).output()
        };
        let assembled = run("as", &["--64", "-o", "guest.o", source]);
        let linked = run("ld", &["-n", "-s", "-Ttext=0x100000", "-o", "guest.elf", "guest.o"]);
        if !cfg!(target_arch = "x86_64") || assembled.is_err() || linked.is_err() {
            eprintln!("skipped: binutils for x86-64 are not installed");
            return;
        }
        let made = std::fs::read(folder.path().join("guest.elf")).unwrap();
        // Of the first program header (ELF-64, figure 6): offset, file size, and the bytes there.
        let text = |elf: &[u8]| {
            let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap()) as usize;
            let header = word(32);
            elf[word(header + 8)..][..word(header + 32)].to_vec()
        };
        assert!(text(&made) == text(GUEST), "assemble proof/guest.S anew");
    }
}
