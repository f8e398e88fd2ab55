//! How a machine is reached from this host.

use vmdeck_engine::vm::record::{NetworkMode, Protocol, Vm};

use crate::action::Action;
use crate::model::rows::network;
use crate::view::pen::Pen;

pub(super) fn ports(pen: &mut Pen<'_, '_>, vm: &Vm) {
    let model = pen.model;
    let theme = &model.theme;
    let settings = &vm.settings;
    pen.field("network", network(settings.network));
    if let Some(address) = vm.address {
        pen.field_format("address", format_args!("{address}"));
    }
    if let Some(name) = vmdeck_engine::network::lan::name(vm) {
        pen.field("name", &name);
    }
    pen.blank();
    let edit = model.keymap.describe(Action::EditVm);
    if settings.network == NetworkMode::None {
        pen.text("Nothing of this host leads into it.", theme.dim);
        return;
    }
    if vmdeck_engine::network::bridge::reachable(vm).is_some() {
        pen.text("This host reaches every port of it, at its address.", theme.dim);
        return;
    }
    if settings.ports.is_empty() {
        pen.text(&format!("No port of this host leads into it: {edit} adds some."), theme.dim);
        return;
    }
    pen.line(|line| {
        line.column("THIS HOST", 24, theme.column_title);
        line.column("MACHINE", 12, theme.column_title);
    });
    let (glyph, style, state) = match vm.state.has_process() {
        true => (model.glyphs.running, theme.good, "open"),
        false => (model.glyphs.stopped, theme.dim, "closed while it does not run"),
    };
    for port in &settings.ports {
        let protocol = if port.protocol == Protocol::Udp { "udp" } else { "tcp" };
        let here = format!("{}:{}", port.host_address, port.host_port);
        let there = format!("{}/{protocol}", port.guest_port);
        pen.line(|line| {
            line.column(&here, 24, theme.text);
            line.column(&there, 12, theme.text);
            line.glyph(glyph, style);
            line.skip(1);
            line.put(state, theme.dim);
        });
    }
    pen.blank();
    pen.text(&format!("{edit} changes them; a machine that runs gets them at once."), theme.dim);
}
