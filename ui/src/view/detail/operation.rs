//! An operation: its phases, its parts, its log.

use vmdeck_engine::operation::progress::{ProgressPart, ProgressState, ProgressUnit};
use vmdeck_engine::operation::record::{OperationKind, OperationState};
use vmdeck_engine::snapshot::OperationView;
use vmdeck_engine::vm::record::Boot;

use crate::format::{Bytes, Span, Took, between};
use crate::model::rates::time_left;
use crate::view::pen::Pen;
use crate::view::{phases, progress};

pub(super) fn operation(pen: &mut Pen<'_, '_>, view: &OperationView) {
    let model = pen.model;
    let theme = &model.theme;
    let record = &view.record;
    pen.text(&record.target, theme.bold);
    let (glyph, style) = progress::look(model, record.state);
    pen.line(|line| {
        line.glyph(glyph, style);
        line.skip(1);
        let state = if record.cancel_requested && record.state == OperationState::Running {
            "cancelling"
        } else {
            record.state.as_str()
        };
        line.put(state, style);
        line.format(format_args!("  {} ago", Span(model.now - record.started_at)), theme.dim);
        // Of one that has ended, the process may be any, also one of the same number.
        let whose = match (record.state, view.local) {
            (OperationState::Running, true) => "this console, ",
            (OperationState::Running, false) => "another vmdeck, ",
            _ => "by ",
        };
        line.format(format_args!("  {whose}pid {}", record.owner.pid), theme.dim);
        line.skip(1);
        let took = between(record.started_at, record.ended_at.unwrap_or(model.now));
        line.right(11, format_args!("{}", Took(took)), theme.bold);
    });
    if let Some(error) = &record.error {
        pen.blank();
        let mark = format!("{} ", model.glyphs.failed);
        pen.hanging(&mark, theme.bad, &error.message, theme.bad);
        if let Some(hint) = &error.hint {
            pen.hanging("  ", theme.dim, hint, theme.text);
        }
    }
    let parts = view.progress.parts();
    if !parts.is_empty() {
        pen.blank();
        let (done, total) = view.progress.bytes();
        pen.line(|line| {
            line.put("Parts", theme.title);
            if let Some(since) = model.rates.stalled(view) {
                line.format(format_args!("  nothing for {}", Span(since)), theme.warning);
            } else if let Some(rate) = model.rates.of_operation(view) {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                line.format(format_args!("  {}/s", Bytes(rate as u64)), theme.text);
                if let Some(left) = time_left(done, total, Some(rate)) {
                    line.format(format_args!("  {} left", Span(left)), theme.dim);
                }
            }
            if done > 0 {
                line.right(22, format_args!("{} / {}", Bytes(done), Bytes(total)), theme.text);
            }
        });
        let retried = parts.iter().any(|part| part.retries() > 0);
        for (index, part) in parts.iter().enumerate() {
            part_line(pen, view, index, part, retried);
        }
    }
    let started = model.snapshot.vms.iter().find(|vm| vm.name == record.target);
    let boot = started.filter(|_| record.kind == OperationKind::VmStart).and_then(|vm| vm.boot.as_ref());
    let within = |boot: &&Boot| {
        boot.started_at >= record.started_at && record.ended_at.is_none_or(|ended| boot.started_at <= ended)
    };
    // Its phases are the boot's, told in full.
    let boot = boot.filter(within);
    if let Some(boot) = boot {
        pen.blank();
        pen.heading("Boot");
        phases::waterfall(pen, boot);
    }
    if !record.phases.is_empty() && boot.is_none() {
        pen.blank();
        pen.heading("Phases");
        for phase in &record.phases {
            let running = phase.ended_at.is_none() && record.state == OperationState::Running;
            let (glyph, style) =
                if running { (model.spinner(), theme.busy) } else { (model.glyphs.done, theme.good) };
            let failed = record.state != OperationState::Running
                && record.state != OperationState::Done
                && std::ptr::eq(phase, &record.phases[record.phases.len() - 1]);
            let (glyph, style) = if failed { progress::look(model, record.state) } else { (glyph, style) };
            pen.line(|line| {
                line.glyph(glyph, style);
                line.skip(1);
                let took = between(phase.started_at, phase.ended_at.unwrap_or(model.now));
                line.right(11, format_args!("{}", Took(took)), theme.text);
                line.put(&phase.name, theme.text);
            });
        }
    }
    let log = model.operation_log.as_ref().filter(|(id, _)| *id == record.id);
    if let Some((_, lines)) = log.filter(|(_, lines)| !lines.is_empty()) {
        pen.blank();
        pen.heading("Log");
        for (at, text) in lines {
            let after = format!("{:>8}  ", Took(between(record.started_at, *at)).to_string());
            pen.hanging(&after, theme.dim, text, theme.text);
        }
    }
    pen.blank();
    pen.field("id", record.id.as_str());
    if let Some(parent) = &record.parent {
        pen.field("part of", parent.as_str());
    }
}

fn part_line(pen: &mut Pen<'_, '_>, view: &OperationView, index: usize, part: &ProgressPart, retried: bool) {
    let model = pen.model;
    let theme = &model.theme;
    let (done, total) = (part.done(), part.total());
    let (glyph, style) = match part.state() {
        ProgressState::Waiting => (model.glyphs.pending, theme.dim),
        ProgressState::Active => (model.spinner(), theme.busy),
        ProgressState::Done => (model.glyphs.done, theme.good),
        ProgressState::Failed => (model.glyphs.failed, theme.bad),
    };
    let label = pen.width().saturating_sub(60).clamp(12, 24);
    pen.line(|line| {
        line.glyph(glyph, style);
        line.skip(1);
        line.column(part.label(), label, theme.text);
        let numbers = line.rest().min(22);
        match part.unit() {
            ProgressUnit::Bytes => {
                line.right(numbers, format_args!("{} / {}", Bytes(done), Bytes(total)), theme.text)
            }
            ProgressUnit::Items => line.right(numbers, format_args!("{done} / {total}"), theme.text),
        }
        let plural = if part.retries() == 1 { "y" } else { "ies" };
        match part.retries() {
            0 if retried => line.right(12, format_args!(""), theme.dim),
            0 => {}
            retries => line.right(12, format_args!("{retries} retr{plural}"), theme.warning),
        }
        let rate =
            model.rates.of_part(&view.record.id, index).filter(|_| part.state() == ProgressState::Active);
        if line.rest() > 26 {
            match rate.filter(|_| part.unit() == ProgressUnit::Bytes) {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                Some(rate) => line.right(13, format_args!("{}/s", Bytes(rate as u64)), theme.dim),
                None => line.right(13, format_args!(""), theme.dim),
            }
        }
        let width = line.rest().saturating_sub(1);
        let full = progress::filled(done, total, width);
        line.repeat(full, model.glyphs.bar_done, theme.bar_done);
        line.repeat(width - full, model.glyphs.bar_rest, theme.bar_rest);
    });
}
