//! Operations: everything that can take longer than a blink.
//!
//! ```text
//! spawn ─▶ running ─▶ done | failed | cancelled        (interrupted: its process was killed)
//! ```
//!
//! This service owns the tasks: it puts each on record before it begins, keeps its phases, writes
//! its progress to the store four times a second while it runs, hears of cancel requests from other
//! processes, and records the outcome. It knows nothing of what the work is.

pub mod progress;
pub mod record;

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::error::{Error, Result};
use crate::identifier::OperationId;
use crate::process::ProcessIdentity;
use crate::store::{self, Store};
use progress::{Progress, ProgressReport};
use record::{OperationKind, OperationPhase, OperationRecord, OperationState};

/// How often progress goes to the store for other processes to see.
const PROGRESS_PERIOD: Duration = Duration::from_millis(250);

/// The service: a cheap handle.
#[derive(Clone, Debug)]
pub struct Operations {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    owner: ProcessIdentity,
    tasks: TaskTracker,
    cancel_all: CancellationToken,
    /// Guards the operations of this process that have not ended; never held across an await.
    local: Mutex<HashMap<OperationId, Operation>>,
    /// Wakes the writer of progress when the first operation begins.
    began: Notify,
}

/// One running operation of this process, as its own work sees it.
#[derive(Clone, Debug)]
pub struct Operation {
    inner: Arc<OperationInner>,
}

#[derive(Debug)]
struct OperationInner {
    id: OperationId,
    kind: OperationKind,
    target: String,
    cancel: CancellationToken,
    progress: Arc<Progress>,
    /// Guards the list of phases; held to add one or to copy them.
    phases: Mutex<Vec<OperationPhase>>,
    store: Store,
}

/// An operation under way and its result. Dropping it leaves the operation running.
#[derive(Debug)]
pub struct Task<T> {
    operation: Operation,
    result: oneshot::Receiver<Result<T>>,
}

impl<T> Task<T> {
    pub fn operation(&self) -> &Operation {
        &self.operation
    }

    /// Waits for the outcome. Cancel-safe to poll by reference.
    pub async fn wait(&mut self) -> Result<T> {
        (&mut self.result).await.unwrap_or_else(|_| Err(internal(&self.operation)))
    }
}

fn internal(operation: &Operation) -> Error {
    Error::failed(format!(
        "{} `{}` ended by an internal error",
        operation.kind().as_str(),
        operation.target()
    ))
    .with_hint("the log in the data directory's `logs` folder says more; please report it")
}

impl Operations {
    /// Starts the service's own task. Must be called within a tokio runtime.
    pub fn new(store: Store) -> Result<Self> {
        let owner =
            ProcessIdentity::current().map_err(|error| Error::io("cannot read /proc/self/stat", error))?;
        let shared = Arc::new(Shared {
            store,
            owner,
            tasks: TaskTracker::new(),
            cancel_all: CancellationToken::new(),
            local: Mutex::new(HashMap::new()),
            began: Notify::new(),
        });
        tokio::spawn(write_progress(Arc::downgrade(&shared)));
        Ok(Self { shared })
    }

