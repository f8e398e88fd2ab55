//! Hot numbers of an operation: written by workers many thousand times a second, read by a screen a
//! few times. Nothing here waits and nothing here wakes anybody.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

/// The parts of an operation that progress by themselves, for example the layers of a pull.
#[derive(Debug, Default)]
pub struct Progress {
    /// Guards the list, not the numbers in it; held to change it or to take a handle on it. A list is
    /// replaced, never changed, so that a screen that looks at it many times a second copies nothing.
    parts: RwLock<Arc<[Arc<ProgressPart>]>>,
}

/// One bar.
#[derive(Debug)]
pub struct ProgressPart {
    label: String,
    unit: ProgressUnit,
    done: AtomicU64,
    /// 0: not known.
    total: AtomicU64,
    retries: AtomicU32,
    state: AtomicU8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProgressUnit {
    Bytes,
    Items,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProgressState {
    Waiting = 0,
    Active = 1,
    Done = 2,
    Failed = 3,
}

impl Progress {
    /// Adds a bar. `total` 0 means not known yet.
    pub fn add(&self, label: impl Into<String>, unit: ProgressUnit, total: u64) -> Arc<ProgressPart> {
        let part = Arc::new(ProgressPart {
            label: label.into(),
            unit,
            done: AtomicU64::new(0),
            total: AtomicU64::new(total),
            retries: AtomicU32::new(0),
            state: AtomicU8::new(ProgressState::Waiting as u8),
        });
        let mut parts = self.parts.write().unwrap_or_else(PoisonError::into_inner);
        *parts = parts.iter().chain([&part]).cloned().collect();
        part
    }

    /// The parts there are now.
    pub fn parts(&self) -> Arc<[Arc<ProgressPart>]> {
        Arc::clone(&self.parts.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sum of all parts in bytes: done, total (0 when one is not known).
    pub fn bytes(&self) -> (u64, u64) {
        let parts = self.parts();
        let bytes = || parts.iter().filter(|part| part.unit == ProgressUnit::Bytes);
        let total =
            if bytes().any(|part| part.total() == 0) { 0 } else { bytes().map(|part| part.total()).sum() };
        (bytes().map(|part| part.done()).sum(), total)
    }

    /// The numbers as they are now, for the store.
    pub fn report(&self) -> Vec<ProgressReport> {
        self.parts().iter().map(|part| part.report()).collect()
    }

    /// Takes over numbers that another process reported.
    pub fn adopt(&self, reports: &[ProgressReport]) {
        let known = self.parts();
        for (index, report) in reports.iter().enumerate() {
            let known = known.get(index).map(Arc::clone);
            let part = known.unwrap_or_else(|| self.add(report.label.clone(), report.unit, report.total));
            part.done.store(report.done, Ordering::Relaxed);
            part.total.store(report.total, Ordering::Relaxed);
            part.retries.store(report.retries, Ordering::Relaxed);
            part.state.store(report.state as u8, Ordering::Relaxed);
        }
    }
}

impl ProgressPart {
    pub fn label(&self) -> &str {
        &self.label
    }

    pub fn unit(&self) -> ProgressUnit {
        self.unit
    }

    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    pub fn retries(&self) -> u32 {
        self.retries.load(Ordering::Relaxed)
    }

    pub fn state(&self) -> ProgressState {
        match self.state.load(Ordering::Relaxed) {
            0 => ProgressState::Waiting,
            1 => ProgressState::Active,
            2 => ProgressState::Done,
            _ => ProgressState::Failed,
        }
    }

    pub fn advance(&self, by: u64) {
        self.done.fetch_add(by, Ordering::Relaxed);
    }

    pub fn set_done(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
    }

    pub fn set_total(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    pub fn add_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub fn set_state(&self, state: ProgressState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn report(&self) -> ProgressReport {
        ProgressReport {
            label: self.label.clone(),
            unit: self.unit,
            done: self.done(),
            total: self.total(),
            retries: self.retries(),
            state: self.state(),
        }
    }
}

/// One bar as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressReport {
    pub label: String,
    pub unit: ProgressUnit,
    pub done: u64,
    pub total: u64,
    pub retries: u32,
    pub state: ProgressState,
}

/// Counts all that is read.
pub(crate) struct Counted<R> {
    pub(crate) inner: R,
    pub(crate) part: Arc<ProgressPart>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.part.advance(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_sees_the_same_numbers() {
        let here = Progress::default();
        let part = here.add("layer", ProgressUnit::Bytes, 100);
        part.set_state(ProgressState::Active);
        part.advance(40);
        let there = Progress::default();
        there.adopt(&here.report());
        part.advance(2);
        there.adopt(&here.report());
        assert_eq!(there.report(), here.report());
        assert_eq!(there.bytes(), (42, 100));
    }
}
