//! Details of the row under the cursor.

use ratatui::layout::Rect;
use vmdeck_engine::doctor::CheckStatus;
use vmdeck_engine::image::record::Image;
use vmdeck_engine::kernel::record::Kernel;
use vmdeck_engine::operation::progress::{ProgressState, ProgressUnit};
use vmdeck_engine::operation::record::{OperationKind, OperationState};
use vmdeck_engine::snapshot::OperationView;
use vmdeck_engine::vm::record::{Protocol, Vm};

use super::pen::Pen;
use super::{lists, phases, progress, rule};
use crate::format::{Bytes, Mebibytes, Span, Took, between};
use crate::layout::layout;
use crate::model::list::Listed as _;
use crate::model::rates::time_left;
use crate::model::rows::network;
use crate::model::{Model, Pane, View, VmTab};
use crate::paint::Painter;
use crate::text;

/// Operations shown of a machine.
const OPERATIONS: usize = 30;

pub(super) fn paint(model: &Model, painter: &mut Painter<'_>, area: Rect, lines: Rect) {
    title(model, painter, area);
    let mut pen = Pen::new(model, painter, lines, model.detail_offset);
    content(&mut pen);
    let total = pen.lines();
    if total > usize::from(lines.height) && lines.height > 0 {
        let end = model.detail_offset + usize::from(lines.height);
        let text = if end < total { format!(" {} more ", total - end) } else { " end ".to_owned() };
        let width = text::width(&text);
        painter.text(lines.right().saturating_sub(width), area.y, width, &text, model.theme.dim);
    }
}

/// Lines of the details at a width.
pub fn height(model: &Model, width: u16) -> usize {
    if model.view == View::Log || width == 0 {
        return 0;
    }
    let mut pen = Pen::counting(model, width);
    content(&mut pen);
    pen.lines()
}

fn current_name(model: &Model) -> Option<&str> {
    let snapshot = &model.snapshot;
    match model.view {
        View::Vms => model.vms.current::<Vm>(snapshot).map(|row| row.name()),
        View::Images => model.images.current::<Image>(snapshot).map(|row| row.name()),
        View::Kernels => model.kernels.current::<Kernel>(snapshot).map(|row| row.name()),
        View::Operations => {
            model.operations.current::<OperationView>(snapshot).map(|row| row.record.kind.as_str())
        }
        View::Log => None,
    }
}

fn title(model: &Model, painter: &mut Painter<'_>, area: Rect) {
    let theme = &model.theme;
    let focused = model.pane == Pane::Detail && model.overlays.is_empty();
    rule(model, painter, area, focused);
    let Some(name) = current_name(model) else { return };
    let style = if focused { theme.accent.bold() } else { theme.title };
    let width = name_width(area, name);
    painter.text(area.x + 1, area.y, 1, " ", theme.text);
    painter.text(area.x + 2, area.y, width, name, style);
    painter.text(area.x + 2 + width, area.y, 1, " ", theme.text);
    if model.view == View::Vms {
        for (tab, (x, width)) in VmTab::ALL.into_iter().zip(tabs(area, name)) {
            let here = tab == model.vm_tab;
            let style = if here { theme.bold.underlined() } else { theme.dim };
            let room = area.right().saturating_sub(x + 1);
            painter.text(x, area.y, room.min(1), " ", theme.text);
            painter.text(x + 1, area.y, room.min(width - 2), tab.title(), style);
            painter.text(
                x + width - 1,
                area.y,
                area.right().saturating_sub(x + width).min(1),
                " ",
                theme.text,
            );
        }
    }
}

fn name_width(area: Rect, name: &str) -> u16 {
    text::width(name).min(area.width.saturating_sub(34).max(10)).min(area.width.saturating_sub(4))
}

/// Where each tab is: its first column and width.
fn tabs(area: Rect, name: &str) -> [(u16, u16); 3] {
    let mut x = area.x + 2 + name_width(area, name) + 2;
    VmTab::ALL.map(|tab| {
        let width = text::width(tab.title()) + 2;
        let place = (x, width);
        x += width;
        place
    })
}

