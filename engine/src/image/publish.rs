//! The publication window: the only moment in which pulls, promotes and deletes exclude each other.
//!
//! Everything long is over when it begins. One `IMMEDIATE` transaction, which holds among all
//! processes, spans three steps: the name is still free → the folder gets its final name → the row
//! is inserted. A process that dies in between leaves either nothing or a folder without a row, and
//! [`super::remove::reconcile`] takes that away.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::flatten::{INITRD, KERNEL, MODULES, RECORD, ROOTFS, WORK_SEED};
use super::record::{Image, ImageFiles};
use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::identifier::{ImageId, LONGEST_NAME};
use crate::store::{self, Store};

/// Writes the record of an image beside its files and syncs all that must survive. Blocking.
///
/// The record says what the store says, so that a folder explains itself.
pub(crate) fn finalize_pulled_rootfs(folder: &Path, image: &Image) -> Result<()> {
    let fail = |error| Error::io(format!("cannot write `{}`", folder.join(RECORD).display()), error);
    let mut record = image.clone();
    record.files = files_in(folder, Path::new(""));
    let text = serde_json::to_vec_pretty(&record)
        .map_err(|error| Error::failed("cannot write the image's record").with_source(error))?;
    fs::write(folder.join(RECORD), text).map_err(fail)?;
    for entry in fs::read_dir(folder).map_err(fail)? {
        File::open(entry.map_err(fail)?.path()).and_then(|file| file.sync_all()).map_err(fail)?;
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)
}

/// Files of a managed image by where they will lie, as far as they are in `staged` now.
pub(crate) fn managed_files(data: &DataDirectory, content: &ImageId, staged: &Path) -> ImageFiles {
    files_in(staged, &data.image(content))
}

fn files_in(staged: &Path, named: &Path) -> ImageFiles {
    let optional = |name: &str| staged.join(name).exists().then(|| named.join(name));
    ImageFiles {
        rootfs: named.join(ROOTFS),
        work_seed: optional(WORK_SEED),
        kernel: optional(KERNEL),
        initrd: optional(INITRD),
        modules: optional(MODULES),
    }
}

/// What the new image takes the place of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Replacing {
    Nothing,
    /// An unmanaged image of the same name, which no machine may use.
    Unmanaged(ImageId),
    /// Whatever image has the name. Machines made of it keep it, under another name.
    Older(ImageId),
}

/// What there is under the name of an image whose content is known by now.
pub(crate) enum Place {
    /// That very content.
    Same(Box<Image>),
    Free(Replacing),
}

impl Place {
    /// # Errors
    /// A conflict where other content has the name and is not to be replaced.
    pub(crate) fn of(there: Option<Image>, digest: &str, reference: &str, replace: bool) -> Result<Self> {
        match there {
            None => Ok(Self::Free(Replacing::Nothing)),
            Some(image) if image.digest.as_deref() == Some(digest) => Ok(Self::Same(Box::new(image))),
            Some(image) if replace => Ok(Self::Free(Replacing::Older(image.id))),
            Some(image) => Err(store::images::other_content(&image, reference, Some(digest))),
        }
    }
}

/// What became of the image whose name the new one took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Replaced {
    #[default]
    Nothing,
    /// Nothing used it; its files are nobody's any more, unless another name shares them.
    Deleted { content: Option<ImageId> },
    /// These machines go on with it.
    SetAside { name: String, machines: Vec<String> },
}

