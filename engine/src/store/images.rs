//! Rows of `images`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};

use super::{json, text, to_json};
use crate::error::{Error, Result};
use crate::identifier::{ImageId, list_names};
use crate::image::record::Image;

/// Inserts an image. Paths below `root`, the data directory, are kept relative to it, so that the
/// directory can move. A name already taken is a conflict.
pub fn insert(connection: &Connection, root: &Path, image: &Image) -> Result<()> {
    if by_name(connection, root, &image.name)?.is_some() {
        return Err(name_taken(&image.name));
    }
    connection
        .prepare_cached(
            "INSERT INTO images (id, name, content_id, digest, created_at, detail) VALUES (?1,?2,?3,?4,?5,?6)",
        )?
        .execute(params![
            image.id.as_str(),
            image.name,
            image.content_id.as_ref().map(ImageId::as_str),
            image.digest,
            image.created_at,
            detail(root, image)?
        ])?;
    Ok(())
}

/// What is kept of an image as a whole.
fn detail(root: &Path, image: &Image) -> Result<String> {
    let mut stored = image.clone();
    each_path(&mut stored, |path| path.strip_prefix(root).map_or_else(|_| path.clone(), Path::to_owned));
    to_json(&stored)
}

/// Gives an image another name, which must be free. Machines know theirs by its id.
pub fn rename(connection: &Connection, root: &Path, image: &Image, name: &str) -> Result<()> {
    let renamed = Image { name: name.to_owned(), ..image.clone() };
    connection.execute(
        "UPDATE images SET name = ?2, detail = ?3 WHERE id = ?1",
        params![image.id.as_str(), name, detail(root, &renamed)?],
    )?;
    Ok(())
}

pub fn name_taken(name: &str) -> Error {
    Error::conflict(format!("there is already an image named `{name}`"))
        .with_hint("choose another name, or delete that image first")
}

/// What is there was pulled from elsewhere, or the reference leads to something new by now.
pub fn other_content(there: &Image, reference: &str, digest: Option<&str>) -> Error {
    let from = there.reference.as_deref().unwrap_or("files of this host");
    let name = &there.name;
    let mut text = format!("there is already an image named `{name}`, from {from}");
    if let (Some(old), Some(new)) = (&there.digest, digest) {
        text.push_str(&format!(": it is {old}, and {reference} is {new}"));
    }
    Error::conflict(text).with_hint(
        "give this one another name with --name, or let it take the place of that image with --replace",
    )
}

pub fn in_use(name: &str, machines: &[String]) -> Error {
    Error::conflict(format!("the image `{name}` is in use by {}", list_names(machines)))
        .with_hint("delete those machines first: `vmdeck vm delete NAME`")
}

pub fn list(connection: &Connection, root: &Path) -> Result<Vec<Image>> {
    select(connection, root, "ORDER BY name", [])
}

pub fn by_name(connection: &Connection, root: &Path, name: &str) -> Result<Option<Image>> {
    Ok(select(connection, root, "WHERE name = ?1", [name])?.pop())
}

/// The image with this name, else the only one whose id begins with it.
pub fn find(connection: &Connection, root: &Path, name: &str) -> Result<Image> {
    if let Some(image) = by_name(connection, root, name)? {
        return Ok(image);
    }
    let mut found = by_id_prefix(connection, root, name)?;
    match (found.pop(), found.is_empty() && name.len() >= 4) {
        (Some(image), true) => Ok(image),
        _ => Err(Error::not_found(format!("there is no image `{}`", name.escape_debug()))
            .with_hint("`vmdeck image list` shows them, `vmdeck image pull` gets one")),
    }
}

/// All images whose id begins so.
pub fn by_id_prefix(connection: &Connection, root: &Path, prefix: &str) -> Result<Vec<Image>> {
    select(connection, root, "WHERE substr(id, 1, length(?1)) = ?1", [prefix])
}

/// Managed images made from this manifest.
pub fn by_digest(connection: &Connection, root: &Path, digest: &str) -> Result<Vec<Image>> {
    select(connection, root, "WHERE digest = ?1 AND content_id IS NOT NULL ORDER BY created_at", [digest])
}

/// Names of the machines made of an image.
pub fn used_by(connection: &Connection, id: &ImageId) -> Result<Vec<String>> {
    let mut statement =
        connection.prepare_cached("SELECT name FROM vms WHERE image_id = ?1 ORDER BY name")?;
    Ok(statement.query_map([id.as_str()], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// Images that some machine is made of.
pub fn used_ids(connection: &Connection) -> Result<HashSet<ImageId>> {
    let mut statement = connection.prepare_cached("SELECT DISTINCT image_id FROM vms")?;
    let ids = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
    Ok(ids.into_iter().map(ImageId::from_stored).collect())
}

/// Removes the row. Returns whether no other image shares its files.
pub fn delete(connection: &Connection, image: &Image) -> Result<bool> {
    connection.execute("DELETE FROM images WHERE id = ?1", [image.id.as_str()])?;
    let Some(content) = &image.content_id else { return Ok(false) };
    let others: i64 = connection.query_row(
        "SELECT count(*) FROM images WHERE content_id = ?1",
        [content.as_str()],
        |row| row.get(0),
    )?;
    Ok(others == 0)
}

/// Folders below `images/` that belong to some image.
pub fn content_ids(connection: &Connection) -> Result<Vec<ImageId>> {
    let mut statement =
        connection.prepare_cached("SELECT DISTINCT content_id FROM images WHERE content_id IS NOT NULL")?;
    let ids = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
    Ok(ids.into_iter().map(ImageId::from_stored).collect())
}

fn select(
    connection: &Connection,
    root: &Path,
    rest: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<Image>> {
    let mut statement = connection.prepare_cached(&format!("SELECT detail FROM images {rest}"))?;
    let mut rows = statement.query(parameters)?;
    let mut images = Vec::new();
    while let Some(row) = rows.next()? {
        let mut image: Image = json("images.detail", text(row, 0)?)?;
        each_path(&mut image, |path| root.join(path));
        images.push(image);
    }
    Ok(images)
}

fn each_path(image: &mut Image, change: impl Fn(&PathBuf) -> PathBuf) {
    let files = &mut image.files;
    files.rootfs = change(&files.rootfs);
    for path in [&mut files.work_seed, &mut files.kernel, &mut files.initrd, &mut files.modules] {
        *path = path.as_ref().map(&change);
    }
}
