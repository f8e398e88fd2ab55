//! A kernel.

use vmdeck_engine::kernel::record::Kernel;

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
