//! The disks of a machine: made at its first boot, kept until it is deleted.
//!
//! The root is an overlay on the image's root, the work disk one on the image's work seed: creating
//! them takes no longer for a large image than for a small one, and the image is never written.
//! Blocking, brief.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use vmdeck_ext4::{Formatter, Metadata, Options, Timestamp, Tree};

use super::layer::{self, Base, Disk as Role};
use super::record::VmSettings;
use crate::error::{Error, Result};
use crate::guest::settings::{MODULES_SERIAL, ROOT_SERIAL, WORK_SERIAL};
use crate::image::record::Image;
use crate::kernel::record::Kernel;
use crate::vmm::{Disk, DiskFormat, qcow2};

pub(super) const ROOT: &str = "root.qcow2";
pub(super) const WORK_OVERLAY: &str = "work.qcow2";
/// A work disk that is no overlay: the image has no seed.
pub(super) const WORK_RAW: &str = "work.ext4";

/// Length of a fresh work file system; the guest grows it to the length of its disk.
const FRESH_WORK_BYTES: u64 = 64 << 20;
const FRESH_WORK_JOURNAL: u64 = 32 << 20;

/// Makes what is missing in the machine's folder and returns the disks in the order the guest is to
/// see them.
pub(super) fn prepare(
    directory: &Path,
    images: &Path,
    image: &Image,
    kernel: &Kernel,
    settings: &VmSettings,
    bases: &[Base],
) -> Result<Vec<Disk>> {
    close(directory)?;
    let root = directory.join(ROOT);
    check_backing(&image.files.rootfs, "root", image)?;
    if exists(&root)? {
        grow(&root, settings.disk_bytes).map_err(|error| {
            error.with_hint("`vmdeck vm snapshot restore NAME SNAPSHOT` puts its disks back, `vmdeck vm reset NAME` gives it a fresh root and keeps its work disk")
        })?;
    } else {
        make_root(&root, directory, images, image, settings, bases)?;
    }
    let mut disks = vec![writable(root, DiskFormat::Qcow2, ROOT_SERIAL)];
    if settings.work_disk {
        disks.push(work(directory, images, image, settings, bases)?);
    }
    for disk in &mut disks {
        disk.path = open(&disk.path)?;
    }
    if let Some(modules) = &kernel.modules {
        disks.push(Disk {
            path: modules.clone(),
            format: DiskFormat::Raw,
            read_only: true,
            serial: MODULES_SERIAL.into(),
        });
    }
    Ok(disks)
}

/// Gives a machine that was reset, and has but a work disk, the root of its next start already: what was
/// kept can be frozen then, together with what it begins anew with.
pub(super) fn complete(
    directory: &Path,
    images: &Path,
    image: &Image,
    settings: &VmSettings,
    bases: &[Base],
) -> Result<()> {
    let root = directory.join(ROOT);
    let keeps_work = exists(&directory.join(WORK_RAW))?
        || exists(&directory.join(WORK_OVERLAY))?
        || layer_of(bases, Role::Work).is_some();
    if exists(&root)? || layer_of(bases, Role::Root).is_some() || !keeps_work {
        return Ok(());
    }
    check_backing(&image.files.rootfs, "root", image)?;
    make_root(&root, directory, images, image, settings, bases)
}

fn make_root(
    root: &Path,
    directory: &Path,
    images: &Path,
    image: &Image,
    settings: &VmSettings,
    bases: &[Base],
) -> Result<()> {
    match layer_of(bases, Role::Root) {
        Some((layer, format)) => overlay(root, &layer, format, directory, settings.disk_bytes),
        None => {
            let backing = backing(&image.files.rootfs, images);
            overlay(root, &backing, DiskFormat::Raw, directory, settings.disk_bytes)
        }
    }
}

/// Begins the names by which a run's hypervisor knows the files it writes.
const OPEN_PREFIX: &str = "run-";

/// Gives a disk's file a name for one run of the hypervisor, and returns it.
///
/// QEMU opens a file again, by its name, whenever what it may do with it changes: to grow a disk, or
/// because a disk has become a layer that is only read. So the name must lead to the same file for as
/// long as the hypervisor runs, whatever becomes of `root.qcow2` meanwhile.
pub(super) fn open(disk: &Path) -> Result<PathBuf> {
    let path = open_name(disk);
    layer::remove_file(&path)?;
    fs::hard_link(disk, &path).map_err(|error| {
        Error::io(format!("cannot give the disk `{}` to the hypervisor", disk.display()), error)
            .with_hint("the data directory must be on a file system that has hard links")
    })?;
    Ok(path)
}

