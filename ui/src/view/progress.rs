//! Bars of operations.

use ratatui::style::Style;
use vmdeck_engine::operation::progress::{Progress, ProgressUnit};
use vmdeck_engine::operation::record::OperationState;
use vmdeck_engine::snapshot::OperationView;

use crate::model::Model;

/// Glyph and style of an operation's state.
pub(super) fn look(model: &Model, state: OperationState) -> (char, Style) {
    let (theme, glyphs) = (&model.theme, &model.glyphs);
    match state {
        OperationState::Running => (model.spinner(), theme.busy),
        OperationState::Done => (glyphs.done, theme.good),
        OperationState::Failed => (glyphs.failed, theme.bad),
        OperationState::Cancelled => (glyphs.stopped, theme.warning),
        OperationState::Interrupted => (glyphs.warning, theme.warning),
    }
}

/// How much of a whole operation is done: in bytes where it has such, else in its items.
pub(super) fn whole(progress: &Progress) -> Option<(u64, u64, ProgressUnit)> {
    let (done, total) = progress.bytes();
    if done > 0 || total > 0 {
        return Some((done, total, ProgressUnit::Bytes));
    }
    let parts = progress.parts();
    let total: u64 = parts.iter().map(|part| part.total()).sum();
    let done: u64 = parts.iter().map(|part| part.done()).sum();
    (total > 0 || done > 0).then_some((done, total, ProgressUnit::Items))
}

/// Cells of a bar that are done, of `width`; a bar moves only when all is known.
pub(super) fn filled(done: u64, total: u64, width: u16) -> u16 {
    if total == 0 {
        return 0;
    }
    let cells = u128::from(done.min(total)) * u128::from(width) / u128::from(total);
    u16::try_from(cells).unwrap_or(width)
}

/// Percent, where the total is known.
pub(super) fn percent(done: u64, total: u64) -> Option<u64> {
    (total > 0).then(|| u64::try_from(u128::from(done.min(total)) * 100 / u128::from(total)).unwrap_or(100))
}

/// Name of the phase under way.
pub(super) fn phase(view: &OperationView) -> Option<&str> {
    view.record.phases.last().map(|phase| phase.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_full_only_at_the_end() {
        assert_eq!(filled(99, 100, 10), 9);
        assert_eq!(filled(100, 100, 10), 10);
        assert_eq!(filled(200, 100, 10), 10);
        assert_eq!(filled(5, 0, 10), 0);
        assert_eq!(filled(u64::MAX, u64::MAX, 500), 500);
        assert_eq!(percent(1, 3), Some(33));
        assert_eq!(percent(1, 0), None);
    }
}
