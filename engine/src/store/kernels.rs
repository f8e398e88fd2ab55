//! Rows of `kernels`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};

use super::{json, to_json};
use crate::error::{Error, Result};
use crate::kernel::record::Kernel;

/// Inserts a kernel; paths below `root`, the data directory, are kept relative to it.
pub fn insert(connection: &Connection, root: &Path, kernel: &Kernel) -> Result<()> {
    if by_name(connection, root, &kernel.name)?.is_some() {
        return Err(name_taken(&kernel.name));
    }
    let mut stored = kernel.clone();
    each_path(&mut stored, |path| path.strip_prefix(root).map_or_else(|_| path.clone(), Path::to_owned));
    connection
        .prepare_cached("INSERT INTO kernels (name, created_at, detail) VALUES (?1, ?2, ?3)")?
        .execute(params![kernel.name, kernel.created_at, to_json(&stored)?])?;
    Ok(())
}

/// The error for a name that a kernel already has.
pub fn name_taken(name: &str) -> Error {
    Error::conflict(format!("there is already a kernel named `{name}`"))
        .with_hint("choose another name with --name, or delete that kernel first")
}

/// Replaces what is known of a kernel, for example after its initrd was rebuilt.
pub fn update(connection: &Connection, root: &Path, kernel: &Kernel) -> Result<()> {
    let mut stored = kernel.clone();
    each_path(&mut stored, |path| path.strip_prefix(root).map_or_else(|_| path.clone(), Path::to_owned));
    connection
        .prepare_cached("UPDATE kernels SET detail = ?2 WHERE name = ?1")?
        .execute(params![kernel.name, to_json(&stored)?])?;
    Ok(())
}

/// Newest first.
pub fn list(connection: &Connection, root: &Path) -> Result<Vec<Kernel>> {
    select(connection, root, "ORDER BY created_at DESC, name", [])
}

pub fn by_name(connection: &Connection, root: &Path, name: &str) -> Result<Option<Kernel>> {
    Ok(select(connection, root, "WHERE name = ?1", [name])?.pop())
}

/// Names of all kernels.
pub fn names(connection: &Connection) -> Result<HashSet<String>> {
    let mut statement = connection.prepare_cached("SELECT name FROM kernels")?;
    Ok(statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// Names of the machines that boot this kernel.
pub fn used_by(connection: &Connection, name: &str) -> Result<Vec<String>> {
    // One that runs with it uses it, whatever it is to boot next.
    let mut statement = connection.prepare_cached(
        "SELECT name FROM vms WHERE kernel_name = ?1 OR run ->> '$.started_with.kernel' = ?1 ORDER BY name",
    )?;
    Ok(statement.query_map([name], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

pub fn delete(connection: &Connection, name: &str) -> Result<()> {
    connection.execute("DELETE FROM kernels WHERE name = ?1", [name])?;
    Ok(())
}

fn select(
    connection: &Connection,
    root: &Path,
    rest: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<Kernel>> {
    let mut statement = connection.prepare_cached(&format!("SELECT detail FROM kernels {rest}"))?;
    let details = statement.query_map(parameters, |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
    details
        .iter()
        .map(|detail| {
            let mut kernel: Kernel = json("kernels.detail", detail)?;
            each_path(&mut kernel, |path| root.join(path));
            Ok(kernel)
        })
        .collect()
}

fn each_path(kernel: &mut Kernel, change: impl Fn(&PathBuf) -> PathBuf) {
    kernel.vmlinux = change(&kernel.vmlinux);
    kernel.initrd = change(&kernel.initrd);
    kernel.modules = kernel.modules.as_ref().map(&change);
}
