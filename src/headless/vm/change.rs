//! `vmdeck vm set` and `vm ports`.

use std::collections::BTreeMap;

use vmdeck_engine::Error;
use vmdeck_engine::vm::record::PortForward;
use vmdeck_engine::vm::{ChangeVm, Changed, TakesEffect};

use crate::cli::vm::{SetArguments, Switch};
use crate::headless::output::Table;
use crate::headless::{Context, Outcome};

pub(super) async fn set(context: &Context, arguments: SetArguments) -> Outcome {
    let mut labels: BTreeMap<String, Option<String>> =
        arguments.resources.labels.into_iter().map(|(key, value)| (key, Some(value))).collect();
    for key in arguments.remove_label {
        labels.insert(key, None);
    }
    let command = match (arguments.image_command, arguments.command) {
        (true, _) => Some(Vec::new()),
        (false, command) if command.is_empty() => None,
        (false, command) => Some(command),
    };
    let change = ChangeVm {
        name: arguments.rename,
        cpus: arguments.resources.cpus,
        memory_mib: arguments.resources.memory,
        disk_gib: arguments.resources.disk,
        kernel: arguments.kernel,
        command,
        environment: arguments.environment,
        work_disk: arguments.work_disk.map(|switch| switch == Switch::On),
        add_ports: arguments.resources.ports,
        remove_ports: arguments.remove_ports,
        labels,
    };
    if change == ChangeVm::default() {
        return Err(Error::usage("nothing to change was given")
            .with_hint("for example `--memory 2048`; `vmdeck vm set --help` shows what can be changed"));
    }
    let changed = context.follow(context.engine.vms().change(&arguments.name, change, None)).await?;
    if !context.output.json(&changed)? {
        context.output.text(&effects(&changed))?;
        changed.notes.iter().for_each(|note| context.output.message(note));
    }
    Ok(0)
}

/// One line for each setting that is another one now.
fn effects(changed: &Changed) -> String {
    if changed.effects.is_empty() {
        return format!("{}: everything was so already\n", changed.vm.name);
    }
    let line = |(setting, when): &(String, TakesEffect)| match when {
        TakesEffect::Now => format!("{}: {setting} changed\n", changed.vm.name),
        TakesEffect::NextStart => {
            format!("{}: {setting} changed, from its next start on\n", changed.vm.name)
        }
    };
    changed.effects.iter().map(line).collect()
}

/// Lists, after what is to be added and removed was.
pub(super) async fn ports(
    context: &Context,
    name: &str,
    add: Vec<PortForward>,
    remove: Vec<PortForward>,
) -> Outcome {
    let vms = context.engine.vms();
    let vm = if add.is_empty() && remove.is_empty() {
        vms.find(name).await?
    } else {
        let change = ChangeVm { add_ports: add, remove_ports: remove, ..ChangeVm::default() };
        context.follow(vms.change(name, change, None)).await?.vm
    };
    if !context.output.json(&vm.settings.ports)? {
        let mut table = Table::new(["HOST", "GUEST", "PROTOCOL"]);
        for port in &vm.settings.ports {
            table.row([
                format!("{}:{}", port.host_address, port.host_port),
                port.guest_port.to_string(),
                port.protocol.as_str().into(),
            ]);
        }
        context.output.text(&table.render())?;
    }
    Ok(0)
}
