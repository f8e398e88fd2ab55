//! The log of what happened.

use ratatui::layout::Rect;

use super::rule;
use crate::model::Model;
use crate::model::toast::Level;
use crate::paint::Painter;
use crate::text;

/// Columns of the time and of the source.
const TIME: u16 = 9;
const SOURCE: u16 = 18;

pub(super) fn paint(model: &Model, painter: &mut Painter<'_>, area: Rect, lines: Rect) {
    let theme = &model.theme;
    rule(model, painter, area, model.overlays.is_empty());
    let log = &model.log;
    let mut x = area.x + 1;
    x += painter.text(x, area.y, area.width, " Log ", theme.accent.bold());
    let count = log.count();
    if count < log.lines.len() {
        let of = format_args!("{count} of {} ", log.lines.len());
        x += painter.format(x, area.y, area.width, of, theme.text);
    } else {
        x += painter.format(x, area.y, area.width, format_args!("{count} "), theme.text);
    }
    if let Some(typed) = &log.filter_input {
        x += painter.text(x, area.y, 3, " / ", theme.key);
        let room = area.right().saturating_sub(x + 1).min(40);
        x += super::windows::input(model, painter, Rect::new(x, area.y, room, 1), typed, "", true);
        x += painter.text(x, area.y, 1, " ", theme.text);
    } else if !log.filter.is_empty() {
        x += painter.text(x, area.y, 3, " / ", theme.key);
        x += painter.text(x, area.y, 40, &log.filter, theme.matched);
        x += painter.text(x, area.y, 1, " ", theme.text);
    }
    let state = if log.follow { "following" } else { "standing still" };
    x += painter.text(x, area.y, 1, " ", theme.text);
    let state = format_args!("{}, {state} ", log.level());
    painter.format(x, area.y, area.right().saturating_sub(x + 1), state, theme.dim);
    let height = usize::from(lines.height);
    if count == 0 {
        painter.text(
            lines.x + 2,
            lines.y + 1,
            lines.width.saturating_sub(2),
            if log.lines.is_empty() { "nothing has happened yet" } else { "no line matches the filter" },
            theme.dim,
        );
        return;
    }
    let last = count.saturating_sub(height);
    let mut from = if log.follow { last } else { log.offset.min(last) };
    // With long lines broken, fewer of them fit: what is followed is the end.
    if log.wrap && log.follow {
        let mut rows = 0;
        let fits = log.matching().rev().take_while(|line| {
            rows += text::wrap(&line.text, text_width(lines)).count();
            rows <= height
        });
        from = count - fits.count().clamp(1, count);
    }
    let mut y = lines.y;
    for line in log.matching().skip(from) {
        if y >= lines.bottom() {
            break;
        }
        let style = match line.level {
            Level::Detail => theme.dim,
            Level::Information => theme.text,
            Level::Success => theme.good,
            Level::Warning => theme.warning,
            Level::Error => theme.bad,
        };
        let x = lines.x + 1;
        time(model, painter, x, y, line.at);
        let source = if lines.width >= 60 { SOURCE } else { 0 };
        painter.text(x + TIME, y, source.saturating_sub(1), &line.source, theme.accent);
        let (x, width) = (x + TIME + source, text_width(lines));
        if log.wrap {
            for part in text::wrap(&line.text, width) {
                if y < lines.bottom() {
                    painter.text(x, y, width, part, style);
                    y += 1;
                }
            }
        } else {
            painter.text(x, y, width, &line.text, style);
            y += 1;
        }
    }
}

fn text_width(lines: Rect) -> u16 {
    let source = if lines.width >= 60 { SOURCE } else { 0 };
    lines.width.saturating_sub(2 + TIME + source)
}

/// A moment as the clock on the user's wall shows it.
pub(super) fn time(model: &Model, painter: &mut Painter<'_>, x: u16, y: u16, at: i64) {
    if let Ok(moment) = jiff::Timestamp::from_millisecond(at) {
        let time = model.time_zone.to_datetime(moment).time();
        let (hour, minute, second) = (time.hour(), time.minute(), time.second());
        painter.format(x, y, TIME - 1, format_args!("{hour:02}:{minute:02}:{second:02}"), model.theme.dim);
    }
}
