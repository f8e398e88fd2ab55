//! A kernel, one that is here or one that can be had.

use vmdeck_engine::kernel::record::Kernel;
use vmdeck_engine::kernel::{CatalogItem, CatalogState};

use crate::action::Action;
use crate::format::Span;
use crate::view::pen::Pen;

pub(super) fn kernel(pen: &mut Pen<'_, '_>, kernel: &Kernel) {
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
    let users: Vec<_> = model
        .snapshot
        .vms
        .iter()
        .filter(|vm| vm.uses_kernel(&kernel.name))
        .map(|vm| vm.name.as_str())
        .collect();
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

/// An entry of the catalog.
pub(super) fn offered(pen: &mut Pen<'_, '_>, item: &CatalogItem) {
    let model = pen.model;
    let theme = &model.theme;
    let entry = &item.entry;
    if !entry.note.is_empty() {
        pen.text(&entry.note, theme.text);
        pen.blank();
    }
    let pull = model.keymap.describe(Action::PullKernel);
    match item.state {
        CatalogState::Unavailable => {
            pen.text("The package archive this host is configured for has no such kernel.", theme.warning)
        }
        CatalogState::NewerAvailable => pen.text(
            &format!("A newer one than those here can be had: {pull} pulls it. The older ones stay."),
            theme.text,
        ),
        CatalogState::Available | CatalogState::Installed => {
            pen.text(&format!("It is not here: {pull} pulls it."), theme.text);
        }
    }
    pen.blank();
    pen.field("arch", &entry.architecture);
    if let Some(version) = &entry.version {
        pen.field("version", version);
    }
    pen.field("source", &entry.source);
    if let Some(available) = item.available.as_deref().filter(|available| *available != entry.source) {
        pen.field("exactly", available);
    }
    if let Some(digest) = &entry.sha256 {
        pen.field("sha256", digest);
    }
    if !item.installed.is_empty() {
        pen.field("here", &item.installed.join(", "));
    }
    pen.field("catalog", &entry.origin);
}
