//! Columns of the machines.

use vmdeck_engine::vm::record::Vm;

use crate::format::{Mebibytes, Span};
use crate::text;
use crate::view::lists::state_look;
use crate::view::phases;
use crate::view::table::Column;

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
        rank: 5,
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
    Column {
        title: "CPU",
        min: 3,
        max: 3,
        rank: 6,
        right: true,
        sort: Some(3),
        measure: None,
        paint: |cell, vm| {
            let style = cell.model.theme.text;
            cell.format(format_args!("{}", vm.settings.cpus), style);
        },
    },
    Column {
        title: "MEM",
        min: 5,
        max: 5,
        rank: 6,
        right: true,
        sort: Some(4),
        measure: None,
        paint: |cell, vm| {
            let style = cell.model.theme.text;
            cell.format(format_args!("{}", Mebibytes(vm.settings.memory_mib)), style);
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
