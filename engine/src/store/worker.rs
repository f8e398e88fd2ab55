//! A thread that owns one connection and runs closures on it, in order.

use std::sync::mpsc::{SyncSender, sync_channel};

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::error::{Error, Result};

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

#[derive(Clone, Debug)]
pub(super) struct Worker {
    // As many jobs wait here as tasks wait for their answer; the bound only stops a runaway.
    jobs: SyncSender<Job>,
}

impl Worker {
    pub(super) fn spawn(name: &str, mut connection: Connection) -> Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(4096);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                for job in queue {
                    job(&mut connection);
                }
            })
            .map_err(|error| Error::io("cannot start the store's thread", error))?;
        Ok(Self { jobs })
    }

    pub(super) async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // A caller that went away does not undo the work it asked for.
            let _ = sender.send(work(connection));
        });
        self.jobs.try_send(job).map_err(|_| Error::failed("the store is overloaded or gone"))?;
        receiver.await.map_err(|_| Error::failed("the store's thread ended"))?
    }
}
