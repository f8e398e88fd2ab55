//! Learning that the database changed, whoever changed it, without polling.
//!
//! SQLite appends every commit to the `-wal` file beside the database; the kernel tells of writes to
//! it (inotify(7)). An idle store wakes nobody.
//!
//! A process that watches files ends about 10 ms later than one that does not: the kernel waits until no
//! processor can see its watches any more. Most commands of a script are over before they could learn
//! anything by them. So the first seconds pass without, unless somebody asks: changes are assumed now and then.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::error::{Error, Result};
use crate::readiness::Readable;

/// How long a process may do without the kernel's watch, and how often it assumes a change meanwhile.
const UNWATCHED: Duration = Duration::from_secs(2);
const UNWATCHED_PERIOD: Duration = Duration::from_millis(200);

/// Tells of commits to one database.
#[derive(Debug)]
pub struct ChangeWatch {
    database: PathBuf,
    begun: Instant,
    watch: Watch,
}

#[derive(Debug)]
enum Watch {
    NotYet,
    Kernel(Readable<Inotify>),
    /// The kernel has none left to give.
    Refused,
}

impl ChangeWatch {
    /// `database` is the path of the database file.
    pub fn new(database: PathBuf) -> Self {
        Self { database, begun: Instant::now(), watch: Watch::NotYet }
    }

    /// Has every change told at once from now on; what changed before is not told. Must be called within a
    /// tokio runtime.
    pub fn begin(&mut self) {
        if !matches!(self.watch, Watch::NotYet) {
            return;
        }
        // The folder, not the file: SQLite removes and re-creates the -wal file when the last
        // process closes the database and the next one opens it.
        let folder = self.database.parent().unwrap_or(Path::new("."));
        let open = || -> std::io::Result<Readable<Inotify>> {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            inotify.add_watch(folder, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE)?;
            Readable::new(inotify)
        };
        self.watch = match open() {
            Ok(inotify) => Watch::Kernel(inotify),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the store is looked at now and then: raise fs.inotify.max_user_instances, or close some \
                     programs that watch files"
                );
                Watch::Refused
            }
        };
    }

    /// Waits for the next change, or for a time when there may have been one.
    pub async fn changed(&mut self) -> Result<()> {
        if matches!(self.watch, Watch::NotYet) && self.begun.elapsed() > UNWATCHED {
            self.begin();
            return Ok(());
        }
        match &self.watch {
            Watch::Kernel(inotify) => self.committed(inotify).await,
            Watch::NotYet | Watch::Refused => {
                tokio::time::sleep(UNWATCHED_PERIOD).await;
                Ok(())
            }
        }
    }

    /// Waits for the next write. Several writes in between count as one.
    async fn committed(&self, inotify: &Readable<Inotify>) -> Result<()> {
        let mut wal = self.database.file_name().unwrap_or_default().to_owned();
        wal.push("-wal");
        let fail = |error: std::io::Error| Error::io("cannot watch the store for changes", error);
        loop {
            let events = inotify.read(|inotify| Ok(inotify.read_events()?)).await.map_err(fail)?;
            // An event without a name is an overflow of the queue: take it as a change.
            if events.iter().any(|event| event.name.as_ref().is_none_or(|name| *name == wal)) {
                // Whatever else has queued up by now is the same change.
                while inotify.get_ref().read_events().is_ok() {}
                return Ok(());
            }
        }
    }
}
