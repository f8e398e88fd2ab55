//! Columns of the images.

use vmdeck_engine::image::record::Image;

use super::{created, machines};
use crate::format::Bytes;
use crate::text;
use crate::view::table::Column;

/// What stands for the reference of an image that was registered.
const UNMANAGED: &str = "registered: files of your own";
/// The same where some of them are gone.
const MISSING: &str = "registered: files missing";

pub(in crate::view) const IMAGES: &[Column<Image>] = &[
    Column::<Image>::new("NAME", 0, (14, 34), |cell, image| cell.name(&image.name))
        .sorted(0)
        .measured(|image| text::width(&image.name)),
    Column::<Image>::new("USED", 1, (8, 8), |cell, image| {
        let style = cell.model.theme.text;
        cell.format(format_args!("{}", Bytes(image.used_bytes)), style);
    })
    .right()
    .sorted(1),
    machines(3),
    created(2, 2),
    Column::<Image>::new("REFERENCE", 4, (16, 70), |cell, image| {
        let style = cell.model.theme.dim;
        if cell.model.snapshot.missing.contains_key(&image.id) {
            return cell.text(MISSING, cell.model.theme.bad);
        }
        match &image.reference {
            Some(reference) => cell.reference(reference, style),
            None if image.managed => {}
            None => cell.text(UNMANAGED, style),
        }
    })
    .sorted(3)
    .measured(|image| text::width(image.reference.as_deref().unwrap_or(UNMANAGED))),
];
