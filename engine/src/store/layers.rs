//! Rows of `layers`, `bases` and `snapshots`: frozen disks, and who lies on them.

use rusqlite::{Connection, params};

use super::{json, to_json};
use crate::clock;
use crate::error::{Error, Result};
use crate::identifier::{LayerId, VmId};
use crate::vm::layer::{Base, Disk, Layer};
use crate::vm::snapshot::SnapshotDetail;
use crate::vmm::DiskFormat;

/// A snapshot as it is on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRow {
    pub vm_id: VmId,
    pub name: String,
    pub created_at: clock::Milliseconds,
    pub root: LayerId,
    pub work: Option<LayerId>,
    pub detail: SnapshotDetail,
}

pub fn insert(connection: &Connection, layer: &Layer) -> Result<()> {
    connection
        .prepare_cached("INSERT INTO layers (id, parent_id, format, created_at) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![
            layer.id.as_str(),
            layer.parent.as_ref().map(LayerId::as_str),
            format_name(layer.format),
            clock::now()
        ])?;
    Ok(())
}

/// All layers.
pub fn list(connection: &Connection) -> Result<Vec<Layer>> {
    let mut statement = connection.prepare_cached("SELECT id, parent_id, format FROM layers")?;
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<Vec<(String, Option<String>, String)>, _>>()?;
    rows.into_iter()
        .map(|(id, parent, format)| {
            Ok(Layer {
                id: LayerId::from_stored(id),
                parent: parent.map(LayerId::from_stored),
                format: parse_format(&format)?,
            })
        })
        .collect()
}

pub fn exists(connection: &Connection, id: &LayerId) -> Result<bool> {
    Ok(connection.prepare_cached("SELECT 1 FROM layers WHERE id = ?1")?.exists([id.as_str()])?)
}

/// What the disks of a machine lie on and are about to lie on.
pub fn bases(connection: &Connection, vm: &VmId) -> Result<Vec<Base>> {
    let mut statement = connection.prepare_cached(
        "SELECT b.disk, b.layer_id, b.next_id, l.format FROM bases b
         LEFT JOIN layers l ON l.id = b.layer_id WHERE b.vm_id = ?1",
    )?;
    let mut rows = statement.query([vm.as_str()])?;
    let mut bases = Vec::new();
    while let Some(row) = rows.next()? {
        let (disk, layer, next): (String, Option<String>, Option<String>) =
            (row.get(0)?, row.get(1)?, row.get(2)?);
        let format: Option<String> = row.get(3)?;
        bases.push(Base {
            disk: Disk::parse(&disk).ok_or_else(|| damaged("bases.disk"))?,
            layer: layer.map(LayerId::from_stored),
            format: format.as_deref().map(parse_format).transpose()?.unwrap_or(DiskFormat::Qcow2),
            next: next.map(LayerId::from_stored),
        });
    }
    Ok(bases)
}

/// Every machine with a disk on a layer, by name.
pub fn users(connection: &Connection) -> Result<Vec<(String, LayerId)>> {
    let mut statement = connection.prepare_cached(
        "SELECT v.name, b.layer_id FROM bases b JOIN vms v ON v.id = b.vm_id WHERE b.layer_id IS NOT NULL
         ORDER BY v.name",
    )?;
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<Vec<(String, String)>, _>>()?;
    Ok(rows.into_iter().map(|(name, layer)| (name, LayerId::from_stored(layer))).collect())
}

/// Machines with a disk that is about to lie on something else.
pub fn unsettled(connection: &Connection) -> Result<Vec<VmId>> {
    let mut statement =
        connection.prepare_cached("SELECT DISTINCT vm_id FROM bases WHERE next_id IS NOT NULL")?;
    let rows = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
    Ok(rows.into_iter().map(VmId::from_stored).collect())
}

/// A disk is about to lie on this layer.
pub fn begin_switch(connection: &Connection, vm: &VmId, disk: Disk, next: &LayerId) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO bases (vm_id, disk, next_id) VALUES (?1, ?2, ?3)
             ON CONFLICT (vm_id, disk) DO UPDATE SET next_id = excluded.next_id",
        )?
        .execute(params![vm.as_str(), disk.as_str(), next.as_str()])?;
    Ok(())
}

/// The machine's disks lie on what they were about to.
pub fn finish_switch(connection: &Connection, vm: &VmId) -> Result<()> {
    connection.execute(
        "UPDATE bases SET layer_id = next_id, next_id = NULL WHERE vm_id = ?1 AND next_id IS NOT NULL",
        [vm.as_str()],
    )?;
    Ok(())
}

