//! The phases of one boot and their times: pure, so that no order of events can leave a phase open
//! or a later one begun before an earlier one ended.

use crate::clock::Milliseconds;
use crate::vm::record::{Boot, BootFailure, BootPhase, BootPhaseName, BootPhaseStatus, Creation};
use crate::vmm::Accelerator;

/// A boot under way.
#[derive(Clone, Debug)]
pub(in crate::vm) struct Timeline {
    boot: Boot,
}

impl Timeline {
    /// A boot that begins. The first one of a machine has the times of its creation.
    pub(in crate::vm) fn new(now: Milliseconds, creation: Option<Creation>) -> Self {
        let phases = BootPhaseName::ALL.map(|name| BootPhase {
            name,
            status: BootPhaseStatus::Pending,
            started_at: None,
            duration_ms: None,
        });
        let mut boot = Boot {
            id: 0,
            started_at: now,
            accelerator: None,
            phases: phases.into(),
            failure: None,
            warnings: Vec::new(),
        };
        let reserved_at = |creation: &Creation| {
            creation.started_at.saturating_add(i64::try_from(creation.resolve_ms).unwrap_or(i64::MAX))
        };
        for phase in &mut boot.phases {
            let past = match (phase.name, &creation) {
                (BootPhaseName::Resolve, Some(creation)) => Some((creation.started_at, creation.resolve_ms)),
                (BootPhaseName::Reserve, Some(creation)) => {
                    Some((reserved_at(creation), creation.reserve_ms))
                }
                (BootPhaseName::Resolve | BootPhaseName::Reserve, None) => {
                    phase.status = BootPhaseStatus::Skipped;
                    continue;
                }
                _ => None,
            };
            if let Some((started_at, duration_ms)) = past {
                phase.status = BootPhaseStatus::Done;
                phase.started_at = Some(started_at);
                phase.duration_ms = Some(duration_ms);
            }
        }
        Self { boot }
    }

    /// A boot that another process began.
    pub(in crate::vm) fn resume(boot: Boot) -> Self {
        Self { boot }
    }

    pub(in crate::vm) fn boot(&self) -> &Boot {
        &self.boot
    }

    pub(in crate::vm) fn set_id(&mut self, id: i64) {
        self.boot.id = id;
    }

    pub(in crate::vm) fn add_warnings(&mut self, warnings: Vec<String>) {
        self.boot.warnings.extend(warnings);
    }

    pub(in crate::vm) fn set_accelerator(&mut self, accelerator: Accelerator) {
        self.boot.accelerator = Some(accelerator);
    }

    /// The phase under way.
    pub(in crate::vm) fn active(&self) -> Option<BootPhaseName> {
        self.boot.phases.iter().find(|phase| phase.status == BootPhaseStatus::Active).map(|phase| phase.name)
    }

    /// Begins a phase: the one under way is done, those in between are skipped. A phase that has
    /// ended is not begun again. Returns whether anything changed.
    pub(in crate::vm) fn begin(&mut self, name: BootPhaseName, now: Milliseconds) -> bool {
        let Some(index) = self.boot.phases.iter().position(|phase| phase.name == name) else { return false };
        if self.boot.phases[index].status != BootPhaseStatus::Pending {
            return false;
        }
        for phase in &mut self.boot.phases[..index] {
            match phase.status {
                BootPhaseStatus::Active => end(phase, BootPhaseStatus::Done, now),
                BootPhaseStatus::Pending => phase.status = BootPhaseStatus::Skipped,
                BootPhaseStatus::Done | BootPhaseStatus::Failed | BootPhaseStatus::Skipped => {}
            }
        }
        let phase = &mut self.boot.phases[index];
        phase.status = BootPhaseStatus::Active;
        phase.started_at = Some(now);
        true
    }

