//! The progress of this process's operations on standard error: lines that redraw themselves on a
//! terminal, one line per phase elsewhere, events on standard output for `ndjson`.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use vmdeck_engine::Engine;
use vmdeck_engine::identifier::OperationId;
use vmdeck_engine::operation::progress::{ProgressPart, ProgressState, ProgressUnit};
use vmdeck_engine::operation::record::{OperationPhase, OperationRecord, OperationState};
use vmdeck_engine::snapshot::OperationView;

use super::output::{Output, bytes, duration, human, stderr_is_terminal};
use crate::cli::OutputFormat;

const PERIOD: Duration = Duration::from_millis(100);

/// How often counters become events.
const EVENT_PERIOD: Duration = Duration::from_millis(500);

/// Bars shown at once, so that a redraw never scrolls.
const LINES: usize = 12;

/// Newest operations looked at for phases that no picture showed.
const RECORDS: usize = 50;

/// Characters between the brackets of a bar.
const BAR_WIDTH: u64 = 24;

/// How many phases of each operation were told, by whichever display of this process: a command for several
/// machines has one after the other, and each sees all operations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    // Guards the table; held to look up and to count.
    phases: Arc<Mutex<HashMap<String, usize>>>,
}

impl Told {
    fn knows(&self, operation: &OperationId) -> bool {
        self.lock().contains_key(operation.as_str())
    }

    /// How many were told before, of now so many.
    fn advance(&self, operation: &OperationId, phases: usize) -> usize {
        let mut told = self.lock();
        let count = told.entry(operation.as_str().to_owned()).or_default();
        let before = *count;
        // A picture may be older than what the store has told meanwhile.
        *count = before.max(phases);
        before
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows progress until it is finished.
pub(crate) struct Display {
    engine: Engine,
    /// What is followed; its parts are shown, too.
    operation: OperationId,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Screen>,
}

impl Display {
    pub(crate) fn start(engine: &Engine, output: Output, told: Told, operation: OperationId) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let mut snapshots = engine.subscribe_relaxed();
        let mut screen = Screen::new(output, told);
        let task = tokio::spawn(async move {
            let mut tick = tokio::time::interval(PERIOD);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            loop {
                let last = tokio::select! {
                    _ = &mut stopped => true,
                    _ = tick.tick() => false,
                };
                let snapshot = snapshots.borrow_and_update().clone();
                screen.show(&snapshot.operations, last);
                if last {
                    return screen;
                }
            }
        });
        Self { engine: engine.clone(), operation, stop, task }
    }

    /// Tells what the last picture did not hold yet, and takes away what redraws itself.
    pub(crate) async fn finish(self) {
        let _ = self.stop.send(());
        let Ok(screen) = self.task.await else { return };
        // Work that took less time than a picture is in the store only.
        let Ok(records) = self.engine.operations().list(RECORDS).await else { return };
        let own = |record: &&OperationRecord| {
            record.id == self.operation || record.parent.as_ref() == Some(&self.operation)
        };
        let untold = records.iter().rev().filter(own).flat_map(|record| screen.untold(record));
        screen.tell(untold.collect());
    }
}

struct Screen {
    output: Output,
    redraws: bool,
    /// Lines drawn that the next drawing replaces.
    drawn: usize,
    told: Told,
    rates: HashMap<(String, usize), Rate>,
    last_event: Option<Instant>,
}

/// Bytes per second over the last second or so.
#[derive(Clone, Copy)]
struct Rate {
    at: Instant,
    done: u64,
    per_second: f64,
}

impl Screen {
    fn new(output: Output, told: Told) -> Self {
        let redraws = output.format() != OutputFormat::Ndjson && !output.quiet() && stderr_is_terminal();
        Self { output, redraws, drawn: 0, told, rates: HashMap::new(), last_event: None }
    }

    fn show(&mut self, operations: &[OperationView], last: bool) {
        let mut untold = Vec::new();
        for view in operations.iter().rev() {
            // A part that has ended already is of this process by what it is a part of.
            let record = &view.record;
            let part = record.parent.as_ref().is_some_and(|parent| self.told.knows(parent));
            if view.local || part || self.told.knows(&record.id) {
                untold.extend(self.untold(record));
            }
        }
        self.tell(untold);
        if self.output.format() == OutputFormat::Ndjson {
            self.tell_counters(operations);
        }
        if self.redraws {
            self.draw(operations, last);
        }
    }

    /// Tells phases in the order in which they began.
    fn tell(&self, mut untold: Vec<(&OperationRecord, &OperationPhase)>) {
        untold.sort_by_key(|(_, phase)| phase.started_at);
        untold.into_iter().for_each(|(record, phase)| self.tell_phase(record, phase));
    }