    /// Starts an operation. `work` gets its handle; its future runs on a task of its own and its
    /// outcome is recorded whatever happens to the returned [`Task`].
    pub fn spawn<T, F>(
        &self,
        kind: OperationKind,
        target: impl Into<String>,
        parent: Option<&Operation>,
        work: impl FnOnce(Operation) -> F + Send + 'static,
    ) -> Task<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let cancel = parent.map_or(&self.shared.cancel_all, |parent| parent.cancelled()).child_token();
        let operation = Operation {
            inner: Arc::new(OperationInner {
                id: OperationId::random(),
                kind,
                target: target.into(),
                cancel,
                progress: Arc::default(),
                phases: Mutex::default(),
                store: self.shared.store.clone(),
            }),
        };
        let parent = parent.map(|parent| parent.id().clone());
        let (sender, result) = oneshot::channel();
        let (shared, running) = (Arc::clone(&self.shared), operation.clone());
        self.shared.tasks.spawn(async move {
            let outcome = shared.run(&running, parent, work).await;
            let _ = sender.send(outcome);
        });
        Task { operation, result }
    }

    /// Live progress of an operation of this process.
    pub fn local_progress(&self, id: &OperationId) -> Option<Arc<Progress>> {
        self.shared.local().get(id).map(|operation| Arc::clone(&operation.inner.progress))
    }

    /// The operations of this process that have not ended, by what they are about.
    pub fn running_here(&self) -> Vec<Operation> {
        let mut running: Vec<Operation> = self.shared.local().values().cloned().collect();
        running.sort_by(|left, right| left.target().cmp(right.target()));
        running
    }

    /// All that ran or runs, newest first, at most `limit`.
    pub async fn list(&self, limit: usize) -> Result<Vec<OperationRecord>> {
        self.shared.store.read(move |connection| store::operations::list(connection, limit)).await
    }

    /// The operation with this id or an unambiguous beginning of it.
    pub async fn find(&self, id: &str) -> Result<OperationRecord> {
        let id = id.to_owned();
        self.shared.store.read(move |connection| store::operations::find(connection, &id)).await
    }

    /// The log lines of an operation, oldest first.
    pub async fn log_lines(&self, id: &OperationId) -> Result<Vec<(clock::Milliseconds, String)>> {
        let id = id.clone();
        self.shared.store.read(move |connection| store::operations::log_lines(connection, &id)).await
    }

    /// Progress that an operation's process reported last.
    pub async fn reported_progress(&self, id: &OperationId) -> Result<Vec<ProgressReport>> {
        let id = id.clone();
        self.shared.store.read(move |connection| store::operations::progress(connection, &id)).await
    }

    /// Asks for an operation to be cancelled, whichever process runs it.
    pub async fn cancel(&self, id: &str) -> Result<OperationRecord> {
        let record = self.find(id).await?;
        if record.state != OperationState::Running {
            return Err(Error::conflict(format!(
                "operation {} has already ended: {}",
                record.id,
                record.state.as_str()
            )));
        }
        // The request first: work that is cancelled may ask whether somebody wanted it to be.
        let id = record.id.clone();
        self.shared
            .store
            .transaction(move |transaction| store::operations::request_cancel(transaction, &id))
            .await?;
        let local = self.shared.local().get(&record.id).cloned();
        if let Some(operation) = local {
            operation.inner.cancel.cancel();
        }
        Ok(record)
    }

    /// Hears of requests that other processes put into the store; called when the store changed.
    pub async fn obey_cancel_requests(&self) -> Result<()> {
        if self.shared.local().is_empty() {
            return Ok(());
        }
        for id in self.shared.store.read(|connection| store::operations::cancel_requests(connection)).await? {
            let local = self.shared.local().get(&id).cloned();
            if let Some(operation) = local {
                operation.inner.cancel.cancel();
            }
        }
        Ok(())
    }

    /// Marks operations whose process is gone as interrupted; returns them.
    pub async fn reconcile(&self) -> Result<Vec<OperationRecord>> {
        let running = self.shared.store.read(|connection| store::operations::running(connection)).await?;
        let gone: Vec<_> = running.into_iter().filter(|record| !record.owner.is_alive()).collect();
        if gone.is_empty() {
            return Ok(gone);
        }
        self.shared
            .store
            .transaction(move |transaction| {
                for record in &gone {
                    store::operations::finish(
                        transaction,
                        &record.id,
                        OperationState::Interrupted,
                        &record.phases,
                        Some(&Error::failed("the vmdeck process that ran it ended").report()),
                        clock::now(),
                    )?;
                }
                store::operations::trim(transaction)?;
                Ok(gone)
            })
            .await
    }

    /// Cancels what runs in this process and waits for it to end, at most `bound`.
    pub async fn shutdown(&self, bound: Duration) {
        self.shared.cancel_all.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(bound, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("some operations did not end within {bound:?} of being cancelled");
        }
    }
}

