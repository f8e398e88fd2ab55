//! How fast counters move: smoothed rates, and from them the time that is left.

use std::collections::HashMap;

use vmdeck_engine::clock::Milliseconds;
use vmdeck_engine::identifier::OperationId;
use vmdeck_engine::operation::progress::{ProgressState, ProgressUnit};
use vmdeck_engine::operation::record::OperationState;
use vmdeck_engine::snapshot::OperationView;

/// Time in which an old rate loses about two thirds of its weight, in milliseconds.
const MEMORY: f64 = 2000.0;

/// Shortest time between two samples, in milliseconds.
const PERIOD: Milliseconds = 200;

/// Nothing for so long is a stall, in milliseconds.
const STALLED: Milliseconds = 3000;

/// Rates of every running operation's parts.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    operations: HashMap<OperationId, Vec<Meter>>,
    sampled_at: Milliseconds,
}

#[derive(Clone, Debug, Default)]
struct Meter {
    done: u64,
    /// Units per second; `None` before the second sample.
    rate: Option<f64>,
    /// When it moved last.
    moved_at: Milliseconds,
}

impl Rates {
    /// Looks at the counters of all running operations.
    pub fn sample(&mut self, now: Milliseconds, operations: &[OperationView]) {
        let elapsed = now - self.sampled_at;
        if (0..PERIOD).contains(&elapsed) {
            return;
        }
        self.sampled_at = now;
        let running = || operations.iter().filter(|view| is_running(view));
        self.operations.retain(|id, _| running().any(|view| view.record.id == *id));
        for view in running() {
            let meters = self.operations.entry(view.record.id.clone()).or_default();
            for (index, part) in view.progress.parts().iter().enumerate() {
                let done = part.done();
                match meters.get_mut(index) {
                    Some(meter) => meter.update(done, elapsed, now),
                    None => meters.push(Meter { done, rate: None, moved_at: now }),
                }
            }
        }
    }

    /// Units per second of one part.
    pub fn of_part(&self, id: &OperationId, index: usize) -> Option<f64> {
        self.operations.get(id)?.get(index)?.rate.filter(|rate| *rate >= 1.0)
    }

    /// Bytes per second of a whole operation; none of one that has ended since the last sample.
    pub fn of_operation(&self, view: &OperationView) -> Option<f64> {
        let meters = self.operations.get(&view.record.id).filter(|_| is_running(view))?;
        let parts = view.progress.parts();
        let bytes = meters.iter().zip(parts.iter()).filter(|(_, part)| part.unit() == ProgressUnit::Bytes);
        let sum: f64 = bytes.filter_map(|(meter, _)| meter.rate).sum();
        (sum >= 1.0).then_some(sum)
    }

    /// For how long nothing has come of what an operation waits for, in milliseconds, once that is
    /// longer than a slow line needs between two packets.
    pub fn stalled(&self, view: &OperationView) -> Option<Milliseconds> {
        let meters = self.operations.get(&view.record.id).filter(|_| is_running(view))?;
        let parts = view.progress.parts();
        let active = meters.iter().zip(parts.iter()).filter(|(_, part)| {
            part.unit() == ProgressUnit::Bytes
                && part.state() == ProgressState::Active
                && part.done() < part.total()
        });
        let moved_at = active.map(|(meter, _)| meter.moved_at).max()?;
        Some(self.sampled_at - moved_at).filter(|since| *since >= STALLED)
    }
}

fn is_running(view: &OperationView) -> bool {
    view.record.state == OperationState::Running
}

impl Meter {
    fn update(&mut self, done: u64, elapsed: Milliseconds, at: Milliseconds) {
        if done != self.done {
            self.moved_at = at;
        }
        #[allow(clippy::cast_precision_loss)] // Shown with three digits.
        let (moved, elapsed) = (done.saturating_sub(self.done) as f64, elapsed.max(1) as f64);
        let now = moved * 1000.0 / elapsed;
        let weight = (-elapsed / MEMORY).exp();
        self.rate = Some(self.rate.map_or(now, |before| before * weight + now * (1.0 - weight)));
        self.done = done;
    }
}

/// Milliseconds until `total` is reached at a rate in units per second.
pub fn time_left(done: u64, total: u64, rate: Option<f64>) -> Option<i64> {
    let rate = rate?;
    if total == 0 || done >= total {
        return None;
    }
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    let left = ((total - done) as f64 / rate * 1000.0) as i64;
    (left < 100 * 3_600_000).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_flow_has_a_steady_rate() {
        let mut meter = Meter::default();
        for second in 1..10 {
            meter.update(second * 5_000_000, 1000, 0);
        }
        assert!((meter.rate.unwrap() - 5_000_000.0).abs() < 1.0);
        assert_eq!(time_left(50, 100, Some(10.0)), Some(5000));
        assert_eq!(time_left(50, 0, Some(10.0)), None);
        assert_eq!(time_left(100, 100, Some(10.0)), None);
    }

    #[test]
    fn a_flow_that_stops_fades() {
        let mut meter = Meter { done: 0, rate: Some(1_000_000.0), moved_at: 0 };
        for _ in 0..20 {
            meter.update(0, 1000, 20_000);
        }
        assert!(meter.rate.unwrap() < 100.0);
        assert_eq!(meter.moved_at, 0);
    }
}
