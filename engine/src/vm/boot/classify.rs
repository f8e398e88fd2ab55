//! Why a boot failed, told from what there is to see: pure, a table of what kernels and hypervisors
//! print.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::signal::Signal;

use super::console::{TAIL_LINES, last};
use super::stall::Stall;
use crate::guest::GuestFailure;
use crate::vm::record::{BootFailure, BootFailureClass, BootPhaseName};
use crate::vmm::{Accelerator, Ending};

/// How it came out that the boot failed.
#[derive(Clone, Debug)]
pub(in crate::vm) enum Trouble {
    /// The guest's init said so.
    Guest(GuestFailure),
    /// The hypervisor could not be started; its words.
    Launch(String),
    /// The accelerator could not be started; the hypervisor's words.
    Accelerator(String),
    /// The hypervisor ended; its exit status, where this process had launched it.
    Ended(Option<ExitStatus>),
    /// The hypervisor runs, its guest does not any more.
    Broken,
    Stalled(Stall),
}

/// Everything there is to see.
#[derive(Clone, Debug)]
pub(in crate::vm) struct Evidence<'a> {
    pub(in crate::vm) trouble: Trouble,
    /// The phase it happened in.
    pub(in crate::vm) phase: BootPhaseName,
    pub(in crate::vm) accelerator: Option<Accelerator>,
    /// How the hypervisor says that it ended.
    pub(in crate::vm) ending: Ending,
    /// Lines of the serial console and of the hypervisor, both made printable.
    pub(in crate::vm) console: &'a [String],
    pub(in crate::vm) hypervisor: &'a [String],
    /// For messages.
    pub(in crate::vm) name: &'a str,
    pub(in crate::vm) image: &'a str,
    pub(in crate::vm) kernel: &'a str,
    pub(in crate::vm) memory_mib: u64,
    /// The root is no longer just the image's.
    pub(in crate::vm) own_root: Option<OwnRoot>,
}

/// A root disk that a machine has written to, or that began as another machine's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::vm) struct OwnRoot {
    /// The newest of before it failed.
    pub(in crate::vm) snapshot: Option<String>,
}

use BootFailureClass as Class;

/// Words of the guest's kernel or of our init, the most telling first: a panic names no cause when
/// its cause was printed before it.
const CONSOLE: [(&str, Class); 22] = [
    ("Initramfs unpacking failed: write error", Class::OutOfMemory),
    ("Initramfs unpacking failed: out of memory", Class::OutOfMemory),
    ("System is deadlocked on memory", Class::OutOfMemory),
    ("Kernel panic - not syncing: Out of memory", Class::OutOfMemory),
    ("Out of memory: Killed process", Class::OutOfMemory),
    ("invoked oom-killer", Class::OutOfMemory),
    ("VFS: Cannot open root device", Class::NoRootDevice),
    ("VFS: Unable to mount root fs", Class::NoRootDevice),
    ("(error -8)", Class::WrongArchitecture),
    ("Exec format error", Class::WrongArchitecture),
    ("No working init found", Class::NoInit),
    ("Failed to execute /init", Class::NoInit),
    ("Requested init", Class::NoInit),
    ("EXT4-fs (vda): VFS: Can't find ext4 filesystem", Class::RootNotAFileSystem),
    ("bad magic number in super-block", Class::RootNotAFileSystem),
    ("Kernel panic - not syncing", Class::KernelPanic),
    ("Oops: ", Class::KernelPanic),
    ("BUG: unable to handle", Class::KernelPanic),
    ("general protection fault", Class::KernelPanic),
    ("Unable to handle kernel", Class::KernelPanic),
    ("reboot: Power down", Class::HypervisorExited),
    ("reboot: Restarting system", Class::HypervisorExited),
];

