//! What the hypervisors of machines use of the host, and have used in the last minutes.

use std::collections::{HashMap, VecDeque};

use vmdeck_engine::clock::Milliseconds;
use vmdeck_engine::identifier::VmId;
use vmdeck_engine::vm::HostUsage;

/// Time between two looks, in milliseconds.
pub const PERIOD: Milliseconds = 1000;

/// Looks kept per machine.
const KEPT: usize = 240;

/// One look at a machine, against the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Thousandths of one processor.
    pub cpu: u32,
    pub resident_bytes: u64,
    /// Bytes per second.
    pub read: u64,
    pub written: u64,
}

#[derive(Clone, Debug)]
struct History {
    last: HostUsage,
    samples: VecDeque<Sample>,
}

/// By machine.
#[derive(Clone, Debug, Default)]
pub struct Usages {
    machines: HashMap<VmId, History>,
    asked_at: Milliseconds,
    /// An answer is under way.
    asking: bool,
}

impl Usages {
    /// Whether the next look is not under way already.
    pub fn is_wanted(&self) -> bool {
        !self.asking
    }

    /// Milliseconds until the next look.
    pub fn due(&self, now: Milliseconds) -> Milliseconds {
        (self.asked_at + PERIOD - now).clamp(1, PERIOD)
    }

    /// Whether it is time to look; then the answer is waited for.
    pub fn ask(&mut self, now: Milliseconds) -> bool {
        if self.asking || (0..PERIOD).contains(&(now - self.asked_at)) {
            return false;
        }
        (self.asked_at, self.asking) = (now, true);
        true
    }

    /// Takes an answer in; machines it does not tell of run no more.
    pub fn take(&mut self, seen: Vec<(VmId, HostUsage)>) {
        self.asking = false;
        let mut before = std::mem::take(&mut self.machines);
        for (id, usage) in seen {
            let history = match before.remove(&id) {
                Some(mut history) if history.last.cpu_ms <= usage.cpu_ms => {
                    history.samples.push_back(between(&history.last, &usage));
                    if history.samples.len() > KEPT {
                        history.samples.pop_front();
                    }
                    History { last: usage, ..history }
                }
                // New, or its hypervisor is another one now.
                _ => History { last: usage, samples: VecDeque::new() },
            };
            self.machines.insert(id, history);
        }
    }

    /// Oldest first.
    pub fn samples(&self, id: &VmId) -> impl DoubleEndedIterator<Item = &Sample> + ExactSizeIterator + Clone {
        const NONE: &VecDeque<Sample> = &VecDeque::new();
        self.machines.get(id).map_or(NONE, |history| &history.samples).iter()
    }

    pub fn latest(&self, id: &VmId) -> Option<&Sample> {
        self.machines.get(id)?.samples.back()
    }

    /// Totals since the hypervisor began.
    pub fn total(&self, id: &VmId) -> Option<&HostUsage> {
        self.machines.get(id).map(|history| &history.last)
    }
}

fn between(before: &HostUsage, after: &HostUsage) -> Sample {
    let elapsed = u64::try_from(after.at - before.at).unwrap_or(0).max(1);
    let per_second =
        |from: u64, to: u64| to.saturating_sub(from).saturating_mul(1000).checked_div(elapsed).unwrap_or(0);
    Sample {
        cpu: u32::try_from(per_second(before.cpu_ms, after.cpu_ms)).unwrap_or(u32::MAX),
        resident_bytes: after.resident_bytes,
        read: per_second(before.read_bytes, after.read_bytes),
        written: per_second(before.written_bytes, after.written_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_uses_half_a_processor_is_told_so() {
        let id = VmId::from_stored("0".repeat(12));
        let usage = |at, cpu_ms| {
            vec![(id.clone(), HostUsage { at, cpu_ms, resident_bytes: 9, read_bytes: 0, written_bytes: 0 })]
        };
        let mut usages = Usages::default();
        assert!(usages.ask(10_000));
        assert!(!usages.ask(11_500));
        usages.take(usage(10_000, 200));
        assert_eq!(usages.latest(&id), None);
        usages.take(usage(11_000, 700));
        assert_eq!(usages.latest(&id).unwrap().cpu, 500);
        // Started anew: its counters begin anew.
        usages.take(usage(12_000, 30));
        assert_eq!(usages.samples(&id).len(), 0);
        usages.take(Vec::new());
        assert!(usages.total(&id).is_none());
    }
}
