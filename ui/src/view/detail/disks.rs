//! The files of a machine.

use vmdeck_engine::vm::record::Vm;

use crate::format::Bytes;
use crate::view::pen::Pen;

pub(super) fn disks(pen: &mut Pen<'_, '_>, vm: &Vm) {
    let model = pen.model;
    let theme = &model.theme;
    let files = model.files.as_ref().filter(|(id, _)| *id == vm.id).map_or(&[][..], |(_, files)| files);
    if files.is_empty() {
        let text =
            if vm.boot.is_some() { "looking at its files" } else { "It gets its disks when it boots first." };
        pen.text(text, theme.dim);
        return;
    }
    let what = |name: &str| match name {
        "root.qcow2" => "root, over the image",
        "work.qcow2" => "work, over the image's seed",
        "work.ext4" => "work",
        "console.log" => "what its console printed",
        _ => "",
    };
    pen.line(|line| {
        line.column("FILE", 14, theme.column_title);
        line.column("SIZE", 12, theme.column_title);
        line.column("ON THE DISK", 14, theme.column_title);
    });
    for file in files {
        pen.line(|line| {
            line.column(&file.name, 14, theme.text);
            line.column(&Bytes(file.logical_bytes).to_string(), 12, theme.text);
            line.column(&Bytes(file.allocated_bytes).to_string(), 14, theme.bold);
            line.put(what(&file.name), theme.dim);
        });
    }
    let all: u64 = files.iter().map(|file| file.allocated_bytes).sum();
    pen.blank();
    pen.field_format("all", format_args!("{} on the disk", Bytes(all)));
    let base = model.snapshot.images.iter().find(|image| image.id == vm.image_id);
    if let Some(image) = base {
        let text = format!("{}, {}: shared, never written", image.name, Bytes(image.used_bytes));
        pen.field("image", &text);
    }
}
