//! `vmdeck vm set` and `vm ports`.

use std::collections::BTreeMap;
use std::fmt::Display;

use vmdeck_engine::Error;
use vmdeck_engine::network::bridge;
use vmdeck_engine::vm::record::PortForward;
use vmdeck_engine::vm::{ChangeVm, Changed, Setting, Step, TakesEffect};

use super::show;
use crate::cli::vm::{SetArguments, Switch};
use crate::headless::output::{Table, bytes, human};
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

/// What was changed, line by line, from what to what, and when it counts.
fn effects(changed: &Changed) -> String {
    let name = &changed.vm.name;
    if changed.effects.is_empty() {
        return format!("{name}: everything was so already\n");
    }
    let mut text = String::new();
    for effect in &changed.effects {
        let when = match effect.takes_effect {
            TakesEffect::Now => "",
            TakesEffect::NextStart => ", from its next start on",
        };
        for step in steps(&effect.setting) {
            text.push_str(&format!("{name}: {step}{when}\n"));
        }
    }
    human(&text).into_owned()
}

/// A setting's change in the words of its option.
fn steps(setting: &Setting) -> Vec<String> {
    let term = setting.term();
    match setting {
        Setting::Name(step) | Setting::Kernel(step) => vec![moved(term, &step.from, &step.to)],
        Setting::Cpus(step) => vec![moved(term, step.from, step.to)],
        Setting::MemoryMib(step) => vec![moved(term, bytes(step.from << 20), bytes(step.to << 20))],
        Setting::DiskBytes(step) => vec![moved(term, bytes(step.from), bytes(step.to))],
        Setting::WorkDisk(step) => vec![moved(term, show::on_off(step.from), show::on_off(step.to))],
        Setting::Command(step) => vec![moved(term, show::command(&step.from), show::command(&step.to))],
        Setting::Labels(step) => labels(step),
        Setting::Ports(step) => {
            let closed = step.from.iter().filter(|port| !step.to.contains(port));
            let opened = step.to.iter().filter(|port| !step.from.contains(port));
            let closed = closed.map(|port| format!("port {port} closed"));
            closed.chain(opened.map(|port| format!("port {port} opened"))).collect()
        }
        Setting::Environment(step) => environment(step),
    }
}

fn moved(term: &str, from: impl Display, to: impl Display) -> String {
    format!("{term} {from} → {to}")
}

fn labels(step: &Step<BTreeMap<String, String>>) -> Vec<String> {
    let gone = step.from.iter().filter(|(key, _)| !step.to.contains_key(*key));
    let set = step.to.iter().filter(|(key, value)| step.from.get(*key) != Some(value));
    let gone = gone.map(|(key, value)| format!("label {key}={value} taken away"));
    gone.chain(set.map(|(key, value)| match step.from.get(key) {
        Some(was) => format!("label {key} {was} → {value}"),
        None => format!("label {key}={value} put on"),
    }))
    .collect()
}

/// Names only: values may be secrets.
fn environment(step: &Step<Vec<String>>) -> Vec<String> {
    fn variables(list: &[String]) -> BTreeMap<&str, &str> {
        list.iter().filter_map(|variable| variable.split_once('=')).collect()
    }
    let (from, to) = (variables(&step.from), variables(&step.to));
    let gone = from.keys().filter(|name| !to.contains_key(*name));
    let set = to.iter().filter(|(name, value)| from.get(*name) != Some(value));
    let gone = gone.map(|name| format!("variable {name} taken away"));
    gone.chain(set.map(|(name, _)| match from.contains_key(name) {
        true => format!("variable {name} changed"),
        false => format!("variable {name} added"),
    }))
    .collect()
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
    if context.output.json(&vm.settings.ports)? {
        return Ok(0);
    }
    if let Some(address) = bridge::reachable(&vm) {
        context.output.text(&format!("{} is reached at {address}, on every port\n", vm.name))?;
    } else {
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
