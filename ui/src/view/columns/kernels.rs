//! Columns of the kernels, those that are here and those that can be had.

use super::{created, machines};
use crate::model::deck::KernelRow;
use crate::model::list::Listed as _;
use crate::text;
use crate::view::table::Column;

pub(in crate::view) const KERNELS: &[Column<KernelRow>] = &[
    Column::<KernelRow>::new("NAME", 0, (16, 40), |cell, row| {
        let (theme, glyphs) = (&cell.model.theme, &cell.model.glyphs);
        let (glyph, style) = match row {
            KernelRow::Here(kernel) if !kernel.warnings.is_empty() => (glyphs.warning, theme.warning),
            KernelRow::Here(_) => (glyphs.done, theme.good),
            KernelRow::Offered { .. } => (glyphs.pending, theme.dim),
        };
        cell.glyph(glyph, style);
        cell.skip(1);
        match row {
            KernelRow::Offered { .. } if row.to_be_had().is_none() => cell.text(row.name(), theme.dim),
            _ => cell.name(row.name()),
        }
    })
    .sorted(1)
    .measured(|row| text::width(row.name()) + 2),
    Column::<KernelRow>::new("STATE", 1, (17, 17), |cell, row| {
        let theme = &cell.model.theme;
        let style = match row {
            KernelRow::Here(_) => theme.text,
            KernelRow::Offered { .. } => theme.dim,
        };
        cell.text(row.state(), style);
    }),
    machines(3),
    created(2, 0),
    Column::<KernelRow>::new("SOURCE", 4, (12, 60), |cell, row| {
        let style = cell.model.theme.dim;
        cell.text(row.source(), style);
    })
    .measured(|row| text::width(row.source())),
];
