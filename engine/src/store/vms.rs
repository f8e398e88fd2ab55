//! Rows of `vms` and `boots`.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{json, optional_text, text, to_json};
use crate::error::{Error, Result};
use crate::identifier::{ImageId, VmId};
use crate::vm::record::{Boot, Vm, VmEnd, VmRun, VmSettings, VmState};

/// Boots kept per machine.
const BOOTS_KEPT: i64 = 20;

const SELECT: &str =
    "SELECT v.id, v.name, v.state, v.image_id, i.name, v.kernel_name, v.created_at, v.settings, v.run,
        (SELECT value FROM leases WHERE vm_id = v.id AND kind IN ('address', 'shared-address', 'bridged-address')),
        (SELECT id FROM boots WHERE vm_id = v.id ORDER BY id DESC LIMIT 1),
        (SELECT detail FROM boots WHERE vm_id = v.id ORDER BY id DESC LIMIT 1),
        v.ended, v.creation, v.labels
    FROM vms v JOIN images i ON i.id = v.image_id";

pub fn insert(connection: &Connection, vm: &Vm) -> Result<()> {
    check_free(connection, &vm.name)?;
    connection
        .prepare_cached(
            "INSERT INTO vms (id, name, state, image_id, kernel_name, created_at, settings, run,
                 ended, creation, labels)
             VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)",
        )?
        .execute(params![
            vm.id.as_str(),
            vm.name,
            vm.state.as_str(),
            vm.image_id.as_str(),
            vm.kernel,
            vm.created_at,
            to_json(&vm.settings)?,
            vm.run.as_ref().map(to_json).transpose()?,
            vm.ended.as_ref().map(to_json).transpose()?,
            vm.creation.as_ref().map(to_json).transpose()?,
            to_json(&vm.labels)?,
        ])?;
    Ok(())
}

fn check_free(connection: &Connection, name: &str) -> Result<()> {
    if by_name(connection, name)?.is_none() {
        return Ok(());
    }
    Err(Error::conflict(format!("there is already a machine named `{name}`"))
        .with_hint("choose another name, or delete that machine first"))
}

pub fn list(connection: &Connection) -> Result<Vec<Vm>> {
    select(connection, "ORDER BY v.name", [])
}

/// Those that a hypervisor process belongs to.
pub fn with_process(connection: &Connection) -> Result<Vec<Vm>> {
    select(connection, "WHERE v.state IN ('starting', 'running', 'paused', 'stopping') ORDER BY v.name", [])
}

pub fn by_name(connection: &Connection, name: &str) -> Result<Option<Vm>> {
    Ok(select(connection, "WHERE v.name = ?1", [name])?.pop())
}

pub fn by_id(connection: &Connection, id: &VmId) -> Result<Option<Vm>> {
    Ok(select(connection, "WHERE v.id = ?1", [id.as_str()])?.pop())
}

/// All machines whose id begins so.
pub fn by_id_prefix(connection: &Connection, prefix: &str) -> Result<Vec<Vm>> {
    select(connection, "WHERE substr(v.id, 1, length(?1)) = ?1", [prefix])
}

/// Sets the state together with what belongs to it: the process of a machine that has one, and how
/// the last run ended for one that has none.
pub fn set_state(
    connection: &Connection,
    id: &VmId,
    state: VmState,
    run: Option<&VmRun>,
    ended: Option<&VmEnd>,
) -> Result<()> {
    connection.prepare_cached("UPDATE vms SET state = ?2, run = ?3, ended = ?4 WHERE id = ?1")?.execute(
        params![id.as_str(), state.as_str(), run.map(to_json).transpose()?, ended.map(to_json).transpose()?],
    )?;
    Ok(())
}

pub fn set_settings(connection: &Connection, id: &VmId, settings: &VmSettings) -> Result<()> {
    connection
        .prepare_cached("UPDATE vms SET settings = ?2 WHERE id = ?1")?
        .execute(params![id.as_str(), to_json(settings)?])?;
    Ok(())
}

/// Gives a machine another name; one that is taken is a conflict.
pub fn rename(connection: &Connection, id: &VmId, name: &str) -> Result<()> {
    check_free(connection, name)?;
    connection.execute("UPDATE vms SET name = ?2 WHERE id = ?1", [id.as_str(), name])?;
    Ok(())
}

