//! QEMU and what runs its guests.

use tokio_util::sync::CancellationToken;

use super::Check;
use crate::vmm::Accelerator;
use crate::vmm::qemu::accelerator::KvmAccess;
use crate::vmm::qemu::binary::{Binary, Features, install_hint};

/// The first version with all options that are used.
const OLDEST: (u32, u32) = (7, 0);

pub(super) async fn checks(engine: &crate::Engine) -> Vec<Check> {
    let features = match Binary::find() {
        Ok(binary) => Features::of(&binary, &engine.data().root().join("cache")).await,
        Err(error) => Err(error),
    };
    let features = match features {
        Ok(features) => features,
        // Nothing else can be said of a hypervisor that is not there.
        Err(error) => return vec![Check::from_error("qemu", &error)],
    };
    vec![qemu(&features), user_network(&features), accelerator(engine).await]
}

fn qemu(features: &Features) -> Check {
    let found = format!("QEMU {} at {}", features.version, features.path().display());
    match version(&features.version) {
        Some(version) if version < OLDEST => Check::failed(
            "qemu",
            format!("{found} is too old"),
            format!(
                "install QEMU {}.{} or later, and set VMDECK_QEMU to it if it is not in PATH",
                OLDEST.0, OLDEST.1
            ),
        ),
        _ if !features.sandbox => Check::warning(
            "qemu",
            format!(
                "{found} was built without seccomp: guests that break out of it meet no filter of system calls"
            ),
            "use the distribution's own build of QEMU",
        ),
        _ => Check::ok("qemu", found),
    }
}

fn user_network(features: &Features) -> Check {
    if features.user_network {
        Check::ok("user network", "QEMU has the user-mode network")
    } else {
        Check::failed(
            "user network",
            "this QEMU was built without the user-mode network (libslirp): machines start without network only",
            install_hint(),
        )
    }
}

async fn accelerator(engine: &crate::Engine) -> Check {
    let verdict = match engine.vmm().accelerator(&CancellationToken::new()).await {
        Ok(verdict) => verdict,
        Err(error) => return Check::from_error("accelerator", &error),
    };
    match verdict.accelerator {
        Accelerator::Kvm => Check::ok("accelerator", format!("KVM: {}", verdict.reason)),
        Accelerator::Tcg => Check::warning(
            "accelerator",
            format!("TCG, which is slow: {}", verdict.reason),
            fix(KvmAccess::of_this_process()),
        ),
    }
}

/// How KVM could come to run here.
fn fix(access: KvmAccess) -> String {
    match access {
        KvmAccess::Missing if !has_virtualisation() => {
            "switch virtualisation on in the firmware, or nested virtualisation in the host that this one runs on"
                .to_owned()
        }
        KvmAccess::Missing => "load the driver: `sudo modprobe kvm_intel` or `sudo modprobe kvm_amd`".to_owned(),
        KvmAccess::Denied => {
            "`sudo usermod -aG kvm \"$USER\"`, then log in anew (or `newgrp kvm` in this shell)".to_owned()
        }
        KvmAccess::Broken => "`dmesg | grep -i kvm` says why its driver refuses".to_owned(),
        KvmAccess::Open => {
            "run vmdeck on the host below this one, or have nested virtualisation switched on there (`kvm_intel nested=1`, `kvm_amd nested=1`)"
                .to_owned()
        }
    }
}

/// Whether the processor tells of VMX or SVM.
fn has_virtualisation() -> bool {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_ascii_whitespace().any(|flag| matches!(flag, "vmx" | "svm"))
}

/// `7.2.22 (Debian …)` → 7, 2.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version("7.2.22 (Debian 1:7.2+dfsg)"), Some((7, 2)));
        assert_eq!(version("10.0.0"), Some((10, 0)));
        assert_eq!(version("new"), None);
    }
}
