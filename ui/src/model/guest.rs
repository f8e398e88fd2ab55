//! What the machine in sight is doing, as its guest counts it.

use std::collections::VecDeque;

use vmdeck_engine::clock::Milliseconds;
use vmdeck_engine::error::ErrorReport;
use vmdeck_engine::identifier::VmId;
use vmdeck_engine::vm::{VmRates, VmStats};

use super::usage::PERIOD;

/// Readings kept.
const KEPT: usize = 240;

/// One reading, against the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuestSample {
    /// Thousandths of all its processors together.
    pub processor: u64,
    /// Bytes that its programs have.
    pub memory: u64,
}

/// Readings of one machine, the newest last.
#[derive(Clone, Debug, Default)]
pub struct GuestReadings {
    vm: Option<VmId>,
    last: Option<VmStats>,
    rates: Option<VmRates>,
    samples: VecDeque<GuestSample>,
    /// Why the last reading did not come.
    problem: Option<String>,
    asked_at: Milliseconds,
    asking: bool,
}

impl GuestReadings {
    /// Whether it is time to ask a machine; readings of another one are let go.
    pub fn ask(&mut self, now: Milliseconds, vm: &VmId) -> bool {
        if self.vm.as_ref() != Some(vm) {
            *self = Self { vm: Some(vm.clone()), ..Self::default() };
        }
        if self.asking || (0..PERIOD).contains(&(now - self.asked_at)) {
            return false;
        }
        (self.asked_at, self.asking) = (now, true);
        true
    }

    /// Takes an answer in, unless it is of a machine that is no longer in sight.
    pub fn take(&mut self, vm: &VmId, reading: Result<VmStats, ErrorReport>) {
        if self.vm.as_ref() != Some(vm) {
            return;
        }
        self.asking = false;
        let reading = match reading {
            Ok(reading) => reading,
            Err(error) => {
                (self.problem, self.rates) = (Some(error.message), None);
                return;
            }
        };
        self.problem = None;
        self.rates = self.last.as_ref().and_then(|before| reading.since(before));
        match self.rates {
            Some(rates) => {
                let memory = &reading.guest.memory;
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 1000.
                let processor = (rates.guest_processor_percent.clamp(0.0, 100.0) * 10.0) as u64;
                let memory = memory.total.saturating_sub(memory.available);
                if self.samples.len() == KEPT {
                    self.samples.pop_front();
                }
                self.samples.push_back(GuestSample { processor, memory });
            }
            // The first one, or of a guest that was started anew.
            None => self.samples.clear(),
        }
        self.last = Some(reading);
    }

    /// What the machine told last.
    pub fn of(&self, vm: &VmId) -> Option<&VmStats> {
        self.last.as_ref().filter(|_| self.vm.as_ref() == Some(vm))
    }

    pub fn rates(&self) -> Option<&VmRates> {
        self.rates.as_ref()
    }

    pub fn samples(&self) -> impl DoubleEndedIterator<Item = &GuestSample> + ExactSizeIterator {
        self.samples.iter()
    }

    /// Why the machine does not tell, if it does not.
    pub fn problem(&self, vm: &VmId) -> Option<&str> {
        self.problem.as_deref().filter(|_| self.vm.as_ref() == Some(vm))
    }
}

#[cfg(test)]
mod tests {
    use vmdeck_engine::guest::GuestStats;
    use vmdeck_engine::guest::stats::{Memory, Processor};
    use vmdeck_engine::vm::HostUsage;

    use super::*;

    fn reading(seconds: u64, busy: u64, idle: u64) -> VmStats {
        let processor =
            Processor { user_milliseconds: busy, idle_milliseconds: idle, ..Processor::default() };
        let memory = Memory { total: 1 << 30, available: 3 << 28, ..Memory::default() };
        let uptime_nanoseconds = seconds * 1_000_000_000;
        let guest = GuestStats { uptime_nanoseconds, processor, memory, ..GuestStats::default() };
        let at = i64::try_from(seconds).unwrap() * 1000;
        let host = HostUsage { at, cpu_ms: busy, resident_bytes: 0, read_bytes: 0, written_bytes: 0 };
        VmStats { name: "x".into(), guest, host }
    }

    #[test]
    fn readings_become_rates_and_another_machine_begins_anew() {
        let [one, other] = ["1", "2"].map(|id| VmId::from_stored(id.repeat(12)));
        let mut guest = GuestReadings::default();
        assert!(guest.ask(10_000, &one));
        assert!(!guest.ask(12_000, &one), "an answer is under way");
        guest.take(&one, Ok(reading(10, 0, 0)));
        assert_eq!(guest.samples().len(), 0);
        guest.take(&one, Ok(reading(12, 1000, 1000)));
        assert_eq!(guest.samples().next(), Some(&GuestSample { processor: 500, memory: 1 << 28 }));
        guest.take(&other, Ok(reading(3, 0, 0)));
        assert_eq!(guest.of(&one).unwrap().guest.uptime_nanoseconds, 12_000_000_000);
        assert!(guest.ask(12_001, &other), "another machine is asked at once");
        assert!(guest.of(&one).is_none());
        // Started anew: its counters begin anew.
        guest.take(&other, Ok(reading(9, 5, 5)));
        guest.take(&other, Ok(reading(1, 1, 1)));
        assert!(guest.rates().is_none());
    }
}