/// The tab of a machine's details at a place of the screen.
pub fn tab_at(model: &Model, x: u16, y: u16) -> Option<VmTab> {
    let area = layout(model).detail.filter(|area| model.view == View::Vms && area.y == y)?;
    let name = current_name(model)?;
    let mut found = VmTab::ALL.into_iter().zip(tabs(area, name));
    found.find(|(_, (from, width))| (*from..from + width).contains(&x)).map(|(tab, _)| tab)
}

fn content(pen: &mut Pen<'_, '_>) {
    let model = pen.model;
    let snapshot = &model.snapshot;
    match model.view {
        View::Vms => {
            if let Some(vm) = model.vms.current::<Vm>(snapshot) {
                match model.vm_tab {
                    VmTab::Boot => boot(pen, vm),
                    VmTab::Operations => vm_operations(pen, vm),
                    VmTab::Config => vm_config(pen, vm),
                }
            }
        }
        View::Images => {
            if let Some(image) = model.images.current::<Image>(snapshot) {
                image_details(pen, image);
            }
        }
        View::Kernels => {
            if let Some(kernel) = model.kernels.current::<Kernel>(snapshot) {
                kernel_details(pen, kernel);
            }
        }
        View::Operations => {
            if let Some(view) = model.operations.current::<OperationView>(snapshot) {
                operation(pen, view);
            }
        }
        View::Log => {}
    }
}

