//! The store: one SQLite database in WAL mode, shared by every vmdeck process on one data directory.
//!
//! It owns two connections, each on a thread of its own, so that no async task ever blocks on the
//! database: *durable* (`synchronous = FULL`), for what must survive a power cut, and *relaxed*
//! (`synchronous = OFF`), for reads and for progress. Callers hand over closures; a closure that
//! writes opens an `IMMEDIATE` transaction by [`Store::transaction`].
//!
//! Who changed what is told by the table `generation`, which triggers keep: a reader compares five
//! numbers to know which tables to read again. That something changed at all is told by
//! [`change::ChangeWatch`], across processes and without polling.

pub mod change;
pub mod images;
pub mod kernels;
pub mod layers;
pub mod leases;
pub mod operations;
mod schema;
pub mod vms;
mod worker;

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::types::{FromSqlError, Type};
pub use rusqlite::{Connection, Transaction, TransactionBehavior};
use rusqlite::{ErrorCode, Row};

use crate::error::{Error, Result};
use worker::Worker;

pub use schema::Generations;

/// Others' transactions take milliseconds; so long one is waited for.
const BUSY: Duration = Duration::from_secs(20);

/// A cheap handle on the store.
#[derive(Clone, Debug)]
pub struct Store {
    durable: Worker,
    relaxed: Worker,
}

impl Store {
    /// Opens the database, creates or migrates it.
    pub fn open(path: &Path) -> Result<Self> {
        let mut durable = connect(path)?;
        schema::migrate(&mut durable, path)?;
        durable.pragma_update(None, "synchronous", "FULL")?;
        let relaxed = connect(path)?;
        relaxed.pragma_update(None, "synchronous", "OFF")?;
        Ok(Self {
            durable: Worker::spawn("store", durable)?,
            relaxed: Worker::spawn("store-relaxed", relaxed)?,
        })
    }

    /// One `IMMEDIATE` transaction: it has the write lock from its beginning, so what it reads stays
    /// true until it commits, among all processes. Committed when `work` returns `Ok`, durable then.
    ///
    /// `work` runs on the store's thread and must take milliseconds.
    pub async fn transaction<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.durable
            .call(move |connection| {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let result = work(&transaction)?;
                transaction.commit()?;
                Ok(result)
            })
            .await
    }

    /// Reads, in one consistent view.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.relaxed
            .call(move |connection| {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
                work(&transaction)
            })
            .await
    }

    /// A write that may be lost with the host's power, though never torn: progress and log lines.
    pub async fn write_relaxed<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.relaxed
            .call(move |connection| {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let result = work(&transaction)?;
                transaction.commit()?;
                Ok(result)
            })
            .await
    }
}

/// Changes a new database to WAL mode; one that is in it stays so.
///
/// Several that open a new database at once all hold its shared lock when they ask for the exclusive
/// one. SQLite lets none of them wait for the others then, busy timeout or not (`sqlite3_busy_handler`):
/// they would wait for ever. Who is refused has let go of the shared lock, and asks again.
fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let begun = Instant::now();
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && begun.elapsed() < BUSY =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let open = || -> rusqlite::Result<Connection> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        write_ahead(&connection)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(connection)
    };
    open().map_err(|error| {
        Error::failed(format!("cannot open the store `{}`", path.display())).with_source(error).with_hint(
            "check that the data directory is on a local file system that you can write, and is no copy of a file in use",
        )
    })
}

/// A column's text where it lies, for what is only looked at.
pub(crate) fn text<'row>(row: &'row Row<'_>, column: usize) -> Result<&'row str> {
    let value = row.get_ref(column)?;
    value.as_str().map_err(|error| not_text(column, value.data_type(), error))
}

/// The same of a column that may be NULL.
pub(crate) fn optional_text<'row>(row: &'row Row<'_>, column: usize) -> Result<Option<&'row str>> {
    let value = row.get_ref(column)?;
    value.as_str_or_null().map_err(|error| not_text(column, value.data_type(), error))
}

fn not_text(column: usize, found: Type, error: FromSqlError) -> Error {
    rusqlite::Error::FromSqlConversionFailure(column, found, Box::new(error)).into()
}

/// A column that holds JSON.
pub(crate) fn json<T: serde::de::DeserializeOwned>(column: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| {
        Error::failed(format!("the store's column `{column}` is damaged")).with_source(error)
    })
}

/// What goes into a column that holds JSON.
pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Error::failed("cannot write JSON to the store").with_source(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failed_transaction_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("vmdeck.db")).unwrap();
        let result: Result<()> = store
            .transaction(|transaction| {
                transaction.execute(
                    "INSERT INTO leases (kind, value, vm_id, detail) VALUES ('port', '22', NULL, '{}')",
                    [],
                )?;
                Err(Error::failed("no"))
            })
            .await;
        assert!(result.is_err());
        let count: i64 = store
            .read(|connection| Ok(connection.query_row("SELECT count(*) FROM leases", [], |row| row.get(0))?))
            .await
            .unwrap();
        assert_eq!(count, 0);
    }

    #[test]
    fn a_new_store_is_opened_by_many_at_once() {
        for round in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("vmdeck.db");
            let together = std::sync::Barrier::new(8);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        together.wait();
                        let opened = Store::open(&path);
                        assert!(opened.is_ok(), "{round}: {:?}", opened.err());
                    });
                }
            });
        }
    }

    #[tokio::test]
    async fn a_store_of_a_later_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmdeck.db");
        drop(Store::open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 1000).unwrap();
        assert!(Store::open(&path).unwrap_err().to_string().contains("later version"));
    }
}
