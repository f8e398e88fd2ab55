//! What an empty list says: what to press to have something in it, and what this host lacks for it.

use ratatui::layout::Rect;

use super::detail::host::findings;
use super::pen::Pen;
use crate::action::Action;
use crate::model::{Model, View};
use crate::paint::Painter;

pub(super) fn paint(model: &Model, painter: &mut Painter<'_>, area: Rect) {
    let area = Rect {
        x: area.x + 3,
        y: area.y + 1,
        width: area.width.saturating_sub(6).min(76),
        height: area.height.saturating_sub(1),
    };
    let mut pen = Pen::new(model, painter, area, 0);
    lines(&mut pen);
    // What there is no room for is found in a window.
    let hidden = pen.lines().saturating_sub(usize::from(area.height));
    if hidden > 0 && model.view == View::Vms {
        let y = area.bottom().saturating_sub(1);
        painter.clear(Rect { y, height: 1, ..area }, model.theme.text);
        let key = key(model, Action::Doctor);
        let text = format_args!("{} more lines: {key} shows what there is to know of this host", hidden + 1);
        painter.format(area.x, y, area.width, text, model.theme.dim);
    }
}

fn lines(pen: &mut Pen<'_, '_>) {
    let model = pen.model;
    match model.view {
        View::Vms => machines(pen),
        View::Images => {
            pen.text("There is no image here yet.", model.theme.text);
            pen.blank();
            step(pen, Action::PullImage, "pull one: debian:12, alpine, any image of any registry");
            pen.blank();
            pen.text("A machine is made of an image; making one pulls its image by itself.", model.theme.dim);
        }
        View::Kernels => {
            pen.text("There is no kernel here yet.", model.theme.text);
            pen.blank();
            step(pen, Action::PullKernel, "pull one from this host's package archive");
            pen.blank();
            pen.text("The first machine that starts pulls one by itself.", model.theme.dim);
        }
        View::Operations => {
            pen.text("Nothing has been done here yet.", model.theme.text);
            pen.blank();
            let text = "Pulls, boots, deletions: everything that takes a while appears here, whichever \
                        vmdeck on this data directory does it.";
            pen.text(text, model.theme.dim);
        }
        View::Log => {}
    }
}

fn machines(pen: &mut Pen<'_, '_>) {
    let theme = &pen.model.theme;
    pen.text("No machine yet. The first one is a few keys away:", theme.bold);
    pen.blank();
    if pen.model.snapshot.images.is_empty() {
        step(pen, Action::NewVm, "new machine: type an image such as debian:12, then enter");
        pen.hanging(
            "      ",
            theme.dim,
            "Its image and a kernel are pulled first; it boots when both are there.",
            theme.dim,
        );
        pen.blank();
        step(pen, Action::ViewImages, "images, to pull one without a machine");
    } else {
        step(pen, Action::NewVm, "new machine from an image that is here; enter takes the defaults");
        pen.blank();
        step(pen, Action::ViewImages, "images");
    }
    step(pen, Action::Help, "all the keys");
    step(pen, Action::Quit, "leave; machines go on running");
    pen.blank();
    pen.heading("This host");
    findings(pen);
}

fn step(pen: &mut Pen<'_, '_>, action: Action, what: &str) {
    let (theme, key) = (&pen.model.theme, key(pen.model, action));
    pen.hanging(&format!("  {key:<4}"), theme.key, what, theme.text);
}

/// What to press for it.
fn key(model: &Model, action: Action) -> String {
    let keys = model.keymap.keys_of(action);
    keys.map_or_else(|| format!(":{}", action.info().name), crate::keymap::sequence)
}