fn boot(pen: &mut Pen<'_, '_>, vm: &Vm) {
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
        let key = model.keymap.describe(crate::action::Action::StartVm);
        pen.text(&format!("It has never booted: {key} starts it."), theme.dim);
        return;
    };
    pen.line(|line| {
        line.put("Boot", theme.title);
        line.format(format_args!("  {} ago", Span(model.now - boot.started_at)), theme.dim);
        line.right(11, format_args!("{}", Took(phases::total(boot, model.now))), theme.bold);
    });
    phases::waterfall(pen, boot);
    if let Some(failure) = &boot.failure {
        pen.blank();
        let mark = format!("{} ", model.glyphs.failed);
        pen.hanging(&mark, theme.bad, &failure.message, theme.bad);
        if !failure.hint.is_empty() {
            pen.hanging("  ", theme.dim, &failure.hint, theme.text);
        }
        if !failure.console_tail.is_empty() {
            pen.blank();
            pen.heading("Console");
            for text in &failure.console_tail {
                pen.line(|line| line.put(text, theme.dim));
            }
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

fn vm_operations(pen: &mut Pen<'_, '_>, vm: &Vm) {
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

fn vm_config(pen: &mut Pen<'_, '_>, vm: &Vm) {
    let settings = &vm.settings;
    pen.field("image", &vm.image);
    pen.field("kernel", &vm.kernel);
    pen.field_format("cpus", format_args!("{}", settings.cpus));
    pen.field_format("memory", format_args!("{}", Mebibytes(settings.memory_mib)));
    pen.field_format("disk", format_args!("{}", Bytes(settings.disk_bytes)));
    pen.field("network", network(settings.network));
    if let Some(address) = vm.address {
        pen.field_format("address", format_args!("{address}"));
    }
    for (index, port) in settings.ports.iter().enumerate() {
        let protocol = if port.protocol == Protocol::Udp { "/udp" } else { "" };
        let label = if index == 0 { "ports" } else { "" };
        let arrow = "→";
        pen.field_format(
            label,
            format_args!("{}:{} {arrow} {}{protocol}", port.host_address, port.host_port, port.guest_port),
        );
    }
    if !settings.command.is_empty() {
        pen.field("command", &settings.command.join(" "));
    }
    for (index, variable) in settings.environment.iter().enumerate() {
        pen.field(if index == 0 { "environment" } else { "" }, variable);
    }
    pen.field("id", vm.id.as_str());
    let now = pen.model.now;
    pen.field_format("created", format_args!("{} ago", Span(now - vm.created_at)));
}

fn image_details(pen: &mut Pen<'_, '_>, image: &Image) {
    let model = pen.model;
    if let Some(reference) = &image.reference {
        pen.field("reference", reference);
    }
    if let Some(digest) = &image.digest {
        pen.field("digest", digest);
    }
    if let Some(architecture) = &image.architecture {
        pen.field("arch", architecture);
    }
    pen.field_format("used", format_args!("{}", Bytes(image.used_bytes)));
    pen.field_format("file system", format_args!("{}", Bytes(image.rootfs_bytes)));
    pen.field(
        "managed",
        if image.managed { "yes, the files are vmdeck's" } else { "no, registered files of your own" },
    );
    pen.field("file", &image.files.rootfs.display().to_string());
    pen.field("id", image.id.as_str());
    pen.field_format("created", format_args!("{} ago", Span(model.now - image.created_at)));
    let users: Vec<_> =
        model.snapshot.vms.iter().filter(|vm| vm.image_id == image.id).map(|vm| vm.name.as_str()).collect();
    pen.field("used by", if users.is_empty() { "no machine" } else { "" });
    if !users.is_empty() {
        pen.hanging("  ", model.theme.dim, &users.join(", "), model.theme.text);
    }
    let config = &image.config;
    pen.blank();
    pen.heading("What it runs");
    let command = config.entrypoint.iter().chain(&config.command).cloned().collect::<Vec<_>>().join(" ");
    pen.field("command", if command.is_empty() { "its own init, else a shell" } else { &command });
    if let Some(directory) = &config.working_directory {
        pen.field("directory", directory);
    }
    if let Some(user) = &config.user {
        pen.field("user", user);
    }
    if !config.exposed_ports.is_empty() {
        pen.field("ports", &config.exposed_ports.join(", "));
    }
    for (index, variable) in config.environment.iter().enumerate() {
        pen.field(if index == 0 { "environment" } else { "" }, variable);
    }
    if !image.layers.is_empty() {
        pen.blank();
        pen.heading("Layers, the lowest first");
        let theme = &model.theme;
        for layer in &image.layers {
            pen.line(|line| {
                line.right(10, format_args!("{}", Bytes(layer.size)), theme.text);
                line.put(&layer.digest, theme.dim);
            });
        }
    }
}

fn kernel_details(pen: &mut Pen<'_, '_>, kernel: &Kernel) {
    let model = pen.model;
    let theme = &model.theme;
    for warning in &kernel.warnings {
        let mark = format!("{} ", model.glyphs.warning);
        pen.hanging(&mark, theme.warning, warning, theme.warning);
    }
    if !kernel.warnings.is_empty() {
        pen.blank();
    }
    pen.field("release", &kernel.release);
    pen.field("arch", &kernel.architecture);
    pen.field("source", &kernel.source);
    pen.field("kernel", &kernel.vmlinux.display().to_string());
    pen.field("initrd", &kernel.initrd.display().to_string());
    match &kernel.modules {
        Some(modules) => pen.field("modules", &modules.display().to_string()),
        None => pen.field("modules", "none: everything is built in"),
    }
    pen.field_format("created", format_args!("{} ago", Span(model.now - kernel.created_at)));
    let users: Vec<_> =
        model.snapshot.vms.iter().filter(|vm| vm.kernel == kernel.name).map(|vm| vm.name.as_str()).collect();
    pen.field("used by", if users.is_empty() { "no machine" } else { "" });
    if !users.is_empty() {
        pen.hanging("  ", theme.dim, &users.join(", "), theme.text);
    }
    if !kernel.initrd_modules.is_empty() {
        pen.blank();
        pen.heading("Loaded to reach the root disk");
        pen.text(&kernel.initrd_modules.join("  "), theme.dim);
    }
}

fn operation(pen: &mut Pen<'_, '_>, view: &OperationView) {
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
        let whose = if view.local { "this console" } else { "another vmdeck" };
        line.format(format_args!("  {whose}, pid {}", record.owner.pid), theme.dim);
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
            if let Some(rate) = model.rates.of_operation(view) {
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
    if let Some(boot) =
        started.filter(|_| record.kind == OperationKind::VmStart).and_then(|vm| vm.boot.as_ref())
        && boot.started_at >= record.started_at
        && record.ended_at.is_none_or(|ended| boot.started_at <= ended)
    {
        pen.blank();
        pen.heading("Boot");
        phases::waterfall(pen, boot);
    }
    if !record.phases.is_empty() {
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

fn part_line(
    pen: &mut Pen<'_, '_>,
    view: &OperationView,
    index: usize,
    part: &vmdeck_engine::operation::progress::ProgressPart,
    retried: bool,
) {
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

/// What was found on this host, and the fix.
pub(super) fn findings(pen: &mut Pen<'_, '_>) {
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