pub fn set_kernel(connection: &Connection, id: &VmId, kernel: &str) -> Result<()> {
    connection.execute("UPDATE vms SET kernel_name = ?2 WHERE id = ?1", [id.as_str(), kernel])?;
    Ok(())
}

pub fn set_labels(connection: &Connection, id: &VmId, labels: &BTreeMap<String, String>) -> Result<()> {
    connection.execute("UPDATE vms SET labels = ?2 WHERE id = ?1", params![id.as_str(), to_json(labels)?])?;
    Ok(())
}

/// Removes the row; its boots and leases go with it.
pub fn delete(connection: &Connection, id: &VmId) -> Result<()> {
    connection.execute("DELETE FROM vms WHERE id = ?1", [id.as_str()])?;
    Ok(())
}

/// Adds a boot and returns its id; the oldest beyond what is kept go.
pub fn insert_boot(connection: &Connection, vm: &VmId, boot: &Boot) -> Result<i64> {
    connection
        .prepare_cached("INSERT INTO boots (vm_id, started_at, detail) VALUES (?1, ?2, ?3)")?
        .execute(params![vm.as_str(), boot.started_at, to_json(boot)?])?;
    let id = connection.last_insert_rowid();
    connection.execute(
        "DELETE FROM boots WHERE vm_id = ?1 AND id NOT IN
         (SELECT id FROM boots WHERE vm_id = ?1 ORDER BY id DESC LIMIT ?2)",
        params![vm.as_str(), BOOTS_KEPT],
    )?;
    Ok(id)
}

pub fn update_boot(connection: &Connection, id: i64, boot: &Boot) -> Result<()> {
    connection
        .prepare_cached("UPDATE boots SET detail = ?2 WHERE id = ?1")?
        .execute(params![id, to_json(boot)?])?;
    Ok(())
}

/// Newest first.
pub fn boots(connection: &Connection, vm: &VmId) -> Result<Vec<Boot>> {
    let mut statement =
        connection.prepare_cached("SELECT id, detail FROM boots WHERE vm_id = ?1 ORDER BY id DESC")?;
    let rows = statement
        .query_map([vm.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<Vec<(i64, String)>, _>>()?;
    rows.iter().map(|(id, detail)| boot(*id, detail)).collect()
}

fn boot(id: i64, detail: &str) -> Result<Boot> {
    Ok(Boot { id, ..json("boots.detail", detail)? })
}

fn select(connection: &Connection, rest: &str, parameters: impl rusqlite::Params) -> Result<Vec<Vm>> {
    let mut statement = connection.prepare_cached(&format!("{SELECT} {rest}"))?;
    let mut rows = statement.query(parameters)?;
    let mut vms = Vec::new();
    while let Some(row) = rows.next()? {
        vms.push(vm(row)?);
    }
    Ok(vms)
}

fn vm(row: &Row<'_>) -> Result<Vm> {
    let damaged = |column: &str| Error::failed(format!("the store's column `{column}` is damaged"));
    let newest = row.get::<_, Option<i64>>(10)?.zip(optional_text(row, 11)?);
    Ok(Vm {
        id: VmId::from_stored(row.get(0)?),
        name: row.get(1)?,
        state: VmState::parse(text(row, 2)?).ok_or_else(|| damaged("vms.state"))?,
        image_id: ImageId::from_stored(row.get(3)?),
        image: row.get(4)?,
        kernel: row.get(5)?,
        created_at: row.get(6)?,
        settings: json("vms.settings", text(row, 7)?)?,
        pending: None,
        run: optional_text(row, 8)?.map(|text| json("vms.run", text)).transpose()?,
        address: optional_text(row, 9)?
            .map(|text| text.parse().map_err(|_| damaged("leases.value")))
            .transpose()?,
        boot: newest.map(|(id, detail)| boot(id, detail)).transpose()?,
        ended: optional_text(row, 12)?.map(|text| json("vms.ended", text)).transpose()?,
        creation: optional_text(row, 13)?.map(|text| json("vms.creation", text)).transpose()?,
        labels: json("vms.labels", text(row, 14)?)?,
    }
    .showing_its_run())
}

/// The state of a machine as it is at this moment, for a re-check inside a transaction.
pub fn state(connection: &Connection, id: &VmId) -> Result<Option<VmState>> {
    let text: Option<String> = connection
        .prepare_cached("SELECT state FROM vms WHERE id = ?1")?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()?;
    Ok(text.and_then(|text| VmState::parse(&text)))
}
