//! Columns of the machines.

use vmdeck_engine::vm::record::{Vm, VmState};

use crate::format::{Mebibytes, Span, Took};
use crate::model::usage::Sample;
use crate::text;
use crate::view::lists::state_look;
use crate::view::table::{Cell, Column};
use crate::view::{phases, spark};

pub(in crate::view) const VMS: &[Column<Vm>] = &[
    Column::<Vm>::new("NAME", 0, (14, 34), |cell, vm| {
        let (glyph, style) = state_look(cell.model, vm.state);
        cell.glyph(glyph, style);
        cell.skip(1);
        cell.name(&vm.name);
    })
    .sorted(0)
    .measured(|vm| text::width(&vm.name) + 2),
    Column::<Vm>::new("STATE", 1, (8, 28), |cell, vm| {
        let (_, style) = state_look(cell.model, vm.state);
        cell.text(vm.state.as_str(), style);
        cell.skip(1);
        phases::miniature(cell, vm);
    })
    .sorted(1)
    .measured(phases::miniature_width),
    Column::<Vm>::new("ADDRESS", 6, (11, 15), |cell, vm| {
        let style = if vm.state.has_process() { cell.model.theme.text } else { cell.model.theme.dim };
        if let Some(address) = vm.address {
            cell.format(format_args!("{address}"), style);
        }
    })
    .sorted(2),
    Column::<Vm>::new("CPU", 3, (6, 14), cpu).right().sorted(3),
    Column::<Vm>::new("MEM", 5, (6, 14), memory).right().sorted(4),
    Column::<Vm>::new("UP", 4, (7, 7), |cell, vm| {
        if let (true, Some(run)) = (vm.state.has_process(), &vm.run) {
            let style = cell.model.theme.text;
            let up = cell.model.now - run.started_at;
            cell.format(format_args!("{}", Span(up)), style);
        }
    })
    .right()
    .sorted(5),
    Column::<Vm>::new("IMAGE", 2, (8, 30), |cell, vm| {
        let style = cell.model.theme.dim;
        cell.text(&vm.image, style);
    })
    .sorted(6)
    .measured(|vm| text::width(&vm.image)),
    Column::<Vm>::new("BOOT", 7, (6, 6), |cell, vm| {
        let took = vm.boot.as_ref().filter(|_| vm.state.has_process() && vm.state != VmState::Starting);
        if let Some(boot) = took {
            let (style, now) = (cell.model.theme.dim, cell.model.now);
            cell.format(format_args!("{}", Took(phases::total(boot, now))), style);
        }
    })
    .right(),
];

/// What it uses of its processors, and has used lately; of one that does not run, how many it has.
fn cpu(cell: &mut Cell<'_, '_>, vm: &Vm) {
    let model = cell.model;
    let theme = &model.theme;
    let Some(sample) = model.usage.latest(&vm.id).filter(|_| vm.state.has_process()) else {
        cell.format(format_args!("{} cpu", vm.settings.cpus), theme.dim);
        return;
    };
    let most = u64::from(vm.settings.cpus.max(1)) * 1000;
    lately(cell, vm, 6, most, |sample| u64::from(sample.cpu));
    cell.format(format_args!("{:>5}%", sample.cpu / 10), theme.text);
}

/// What it has of this host's memory, and has had lately; of one that does not run, what it would get.
fn memory(cell: &mut Cell<'_, '_>, vm: &Vm) {
    let model = cell.model;
    let Some(sample) = model.usage.latest(&vm.id).filter(|_| vm.state.has_process()) else {
        cell.format(format_args!("{}", Mebibytes(vm.settings.memory_mib)), model.theme.dim);
        return;
    };
    lately(cell, vm, 6, vm.settings.memory_mib << 20, |sample| sample.resident_bytes);
    cell.format(format_args!("{}", Mebibytes(sample.resident_bytes >> 20)), model.theme.text);
}

/// The newest values at the right, as many as there is room for beside a number of so many columns.
fn lately(cell: &mut Cell<'_, '_>, vm: &Vm, number: u16, most: u64, value: fn(&Sample) -> u64) {
    let model = cell.model;
    let room = usize::from(cell.width().saturating_sub(number));
    let samples = model.usage.samples(&vm.id);
    let skip = samples.len().saturating_sub(room);
    cell.skip(u16::try_from(room - samples.len().min(room)).unwrap_or(0));
    for sample in samples.skip(skip) {
        cell.glyph(spark::bar(&model.glyphs, value(sample), most), model.theme.bar_done);
    }
}
