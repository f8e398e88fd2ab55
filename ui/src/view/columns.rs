//! What the four lists show of their rows.

mod images;
mod kernels;
mod operations;
mod vms;

use vmdeck_engine::clock::Milliseconds;
use vmdeck_engine::image::record::Image;
use vmdeck_engine::vm::record::Vm;

use super::table::Column;
use crate::format::Span;
use crate::model::deck::KernelRow;
pub(super) use images::IMAGES;
pub(super) use kernels::KERNELS;
pub(super) use operations::OPERATIONS;
pub(super) use vms::VMS;

/// What machines are made of.
trait Part {
    fn is_of(&self, vm: &Vm) -> bool;

    /// `None`: it is not here yet.
    fn created_at(&self) -> Option<Milliseconds>;
}

impl Part for Image {
    fn is_of(&self, vm: &Vm) -> bool {
        vm.image_id == self.id
    }

    fn created_at(&self) -> Option<Milliseconds> {
        Some(self.created_at)
    }
}

impl Part for KernelRow {
    fn is_of(&self, vm: &Vm) -> bool {
        self.here().is_some_and(|kernel| vm.uses_kernel(&kernel.name))
    }

    fn created_at(&self) -> Option<Milliseconds> {
        self.created_at()
    }
}

/// How many machines are made of it.
const fn machines<T: Part>(rank: u8) -> Column<T> {
    Column::new("VMS", rank, (3, 3), |cell, part: &T| {
        if part.created_at().is_none() {
            return;
        }
        let used = cell.model.snapshot.vms.iter().filter(|vm| part.is_of(vm)).count();
        let style = if used > 0 { cell.model.theme.text } else { cell.model.theme.dim };
        cell.format(format_args!("{used}"), style);
    })
    .right()
}

/// How long ago it was made.
const fn created<T: Part>(rank: u8, sort: usize) -> Column<T> {
    Column::new("CREATED", rank, (8, 8), |cell, part: &T| {
        if let Some(at) = part.created_at() {
            let style = cell.model.theme.dim;
            cell.format(format_args!("{}", Span(cell.model.now - at)), style);
        }
    })
    .right()
    .sorted(sort)
}
