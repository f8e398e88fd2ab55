//! What a machine's hypervisor uses of this host.

use vmdeck_engine::vm::record::Vm;

use crate::format::{Bytes, Mebibytes, Span};
use crate::view::pen::Pen;
use crate::view::spark;

pub(super) fn stats(pen: &mut Pen<'_, '_>, vm: &Vm) {
    let model = pen.model;
    let theme = &model.theme;
    if !vm.state.has_process() {
        pen.text("It does not run, and uses nothing but room on the disk.", theme.dim);
        return;
    }
    let (Some(total), samples) = (model.usage.total(&vm.id), model.usage.samples(&vm.id)) else {
        pen.text("looking at it", theme.dim);
        return;
    };
    let latest = model.usage.latest(&vm.id).copied().unwrap_or_default();
    let most = u64::from(vm.settings.cpus.max(1)) * 1000;
    let memory = vm.settings.memory_mib << 20;
    pen.line(|line| {
        line.column("CPU", 12, theme.title);
        line.format(format_args!("{}.{} %", latest.cpu / 10, latest.cpu % 10), theme.bold);
        line.format(format_args!(" of {} %", most / 10), theme.dim);
    });
    graph(pen, samples.clone().map(|sample| u64::from(sample.cpu)), most);
    pen.blank();
    pen.line(|line| {
        line.column("Memory", 12, theme.title);
        line.format(format_args!("{}", Bytes(total.resident_bytes)), theme.bold);
        line.format(format_args!(" of this host, {} promised", Mebibytes(vm.settings.memory_mib)), theme.dim);
    });
    graph(pen, samples.clone().map(|sample| sample.resident_bytes), memory);
    pen.blank();
    let rate = |pen: &mut Pen<'_, '_>, label: &str, now: u64, all: u64| {
        pen.line(|line| {
            line.column(label, 12, theme.title);
            line.format(format_args!("{}/s", Bytes(now)), theme.bold);
            line.format(format_args!("  {} so far", Bytes(all)), theme.dim);
        });
    };
    rate(pen, "Disk reads", latest.read, total.read_bytes);
    rate(pen, "Disk writes", latest.written, total.written_bytes);
    pen.blank();
    let used = Span(i64::try_from(total.cpu_ms).unwrap_or(i64::MAX));
    pen.field_format("processor", format_args!("{used} of its time so far"));
    pen.text("As the host sees its hypervisor, once a second.", theme.dim);
}

/// The newest values at the right, as many as there is room for.
fn graph<'a>(
    pen: &mut Pen<'_, '_>,
    values: impl DoubleEndedIterator<Item = u64> + ExactSizeIterator + 'a,
    most: u64,
) {
    let model = pen.model;
    let width = usize::from(pen.width().min(120));
    let skip = values.len().saturating_sub(width);
    let values: Vec<u64> = values.skip(skip).collect();
    pen.line(|line| {
        for value in values {
            line.glyph(spark::bar(&model.glyphs, value, most), model.theme.bar_done);
        }
    });
}
