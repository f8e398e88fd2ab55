//! The tables, and how an older database becomes a current one.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::error::{Error, Result};

/// Each entry takes `user_version` from its index to the next. Entries are never edited once
/// released; a change is a further entry.
const MIGRATIONS: &[&str] = &[include_str!("schema-1.sql"), include_str!("schema-2.sql")];

pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    // A current one is not written to, which would be an fsync and a wake-up of everybody who watches.
    if version_of(connection)? == MIGRATIONS.len() {
        return Ok(());
    }
    // Two processes may open a new data directory at once: the write lock lets one of them migrate.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version = version_of(&transaction)?;
    if version > MIGRATIONS.len() {
        return Err(Error::failed(format!(
            "the store `{}` was written by a later version of vmdeck",
            path.display()
        ))
        .with_hint("use that version, or another VMDECK_DATA_DIR"));
    }
    for migration in &MIGRATIONS[version..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    transaction.commit()?;
    Ok(())
}

fn version_of(connection: &Connection) -> Result<usize> {
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

/// How often each table was changed, ever. Two equal values mean: nothing to read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generations {
    pub images: i64,
    pub kernels: i64,
    pub vms: i64,
    pub operations: i64,
    pub progress: i64,
}

impl Generations {
    pub fn read(connection: &Connection) -> Result<Self> {
        let mut this = Self::default();
        let mut statement = connection.prepare_cached("SELECT name, count FROM generation")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let name: String = row.get(0)?;
            let count = row.get(1)?;
            match name.as_str() {
                "images" => this.images = count,
                "kernels" => this.kernels = count,
                "vms" => this.vms = count,
                "operations" => this.operations = count,
                "progress" => this.progress = count,
                _ => {}
            }
        }
        Ok(this)
    }
}
