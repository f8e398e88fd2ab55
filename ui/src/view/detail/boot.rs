//! The boot of a machine, and the ones before.

use vmdeck_engine::vm::record::Vm;

use crate::action::Action;
use crate::format::{Span, Took};
use crate::view::pen::Pen;
use crate::view::{lists, phases};

pub(super) fn boot(pen: &mut Pen<'_, '_>, vm: &Vm) {
    let model = pen.model;
    let theme = &model.theme;
    let (glyph, style) = lists::state_look(model, vm.state);
    pen.line(|line| {
        line.glyph(glyph, style);
        line.skip(1);
        line.put(vm.state.as_str(), style);
        if let Some(run) = vm.run.as_ref().filter(|_| vm.state.has_process()) {
            line.format(format_args!(" for {}", Span(model.now - run.started_at)), theme.text);
            let accelerator = match run.accelerator {
                vmdeck_engine::vmm::Accelerator::Kvm => "KVM",
                vmdeck_engine::vmm::Accelerator::Tcg => "TCG",
            };
            line.format(format_args!(", {accelerator}, pid {}", run.process.pid), theme.dim);
        }
    });
    pen.blank();
    let Some(boot) = &vm.boot else {
        let key = model.keymap.describe(Action::StartVm);
        pen.text(&format!("It has never booted: {key} starts it."), theme.dim);
        return;
    };
    // Why it failed is what is looked for; how far it got comes after that.
    if let Some(failure) = &boot.failure {
        let mark = format!("{} ", model.glyphs.failed);
        pen.hanging(&mark, theme.bad, &failure.message, theme.bad);
        if !failure.hint.is_empty() {
            pen.hanging("  ", theme.dim, &failure.hint, theme.text);
        }
        pen.blank();
    }
    for warning in &boot.warnings {
        let mark = format!("{} ", model.glyphs.warning);
        pen.hanging(&mark, theme.warning, warning, theme.warning);
    }
    if boot.command_not_run().is_some() && vm.state.has_process() {
        let shell = model.keymap.describe(Action::Shell);
        pen.hanging(
            "  ",
            theme.dim,
            &format!("The machine is up without it: {shell} opens a shell."),
            theme.text,
        );
    }
    if !boot.warnings.is_empty() {
        pen.blank();
    }
    pen.line(|line| {
        line.put("Boot", theme.title);
        line.format(format_args!("  {} ago", Span(model.now - boot.started_at)), theme.dim);
        line.right(11, format_args!("{}", Took(phases::total(boot, model.now))), theme.bold);
    });
    phases::waterfall(pen, boot);
    if let Some(failure) = boot.failure.as_ref().filter(|failure| !failure.console_tail.is_empty()) {
        pen.blank();
        pen.heading("Console");
        for text in &failure.console_tail {
            pen.line(|line| line.put(text, theme.dim));
        }
    }
    let earlier = model.boots.as_ref().filter(|(id, _)| *id == vm.id).map(|(_, boots)| boots.as_slice());
    let earlier = earlier.unwrap_or_default().iter().skip(1).take(10);
    if earlier.len() > 0 {
        pen.blank();
        pen.heading("Boots before");
        for boot in earlier {
            pen.line(|line| {
                let (glyph, style) = if boot.failure.is_some() {
                    (model.glyphs.failed, theme.bad)
                } else {
                    (model.glyphs.done, theme.good)
                };
                line.glyph(glyph, style);
                line.format(format_args!(" {} ago", Span(model.now - boot.started_at)), theme.text);
                line.right(11, format_args!("{}", Took(phases::total(boot, model.now))), theme.text);
                if let Some(failure) = &boot.failure {
                    line.put("  ", theme.dim);
                    line.put(&failure.message, theme.dim);
                }
            });
        }
    }
}