impl Shared {
    fn local(&self) -> std::sync::MutexGuard<'_, HashMap<OperationId, Operation>> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run<T, F>(
        &self,
        operation: &Operation,
        parent: Option<OperationId>,
        work: impl FnOnce(Operation) -> F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let record = OperationRecord {
            id: operation.id().clone(),
            parent,
            kind: operation.kind(),
            target: operation.target().to_owned(),
            state: OperationState::Running,
            owner: self.owner.clone(),
            started_at: clock::now(),
            ended_at: None,
            cancel_requested: false,
            phases: Vec::new(),
            error: None,
        };
        self.store.write_relaxed(move |transaction| store::operations::insert(transaction, &record)).await?;
        self.local().insert(operation.id().clone(), operation.clone());
        self.began.notify_one();
        tracing::info!(id = %operation.id(), kind = operation.kind().as_str(), target = operation.target(), "began");
        // A task of its own, so that a panic in the work ends as this operation's failure.
        let outcome = match tokio::spawn(work(operation.clone())).await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::error!(id = %operation.id(), %error, "panicked");
                Err(internal(operation))
            }
        };
        self.local().remove(operation.id());
        let (state, error) = match &outcome {
            Ok(_) => (OperationState::Done, None),
            Err(error) if error.is_cancelled() => (OperationState::Cancelled, None),
            Err(error) => (OperationState::Failed, Some(error.report())),
        };
        tracing::info!(id = %operation.id(), state = state.as_str(), ?error, "ended");
        let (id, phases, progress) =
            (operation.id().clone(), operation.inner.end_phases(), operation.inner.progress.report());
        let recorded = self
            .store
            .write_relaxed(move |transaction| {
                store::operations::set_progress(transaction, &id, &progress)?;
                store::operations::finish(transaction, &id, state, &phases, error.as_ref(), clock::now())
            })
            .await;
        if let Err(error) = recorded {
            tracing::error!(id = %operation.id(), %error, "the outcome could not be recorded");
        }
        outcome
    }
}

impl Operation {
    pub fn id(&self) -> &OperationId {
        &self.inner.id
    }

    pub fn kind(&self) -> OperationKind {
        self.inner.kind
    }

    pub fn target(&self) -> &str {
        &self.inner.target
    }

    pub fn progress(&self) -> &Arc<Progress> {
        &self.inner.progress
    }

    /// The token that ends this operation; its work passes it on and obeys it.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.inner.cancel
    }

    pub fn cancel(&self) {
        self.inner.cancel.cancel();
    }

    /// Ends the phase under way and begins another.
    pub async fn phase(&self, name: &str) {
        let phases = {
            let mut phases = self.inner.phases.lock().unwrap_or_else(PoisonError::into_inner);
            let now = clock::now();
            if let Some(last) = phases.last_mut() {
                last.ended_at.get_or_insert(now);
            }
            phases.push(OperationPhase { name: name.to_owned(), started_at: now, ended_at: None });
            phases.clone()
        };
        let id = self.inner.id.clone();
        self.write(move |transaction| store::operations::set_phases(transaction, &id, &phases)).await;
    }

    /// Name of the phase under way.
    pub fn current_phase(&self) -> Option<String> {
        self.inner
            .phases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .last()
            .map(|phase| phase.name.clone())
    }

    /// Adds a line to the operation's log.
    pub async fn log(&self, line: impl Into<String>) {
        let (id, line) = (self.inner.id.clone(), line.into());
        tracing::info!(%id, line, "log");
        self.write(move |transaction| store::operations::add_log_line(transaction, &id, clock::now(), &line))
            .await;
    }

    /// What only informs must not fail the work.
    async fn write(&self, work: impl FnOnce(&store::Transaction<'_>) -> Result<()> + Send + 'static) {
        if let Err(error) = self.inner.store.write_relaxed(work).await {
            tracing::warn!(id = %self.inner.id, %error, "an operation's state could not be recorded");
        }
    }
}

impl OperationInner {
    fn end_phases(&self) -> Vec<OperationPhase> {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = phases.last_mut() {
            last.ended_at.get_or_insert(clock::now());
        }
        phases.clone()
    }
}

/// Writes the progress of this process's operations while there are any; sleeps otherwise.
async fn write_progress(shared: std::sync::Weak<Shared>) {
    let mut written: HashMap<OperationId, Vec<ProgressReport>> = HashMap::new();
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let running: Vec<Operation> = shared.local().values().cloned().collect();
        if running.is_empty() {
            written.clear();
            tokio::select! {
                () = shared.began.notified() => {}
                () = shared.cancel_all.cancelled() => return,
            }
            continue;
        }
        let mut changed = Vec::new();
        for operation in running {
            let report = operation.inner.progress.report();
            if !report.is_empty() && written.get(operation.id()) != Some(&report) {
                written.insert(operation.id().clone(), report.clone());
                changed.push((operation.id().clone(), report));
            }
        }
        if !changed.is_empty() {
            let result = shared
                .store
                .write_relaxed(move |transaction| {
                    for (id, report) in &changed {
                        store::operations::set_progress(transaction, id, report)?;
                    }
                    Ok(())
                })
                .await;
            if let Err(error) = result {
                tracing::warn!(%error, "progress could not be recorded");
            }
        }
        drop(shared);
        tokio::time::sleep(PROGRESS_PERIOD).await;
    }
}
