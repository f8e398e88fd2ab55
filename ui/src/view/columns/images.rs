//! Columns of the images.

use vmdeck_engine::image::record::Image;

use super::{created, machines};
use crate::format::Bytes;
use crate::text;
use crate::view::table::Column;

pub(in crate::view) const IMAGES: &[Column<Image>] = &[
    Column {
        title: "NAME",
        min: 14,
        max: 34,
        rank: 0,
        right: false,
        sort: Some(0),
        measure: Some(|image| text::width(&image.name)),
        paint: |cell, image| cell.name(&image.name),
    },
    Column {
        title: "USED",
        min: 8,
        max: 8,
        rank: 1,
        right: true,
        sort: Some(1),
        measure: None,
        paint: |cell, image| {
            let style = cell.model.theme.text;
            cell.format(format_args!("{}", Bytes(image.used_bytes)), style);
        },
    },
    machines(3),
    created(2, 2),
    Column {
        title: "REFERENCE",
        min: 16,
        max: 70,
        rank: 4,
        right: false,
        sort: Some(3),
        measure: Some(|image| image.reference.as_deref().map_or(29, text::width)),
        paint: |cell, image| {
            let style = cell.model.theme.dim;
            let unmanaged = if image.managed { "" } else { "registered: files of your own" };
            cell.text(image.reference.as_deref().unwrap_or(unmanaged), style);
        },
    },
];
