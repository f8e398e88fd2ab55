//! Machines for people to read.

use vmdeck_engine::network::bridge;
use vmdeck_engine::vm::record::{Boot, BootPhaseStatus, Vm, VmState};

use crate::headless::output::{Fields, Table, bytes, duration, human, time};

/// What fits a narrow terminal.
pub(super) fn table(vms: &[Vm]) -> String {
    let mut table = Table::new(["NAME", "STATE", "ADDRESS", "CPUS", "MEMORY", "UP", "IMAGE", "KERNEL"]);
    for vm in vms {
        table.row([
            vm.name.clone(),
            state(vm),
            address(vm),
            cpus(vm),
            memory(vm),
            up(vm),
            vm.image.clone(),
            kernel(vm),
        ]);
    }
    table.render()
}

/// Everything known of one machine.
pub(super) fn fields(vm: &Vm) -> String {
    let mut fields = Fields::default();
    fields
        .add("name", &vm.name)
        .add("id", vm.id.to_string())
        .add("state", state(vm))
        .add("image", &vm.image)
        .add("kernel", at_next_start(kernel(vm)))
        .add("cpus", at_next_start(cpus(vm)))
        .add("memory", at_next_start(memory(vm)))
        .add("disk", at_next_start(disk(vm)))
        .add("work disk", at_next_start(work_disk(vm)))
        .add("network", network(vm))
        .add_some("address", vm.address.map(|address| address.to_string()))
        .add_some("name there", vmdeck_engine::network::lan::name(vm))
        .add_some("ports", bridge::reachable(vm).map(|_| "all, at its address".to_owned()))
        .add("created", time(vm.created_at));
    let next = vm.pending.as_ref();
    let next_command = next.and_then(|next| next.command.as_ref());
    if !vm.settings.command.is_empty() || next_command.is_some() {
        let now = command(&vm.settings.command);
        fields.add(
            "command",
            match next_command {
                Some(next) => format!("{now}{ARROW}{} at next start", command(next)),
                None => now,
            },
        );
    }
    if next.is_some_and(|next| next.environment.is_some()) {
        fields.add("environment", "another one at next start, instead of:");
    }
    for port in &vm.settings.ports {
        fields.add("port", port.to_string());
    }
    for (key, value) in &vm.labels {
        fields.add("label", format!("{key}={value}"));
    }
    for variable in &vm.settings.environment {
        fields.add("environment", variable);
    }
    if let Some(ended) = &vm.ended {
        fields.add("ended", format!("{}: {}", time(ended.at), ended.message));
    }
    if let Some(run) = &vm.run {
        fields.add("process", run.process.pid.to_string()).add("started", time(run.started_at));
    }
    let mut text = fields.render();
    if let Some(boot) = &vm.boot {
        text.push_str(&format!("last boot:  {}\n", time(boot.started_at)));
        for phase in &boot.phases {
            let took = match (phase.status, phase.duration_ms) {
                (BootPhaseStatus::Pending, _) => "-".into(),
                (BootPhaseStatus::Active, _) => "under way".into(),
                (BootPhaseStatus::Skipped, _) => "not needed".into(),
                (BootPhaseStatus::Done, took) => took.map_or_else(|| "done".into(), duration),
                (BootPhaseStatus::Failed, took) => format!("FAILED after {}", duration(took.unwrap_or(0))),
            };
            text.push_str(&format!("  {:<8} {took}\n", phase.name.as_str()));
        }
        for warning in &boot.warnings {
            text.push_str(&format!("warning:  {warning}\n"));
        }
        if let Some(failure) = &boot.failure {
            text.push_str(&format!("failure:  {}\n   next:  {}\n", failure.message, failure.hint));
            for line in &failure.console_tail {
                text.push_str(&format!("  | {line}\n"));
            }
        }
    }
    human(&text).into_owned()
}

/// A machine that is up without what its image was to run is not what its user expects.
fn state(vm: &Vm) -> String {
    let refused = vm.boot.as_ref().and_then(Boot::command_not_run).is_some();
    match vm.state {
        VmState::Running if refused => "running, without its command".into(),
        state => state.as_str().into(),
    }
}

/// As much as there is to tell machines apart by.
pub(super) fn wide_table(vms: &[Vm]) -> String {
    let mut table = Table::new([
        "NAME", "STATE", "ADDRESS", "NETWORK", "CPUS", "MEMORY", "DISK", "UP", "PORTS", "IMAGE", "KERNEL",
        "LABELS",
    ]);
    for vm in vms {
        let ports: Vec<String> = vm.settings.ports.iter().map(ToString::to_string).collect();
        table.row([
            vm.name.clone(),
            state(vm),
            address(vm),
            network(vm),
            cpus(vm),
            memory(vm),
            disk(vm),
            up(vm),
            or_dash(ports.join(", ")),
            vm.image.clone(),
            kernel(vm),
            or_dash(labels(vm)),
        ]);
    }
    table.render()
}

/// Stands between what a machine that runs has and what its next start gives it.
const ARROW: &str = " → ";

/// Whether it tells of the next start, too.
fn has_arrow(value: &str) -> bool {
    value.contains(ARROW)
}

fn arrow(now: String, next: Option<String>) -> String {
    match next {
        Some(next) => now + ARROW + &next,
        None => now,
    }
}

fn at_next_start(value: String) -> String {
    if has_arrow(&value) { value + " at next start" } else { value }
}

fn cpus(vm: &Vm) -> String {
    let next = vm.pending.as_ref().and_then(|next| next.cpus);
    arrow(vm.settings.cpus.to_string(), next.map(|cpus| cpus.to_string()))
}

fn memory(vm: &Vm) -> String {
    let next = vm.pending.as_ref().and_then(|next| next.memory_mib);
    arrow(bytes(vm.settings.memory_mib << 20), next.map(|memory| bytes(memory << 20)))
}

fn disk(vm: &Vm) -> String {
    let next = vm.pending.as_ref().and_then(|next| next.disk_bytes);
    arrow(bytes(vm.settings.disk_bytes), next.map(bytes))
}

fn work_disk(vm: &Vm) -> String {
    let next = vm.pending.as_ref().and_then(|next| next.work_disk);
    arrow(on_off(vm.settings.work_disk).to_owned(), next.map(|on| on_off(on).to_owned()))
}

fn kernel(vm: &Vm) -> String {
    arrow(vm.kernel.clone(), vm.pending.as_ref().and_then(|next| next.kernel.clone()))
}

pub(super) fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

pub(super) fn command(words: &[String]) -> String {
    if words.is_empty() { "the image's".to_owned() } else { words.join(" ") }
}

fn labels(vm: &Vm) -> String {
    let labels: Vec<String> = vm.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.join(",")
}

fn network(vm: &Vm) -> String {
    serde_json::to_value(vm.settings.network)
        .ok()
        .and_then(|name| name.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn address(vm: &Vm) -> String {
    vm.address.map_or_else(|| "-".into(), |address| address.to_string())
}

/// How long its process has been there.
fn up(vm: &Vm) -> String {
    match &vm.run {
        Some(run) if matches!(vm.state, VmState::Running | VmState::Paused) => {
            duration(u64::try_from(vmdeck_engine::clock::now() - run.started_at).unwrap_or(0))
        }
        _ => "-".into(),
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}