/// The name that [`open`] gives.
pub(super) fn open_name(disk: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(OPEN_PREFIX);
    name.push(disk.file_name().unwrap_or_default());
    disk.with_file_name(name)
}

/// Whether what a hypervisor says of a disk has such a name in it. QEMU describes a disk that was frozen
/// by a `json:` text, in which the file's name is one of several things.
pub(super) fn is_open_name(file: &str, role: Role) -> bool {
    file.contains(&format!("{OPEN_PREFIX}{}", role.as_str()))
}

/// Takes the names away that [`open`] gave, when the hypervisor is gone: what lies only under one of
/// them is no disk of the machine any more.
pub(super) fn close(directory: &Path) -> Result<()> {
    let fail = |error| Error::io(format!("cannot read `{}`", directory.display()), error);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail(error)),
    };
    for entry in entries {
        let entry = entry.map_err(fail)?;
        if entry.file_name().to_string_lossy().starts_with(OPEN_PREFIX) {
            layer::remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// A disk's file and how it is to be read.
pub(super) type DiskFile = (PathBuf, DiskFormat);

/// Root and work disk of a machine, as far as it has them: `None` before its first start.
pub(super) fn present(directory: &Path) -> Result<Option<(DiskFile, Option<DiskFile>)>> {
    let at = |name: &str, format| -> Result<Option<DiskFile>> {
        let path = directory.join(name);
        Ok(exists(&path)?.then_some((path, format)))
    };
    let Some(root) = at(ROOT, DiskFormat::Qcow2)? else { return Ok(None) };
    let work = match at(WORK_RAW, DiskFormat::Raw)? {
        Some(raw) => Some(raw),
        None => at(WORK_OVERLAY, DiskFormat::Qcow2)?,
    };
    Ok(Some((root, work)))
}

/// What a disk that is still to be made lies on, other than the image.
fn layer_of(bases: &[Base], role: Role) -> Option<(PathBuf, DiskFormat)> {
    bases.iter().find(|base| base.disk == role).and_then(Base::backing)
}

/// Makes the overlay with this name in the machine's folder the machine's disk: whole or not at all,
/// and once more if need be.
pub(super) fn adopt(directory: &Path, role: Role, overlay: &str) -> Result<()> {
    let (overlay, disk) = (directory.join(overlay), directory.join(role.file_name()));
    match fs::rename(&overlay, &disk) {
        // It was when this was done before.
        Err(error) if error.kind() == io::ErrorKind::NotFound && disk.exists() => {}
        result => result.map_err(|error| {
            Error::io(format!("cannot put the disk `{}` in its place", disk.display()), error)
        })?,
    }
    match role {
        Role::Root => Ok(()),
        // What it was before is a layer now, or given up.
        Role::Work => layer::remove_file(&directory.join(WORK_RAW)),
    }
}

impl Role {
    fn file_name(self) -> &'static str {
        match self {
            Self::Root => ROOT,
            Self::Work => WORK_OVERLAY,
        }
    }
}

fn work(
    directory: &Path,
    images: &Path,
    image: &Image,
    settings: &VmSettings,
    bases: &[Base],
) -> Result<Disk> {
    let (overlaid, raw) = (directory.join(WORK_OVERLAY), directory.join(WORK_RAW));
    if exists(&raw)? {
        lengthen(&raw, settings.disk_bytes)?;
        return Ok(writable(raw, DiskFormat::Raw, WORK_SERIAL));
    }
    let seed = image.files.work_seed.as_deref();
    if exists(&overlaid)? {
        if let Some(seed) = seed {
            check_backing(seed, "work seed", image)?;
        }
        grow(&overlaid, settings.disk_bytes)?;
        return Ok(writable(overlaid, DiskFormat::Qcow2, WORK_SERIAL));
    }
    if let Some((layer, format)) = layer_of(bases, Role::Work) {
        overlay(&overlaid, &layer, format, directory, settings.disk_bytes)?;
        return Ok(writable(overlaid, DiskFormat::Qcow2, WORK_SERIAL));
    }
    match seed {
        Some(seed) => {
            check_backing(seed, "work seed", image)?;
            overlay(&overlaid, &backing(seed, images), DiskFormat::Raw, directory, settings.disk_bytes)?;
            Ok(writable(overlaid, DiskFormat::Qcow2, WORK_SERIAL))
        }
        None => {
            fresh(&raw, settings.disk_bytes)?;
            Ok(writable(raw, DiskFormat::Raw, WORK_SERIAL))
        }
    }
}

fn writable(path: PathBuf, format: DiskFormat, serial: &str) -> Disk {
    Disk { path, format, read_only: false, serial: serial.into() }
}

/// How an overlay names its backing file: relative to the machine's folder for a file of the data
/// directory, so that the directory can move.
fn backing(file: &Path, images: &Path) -> PathBuf {
    match file.strip_prefix(images) {
        Ok(below) => Path::new("../../images").join(below),
        Err(_) => file.to_owned(),
    }
}

/// Length of a file that a disk is or lies over.
fn check_backing(file: &Path, what: &str, image: &Image) -> Result<u64> {
    fs::metadata(file).map(|metadata| metadata.len()).map_err(|error| {
        Error::io(format!("the {what} of image `{}` cannot be read: `{}`", image.name, file.display()), error)
            .with_hint(image.mend())
    })
}

/// Makes a disk as long as it was set to be since; the guest's file system follows.
fn grow(path: &Path, bytes: u64) -> Result<()> {
    if qcow2::virtual_size(path, DiskFormat::Qcow2)? < bytes {
        qcow2::grow(path, bytes)?;
    }
    Ok(())
}

/// The same for a disk without a format of its own: the new end is a hole.
fn lengthen(path: &Path, bytes: u64) -> Result<()> {
    let lengthen = || -> io::Result<()> {
        let file = File::options().write(true).open(path)?;
        if file.metadata()?.len() < bytes { file.set_len(bytes) } else { Ok(()) }
    };
    lengthen().map_err(|error| Error::io(format!("cannot grow the disk `{}`", path.display()), error))
}

/// An overlay at least as long as what it lies on.
fn overlay(path: &Path, backing: &Path, format: DiskFormat, directory: &Path, bytes: u64) -> Result<()> {
    let length = qcow2::virtual_size(&directory.join(backing), format)?;
    publish(path, |staged| qcow2::create_overlay(staged, backing, format, bytes.max(length)))
}

/// An empty file system for root's home.
fn fresh(path: &Path, bytes: u64) -> Result<()> {
    let fail = |error| Error::io(format!("cannot make the work disk `{}`", path.display()), error);
    publish(path, |staged| {
        let file = File::options().read(true).write(true).create_new(true).open(staged).map_err(fail)?;
        let now = Timestamp { seconds: crate::clock::now() / 1000, nanoseconds: 0 };
        let mut uuid = [0; 16];
        getrandom::fill(&mut uuid).map_err(|error| fail(io::Error::other(error)))?;
        let options = Options {
            size: FRESH_WORK_BYTES,
            free: 0,
            journal: FRESH_WORK_JOURNAL,
            uuid,
            label: "work".into(),
            created: now,
        };
        let tree = Tree::new(Metadata { mode: 0o700, modified: now, ..Metadata::default() });
        let formatter = Formatter::create(file, options).map_err(|error| fail(io::Error::other(error)))?;
        let (file, summary) = formatter.finish(&tree).map_err(|error| fail(io::Error::other(error)))?;
        // The rest of the disk is a hole for the guest to grow into.
        file.set_len(bytes.max(summary.size)).map_err(fail)
    })
}

/// Makes a file under another name, and gives it its own only when it is whole and on the disk.
fn publish(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let fail = |error| Error::io(format!("cannot make the disk `{}`", path.display()), error);
    let staged = path.with_extension("new");
    match fs::remove_file(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let made = make(&staged).and_then(|()| {
        File::open(&staged)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&staged, path))
            .map_err(fail)
    });
    if made.is_err() {
        let _ = fs::remove_file(&staged);
    }
    made
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().map_err(|error| Error::io(format!("cannot read `{}`", path.display()), error))
}