/// Words of the hypervisor.
const HYPERVISOR: [(&str, Class); 18] = [
    ("KVM internal error", Class::AcceleratorDied),
    ("failed to set MSR", Class::AcceleratorDied),
    ("kvm run failed", Class::AcceleratorDied),
    ("error: kvm", Class::AcceleratorDied),
    ("ioctl(KVM", Class::AcceleratorDied),
    ("failed to initialize kvm", Class::AcceleratorDied),
    ("Could not access KVM kernel module", Class::AcceleratorDied),
    ("Could not set up host forwarding rule", Class::Network),
    ("cannot set up guest memory", Class::OutOfMemory),
    ("Cannot allocate memory", Class::OutOfMemory),
    ("linux kernel too old", Class::WrongArchitecture),
    ("without PVH ELF Note", Class::WrongArchitecture),
    ("invalid kernel header", Class::WrongArchitecture),
    ("is no kernel that this machine can boot", Class::WrongArchitecture),
    ("could not load kernel", Class::WrongArchitecture),
    ("not a valid ELF", Class::WrongArchitecture),
    ("is not a bootable", Class::WrongArchitecture),
    ("Failed to get \"write\" lock", Class::Host),
];

const SHUT_DOWN: &str = "the guest shut itself down before it was ready";

/// Finds the class, the message and the next step.
pub(in crate::vm) fn classify(evidence: &Evidence<'_>) -> BootFailure {
    let (class, cause) = cause(evidence);
    let message = match (class, &evidence.own_root) {
        (Class::RootNotAFileSystem, Some(_)) => format!("the machine's own root disk is damaged: {cause}"),
        (Class::NoInit, Some(_)) => format!("the machine's own root disk has lost its init: {cause}"),
        _ => cause,
    };
    BootFailure {
        class,
        message,
        hint: hint(class, evidence),
        console_tail: last(evidence.console, TAIL_LINES),
    }
}

/// The class and one sentence that names the cause.
fn cause(evidence: &Evidence<'_>) -> (Class, String) {
    if let Trouble::Guest(failure) = &evidence.trouble {
        let message = super::console::printable_lines(failure.message.as_bytes()).join("; ");
        let message = if message.is_empty() { "the guest's init gave up".into() } else { message };
        return (believable(failure.class), message);
    }
    if let Trouble::Accelerator(words) = &evidence.trouble {
        return (Class::AcceleratorDied, format!("the hypervisor says: {words}"));
    }
    if let Some((class, line)) = find(&HYPERVISOR, evidence.hypervisor) {
        return (class, format!("the hypervisor says: {line}"));
    }
    if let Trouble::Launch(words) = &evidence.trouble {
        let class = HYPERVISOR.iter().find(|(needle, _)| words.contains(needle)).map(|(_, class)| *class);
        return (class.unwrap_or(Class::HypervisorExited), words.clone());
    }
    // A kernel without virtio_console has no channel: then the console alone carries our init's words.
    if let Some(found) = evidence.console.iter().find_map(|line| words_of_init(line)) {
        return found;
    }
    if let Some((class, line)) = find(&CONSOLE, evidence.console) {
        return (class, told(class, &line, evidence));
    }
    match evidence.ending {
        Ending::PoweredOff => return (Class::HypervisorExited, SHUT_DOWN.into()),
        Ending::Panicked => return (Class::KernelPanic, "the guest's kernel panicked without a word".into()),
        Ending::Signal => return (Class::HypervisorExited, "the hypervisor was ended by a signal".into()),
        // A triple fault is a reset, too.
        Ending::Reset | Ending::Quit | Ending::Unknown => {}
    }
    let silent = evidence.console.is_empty();
    match evidence.trouble {
        // Under TCG a guest that ends or hangs without a word has itself to blame.
        Trouble::Broken | Trouble::Ended(_) | Trouble::Stalled(_)
            if evidence.accelerator == Some(Accelerator::Kvm)
                && silent
                && evidence.phase <= BootPhaseName::Kernel =>
        {
            (Class::AcceleratorDied, "the guest's kernel did not come to its first word under KVM".into())
        }
        Trouble::Broken => match evidence.accelerator {
            Some(Accelerator::Kvm) => {
                (Class::AcceleratorDied, "KVM could not go on running the guest".into())
            }
            _ => (Class::HypervisorExited, "the hypervisor could not go on running the guest".into()),
        },
        Trouble::Stalled(stall) => stalled(stall, evidence),
        // One whose guest ended says so: of one that says nothing, something else was the end.
        _ if silent
            && evidence.ending == Ending::Reset
            && evidence.phase == BootPhaseName::Kernel
            && evidence.hypervisor.is_empty() =>
        {
            (
                Class::WrongArchitecture,
                format!(
                    "kernel `{}` ended without a word: it is damaged or not for this machine",
                    evidence.kernel
                ),
            )
        }
        _ if evidence.ending == Ending::Reset => (
            Class::HypervisorExited,
            "the guest reset itself before it was ready, and its kernel did not say why".into(),
        ),
        _ => {
            let status = if let Trouble::Ended(status) = evidence.trouble { status } else { None };
            (Class::HypervisorExited, ended(status, evidence.hypervisor.last().map(String::as_str)))
        }
    }
}

