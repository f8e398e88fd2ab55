//! Machines for people to read.

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
            vm.settings.cpus.to_string(),
            bytes(vm.settings.memory_mib << 20),
            up(vm),
            vm.image.clone(),
            vm.kernel.clone(),
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
        .add("kernel", &vm.kernel)
        .add("cpus", vm.settings.cpus.to_string())
        .add("memory", bytes(vm.settings.memory_mib << 20))
        .add("disk", bytes(vm.settings.disk_bytes))
        .add("work disk", if vm.settings.work_disk { "on" } else { "off" })
        .add("network", network(vm))
        .add_some("address", vm.address.map(|address| address.to_string()))
        .add_some("name there", vmdeck_engine::network::lan::name(vm))
        .add("created", time(vm.created_at));
    for port in &vm.settings.ports {
        fields.add("port", port.to_string());
    }
    for (key, value) in &vm.labels {
        fields.add("label", format!("{key}={value}"));
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
            vm.settings.cpus.to_string(),
            bytes(vm.settings.memory_mib << 20),
            bytes(vm.settings.disk_bytes),
            up(vm),
            or_dash(ports.join(", ")),
            vm.image.clone(),
            vm.kernel.clone(),
            or_dash(labels(vm)),
        ]);
    }
    table.render()
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
