//! What the four lists show of their rows.

mod images;
mod kernels;
mod operations;
mod vms;

use vmdeck_engine::clock::Milliseconds;
use vmdeck_engine::image::record::Image;
use vmdeck_engine::kernel::record::Kernel;
use vmdeck_engine::vm::record::Vm;

use super::table::Column;
use crate::format::Span;
pub(super) use images::IMAGES;
pub(super) use kernels::KERNELS;
pub(super) use operations::OPERATIONS;
pub(super) use vms::VMS;

/// What machines are made of.
trait Part {
    fn is_of(&self, vm: &Vm) -> bool;

    fn created_at(&self) -> Milliseconds;
}

impl Part for Image {
    fn is_of(&self, vm: &Vm) -> bool {
        vm.image_id == self.id
    }

    fn created_at(&self) -> Milliseconds {
        self.created_at
    }
}

impl Part for Kernel {
    fn is_of(&self, vm: &Vm) -> bool {
        vm.kernel == self.name
    }

    fn created_at(&self) -> Milliseconds {
        self.created_at
    }
}

/// How many machines are made of it.
const fn machines<T: Part>(rank: u8) -> Column<T> {
    Column {
        title: "VMS",
        min: 3,
        max: 3,
        rank,
        right: true,
        sort: None,
        measure: None,
        paint: |cell, part| {
            let used = cell.model.snapshot.vms.iter().filter(|vm| part.is_of(vm)).count();
            let style = if used > 0 { cell.model.theme.text } else { cell.model.theme.dim };
            cell.format(format_args!("{used}"), style);
        },
    }
}

/// How long ago it was made.
const fn created<T: Part>(rank: u8, sort: usize) -> Column<T> {
    Column {
        title: "CREATED",
        min: 8,
        max: 8,
        rank,
        right: true,
        sort: Some(sort),
        measure: None,
        paint: |cell, part| {
            let style = cell.model.theme.dim;
            cell.format(format_args!("{}", Span(cell.model.now - part.created_at())), style);
        },
    }
}
