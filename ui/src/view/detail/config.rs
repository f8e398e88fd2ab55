//! The settings of a machine.

use vmdeck_engine::vm::record::Vm;

use crate::action::Action;
use crate::format::{Bytes, Mebibytes, Span};
use crate::model::rows::network;
use crate::view::pen::Pen;

pub(super) fn config(pen: &mut Pen<'_, '_>, vm: &Vm) {
    let settings = &vm.settings;
    pen.field("image", &vm.image);
    pen.field("kernel", &vm.kernel);
    pen.field_format("cpus", format_args!("{}", settings.cpus));
    pen.field_format("memory", format_args!("{}", Mebibytes(settings.memory_mib)));
    pen.field_format("disk", format_args!("{}", Bytes(settings.disk_bytes)));
    pen.field("network", network(settings.network));
    if let Some(address) = vm.address {
        pen.field_format("address", format_args!("{address}"));
    }
    if !settings.command.is_empty() {
        pen.field("command", &settings.command.join(" "));
    }
    for (index, variable) in settings.environment.iter().enumerate() {
        pen.field(if index == 0 { "environment" } else { "" }, variable);
    }
    if !settings.work_disk {
        pen.field("work disk", "none");
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
