//! An image.

use vmdeck_engine::image::record::Image;

use crate::format::{Bytes, Span};
use crate::view::pen::Pen;

pub(super) fn image(pen: &mut Pen<'_, '_>, image: &Image) {
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
    for path in model.snapshot.missing.get(&image.id).into_iter().flatten() {
        pen.field("missing", &path.display().to_string());
    }
    pen.field("id", image.id.as_str());
    pen.field_format("created", format_args!("{} ago", Span(model.now - image.created_at)));
    let users: Vec<_> =
        model.snapshot.vms.iter().filter(|vm| vm.image_id == image.id).map(|vm| vm.name.as_str()).collect();
    let users = if users.is_empty() { "no machine".to_owned() } else { users.join(", ") };
    pen.field("used by", &users);
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
