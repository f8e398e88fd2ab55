//! The settings of a machine.

use std::fmt::Display;

use vmdeck_engine::vm::pending::Pending;
use vmdeck_engine::vm::record::Vm;

use crate::action::Action;
use crate::format::{Bytes, Mebibytes, Span};
use crate::model::rows::network;
use crate::view::pen::Pen;

pub(super) fn config(pen: &mut Pen<'_, '_>, vm: &Vm) {
    let settings = &vm.settings;
    pen.field("image", &vm.image);
    let none = Pending::default();
    let next = vm.pending.as_ref().unwrap_or(&none);
    changing(pen, "kernel", &vm.kernel, next.kernel.as_ref());
    changing(pen, "cpus", settings.cpus, next.cpus);
    changing(pen, "memory", Mebibytes(settings.memory_mib), next.memory_mib.map(Mebibytes));
    changing(pen, "disk", Bytes(settings.disk_bytes), next.disk_bytes.map(Bytes));
    pen.field("network", network(settings.network));
    if let Some(address) = vm.address {
        pen.field_format("address", format_args!("{address}"));
    }
    if !settings.command.is_empty() || next.command.is_some() {
        changing(pen, "command", command(&settings.command), next.command.as_deref().map(command));
    }
    for (index, variable) in settings.environment.iter().enumerate() {
        pen.field(if index == 0 { "environment" } else { "" }, variable);
    }
    for (index, variable) in next.environment.iter().flatten().enumerate() {
        pen.field(if index == 0 { "next start" } else { "" }, variable);
    }
    if next.environment.as_ref().is_some_and(Vec::is_empty) {
        pen.field("next start", "no variables of its own");
    }
    if !settings.work_disk || next.work_disk.is_some() {
        changing(pen, "work disk", work_disk(settings.work_disk), next.work_disk.map(work_disk));
    }
    for (index, (label, value)) in vm.labels.iter().enumerate() {
        pen.field(if index == 0 { "labels" } else { "" }, &format!("{label}={value}"));
    }
    pen.field("id", vm.id.as_str());
    let now = pen.model.now;
    pen.field_format("created", format_args!("{} ago", Span(now - vm.created_at)));
    pen.blank();
    let edit = pen.model.keymap.describe(Action::EditVm);
    pen.text(&format!("{edit} changes CPUs, memory, disk and ports."), pen.model.theme.dim);
}

/// A setting that a machine that runs has, and the one that its next start gives it.
fn changing(pen: &mut Pen<'_, '_>, label: &str, now: impl Display, next: Option<impl Display>) {
    match next {
        None => pen.field(label, &now.to_string()),
        Some(next) => pen.field(label, &format!("{now} → {next} at next start")),
    }
}

fn work_disk(on: bool) -> &'static str {
    if on { "at root's home" } else { "none" }
}

fn command(words: &[String]) -> String {
    if words.is_empty() { "the image's".to_owned() } else { words.join(" ") }
}
