//! Learning that the database changed, whoever changed it, without polling.
//!
//! SQLite appends every commit to the `-wal` file beside the database; the kernel tells of writes to
//! it (inotify(7)). An idle store wakes nobody.

use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::error::{Error, Result};
use crate::readiness::Readable;

/// Tells of commits to one database.
#[derive(Debug)]
pub struct ChangeWatch {
    inotify: Readable<Inotify>,
    file_name: std::ffi::OsString,
}

impl ChangeWatch {
    /// `database` is the path of the database file. Must be called within a tokio runtime.
    pub fn new(database: &Path) -> Result<Self> {
        let open = || -> std::io::Result<Readable<Inotify>> {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            let folder = database.parent().unwrap_or(Path::new("."));
            // The folder, not the file: SQLite removes and re-creates the -wal file when the last
            // process closes the database and the next one opens it.
            inotify.add_watch(folder, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE)?;
            Readable::new(inotify)
        };
        let mut file_name = database.file_name().unwrap_or_default().to_owned();
        file_name.push("-wal");
        let inotify = open().map_err(|error| {
            Error::io("cannot watch the store for changes", error)
                .with_hint("raise fs.inotify.max_user_instances, or close some programs that watch files")
        })?;
        Ok(Self { inotify, file_name })
    }

    /// Waits for the next write. Several writes in between count as one.
    pub async fn changed(&mut self) -> Result<()> {
        let fail = |error: std::io::Error| Error::io("cannot watch the store for changes", error);
        loop {
            let events = self.inotify.read(|inotify| Ok(inotify.read_events()?)).await.map_err(fail)?;
            // An event without a name is an overflow of the queue: take it as a change.
            if events.iter().any(|event| event.name.as_ref().is_none_or(|name| *name == self.file_name)) {
                // Whatever else has queued up by now is the same change.
                while self.inotify.get_ref().read_events().is_ok() {}
                return Ok(());
            }
        }
    }
}
