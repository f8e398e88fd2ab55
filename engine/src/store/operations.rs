//! Rows of `operations`, `operation_progress` and `operation_log`.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{json, to_json};
use crate::clock::Milliseconds;
use crate::error::{Error, ErrorReport, Result};
use crate::identifier::OperationId;
use crate::operation::progress::ProgressReport;
use crate::operation::record::{OperationKind, OperationPhase, OperationRecord, OperationState};

/// Operations kept in the history.
const KEPT: usize = 1000;

const COLUMNS: &str =
    "id, parent_id, kind, target, state, owner, started_at, ended_at, cancel_requested, phases, error";

fn record(row: &Row<'_>) -> Result<OperationRecord> {
    let (kind, state): (String, String) = (row.get(2)?, row.get(4)?);
    let (owner, phases): (String, String) = (row.get(5)?, row.get(9)?);
    let damaged = |column: &str| Error::failed(format!("the store's column `{column}` is damaged"));
    Ok(OperationRecord {
        id: OperationId::from_stored(row.get(0)?),
        parent: row.get::<_, Option<String>>(1)?.map(OperationId::from_stored),
        kind: OperationKind::parse(&kind).ok_or_else(|| damaged("operations.kind"))?,
        target: row.get(3)?,
        state: OperationState::parse(&state).ok_or_else(|| damaged("operations.state"))?,
        owner: json("operations.owner", &owner)?,
        started_at: row.get(6)?,
        ended_at: row.get(7)?,
        cancel_requested: row.get(8)?,
        phases: json("operations.phases", &phases)?,
        error: row.get::<_, Option<String>>(10)?.map(|text| json("operations.error", &text)).transpose()?,
    })
}

fn select(
    connection: &Connection,
    rest: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<OperationRecord>> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM operations {rest}"))?;
    let mut rows = statement.query(parameters)?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(record(row)?);
    }
    Ok(records)
}

pub fn insert(connection: &Connection, record: &OperationRecord) -> Result<()> {
    connection
        .prepare_cached(&format!(
            "INSERT INTO operations ({COLUMNS}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)"
        ))?
        .execute(params![
            record.id.as_str(),
            record.parent.as_ref().map(OperationId::as_str),
            record.kind.as_str(),
            record.target,
            record.state.as_str(),
            to_json(&record.owner)?,
            record.started_at,
            record.ended_at,
            record.cancel_requested,
            to_json(&record.phases)?,
            record.error.as_ref().map(to_json).transpose()?,
        ])?;
    Ok(())
}

/// Newest first.
pub fn list(connection: &Connection, limit: usize) -> Result<Vec<OperationRecord>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    select(connection, "ORDER BY started_at DESC, rowid DESC LIMIT ?1", [limit])
}

pub fn running(connection: &Connection) -> Result<Vec<OperationRecord>> {
    select(connection, "WHERE state = 'running' ORDER BY started_at", [])
}

pub fn find(connection: &Connection, id: &str) -> Result<OperationRecord> {
    let mut found = if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Vec::new()
    } else {
        select(connection, "WHERE substr(id, 1, length(?1)) = ?1 LIMIT 2", [id])?
    };
    match (found.pop(), found.is_empty()) {
        (Some(record), true) => Ok(record),
        (Some(_), false) => Err(Error::usage(format!("`{id}` is the beginning of several operations' ids"))
            .with_hint("give more digits")),
        (None, _) => Err(Error::not_found(format!("there is no operation `{}`", id.escape_default()))
            .with_hint("`vmdeck operation list` shows them")),
    }
}

pub fn set_phases(connection: &Connection, id: &OperationId, phases: &[OperationPhase]) -> Result<()> {
    connection
        .prepare_cached("UPDATE operations SET phases = ?2 WHERE id = ?1")?
        .execute(params![id.as_str(), to_json(&phases)?])?;
    Ok(())
}

pub fn finish(
    connection: &Connection,
    id: &OperationId,
    state: OperationState,
    phases: &[OperationPhase],
    error: Option<&ErrorReport>,
    ended_at: Milliseconds,
) -> Result<()> {
    connection
        .prepare_cached(
            "UPDATE operations SET state = ?2, phases = ?3, error = ?4, ended_at = ?5 WHERE id = ?1 AND state = 'running'",
        )?
        .execute(params![
            id.as_str(),
            state.as_str(),
            to_json(&phases)?,
            error.map(to_json).transpose()?,
            ended_at
        ])?;
    Ok(())
}

/// Drops the oldest ended operations beyond what the history keeps.
pub fn trim(connection: &Connection) -> Result<()> {
    let kept = i64::try_from(KEPT).unwrap_or(i64::MAX);
    connection.execute(
        "DELETE FROM operations WHERE state <> 'running' AND id NOT IN
         (SELECT id FROM operations ORDER BY started_at DESC LIMIT ?1)",
        [kept],
    )?;
    Ok(())
}

pub fn request_cancel(connection: &Connection, id: &OperationId) -> Result<()> {
    connection.execute(
        "UPDATE operations SET cancel_requested = 1 WHERE id = ?1 AND state = 'running'",
        [id.as_str()],
    )?;
    Ok(())
}

pub fn cancel_requests(connection: &Connection) -> Result<Vec<OperationId>> {
    let mut statement = connection
        .prepare_cached("SELECT id FROM operations WHERE state = 'running' AND cancel_requested = 1")?;
    let ids = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
    Ok(ids.into_iter().map(OperationId::from_stored).collect())
}

pub fn set_progress(connection: &Connection, id: &OperationId, parts: &[ProgressReport]) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO operation_progress (operation_id, detail) VALUES (?1, ?2)
             ON CONFLICT (operation_id) DO UPDATE SET detail = excluded.detail",
        )?
        .execute(params![id.as_str(), to_json(&parts)?])?;
    Ok(())
}

pub fn progress(connection: &Connection, id: &OperationId) -> Result<Vec<ProgressReport>> {
    let text: Option<String> = connection
        .prepare_cached("SELECT detail FROM operation_progress WHERE operation_id = ?1")?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()?;
    text.map_or(Ok(Vec::new()), |text| json("operation_progress.detail", &text))
}

pub fn add_log_line(connection: &Connection, id: &OperationId, at: Milliseconds, line: &str) -> Result<()> {
    connection
        .prepare_cached("INSERT INTO operation_log (operation_id, at, line) VALUES (?1, ?2, ?3)")?
        .execute(params![id.as_str(), at, line])?;
    Ok(())
}

pub fn log_lines(connection: &Connection, id: &OperationId) -> Result<Vec<(Milliseconds, String)>> {
    let mut statement = connection
        .prepare_cached("SELECT at, line FROM operation_log WHERE operation_id = ?1 ORDER BY id")?;
    let lines = statement.query_map([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(lines.collect::<Result<_, _>>()?)
}
