//! The boot of a machine: in miniature in the list, as a waterfall in the details.

use ratatui::style::Style;
use vmdeck_engine::clock::Milliseconds;
use vmdeck_engine::vm::record::{Boot, BootPhase, BootPhaseName, BootPhaseStatus, Vm, VmState};

use super::pen::Pen;
use super::table::Cell;
use crate::format::{Took, between};
use crate::model::Model;
use crate::text;

/// How long a phase took or has taken so far.
fn taken(phase: &BootPhase, now: Milliseconds) -> Option<u64> {
    match phase.status {
        BootPhaseStatus::Active => Some(between(phase.started_at?, now)),
        _ => phase.duration_ms,
    }
}

/// From the beginning of a boot to the end of its last phase, or to now.
pub(super) fn total(boot: &Boot, now: Milliseconds) -> u64 {
    let ends = boot.phases.iter().filter_map(|phase| {
        let from = phase.started_at.filter(|from| *from >= boot.started_at)?;
        Some(between(boot.started_at, from) + taken(phase, now)?)
    });
    ends.max().unwrap_or(0)
}

fn look(model: &Model, status: BootPhaseStatus) -> (char, Style) {
    let (theme, glyphs) = (&model.theme, &model.glyphs);
    match status {
        BootPhaseStatus::Pending => (glyphs.pending, theme.dim),
        BootPhaseStatus::Active => (model.spinner(), theme.busy),
        BootPhaseStatus::Done => (glyphs.done, theme.good),
        BootPhaseStatus::Failed => (glyphs.failed, theme.bad),
        BootPhaseStatus::Skipped => (glyphs.information, theme.dim),
    }
}

/// Of a machine that boots or failed to, one cell per phase and the name of the one that matters; of
/// one that is up without its command, that.
pub(super) fn miniature(cell: &mut Cell<'_, '_>, vm: &Vm) {
    let model = cell.model;
    let theme = &model.theme;
    let Some(boot) = &vm.boot else { return };
    match vm.state {
        VmState::Running if boot.command_not_run().is_some() => {
            cell.glyph(model.glyphs.warning, theme.warning);
            cell.text(" no command", theme.warning);
            return;
        }
        VmState::Starting | VmState::Failed => {}
        _ => return,
    }
    let failed = vm.state == VmState::Failed;
    // Where there is no room for both, the name says more.
    let bar = cell.width() >= 9 + 1 + 5;
    for name in BootPhaseName::ALL.into_iter().filter(|_| bar) {
        let status = boot.phases.iter().find(|phase| phase.name == name).map(|phase| phase.status);
        let (glyph, style) = match status.unwrap_or(BootPhaseStatus::Pending) {
            BootPhaseStatus::Done => (model.glyphs.bar_done, if failed { theme.dim } else { theme.good }),
            BootPhaseStatus::Skipped => (model.glyphs.bar_rest, theme.dim),
            other => look(model, other),
        };
        cell.glyph(glyph, style);
    }
    let last = |status: BootPhaseStatus| boot.phases.iter().rfind(|phase| phase.status == status);
    let style = if failed { theme.bad } else { theme.busy };
    let status = if failed { BootPhaseStatus::Failed } else { BootPhaseStatus::Active };
    if let Some(phase) = last(status) {
        cell.skip(u16::from(bar));
        cell.text(phase.name.as_str(), style);
    }
}

/// Columns that a machine's state and its [`miniature`] take.
pub(super) fn miniature_width(vm: &Vm) -> u16 {
    let state = text::width(vm.state.as_str());
    match (vm.state, &vm.boot) {
        (VmState::Running, Some(boot)) if boot.command_not_run().is_some() => state + 13,
        // The phases and the longest of their names.
        (VmState::Starting | VmState::Failed, Some(_)) => state + 19,
        _ => state,
    }
}

/// Each phase as a bar from where it began to where it ended.
pub(super) fn waterfall(pen: &mut Pen<'_, '_>, boot: &Boot) {
    let model = pen.model;
    let (theme, glyphs) = (&model.theme, &model.glyphs);
    let all = total(boot, model.now).max(1);
    let width = pen.width().saturating_sub(2 + 9 + 12);
    let scale = |milliseconds: u64| {
        let at = milliseconds.min(all).saturating_mul(u64::from(width)) / all;
        u16::try_from(at).unwrap_or(width)
    };
    for phase in &boot.phases {
        let (glyph, style) = look(model, phase.status);
        pen.line(|line| {
            line.glyph(glyph, style);
            line.skip(1);
            let name_style = if phase.status == BootPhaseStatus::Pending { theme.dim } else { theme.text };
            line.column(phase.name.as_str(), 9, name_style);
            match taken(phase, model.now) {
                Some(took) => line.right(11, format_args!("{}", Took(took)), theme.text),
                None if phase.status == BootPhaseStatus::Skipped => {
                    line.right(11, format_args!("skipped"), theme.dim)
                }
                None => line.right(11, format_args!(""), theme.dim),
            }
            // What was done when the machine was made is told, and no part of this boot's time.
            let from = phase.started_at.filter(|from| *from >= boot.started_at);
            if phase.started_at.is_some() && from.is_none() {
                line.put("when it was made", theme.dim);
            }
            if let (Some(from), Some(took)) = (from, taken(phase, model.now)) {
                let from = between(boot.started_at, from);
                let (start, end) = (scale(from), scale(from + took));
                // A phase of a moment is seen nevertheless.
                let start = start.min(width.saturating_sub(1));
                line.skip(start);
                line.repeat((end.max(start + 1)).saturating_sub(start), glyphs.bar_done, style);
            }
        });
    }
}
