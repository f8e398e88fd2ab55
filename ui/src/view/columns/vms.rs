//! Columns of the machines.

use vmdeck_engine::vm::record::Vm;

use crate::format::{Mebibytes, Span};
use crate::text;
use crate::view::lists::state_look;
use crate::view::table::{Cell, Column};
use crate::view::{phases, spark};

pub(in crate::view) const VMS: &[Column<Vm>] = &[
    Column {
        title: "NAME",
        min: 14,
        max: 34,
        rank: 0,
        right: false,
        sort: Some(0),
        measure: Some(|vm| text::width(&vm.name) + 2),
        paint: |cell, vm| {
            let (glyph, style) = state_look(cell.model, vm.state);
            cell.glyph(glyph, style);
            cell.skip(1);
            cell.name(&vm.name);
        },
    },
    Column {
        title: "STATE",
        min: 8,
        max: 8,
        rank: 1,
        right: false,
        sort: Some(1),
        measure: None,
        paint: |cell, vm| {
            let (_, style) = state_look(cell.model, vm.state);
            cell.text(vm.state.as_str(), style);
        },
    },
    Column {
        title: "BOOT",
        min: 16,
        max: 24,
        rank: 2,
        right: false,
        sort: None,
        measure: Some(|_| 18),
        paint: phases::miniature,
    },
    Column {
        title: "ADDRESS",
        min: 11,
        max: 15,
        rank: 6,
        right: false,
        sort: Some(2),
        measure: None,
        paint: |cell, vm| {
            let style = if vm.state.has_process() { cell.model.theme.text } else { cell.model.theme.dim };
            if let Some(address) = vm.address {
                cell.format(format_args!("{address}"), style);
            }
        },
    },
    Column { title: "CPU", min: 5, max: 14, rank: 4, right: false, sort: Some(3), measure: None, paint: cpu },
    Column {
        title: "MEM",
        min: 6,
        max: 6,
        rank: 5,
        right: true,
        sort: Some(4),
        measure: None,
        paint: |cell, vm| match cell.model.usage.latest(&vm.id) {
            Some(sample) => {
                let style = cell.model.theme.text;
                cell.format(format_args!("{}", Mebibytes(sample.resident_bytes >> 20)), style);
            }
            None => {
                let style = cell.model.theme.dim;
                cell.format(format_args!("{}", Mebibytes(vm.settings.memory_mib)), style);
            }
        },
    },
    Column {
        title: "UP",
        min: 7,
        max: 7,
        rank: 4,
        right: true,
        sort: Some(5),
        measure: None,
        paint: |cell, vm| {
            if let (true, Some(run)) = (vm.state.has_process(), &vm.run) {
                let style = cell.model.theme.text;
                let up = cell.model.now - run.started_at;
                cell.format(format_args!("{}", Span(up)), style);
            }
        },
    },
    Column {
        title: "IMAGE",
        min: 8,
        max: 30,
        rank: 3,
        right: false,
        sort: Some(6),
        measure: Some(|vm| text::width(&vm.image)),
        paint: |cell, vm| {
            let style = cell.model.theme.dim;
            cell.text(&vm.image, style);
        },
    },
];

/// What it uses of its processors, and has used lately; of one that does not run, how many it has.
fn cpu(cell: &mut Cell<'_, '_>, vm: &Vm) {
    let model = cell.model;
    let theme = &model.theme;
    let Some(sample) = model.usage.latest(&vm.id) else {
        cell.format(format_args!("{}", vm.settings.cpus), theme.dim);
        return;
    };
    let most = u64::from(vm.settings.cpus.max(1)) * 1000;
    let room = usize::from(cell.width().saturating_sub(5));
    let samples = model.usage.samples(&vm.id);
    let skip = samples.len().saturating_sub(room);
    let blank = u16::try_from(room - samples.len().min(room)).unwrap_or(0);
    cell.skip(blank);
    for sample in samples.skip(skip) {
        cell.glyph(spark::bar(&model.glyphs, u64::from(sample.cpu), most), theme.bar_done);
    }
    cell.format(format_args!("{:>4}%", sample.cpu / 10), theme.text);
}
