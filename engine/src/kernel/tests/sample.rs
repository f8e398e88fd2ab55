//! A small kernel and packages of it.

use std::io::Write;

use crate::kernel::boot_image::tests::{bzimage, vmlinux_of, zstd};
use crate::kernel::source::ar::tests::build as build_ar;

pub(super) const RELEASE: &str = "6.12.1-test";

/// A module for [`RELEASE`].
pub(super) fn module(info: &str) -> Vec<u8> {
    let info = format!("vermagic={RELEASE} SMP mod_unload \0{info}\0");
    crate::kernel::elf::tests::build(&[(".modinfo", 1, 0, info.into_bytes())], false)
}

pub(super) fn image() -> Vec<u8> {
    bzimage(&zstd(&vmlinux_of(RELEASE, true)), &format!("{RELEASE} (builder@host) #1 SMP"))
}

pub(super) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Files of a whole kernel, as a package has them.
pub(super) fn files() -> Vec<(String, Vec<u8>)> {
    let modules = format!("./lib/modules/{RELEASE}");
    vec![
        (format!("./boot/vmlinuz-{RELEASE}"), image()),
        (format!("{modules}/kernel/virtio.ko.xz"), xz(&module("depends="))),
        (format!("{modules}/kernel/virtio-blk.ko.xz"), xz(&module("depends=virtio"))),
        (format!("{modules}/kernel/virtio_console.ko"), module("depends=virtio")),
        (format!("{modules}/kernel/virtio_net.ko.zst"), zstd(&module("depends=virtio\0alias=virtio:d1v*"))),
        (format!("{modules}/modules.builtin"), b"kernel/fs/ext4/ext4.ko\nkernel/virtio_pci.ko\n".to_vec()),
        (format!("{modules}/modules.order"), b"kernel/virtio.ko\nkernel/virtio-blk.ko\n".to_vec()),
    ]
}

pub(super) fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        // Names are set by hand: the builder refuses the hostile ones.
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        builder.append(&header, content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(super) fn deb(data_name: &str, data: &[u8]) -> Vec<u8> {
    build_ar(&[("debian-binary", b"2.0\n"), ("control.tar.xz", b""), (data_name, data)])
}

/// The package of these files.
pub(super) fn deb_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    deb("data.tar.zst", &zstd(&tar(files)))
}