    /// Phases that nothing was told of yet; they count as told.
    fn untold<'a>(&self, record: &'a OperationRecord) -> Vec<(&'a OperationRecord, &'a OperationPhase)> {
        let told = self.told.advance(&record.id, record.phases.len());
        record.phases.iter().skip(told).map(|phase| (record, phase)).collect()
    }

    fn tell_phase(&self, record: &OperationRecord, phase: &OperationPhase) {
        self.output.event(&serde_json::json!({
            "event": "phase",
            "operation": record.id,
            "kind": record.kind,
            "target": record.target,
            "phase": phase.name,
            "at": phase.started_at,
        }));
        if !self.redraws && self.output.format() != OutputFormat::Ndjson {
            self.output.message(&format!("{} {}: {}", record.kind.as_str(), record.target, phase.name));
        }
    }

    fn tell_counters(&mut self, operations: &[OperationView]) {
        if self.last_event.is_some_and(|at| at.elapsed() < EVENT_PERIOD) {
            return;
        }
        self.last_event = Some(Instant::now());
        for view in
            operations.iter().filter(|view| view.local && view.record.state == OperationState::Running)
        {
            let parts = view.progress.report();
            if !parts.is_empty() {
                self.output.event(&serde_json::json!({
                    "event": "progress",
                    "operation": view.record.id,
                    "parts": parts,
                }));
            }
        }
    }

    fn draw(&mut self, operations: &[OperationView], last: bool) {
        let mut lines = Vec::new();
        if !last {
            for view in operations.iter().rev().filter(|view| view.local) {
                let record = &view.record;
                if record.state != OperationState::Running {
                    continue;
                }
                let phase = record.phases.last().map(|phase| phase.name.as_str()).unwrap_or("begins");
                let elapsed = vmdeck_engine::clock::now().saturating_sub(record.started_at);
                lines.push(format!(
                    "{} {}: {phase}  {}",
                    record.kind.as_str(),
                    record.target,
                    duration(u64::try_from(elapsed).unwrap_or(0))
                ));
                for (index, part) in view.progress.parts().iter().enumerate() {
                    if part.state() != ProgressState::Done {
                        let rate = self.rate(record.id.as_str(), index, part.done());
                        lines.push(format!("  {}", bar(part, rate)));
                    }
                }
            }
            lines.truncate(LINES);
        }
        let columns = columns();
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A\r", self.drawn));
        }
        text.push_str("\x1b[J");
        for line in &lines {
            text.extend(human(line).replace('\n', " ").chars().take(columns.saturating_sub(1)));
            text.push('\n');
        }
        if self.drawn > 0 || !lines.is_empty() {
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
        self.drawn = lines.len();
    }

    fn rate(&mut self, operation: &str, part: usize, done: u64) -> f64 {
        let now = Instant::now();
        let rate =
            self.rates.entry((operation.to_owned(), part)).or_insert(Rate { at: now, done, per_second: 0.0 });
        let elapsed = now.duration_since(rate.at).as_secs_f64();
        if elapsed >= 0.5 {
            let current = done.saturating_sub(rate.done) as f64 / elapsed;
            let smoothed =
                if rate.per_second > 0.0 { 0.5 * rate.per_second + 0.5 * current } else { current };
            *rate = Rate { at: now, done, per_second: smoothed };
        }
        rate.per_second
    }
}

fn bar(part: &ProgressPart, rate: f64) -> String {
    let (done, total) = (part.done(), part.total());
    let label = part.label();
    let amount = match (part.unit(), total) {
        (ProgressUnit::Bytes, 0) => bytes(done),
        (ProgressUnit::Bytes, _) => format!("{} of {}", bytes(done), bytes(total)),
        (ProgressUnit::Items, 0) => done.to_string(),
        (ProgressUnit::Items, _) => format!("{done} of {total}"),
    };
    let mut line = format!("{label:<14}");
    if let Some(filled) = (done.min(total) * BAR_WIDTH).checked_div(total) {
        line.push_str(&format!(" [{:-<24}]", "#".repeat(usize::try_from(filled).unwrap_or(0))));
    }
    line.push_str(&format!(" {amount}"));
    if rate >= 1.0 && part.unit() == ProgressUnit::Bytes {
        line.push_str(&format!("  {}/s", bytes(rate as u64)));
        if total > done {
            line.push_str(&format!("  {} left", duration(((total - done) as f64 / rate * 1000.0) as u64)));
        }
    }
    match part.retries() {
        0 => {}
        1 => line.push_str("  1 retry"),
        retries => line.push_str(&format!("  {retries} retries")),
    }
    if part.state() == ProgressState::Waiting {
        line.push_str("  waits");
    }
    line
}

/// Width of the terminal behind standard error.
fn columns() -> usize {
    crossterm::terminal::size().map_or(80, |(columns, _)| usize::from(columns).max(20))
}
