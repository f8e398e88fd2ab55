//! This host.

use vmdeck_engine::doctor::CheckStatus;

use crate::view::pen::Pen;

/// What was found on this host, and the fix.
pub(in crate::view) fn findings(pen: &mut Pen<'_, '_>) {
    let model = pen.model;
    let (theme, glyphs) = (&model.theme, &model.glyphs);
    let report = match &model.doctor {
        None => {
            let spinner = model.spinner();
            pen.line(|line| {
                line.glyph(spinner, theme.busy);
                line.put(" looking at it", theme.dim);
            });
            return;
        }
        Some(Err(error)) => {
            pen.text(&error.message, theme.bad);
            if let Some(hint) = &error.hint {
                pen.text(hint, theme.text);
            }
            return;
        }
        Some(Ok(report)) => report,
    };
    for check in &report.checks {
        let (glyph, style) = match check.status {
            CheckStatus::Ok => (glyphs.done, theme.good),
            CheckStatus::Warning => (glyphs.warning, theme.warning),
            CheckStatus::Failed => (glyphs.failed, theme.bad),
        };
        let mark = format!("{glyph} ");
        pen.hanging(&mark, style, &format!("{}: {}", check.name, check.finding), theme.text);
        if let Some(fix) = &check.fix {
            pen.hanging("    ", theme.dim, fix, theme.accent);
        }
    }
}
