//! What a screen shows: one consistent picture of the store, published whenever it changes.
//!
//! The [`Publisher`] sleeps until the store changes (by this process or another), compares the
//! generation numbers, reads only the tables that changed and publishes a new [`Snapshot`]. Progress
//! is not part of the picture: a snapshot holds the counters themselves, which go on moving.
//!
//! While nobody looks at pictures, as in most commands of a script, none are made.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::identifier::{ImageId, OperationId};
use crate::image::record::Image;
use crate::kernel::record::Kernel;
use crate::operation::Operations;
use crate::operation::progress::{Progress, ProgressReport};
use crate::operation::record::{OperationRecord, OperationState};
use crate::store::change::ChangeWatch;
use crate::store::{self, Generations, Store};
use crate::vm::record::Vm;

/// Operations shown at most; older ones are read from the store when asked for.
const OPERATIONS_SHOWN: usize = 200;

/// Shortest time between two pictures.
const PERIOD: Duration = Duration::from_millis(33);

/// By image.
pub type MissingFiles = HashMap<ImageId, Vec<PathBuf>>;

#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts the pictures; 0 is the empty one before the store was read.
    pub generation: u64,
    pub images: Arc<Vec<Image>>,
    /// Of registered images, the files that were not where they should be when this was looked at: at the
    /// first picture, and with each change of images.
    pub missing: Arc<MissingFiles>,
    pub kernels: Arc<Vec<Kernel>>,
    pub vms: Arc<Vec<Vm>>,
    /// Newest first.
    pub operations: Arc<Vec<OperationView>>,
}

/// An operation with its live counters.
#[derive(Clone, Debug)]
pub struct OperationView {
    pub record: OperationRecord,
    pub progress: Arc<Progress>,
    /// Whether this very process runs it.
    pub local: bool,
}

/// Owns the task that publishes.
#[derive(Debug)]
pub struct Publisher {
    receiver: watch::Receiver<Arc<Snapshot>>,
    subscribed: Arc<Subscribed>,
    task: tokio::task::JoinHandle<()>,
}

/// What the task is told of those who look.
#[derive(Debug, Default)]
struct Subscribed {
    /// There is a new one.
    another: Notify,
    /// One of them wants to see changes at once.
    promptly: AtomicBool,
}

