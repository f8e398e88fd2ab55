//! When a boot has stopped making progress.
//!
//! A fixed time-out would be too short for a translated guest on a loaded host and too long for
//! everything else. So it is not the clock that is looked at, but what the guest's process got: how
//! long it computed, and how long it waited for something other than a free core, since the guest
//! last gave a sign. A guest that computes for long without a sign is in a loop; one that waits for
//! long without a sign waits for what will not come; one that is starved by the host is neither.

use std::time::Duration;

use crate::vmm::Accelerator;

/// What a process got since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::vm) struct Sample {
    /// Since some fixed moment.
    pub(in crate::vm) wall: Duration,
    /// On a core, all threads together.
    pub(in crate::vm) cpu: Duration,
    /// Ready to run while no core was free, all threads together.
    pub(in crate::vm) starved: Duration,
}

/// How long a boot may go without a sign of the guest.
#[derive(Clone, Copy, Debug)]
pub(in crate::vm) struct Bounds {
    busy: Duration,
    idle: Duration,
}

/// Console output counts as a sign, though not for ever: a guest that only prints is stuck too. So
/// many times the bounds may pass between two stages of the boot.
const BETWEEN_STAGES: u32 = 8;

impl Bounds {
    /// A translated kernel computes for 2 to 4 seconds before its first sign, some 20 times as long
    /// as under KVM. Our init gives up waiting for a disk after less than the idle bound, and says so.
    pub(in crate::vm) fn of(accelerator: Accelerator) -> Self {
        match accelerator {
            Accelerator::Kvm => Self { busy: Duration::from_secs(20), idle: Duration::from_secs(45) },
            Accelerator::Tcg => Self { busy: Duration::from_secs(90), idle: Duration::from_secs(60) },
        }
    }
}

/// How a boot is stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vm) enum Stall {
    /// It computed for so long.
    Busy(Duration),
    /// It waited for so long.
    Idle(Duration),
}

/// Decides, from signs and samples, whether a boot is stuck.
#[derive(Clone, Debug)]
pub(in crate::vm) struct StallMeter {
    bounds: Bounds,
    last_sign: Sample,
    last_stage: Sample,
}

impl StallMeter {
    pub(in crate::vm) fn new(bounds: Bounds, now: Sample) -> Self {
        Self { bounds, last_sign: now, last_stage: now }
    }

    /// The guest printed something.
    pub(in crate::vm) fn sign(&mut self, now: Sample) {
        self.last_sign = now;
    }

    /// The guest reached another stage of its boot.
    pub(in crate::vm) fn stage(&mut self, now: Sample) {
        self.last_sign = now;
        self.last_stage = now;
    }

    pub(in crate::vm) fn verdict(&self, now: Sample) -> Option<Stall> {
        let check = |since: Sample, factor: u32| {
            let wall = now.wall.saturating_sub(since.wall);
            let busy = now.cpu.saturating_sub(since.cpu);
            let starved = now.starved.saturating_sub(since.starved);
            let idle = wall.saturating_sub(busy).saturating_sub(starved);
            if busy > self.bounds.busy * factor {
                Some(Stall::Busy(busy))
            } else if idle > self.bounds.idle * factor {
                Some(Stall::Idle(idle))
            } else {
                None
            }
        };
        check(self.last_sign, 1).or_else(|| check(self.last_stage, BETWEEN_STAGES))
    }
}

/// Times of a process: `/proc/PID/stat` fields 14 and 15 (proc_pid_stat(5)), and the second number
/// of each thread's `schedstat` (the kernel's sched-stats.rst). Zeros once it is gone.
pub(in crate::vm) fn process_times(pid: i32) -> (Duration, Duration) {
    let cpu = std::fs::read(format!("/proc/{pid}/stat")).ok().and_then(|text| cpu_time(&text));
    let starved = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok())
        .filter_map(|text| text.split_ascii_whitespace().nth(1)?.parse().ok())
        .map(Duration::from_nanos)
        .sum();
    (cpu.unwrap_or_default(), starved)
}

fn cpu_time(stat: &[u8]) -> Option<Duration> {
    // The command in parentheses may itself hold blanks and parentheses.
    let after_command = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let rest = std::str::from_utf8(stat.get(after_command..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    // The kernel's ABI has 100 of these ticks in a second on every architecture Linux runs QEMU on.
    Some(Duration::from_millis(user.saturating_add(system).saturating_mul(10)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(wall: u64, cpu: u64, starved: u64) -> Sample {
        let seconds = Duration::from_secs;
        Sample { wall: seconds(wall), cpu: seconds(cpu), starved: seconds(starved) }
    }

    fn meter() -> StallMeter {
        let bounds = Bounds { busy: Duration::from_secs(60), idle: Duration::from_secs(30) };
        StallMeter::new(bounds, sample(0, 0, 0))
    }

    #[test]
    fn a_guest_in_a_loop_is_stuck_and_a_starved_one_is_not() {
        let meter = meter();
        assert_eq!(meter.verdict(sample(61, 61, 0)), Some(Stall::Busy(Duration::from_secs(61))));
        assert_eq!(meter.verdict(sample(600, 50, 540)), None, "ten minutes on an overloaded host");
        assert_eq!(meter.verdict(sample(40, 5, 0)), Some(Stall::Idle(Duration::from_secs(35))));
        assert_eq!(meter.verdict(sample(20, 39, 0)), None, "two cores for twenty seconds");
    }

    #[test]
    fn a_sign_buys_time_but_not_for_ever() {
        let mut meter = meter();
        for second in (0..480).step_by(20) {
            assert_eq!(meter.verdict(sample(second, second, 0)), None, "{second}");
            meter.sign(sample(second, second, 0));
        }
        assert_eq!(meter.verdict(sample(481, 481, 0)), Some(Stall::Busy(Duration::from_secs(481))));
        meter.stage(sample(481, 481, 0));
        assert_eq!(meter.verdict(sample(500, 500, 0)), None);
    }

    #[test]
    fn times_of_this_process_grow() {
        let own = i32::try_from(std::process::id()).unwrap();
        let (before, _) = process_times(own);
        let mut sum = 0u64;
        let started = std::time::Instant::now();
        while process_times(own).0 == before && started.elapsed() < Duration::from_secs(20) {
            sum = std::hint::black_box((0..1_000_000u64).fold(sum, u64::wrapping_add));
        }
        assert!(process_times(own).0 > before);
        assert_eq!(process_times(i32::MAX), (Duration::ZERO, Duration::ZERO));
        assert_eq!(cpu_time(b"7 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 13"), Some(Duration::from_secs(3)));
    }
}