    /// Ends the last phase: the machine is ready.
    pub(in crate::vm) fn finish(&mut self, now: Milliseconds) {
        for phase in &mut self.boot.phases {
            match phase.status {
                BootPhaseStatus::Active => end(phase, BootPhaseStatus::Done, now),
                BootPhaseStatus::Pending => phase.status = BootPhaseStatus::Skipped,
                BootPhaseStatus::Done | BootPhaseStatus::Failed | BootPhaseStatus::Skipped => {}
            }
        }
    }

    /// Ends the boot in the phase under way.
    pub(in crate::vm) fn fail(&mut self, failure: BootFailure, now: Milliseconds) {
        for phase in &mut self.boot.phases {
            match phase.status {
                BootPhaseStatus::Active => end(phase, BootPhaseStatus::Failed, now),
                BootPhaseStatus::Pending => phase.status = BootPhaseStatus::Skipped,
                BootPhaseStatus::Done | BootPhaseStatus::Failed | BootPhaseStatus::Skipped => {}
            }
        }
        self.boot.failure = Some(failure);
    }
}

fn end(phase: &mut BootPhase, status: BootPhaseStatus, now: Milliseconds) {
    phase.status = status;
    // A clock that was set back must not give a duration of centuries.
    let elapsed = now.saturating_sub(phase.started_at.unwrap_or(now));
    phase.duration_ms = Some(u64::try_from(elapsed).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vm::record::BootFailureClass;

    fn statuses(timeline: &Timeline) -> Vec<BootPhaseStatus> {
        timeline.boot().phases.iter().map(|phase| phase.status).collect()
    }

    fn failure() -> BootFailure {
        BootFailure {
            class: BootFailureClass::Stalled,
            message: String::new(),
            hint: String::new(),
            console_tail: Vec::new(),
        }
    }

    #[test]
    fn the_first_boot_has_the_times_of_the_creation() {
        let creation = Creation { started_at: 100, resolve_ms: 7, reserve_ms: 2 };
        let mut timeline = Timeline::new(500, Some(creation));
        assert_eq!(timeline.boot().phases[1].started_at, Some(107));
        assert_eq!(timeline.boot().phases[1].duration_ms, Some(2));
        assert!(timeline.begin(BootPhaseName::Disk, 500));
        assert!(timeline.begin(BootPhaseName::Kernel, 530));
        assert!(!timeline.begin(BootPhaseName::Kernel, 540), "a phase begins once");
        assert!(!timeline.begin(BootPhaseName::Disk, 540), "and never again");
        assert_eq!(timeline.active(), Some(BootPhaseName::Kernel));
        assert_eq!(timeline.boot().phases[2].duration_ms, Some(30));
        timeline.finish(600);
        assert_eq!(timeline.active(), None);
        use BootPhaseStatus::{Done, Skipped};
        assert_eq!(
            statuses(&timeline),
            [Done, Done, Done, Skipped, Skipped, Done, Skipped, Skipped, Skipped]
        );
    }

    #[test]
    fn a_failure_names_its_phase() {
        let mut timeline = Timeline::new(0, None);
        timeline.begin(BootPhaseName::Vmm, 10);
        timeline.fail(failure(), 5);
        let vmm = &timeline.boot().phases[4];
        assert_eq!((vmm.status, vmm.duration_ms), (BootPhaseStatus::Failed, Some(0)));
        assert!(!statuses(&timeline).contains(&BootPhaseStatus::Pending));
    }

    proptest! {
        #[test]
        fn at_most_one_phase_is_active_and_all_before_it_have_ended(
            order in proptest::collection::vec(0usize..9, 0..20)
        ) {
            let mut timeline = Timeline::new(0, None);
            for (now, index) in order.into_iter().enumerate() {
                timeline.begin(BootPhaseName::ALL[index], now as i64);
                let statuses = statuses(&timeline);
                let active: Vec<_> =
                    (0..9).filter(|&index| statuses[index] == BootPhaseStatus::Active).collect();
                prop_assert!(active.len() <= 1);
                if let [active] = active[..] {
                    prop_assert!(!statuses[..active].contains(&BootPhaseStatus::Pending));
                }
            }
        }
    }
}