/// Whether a translated kernel stood still before it had started anything, and so before it had touched a
/// disk.
///
/// It is one boot of 600 on a host that is busy with others: a timer of the guest does not fire, and nothing
/// else is to wake it. Minutes later its kernel has words for it: "Possible timer handling issue". The same
/// boot done again succeeds.
pub(in crate::vm) fn is_timer_lost(
    trouble: &Trouble,
    phase: BootPhaseName,
    accelerator: Option<Accelerator>,
) -> bool {
    matches!(trouble, Trouble::Stalled(Stall::Idle(_)))
        && phase == BootPhaseName::Kernel
        && accelerator == Some(Accelerator::Tcg)
}

/// How a hypervisor ended that did not come to write it down.
fn ended(status: Option<ExitStatus>, last_words: Option<&str>) -> String {
    let words = last_words.map_or_else(|| " without a word".to_owned(), |words| format!(": {words}"));
    let Some(status) = status else {
        return match last_words {
            Some(_) => format!("the hypervisor ended{words}"),
            None => "the hypervisor ended without a word; it may have been killed".into(),
        };
    };
    match status.signal().map(Signal::try_from) {
        // Nothing in here does that while a boot is watched.
        Some(Ok(Signal::SIGKILL)) => format!(
            "the hypervisor was killed (SIGKILL){}: by somebody, or by the host's kernel for want of memory",
            last_words.map_or_else(String::new, |words| format!(", after it had said: {words}"))
        ),
        Some(Ok(signal)) => format!("the hypervisor crashed ({signal}){words}"),
        _ => format!("the hypervisor ended ({status}){words}"),
    }
}

/// What our init said before it gave up: `vmdeck: cannot boot [class]: message`.
fn words_of_init(line: &str) -> Option<(Class, String)> {
    let (_, rest) = line.split_once("vmdeck: cannot boot [")?;
    let (class, message) = rest.split_once("]: ")?;
    let class = match class {
        "no_root_device" => Class::NoRootDevice,
        "root_not_a_file_system" => Class::RootNotAFileSystem,
        "wrong_architecture" => Class::WrongArchitecture,
        "network" => Class::Network,
        _ => Class::NoInit,
    };
    Some((class, message.to_owned()))
}

/// A guest can know these of itself; what is said of the host is the host's to find out.
fn believable(class: Class) -> Class {
    match class {
        Class::NoRootDevice
        | Class::RootNotAFileSystem
        | Class::NoInit
        | Class::WrongArchitecture
        | Class::OutOfMemory
        | Class::Network
        | Class::KernelPanic => class,
        Class::AcceleratorDied
        | Class::AgentSilent
        | Class::HypervisorMissing
        | Class::HypervisorExited
        | Class::Stalled
        | Class::Cancelled
        | Class::Host
        | Class::Abandoned => Class::AgentSilent,
    }
}

fn find(table: &[(&str, Class)], lines: &[String]) -> Option<(Class, String)> {
    table.iter().find_map(|(needle, class)| {
        let line = lines.iter().find(|line| line.contains(needle))?;
        Some((*class, without_time(line).to_owned()))
    })
}

