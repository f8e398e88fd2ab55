//! What was done with a machine, and what became of it.

use vmdeck_engine::snapshot::OperationView;
use vmdeck_engine::vm::record::Vm;

use crate::format::{Span, Took, between};
use crate::view::pen::Pen;
use crate::view::progress;

/// Operations shown of a machine.
const OPERATIONS: usize = 30;

pub(super) fn events(pen: &mut Pen<'_, '_>, vm: &Vm) {
    let model = pen.model;
    let theme = &model.theme;
    let about =
        |view: &&OperationView| view.record.target == vm.name && view.record.kind.as_str().starts_with("vm ");
    let mut any = false;
    for view in model.snapshot.operations.iter().filter(about).take(OPERATIONS) {
        any = true;
        let record = &view.record;
        let (glyph, style) = progress::look(model, record.state);
        pen.line(|line| {
            line.glyph(glyph, style);
            line.skip(1);
            line.column(record.kind.as_str(), 11, theme.text);
            line.column(record.state.as_str(), 12, style);
            line.format(format_args!("{} ago", Span(model.now - record.started_at)), theme.dim);
            let took = between(record.started_at, record.ended_at.unwrap_or(model.now));
            line.right(11, format_args!("{}", Took(took)), theme.text);
        });
        if let Some(error) = &record.error {
            pen.hanging("  ", theme.dim, &error.message, theme.bad);
        }
    }
    if !any {
        pen.text("Nothing has been done with it lately.", theme.dim);
    }
}
