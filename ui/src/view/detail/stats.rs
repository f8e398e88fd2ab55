//! What a machine is doing: as its guest counts it, and as its hypervisor is seen on this host.

use vmdeck_engine::vm::VmStats;
use vmdeck_engine::vm::record::Vm;

use crate::format::{Bytes, Span};
use crate::view::pen::Pen;
use crate::view::spark;

/// Columns of what a line is about.
const LABEL: u16 = 12;

/// File systems and interfaces of a guest shown at most.
const MOST: usize = 6;

pub(super) fn stats(pen: &mut Pen<'_, '_>, vm: &Vm) {
    let model = pen.model;
    let theme = &model.theme;
    if !vm.state.has_process() {
        pen.text("It does not run, and uses nothing but room on the disk.", theme.dim);
        return;
    }
    match (model.guest.of(&vm.id), model.guest.problem(&vm.id)) {
        (_, Some(problem)) => {
            let mark = format!("{} ", model.glyphs.warning);
            pen.hanging(&mark, theme.warning, &format!("The guest does not tell: {problem}"), theme.warning);
        }
        (Some(stats), None) => guest(pen, stats),
        (None, None) => pen.text("asking the guest", theme.dim),
    }
    pen.blank();
    host(pen, vm);
}

fn guest(pen: &mut Pen<'_, '_>, stats: &VmStats) {
    let model = pen.model;
    let theme = &model.theme;
    let (guest, rates) = (&stats.guest, model.guest.rates());
    pen.line(|line| {
        line.put("In the guest", theme.title);
        let up = Span(i64::try_from(guest.uptime_nanoseconds / 1_000_000).unwrap_or(i64::MAX));
        line.format(format_args!("  up {up}, {} threads", guest.threads), theme.dim);
    });
    pen.line(|line| {
        line.column("CPU", LABEL, theme.dim);
        match rates {
            Some(rates) => line.format(format_args!("{:.1} %", rates.guest_processor_percent), theme.bold),
            None => line.put("…", theme.dim),
        }
        line.format(format_args!(" of {} processors, load", guest.processor.count), theme.dim);
        for load in guest.load_thousandths {
            line.format(format_args!(" {}.{:02}", load / 1000, load % 1000 / 10), theme.dim);
        }
    });
    graph(pen, model.guest.samples().map(|sample| sample.processor), 1000);
    let memory = &guest.memory;
    let used = memory.total.saturating_sub(memory.available);
    pen.line(|line| {
        line.column("Memory", LABEL, theme.dim);
        line.format(format_args!("{}", Bytes(used)), theme.bold);
        line.format(format_args!(" of {}", Bytes(memory.total)), theme.dim);
        if memory.swap_total > 0 {
            let swapped = memory.swap_total.saturating_sub(memory.swap_free);
            let all = Bytes(memory.swap_total);
            line.format(format_args!(", {} of {all} swapped", Bytes(swapped)), theme.dim);
        }
    });
    graph(pen, model.guest.samples().map(|sample| sample.memory), memory.total);
    for system in guest.file_systems.iter().take(MOST) {
        pen.line(|line| {
            line.column(&system.mount_point, LABEL, theme.dim);
            let used = system.total.saturating_sub(system.available);
            line.format(format_args!("{}", Bytes(used)), theme.bold);
            line.format(format_args!(" of {}", Bytes(system.total)), theme.dim);
        });
    }
    let Some(rates) = rates else { return };
    for (label, name_in, incoming, name_out, outgoing) in [
        ("Disks", "read", rates.disk_read, "written", rates.disk_written),
        ("Network", "in", rates.network_received, "out", rates.network_sent),
    ] {
        pen.line(|line| {
            line.column(label, LABEL, theme.dim);
            line.format(format_args!("{}/s", Bytes(incoming)), theme.bold);
            line.format(format_args!(" {name_in}, "), theme.dim);
            line.format(format_args!("{}/s", Bytes(outgoing)), theme.bold);
            line.format(format_args!(" {name_out}"), theme.dim);
        });
    }
}

fn host(pen: &mut Pen<'_, '_>, vm: &Vm) {
    let model = pen.model;
    let theme = &model.theme;
    let (Some(total), samples) = (model.usage.total(&vm.id), model.usage.samples(&vm.id)) else {
        pen.text("looking at its hypervisor", theme.dim);
        return;
    };
    let latest = model.usage.latest(&vm.id).copied().unwrap_or_default();
    let most = u64::from(vm.settings.cpus.max(1)) * 1000;
    pen.line(|line| {
        line.put("On this host", theme.title);
        let used = Span(i64::try_from(total.cpu_ms).unwrap_or(i64::MAX));
        line.format(format_args!("  {used} of processor time so far"), theme.dim);
    });
    pen.line(|line| {
        line.column("CPU", LABEL, theme.dim);
        line.format(format_args!("{}.{} %", latest.cpu / 10, latest.cpu % 10), theme.bold);
        line.format(format_args!(" of {} %", most / 10), theme.dim);
    });
    graph(pen, samples.clone().map(|sample| u64::from(sample.cpu)), most);
    pen.line(|line| {
        line.column("Memory", LABEL, theme.dim);
        line.format(format_args!("{}", Bytes(total.resident_bytes)), theme.bold);
        line.format(format_args!(" of {} promised", Bytes(vm.settings.memory_mib << 20)), theme.dim);
    });
    graph(pen, samples.map(|sample| sample.resident_bytes), vm.settings.memory_mib << 20);
    for (label, now, all) in
        [("Disk reads", latest.read, total.read_bytes), ("Disk writes", latest.written, total.written_bytes)]
    {
        pen.line(|line| {
            line.column(label, LABEL, theme.dim);
            line.format(format_args!("{}/s", Bytes(now)), theme.bold);
            line.format(format_args!(", {} so far", Bytes(all)), theme.dim);
        });
    }
}

/// The newest values at the right, as many as there is room for.
fn graph<'a>(
    pen: &mut Pen<'_, '_>,
    values: impl DoubleEndedIterator<Item = u64> + ExactSizeIterator + 'a,
    most: u64,
) {
    let model = pen.model;
    let width = usize::from(pen.width().saturating_sub(LABEL).min(120));
    let skip = values.len().saturating_sub(width);
    let values: Vec<u64> = values.skip(skip).collect();
    pen.line(|line| {
        line.skip(LABEL);
        for value in values {
            line.glyph(spark::bar(&model.glyphs, value, most), model.theme.bar_done);
        }
    });
}