/// Takes `[    1.234567] ` off a kernel's line.
fn without_time(line: &str) -> &str {
    line.strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
        .filter(|(time, _)| time.trim().bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
        .map_or(line, |(_, rest)| rest)
}

fn told(class: Class, line: &str, evidence: &Evidence<'_>) -> String {
    match class {
        Class::OutOfMemory => {
            format!("{} MiB of memory did not suffice: {line}", evidence.memory_mib)
        }
        Class::HypervisorExited => format!("{SHUT_DOWN}: {line}"),
        _ => line.to_owned(),
    }
}

fn stalled(stall: Stall, evidence: &Evidence<'_>) -> (Class, String) {
    let how = match stall {
        Stall::Busy(time) => format!("computed for {} s", time.as_secs()),
        Stall::Idle(time) => format!("waited for {} s", time.as_secs()),
    };
    match evidence.phase {
        BootPhaseName::Agent | BootPhaseName::Ready => {
            (Class::AgentSilent, format!("the agent did not answer; the guest {how} without a sign"))
        }
        phase => (Class::Stalled, format!("the guest {how} in phase `{}` without a sign", phase.as_str())),
    }
}

/// The next step.
fn hint(class: Class, evidence: &Evidence<'_>) -> String {
    let Evidence { name, image, kernel, memory_mib, .. } = evidence;
    if let (Class::RootNotAFileSystem | Class::NoInit, Some(own)) = (class, &evidence.own_root) {
        return mend(name, image, own);
    }
    match class {
        Class::NoRootDevice => format!(
            "kernel `{kernel}` found no driver or no disk for its root; `vmdeck kernel show {kernel}` tells what it lacks; try another with --kernel"
        ),
        Class::RootNotAFileSystem => format!(
            "the root of image `{image}` is no ext4 file system, or is damaged; pull or register the image again"
        ),
        Class::NoInit => format!(
            "image `{image}` has nothing to start; give a command: `vmdeck vm create --image {image} -- COMMAND`"
        ),
        Class::KernelPanic => {
            format!("`vmdeck vm logs {name}` shows the whole console; try another kernel with --kernel")
        }
        Class::WrongArchitecture => format!(
            "check that kernel `{kernel}` and image `{image}` are for this host ({})",
            std::env::consts::ARCH
        ),
        Class::AcceleratorDied => "vmdeck goes on without KVM; `vmdeck doctor` shows the verdict".to_owned(),
        Class::OutOfMemory => {
            format!("give it more memory: `vmdeck vm set {name} --memory {}`", (memory_mib * 2).max(512))
        }
        Class::Network => format!("`vmdeck vm show {name}` lists its ports; another program may use one"),
        Class::AgentSilent => format!("`vmdeck vm logs {name}` shows what the guest did instead"),
        Class::HypervisorMissing => "`vmdeck doctor` says how to install it".to_owned(),
        Class::HypervisorExited => {
            format!("`vmdeck vm logs {name}` shows the console; `vmdeck doctor` looks at this host")
        }
        Class::Stalled => format!(
            "`vmdeck vm logs {name}` shows where it stands still; `vmdeck vm start {name}` tries again"
        ),
        Class::Host => "`vmdeck doctor` looks at this host".to_owned(),
        Class::Cancelled | Class::Abandoned => format!("`vmdeck vm start {name}` starts it again"),
    }
}

/// The next step where a machine's own root is to blame.
fn mend(name: &str, image: &str, own: &OwnRoot) -> String {
    let reset =
        format!("`vmdeck vm reset {name}` gives it a fresh root of image `{image}` and keeps its work disk");
    match &own.snapshot {
        Some(snapshot) => {
            format!("`vmdeck vm snapshot restore {name} {snapshot}` puts its disks back; {reset}")
        }
        None => reset,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn evidence<'a>(trouble: Trouble, console: &'a [String], hypervisor: &'a [String]) -> Evidence<'a> {
        Evidence {
            trouble,
            phase: BootPhaseName::Kernel,
            accelerator: Some(Accelerator::Tcg),
            ending: Ending::Unknown,
            console,
            hypervisor,
            name: "web",
            image: "debian",
            kernel: "6.12",
            memory_mib: 128,
            own_root: None,
        }
    }

    #[test]
    fn a_root_that_has_booted_is_the_machines_own() {
        let check = |class, snapshot: Option<&str>| {
            let said = GuestFailure { class, message: "it is gone".into() };
            let own = OwnRoot { snapshot: snapshot.map(str::to_owned) };
            let trouble = Trouble::Guest(said);
            let image = classify(&evidence(trouble.clone(), &[], &[]));
            assert!(image.hint.contains("image") && !image.hint.contains("reset"), "{}", image.hint);
            let own = Evidence { own_root: Some(own), ..evidence(trouble, &[], &[]) };
            let failure = classify(&own);
            assert_eq!(failure.class, class);
            assert!(failure.message.starts_with("the machine's own root disk"), "{}", failure.message);
            assert!(failure.hint.contains("`vmdeck vm reset web`"), "{}", failure.hint);
            let restore = failure.hint.contains("`vmdeck vm snapshot restore web good`");
            assert_eq!(restore, snapshot.is_some(), "{}", failure.hint);
        };
        check(Class::RootNotAFileSystem, Some("good"));
        check(Class::NoInit, None);
    }

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn consoles() {
        let check = |console: &str, class: Class, word: &str| {
            let console = lines(console);
            let failure = classify(&evidence(Trouble::Ended(None), &console, &[]));
            assert_eq!(failure.class, class, "{console:?}");
            assert!(failure.message.contains(word), "{}", failure.message);
            assert!(!failure.hint.is_empty());
        };
        check(
            "[    2.1] /dev/root: Can't open blockdev\n[    2.100000] VFS: Unable to mount root fs on unknown-block(0,0)\n\
             [    2.2] Kernel panic - not syncing: VFS: Unable to mount root fs",
            Class::NoRootDevice,
            "VFS: Unable to mount",
        );
        check("Kernel panic - not syncing: No working init found.", Class::NoInit, "No working init");
        check(
            "[    1.0] Starting init: /init exists but couldn't execute it (error -8)\nKernel panic - not syncing: x",
            Class::WrongArchitecture,
            "error -8",
        );
        check(
            "Initramfs unpacking failed: write error\nKernel panic - not syncing: VFS: x",
            Class::OutOfMemory,
            "128 MiB",
        );
        check("[ 3.0] Kernel panic - not syncing: Attempted to kill init!", Class::KernelPanic, "Attempted");
        check("[ 3.0] reboot: Power down", Class::HypervisorExited, "shut itself down");
        check("hello", Class::HypervisorExited, "may have been killed");
    }

    #[test]
    fn a_kernel_that_ends_in_silence_is_told_from_a_hypervisor_that_was_killed() {
        let check = |ending, class: Class, word: &str| {
            let failure = classify(&Evidence { ending, ..evidence(Trouble::Ended(None), &[], &[]) });
            assert_eq!(failure.class, class, "{ending:?}");
            assert!(failure.message.contains(word), "{}", failure.message);
        };
        check(Ending::Reset, Class::WrongArchitecture, "is damaged or not for this machine");
        check(Ending::Unknown, Class::HypervisorExited, "may have been killed");
        check(Ending::Signal, Class::HypervisorExited, "ended by a signal");
        // Not in silence: whatever it was, the kernel had begun.
        let console = lines("[    0.1] Linux version 6.12");
        let reset = Evidence { ending: Ending::Reset, ..evidence(Trouble::Ended(None), &console, &[]) };
        assert!(classify(&reset).message.contains("reset itself"), "{}", classify(&reset).message);
    }

    #[test]
    fn what_ended_a_hypervisor_is_said_where_it_is_known() {
        let check = |raw: i32, hypervisor: &str, words: &[&str]| {
            let hypervisor = lines(hypervisor);
            let trouble = Trouble::Ended(Some(ExitStatus::from_raw(raw)));
            let failure = classify(&evidence(trouble, &[], &hypervisor));
            assert_eq!(failure.class, Class::HypervisorExited);
            for word in words {
                assert!(failure.message.contains(word), "{word}: {}", failure.message);
            }
        };
        // Wait statuses as wait(2) has them: the signal, or the exit status in the next byte.
        check(9, "", &["killed (SIGKILL)", "want of memory"]);
        check(11, "", &["crashed (SIGSEGV)", "without a word"]);
        check(6, "qemu: assertion failed", &["crashed (SIGABRT)", "assertion failed"]);
        check(1 << 8, "", &["exit status: 1", "without a word"]);
        check(1 << 8, "qemu: something new", &["exit status: 1", "something new"]);
    }

    #[test]
    fn the_hypervisors_words() {
        let check = |words: &str, class: Class| {
            let hypervisor = lines(words);
            assert_eq!(classify(&evidence(Trouble::Ended(None), &[], &hypervisor)).class, class, "{words}");
            assert_eq!(classify(&evidence(Trouble::Launch(words.into()), &[], &[])).class, class, "{words}");
        };
        check("qemu-system-x86_64: error: failed to set MSR 0x10a to 0x0", Class::AcceleratorDied);
        check(
            "qemu-system-x86_64: Could not set up host forwarding rule 'tcp:127.0.0.1:80-:80'",
            Class::Network,
        );
        check(
            "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory",
            Class::OutOfMemory,
        );
        check("qemu-system-x86_64: linux kernel too old to load a ram disk", Class::WrongArchitecture);
        check("qemu-system-x86_64: something new", Class::HypervisorExited);
    }

    #[test]
    fn silence_under_kvm_is_kvms_fault_and_under_tcg_the_guests() {
        let silent = |accelerator, trouble| {
            let evidence = Evidence { accelerator: Some(accelerator), ..evidence(trouble, &[], &[]) };
            classify(&evidence).class
        };
        let stalled = || Trouble::Stalled(Stall::Busy(Duration::from_secs(90)));
        assert_eq!(silent(Accelerator::Kvm, Trouble::Broken), Class::AcceleratorDied);
        assert_eq!(silent(Accelerator::Kvm, stalled()), Class::AcceleratorDied);
        assert_eq!(silent(Accelerator::Tcg, stalled()), Class::Stalled);
        let late = Evidence { phase: BootPhaseName::Agent, ..evidence(stalled(), &[], &[]) };
        assert_eq!(classify(&late).class, Class::AgentSilent);
    }

    #[test]
    fn only_a_translated_kernel_that_waits_has_lost_its_timer() {
        let idle = Trouble::Stalled(Stall::Idle(Duration::from_secs(60)));
        let busy = Trouble::Stalled(Stall::Busy(Duration::from_secs(60)));
        let check = |trouble, phase, accelerator| is_timer_lost(trouble, phase, Some(accelerator));
        assert!(check(&idle, BootPhaseName::Kernel, Accelerator::Tcg));
        assert!(!check(&idle, BootPhaseName::Kernel, Accelerator::Kvm));
        assert!(!check(&idle, BootPhaseName::Agent, Accelerator::Tcg));
        assert!(!check(&busy, BootPhaseName::Kernel, Accelerator::Tcg));
        assert!(!check(&Trouble::Ended(None), BootPhaseName::Kernel, Accelerator::Tcg));
    }

    #[test]
    fn what_the_guest_says_is_believed_and_made_harmless() {
        let said =
            GuestFailure { class: Class::RootNotAFileSystem, message: "\u{1b}[2Jno ext4\non vda".into() };
        let failure = classify(&evidence(Trouble::Guest(said), &[], &[]));
        assert_eq!(failure.class, Class::RootNotAFileSystem);
        assert_eq!(failure.message, "no ext4; on vda");
    }
}
