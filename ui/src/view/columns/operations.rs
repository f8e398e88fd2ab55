//! Columns of the operations.

use vmdeck_engine::operation::record::OperationState;
use vmdeck_engine::snapshot::OperationView;

use crate::format::{Bytes, Span, Took, between};
use crate::model::rates::time_left;
use crate::text;
use crate::view::progress;
use crate::view::table::{self, Column};

pub(in crate::view) const OPERATIONS: &[Column<OperationView>] = &[
    Column::<OperationView>::new("OPERATION", 0, (14, 20), |cell, view| {
        let (glyph, style) = progress::look(cell.model, view.record.state);
        cell.glyph(glyph, style);
        cell.skip(1);
        cell.name(view.record.kind.as_str());
    })
    .sorted(2)
    .measured(|view| text::width(view.record.kind.as_str()) + 2),
    Column::<OperationView>::new("TARGET", 1, (16, 44), |cell, view| {
        let style = cell.model.theme.text;
        cell.reference(&view.record.target, style);
    })
    .sorted(3)
    .measured(|view| text::width(&view.record.target)),
    Column::<OperationView>::new("PROGRESS", 2, (20, 72), operation_progress).measured(progress_width),
    Column::<OperationView>::new("RATE", 4, (10, 10), |cell, view| {
        if cell.model.rates.stalled(view).is_some() {
            let style = cell.model.theme.warning;
            cell.text("stalled", style);
        } else if let Some(rate) = cell.model.rates.of_operation(view) {
            let style = cell.model.theme.text;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            cell.format(format_args!("{}/s", Bytes(rate as u64)), style);
        }
    })
    .right()
    .concerning(runs),
    Column::<OperationView>::new("LEFT", 5, (6, 6), |cell, view| {
        let (done, total) = view.progress.bytes();
        let rate = cell.model.rates.of_operation(view);
        if let Some(left) = time_left(done, total, rate) {
            let style = cell.model.theme.dim;
            cell.format(format_args!("{}", Span(left)), style);
        }
    })
    .right()
    .concerning(runs),
    Column::<OperationView>::new("TOOK", 3, (7, 7), |cell, view| {
        let record = &view.record;
        let running = record.state == OperationState::Running;
        let style = if running { cell.model.theme.text } else { cell.model.theme.dim };
        let took = between(record.started_at, record.ended_at.unwrap_or(cell.model.now));
        if running {
            cell.format(format_args!("{}", Span(i64::try_from(took).unwrap_or(i64::MAX))), style);
        } else {
            cell.format(format_args!("{}", Took(took)), style);
        }
    })
    .right(),
    Column::<OperationView>::new("BEGAN", 5, (8, 8), |cell, view| {
        let style = cell.model.theme.dim;
        cell.format(format_args!("{}", Span(cell.model.now - view.record.started_at)), style);
    })
    .right()
    // Of what runs, TOOK says the same.
    .concerning(|view| !runs(view))
    .sorted(1),
];

fn runs(view: &OperationView) -> bool {
    view.record.state == OperationState::Running
}

/// Columns that [`operation_progress`] makes use of.
fn progress_width(view: &OperationView) -> u16 {
    match (&view.record.state, &view.record.error) {
        (OperationState::Running, _) => 20,
        (OperationState::Failed | OperationState::Interrupted, Some(error)) => text::width(&error.message),
        (state, _) => text::width(state.as_str()),
    }
}

fn operation_progress(cell: &mut table::Cell<'_, '_>, view: &OperationView) {
    let model = cell.model;
    let theme = &model.theme;
    let record = &view.record;
    match record.state {
        OperationState::Running => {
            let phase = progress::phase(view).unwrap_or("");
            if record.cancel_requested {
                cell.text("cancelling", theme.warning);
                return;
            }
            match progress::whole(&view.progress) {
                Some((done, total, _)) if total > 0 => {
                    let bar = cell.width().saturating_sub(16).clamp(5, 12);
                    let full = progress::filled(done, total, bar);
                    cell.repeat(full, model.glyphs.bar_done, theme.bar_done);
                    cell.repeat(bar - full, model.glyphs.bar_rest, theme.bar_rest);
                    cell.format(
                        format_args!(" {:>3}% ", progress::percent(done, total).unwrap_or(0)),
                        theme.text,
                    );
                    cell.text(phase, theme.dim);
                }
                Some((done, _, vmdeck_engine::operation::progress::ProgressUnit::Bytes)) => {
                    cell.format(format_args!("{} ", Bytes(done)), theme.text);
                    cell.text(phase, theme.dim);
                }
                _ => cell.text(phase, theme.text),
            }
        }
        OperationState::Done => cell.text("done", theme.dim),
        OperationState::Failed | OperationState::Interrupted => {
            let message = record.error.as_ref().map_or(record.state.as_str(), |error| error.message.as_str());
            cell.text(message, theme.bad);
        }
        OperationState::Cancelled => cell.text("cancelled", theme.warning),
    }
}
