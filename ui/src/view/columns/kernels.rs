//! Columns of the kernels.

use vmdeck_engine::kernel::record::Kernel;

use super::{created, machines};
use crate::text;
use crate::view::table::Column;

pub(in crate::view) const KERNELS: &[Column<Kernel>] = &[
    Column {
        title: "NAME",
        min: 16,
        max: 40,
        rank: 0,
        right: false,
        sort: Some(1),
        measure: Some(|kernel| text::width(&kernel.name) + 2),
        paint: |cell, kernel| {
            if !kernel.warnings.is_empty() {
                let style = cell.model.theme.warning;
                cell.glyph(cell.model.glyphs.warning, style);
                cell.skip(1);
            }
            cell.name(&kernel.name);
        },
    },
    Column {
        title: "RELEASE",
        min: 12,
        max: 36,
        rank: 3,
        right: false,
        sort: Some(2),
        measure: Some(|kernel| text::width(&kernel.release)),
        paint: |cell, kernel| {
            let style = cell.model.theme.text;
            cell.text(&kernel.release, style);
        },
    },
    machines(2),
    created(1, 0),
    Column {
        title: "SOURCE",
        min: 12,
        max: 50,
        rank: 4,
        right: false,
        sort: None,
        measure: Some(|kernel| text::width(&kernel.source)),
        paint: |cell, kernel| {
            let style = cell.model.theme.dim;
            cell.text(&kernel.source, style);
        },
    },
];