impl Publisher {
    /// Must be called within a tokio runtime.
    pub fn start(data: &DataDirectory, store: Store, operations: Operations) -> Self {
        let (sender, receiver) = watch::channel(Arc::default());
        let source = Source {
            root: data.root().to_owned(),
            store,
            operations,
            generations: None,
            progress: HashMap::new(),
            settled: Arc::default(),
            current: Snapshot::default(),
        };
        let subscribed = Arc::<Subscribed>::default();
        let task =
            tokio::spawn(publish(source, ChangeWatch::new(data.database()), Arc::clone(&subscribed), sender));
        Self { receiver, subscribed, task }
    }

    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.subscribed.promptly.store(true, Ordering::Relaxed);
        self.subscribe_relaxed()
    }

    /// For whoever need not see changes of the first seconds at once: see [`ChangeWatch`].
    pub fn subscribe_relaxed(&self) -> watch::Receiver<Arc<Snapshot>> {
        let receiver = self.receiver.clone();
        self.subscribed.another.notify_one();
        receiver
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn publish(
    mut source: Source,
    mut changes: ChangeWatch,
    subscribed: Arc<Subscribed>,
    sender: watch::Sender<Arc<Snapshot>>,
) {
    loop {
        // One receiver is the publisher's own.
        let has_subscribers = sender.receiver_count() > 1;
        if subscribed.promptly.load(Ordering::Relaxed) {
            changes.begin();
        }
        if let Err(error) = source.operations.obey_cancel_requests().await {
            tracing::warn!(%error, "cancel requests could not be read");
        }
        if has_subscribers {
            match source.refresh().await {
                Ok(true) => {
                    sender.send_replace(Arc::new(source.current.clone()));
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "the store could not be read"),
            }
        }
        let changed = async {
            tokio::time::sleep(PERIOD).await;
            changes.changed().await
        };
        let changed = tokio::select! {
            changed = changed => changed,
            () = subscribed.another.notified() => Ok(()),
        };
        if let Err(error) = changed {
            tracing::error!(%error, "changes of the store can no longer be watched");
            return;
        }
    }
}

struct Source {
    root: std::path::PathBuf,
    store: Store,
    operations: Operations,
    /// As of the current picture.
    generations: Option<Generations>,
    /// Counters of other processes' operations, which outlive one picture.
    progress: HashMap<OperationId, Arc<Progress>>,
    /// Operations of the picture that have ended, and whose last report was taken: nothing of them
    /// changes any more.
    settled: Arc<HashSet<OperationId>>,
    current: Snapshot,
}

/// What one look at the store brought.
#[derive(Default)]
struct Changes {
    generations: Generations,
    images: Option<(Vec<Image>, MissingFiles)>,
    kernels: Option<Vec<Kernel>>,
    vms: Option<Vec<Vm>>,
    operations: Option<Vec<OperationRecord>>,
    /// What was reported of operations that are not settled.
    progress: HashMap<OperationId, Vec<ProgressReport>>,
}

impl Source {
    /// Reads what changed; returns whether the picture is a new one.
    async fn refresh(&mut self) -> Result<bool> {
        let (root, before, settled) = (self.root.clone(), self.generations, Arc::clone(&self.settled));
        let changes = self
            .store
            .read(move |connection| {
                let generations = Generations::read(connection)?;
                let changed =
                    |of: fn(&Generations) -> i64| before.is_none_or(|before| of(&before) != of(&generations));
                let mut changes = Changes { generations, ..Changes::default() };
                if changed(|g| g.images) {
                    let images = store::images::list(connection, &root)?;
                    let missing = images
                        .iter()
                        .filter(|image| !image.managed)
                        .map(|image| (image.id.clone(), image.files.missing()))
                        .filter(|(_, missing)| !missing.is_empty())
                        .collect();
                    changes.images = Some((images, missing));
                }
                if changed(|g| g.kernels) {
                    changes.kernels = Some(store::kernels::list(connection, &root)?);
                }
                if changed(|g| g.vms) || changed(|g| g.images) {
                    changes.vms = Some(store::vms::list(connection)?);
                }
                let report = |record: &OperationRecord| {
                    let reports = store::operations::progress(connection, &record.id)?;
                    Ok::<_, Error>((record.id.clone(), reports))
                };
                if changed(|g| g.operations) {
                    let records = store::operations::list(connection, OPERATIONS_SHOWN)?;
                    let moving = records.iter().filter(|record| !settled.contains(&record.id));
                    changes.progress = moving.map(report).collect::<Result<_>>()?;
                    changes.operations = Some(records);
                } else if changed(|g| g.progress) {
                    let running = store::operations::running(connection)?;
                    changes.progress = running.iter().map(report).collect::<Result<_>>()?;
                }
                Ok(changes)
            })
            .await?;
        self.generations = Some(changes.generations);
        let mut new = self.current.generation == 0;
        if let Some((images, missing)) = changes.images {
            self.current.images = Arc::new(images);
            self.current.missing = Arc::new(missing);
            new = true;
        }
        if let Some(kernels) = changes.kernels {
            self.current.kernels = Arc::new(kernels);
            new = true;
        }
        if let Some(vms) = changes.vms {
            self.current.vms = Arc::new(vms);
            new = true;
        }
        if let Some(records) = changes.operations {
            self.adopt_operations(records);
            new = true;
        }
        for (id, reports) in changes.progress {
            if self.operations.local_progress(&id).is_none()
                && let Some(progress) = self.progress.get(&id)
                && !reports.is_empty()
            {
                progress.adopt(&reports);
            }
        }
        if new {
            self.current.generation += 1;
        }
        Ok(new)
    }

    fn adopt_operations(&mut self, records: Vec<OperationRecord>) {
        let mut views = Vec::with_capacity(records.len());
        let mut kept = HashMap::with_capacity(records.len());
        let mut settled = HashSet::new();
        for record in records {
            let local = self.operations.local_progress(&record.id);
            let is_local = local.is_some();
            let progress = local.or_else(|| self.progress.remove(&record.id)).unwrap_or_default();
            // The last report of an operation comes with its end: it was read together with this.
            if !is_local && record.state != OperationState::Running {
                settled.insert(record.id.clone());
            }
            kept.insert(record.id.clone(), Arc::clone(&progress));
            views.push(OperationView { record, progress, local: is_local });
        }
        (self.progress, self.settled) = (kept, Arc::new(settled));
        self.current.operations = Arc::new(views);
    }
}
