//! What QEMU's last words mean.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::{Accelerator, MachineSpec};
use crate::error::{Error, ErrorKind};

/// As much of QEMU's output as is looked at: it says why at the end.
const TAIL_BYTES: u64 = 16 << 10;

/// The cause behind an error of a launch: the accelerator did not start, so another one may.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AcceleratorFailed(pub String);

/// The error for a QEMU that ended before its guest ran. `log` is what it printed; `ended` is its
/// exit in words.
pub(super) fn classify(spec: &MachineSpec, log: &str, ended: &str) -> Error {
    let said = last_words(log);
    let name = &spec.name;
    let has = |needle: &str| log.contains(needle);
    if let Some(rule) = between(log, "Could not set up host forwarding rule '", "'") {
        // `tcp:127.0.0.1:8080-:80`
        let host_side = rule.split('-').next().unwrap_or(rule);
        return Error::conflict(format!("the host's port {host_side} for `{name}` is in use"))
            .with_hint("choose another host port, or end what listens there (`ss -ltnup` shows it)");
    }
    if has("Failed to get \"write\" lock") || has("Failed to get shared \"write\" lock") {
        return Error::conflict(format!("a disk of `{name}` is in use by another process: {said}"))
            .with_hint(
                "another hypervisor may still run on it: `vmdeck vm list`, `lsof` on the disk's file",
            );
    }
    if spec.accelerator == Accelerator::Kvm
        && ["KVM", "kvm", "MSR", "/dev/kvm"].iter().any(|needle| said.contains(needle))
    {
        return Error::failed(format!("KVM does not start `{name}`"))
            .with_source(AcceleratorFailed(said))
            .with_hint("`vmdeck doctor` proves the accelerator anew");
    }
    if has("annot set up guest memory") || has("annot allocate memory") {
        return Error::failed(format!("this host has no {} MiB of memory for `{name}`", spec.memory_mib))
            .with_source(Said(said))
            .with_hint("give the machine less memory, or stop others");
    }
    // What is no kernel at all is taken for one of the time before there was a header.
    let no_kernel =
        ["without PVH ELF Note", "invalid kernel header", "linux kernel too old", "does not support"];
    if no_kernel.iter().any(|needle| has(needle)) {
        return Error::failed(format!("`{}` is no kernel that this machine can boot", spec.kernel.display()))
            .with_source(Said(said))
            .with_hint("is it for another architecture, or built without CONFIG_PVH? `vmdeck kernel list`");
    }
    if has("could not load kernel") || has("could not open kernel") || has("could not load initrd") {
        return Error::failed(format!("the kernel of `{name}` cannot be read"))
            .with_source(Said(said))
            .with_hint("`vmdeck kernel show` says where its files should be");
    }
    if ["invalid option", "not found", "is not a valid device model", "Parameter '", "sandbox"]
        .iter()
        .any(|needle| said.contains(needle))
    {
        return Error::host_cannot(format!("this QEMU does not know an option that `{name}` needs"))
            .with_source(Said(said))
            .with_hint("vmdeck needs QEMU 7.0 or later; `vmdeck doctor` shows which one it found");
    }
    let message = format!("the hypervisor of `{name}` ended before the guest ran ({ended})");
    let error = Error::new(ErrorKind::Failed, message);
    if said.is_empty() {
        error.with_hint("`vmdeck doctor` looks for what this host lacks")
    } else {
        error.with_source(Said(said))
    }
}

/// The end of what QEMU printed from `start` on; empty when it cannot be read.
pub(super) fn log_tail(path: &Path, start: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let from = length.saturating_sub(TAIL_BYTES).max(start).min(length);
        let mut bytes = vec![0; usize::try_from(length - from).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], from + filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// The last line that is more than a warning, without the program's name before it.
pub(super) fn last_words(log: &str) -> String {
    let lines = || log.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().rfind(|line| !line.contains("warning:")).or_else(|| lines().next_back());
    let line = line.unwrap_or_default();
    let said = match line.split_once(": ") {
        Some((program, said)) if program.contains("qemu") && !program.contains(' ') => said,
        _ => line,
    };
    said.chars().filter(|character| !character.is_control()).take(400).collect()
}

/// QEMU's own words as the cause of an error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Said(String);

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &text[text.rfind(before)? + before.len()..];
    rest.find(after).map(|end| &rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::NetworkAttachment;

    fn spec(accelerator: Accelerator) -> MachineSpec {
        MachineSpec {
            directory: "/data/vms/v1".into(),
            name: "web".into(),
            accelerator,
            cpus: 1,
            memory_mib: 512,
            kernel: "/k/vmlinux".into(),
            initrd: "/k/initrd".into(),
            command_line: String::new(),
            disks: vec![],
            network: NetworkAttachment::None,
            lan: None,
        }
    }

    #[test]
    fn last_words_of_qemu() {
        let check = |accelerator, log: &str, kind, message: &str| {
            let error = classify(&spec(accelerator), log, "exit status: 1");
            assert_eq!((error.kind(), error.full_message().as_str()), (kind, message), "{log}");
        };
        check(
            Accelerator::Tcg,
            "qemu-system-x86_64: -netdev user,id=net0: Could not set up host forwarding rule 'tcp:127.0.0.1:8080-:80'\n",
            ErrorKind::Conflict,
            "the host's port tcp:127.0.0.1:8080 for `web` is in use",
        );
        check(
            Accelerator::Kvm,
            "qemu-system-x86_64: warning: host doesn't support\nqemu-system-x86_64: error: failed to set MSR 0x10a to 0x0\n\
             qemu-system-x86_64: ../../target/i386/kvm/kvm.c:3007: kvm_buf_set_msrs: Assertion `ret == cpu->kvm_msr_buf->nmsrs' failed.\n",
            ErrorKind::Failed,
            "KVM does not start `web`: ../../target/i386/kvm/kvm.c:3007: kvm_buf_set_msrs: Assertion \
             `ret == cpu->kvm_msr_buf->nmsrs' failed.",
        );
        check(
            Accelerator::Tcg,
            "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory\n",
            ErrorKind::Failed,
            "this host has no 512 MiB of memory for `web`: cannot set up guest memory 'pc.ram': Cannot allocate memory",
        );
        check(
            Accelerator::Tcg,
            "qemu-system-x86_64: -blockdev {}: Failed to get \"write\" lock\nIs another process using the image [root.qcow2]?\n",
            ErrorKind::Conflict,
            "a disk of `web` is in use by another process: Is another process using the image [root.qcow2]?",
        );
        check(
            Accelerator::Tcg,
            "qemu-system-x86_64: Error loading uncompressed kernel without PVH ELF Note\n",
            ErrorKind::Failed,
            "`/k/vmlinux` is no kernel that this machine can boot: Error loading uncompressed kernel without PVH ELF Note",
        );
        check(
            Accelerator::Tcg,
            "",
            ErrorKind::Failed,
            "the hypervisor of `web` ended before the guest ran (exit status: 1)",
        );
    }

    #[test]
    fn a_failed_accelerator_can_be_told_from_other_failures() {
        let error =
            classify(&spec(Accelerator::Kvm), "qemu: failed to initialize kvm: Permission denied", "1");
        let source = std::error::Error::source(&error).unwrap();
        assert!(source.is::<AcceleratorFailed>());
    }
}