/// The machine's disks stay on what they lie on.
pub fn abort_switch(connection: &Connection, vm: &VmId) -> Result<()> {
    connection.execute("UPDATE bases SET next_id = NULL WHERE vm_id = ?1", [vm.as_str()])?;
    connection.execute("DELETE FROM bases WHERE vm_id = ?1 AND layer_id IS NULL", [vm.as_str()])?;
    Ok(())
}

/// A disk lies on this layer, from its next start on: it has no overlay of its own yet.
pub fn set_base(connection: &Connection, vm: &VmId, disk: Disk, layer: &LayerId) -> Result<()> {
    connection.execute(
        "INSERT INTO bases (vm_id, disk, layer_id) VALUES (?1, ?2, ?3)",
        params![vm.as_str(), disk.as_str(), layer.as_str()],
    )?;
    Ok(())
}

/// A disk lies on the image again.
pub fn forget_base(connection: &Connection, vm: &VmId, disk: Disk) -> Result<()> {
    connection
        .execute("DELETE FROM bases WHERE vm_id = ?1 AND disk = ?2", params![vm.as_str(), disk.as_str()])?;
    Ok(())
}

/// Removes the rows of layers that nothing lies on any more; their folders are then garbage.
pub fn take_unused(connection: &Connection) -> Result<Vec<LayerId>> {
    let mut statement = connection.prepare_cached(
        "WITH RECURSIVE used (id) AS (
            SELECT layer_id FROM bases WHERE layer_id IS NOT NULL
            UNION SELECT next_id FROM bases WHERE next_id IS NOT NULL
            UNION SELECT root_id FROM snapshots
            UNION SELECT work_id FROM snapshots WHERE work_id IS NOT NULL
            UNION SELECT l.parent_id FROM layers l JOIN used ON l.id = used.id WHERE l.parent_id IS NOT NULL
         )
         DELETE FROM layers WHERE id NOT IN (SELECT id FROM used) RETURNING id",
    )?;
    let rows = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
    Ok(rows.into_iter().map(LayerId::from_stored).collect())
}

pub fn insert_snapshot(connection: &Connection, row: &SnapshotRow) -> Result<()> {
    if snapshots(connection, &row.vm_id)?.iter().any(|other| other.name == row.name) {
        return Err(Error::conflict(format!("there is already a snapshot named `{}`", row.name))
            .with_hint("choose another name, or delete that snapshot first"));
    }
    connection.execute(
        "INSERT INTO snapshots (vm_id, name, created_at, root_id, work_id, detail)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            row.vm_id.as_str(),
            row.name,
            row.created_at,
            row.root.as_str(),
            row.work.as_ref().map(LayerId::as_str),
            to_json(&row.detail)?,
        ],
    )?;
    Ok(())
}

/// Snapshots of a machine, oldest first.
pub fn snapshots(connection: &Connection, vm: &VmId) -> Result<Vec<SnapshotRow>> {
    let mut statement = connection.prepare_cached(
        "SELECT name, created_at, root_id, work_id, detail FROM snapshots WHERE vm_id = ?1
         ORDER BY created_at, name",
    )?;
    let mut rows = statement.query([vm.as_str()])?;
    let mut snapshots = Vec::new();
    while let Some(row) = rows.next()? {
        let detail: String = row.get(4)?;
        snapshots.push(SnapshotRow {
            vm_id: vm.clone(),
            name: row.get(0)?,
            created_at: row.get(1)?,
            root: LayerId::from_stored(row.get(2)?),
            work: row.get::<_, Option<String>>(3)?.map(LayerId::from_stored),
            detail: json("snapshots.detail", &detail)?,
        });
    }
    Ok(snapshots)
}

pub fn delete_snapshot(connection: &Connection, vm: &VmId, name: &str) -> Result<()> {
    connection.execute("DELETE FROM snapshots WHERE vm_id = ?1 AND name = ?2", [vm.as_str(), name])?;
    Ok(())
}

fn format_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

fn parse_format(text: &str) -> Result<DiskFormat> {
    match text {
        "raw" => Ok(DiskFormat::Raw),
        "qcow2" => Ok(DiskFormat::Qcow2),
        _ => Err(damaged("layers.format")),
    }
}

fn damaged(column: &str) -> Error {
    Error::failed(format!("the store's column `{column}` is damaged"))
}