/// Publishes `folder` as the files of `image`, whose `content_id` is new.
///
/// When another image of the same digest got there first, that one's files are shared instead, and
/// `folder` stays where it is.
///
/// # Errors
/// A conflict when the name was taken in the meantime; the folder is then where it was.
pub(crate) async fn publish(
    store: &Store,
    data: &DataDirectory,
    folder: PathBuf,
    image: Image,
    replacing: Replacing,
) -> Result<(Image, Replaced)> {
    let content =
        image.content_id.clone().ok_or_else(|| Error::failed("only managed images are published"))?;
    let (root, images, target) = (data.root().to_owned(), data.images(), data.image(&content));
    let (source, name) = (folder.clone(), image.name.clone());
    let place = target.clone();
    let published = store
        .transaction(move |transaction| {
            let replaced = make_room(transaction, &root, &image.name, &replacing)?;
            if let Some(image) = sharing(transaction, &root, &image)? {
                store::images::insert(transaction, &root, &image)?;
                return Ok((image, replaced));
            }
            let fail = |error| Error::io(format!("cannot publish the image as `{}`", target.display()), error);
            fs::rename(&source, &target).map_err(fail)?;
            // The row must not be on the disk before the folder it names.
            let inserted = File::open(&images)
                .and_then(|folder| folder.sync_all())
                .map_err(fail)
                .and_then(|()| store::images::insert(transaction, &root, &image));
            if let Err(error) = inserted {
                if let Err(error) = fs::rename(&target, &source) {
                    tracing::error!(path = %target.display(), %error, "an unpublished image could not be moved back");
                }
                return Err(error);
            }
            Ok((image, replaced))
        })
        .await;
    if published.is_err() && place.exists() {
        // The commit itself failed: then there is no row, and the folder is nobody's.
        let root = data.root().to_owned();
        let row = store.read(move |connection| store::images::by_name(connection, &root, &name)).await?;
        if row.is_none_or(|row| row.content_id.as_ref() != Some(&content)) {
            let moved = fs::rename(&place, &folder);
            moved.map_err(|error| Error::io("an unpublished image could not be moved back", error))?;
        }
    }
    published
}

/// Makes sure that the name is free.
fn make_room(
    transaction: &store::Transaction<'_>,
    root: &Path,
    name: &str,
    replacing: &Replacing,
) -> Result<Replaced> {
    let Some(there) = store::images::by_name(transaction, root, name)? else {
        return match replacing {
            Replacing::Nothing | Replacing::Older(_) => Ok(Replaced::Nothing),
            // Who deleted it meanwhile does not want it back.
            Replacing::Unmanaged(_) => {
                Err(Error::not_found(format!("the image `{name}` was deleted meanwhile"))
                    .with_hint("register its files again, and promote that image"))
            }
        };
    };
    let machines = store::images::used_by(transaction, &there.id)?;
    match replacing {
        Replacing::Unmanaged(id) if *id == there.id && !there.managed => {
            if !machines.is_empty() {
                return Err(store::images::in_use(name, &machines));
            }
        }
        Replacing::Older(id) if *id == there.id => {
            if !machines.is_empty() {
                let name = set_aside(transaction, root, there)?;
                return Ok(Replaced::SetAside { name, machines });
            }
        }
        _ => return Err(store::images::name_taken(name)),
    }
    let last = store::images::delete(transaction, &there)?;
    Ok(Replaced::Deleted { content: there.content_id.filter(|_| last) })
}

/// Gives an image a name that says what it was, and returns that.
fn set_aside(transaction: &store::Transaction<'_>, root: &Path, image: Image) -> Result<String> {
    let digest = image.digest.as_deref().and_then(|digest| digest.strip_prefix("sha256:"));
    let marks = [digest.map(|hex| hex.chars().take(12).collect()), Some(image.id.as_str().to_owned())];
    for mark in marks.into_iter().flatten() {
        let name: String = image.name.chars().take(LONGEST_NAME - 1 - mark.len()).collect();
        let name = format!("{name}-{mark}");
        if store::images::by_name(transaction, root, &name)?.is_none() {
            store::images::rename(transaction, root, &image, &name)?;
            return Ok(name);
        }
    }
    Err(store::images::name_taken(&image.name))
}

/// Gives the files of an image of the same digest another name, if there is one.
pub(crate) async fn share(
    store: &Store,
    data: &DataDirectory,
    image: Image,
    replacing: Replacing,
) -> Result<Option<(Image, Replaced)>> {
    let root = data.root().to_owned();
    store
        .transaction(move |transaction| {
            let Some(image) = sharing(transaction, &root, &image)? else { return Ok(None) };
            let replaced = make_room(transaction, &root, &image.name, &replacing)?;
            store::images::insert(transaction, &root, &image)?;
            Ok(Some((image, replaced)))
        })
        .await
}

/// `image` with the files of an image of the same digest.
fn sharing(connection: &store::Connection, root: &Path, image: &Image) -> Result<Option<Image>> {
    let Some(digest) = &image.digest else { return Ok(None) };
    let others = store::images::by_digest(connection, root, digest)?;
    let Some(other) = others.into_iter().find(|other| other.files.rootfs.is_file()) else { return Ok(None) };
    Ok(Some(Image {
        content_id: other.content_id,
        files: other.files,
        rootfs_bytes: other.rootfs_bytes,
        used_bytes: other.used_bytes,
        ..image.clone()
    }))
}
