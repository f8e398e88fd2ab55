//! What becomes of a request, judged by the machine's state and by who works on it: pure, so that
//! every combination can be looked at in a table.
//!
//! A machine is worked on by one task at a time: the one that holds its lock (see [`super::lock`]),
//! in whichever vmdeck process that is. The lock is the queue; this is what stands at its door. A
//! request that finds the lock held waits, is refused, or interrupts the holder; one that has the
//! lock is carried out, refused, or finds nothing left to do.

use serde::{Deserialize, Serialize};

use super::record::VmState;
use crate::error::Error;

/// What somebody asks of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    Start,
    Stop {
        force: bool,
    },
    Delete {
        force: bool,
    },
    /// Changes settings.
    Edit,
    /// Changes disks, which a machine that runs forbids.
    EditDisks,
    /// Takes what the disks hold at one moment.
    Freeze,
    Pause,
    Resume,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Carry it out.
    Accepted,
    /// Nothing is left to do.
    AlreadyDone,
    /// Ask again when the holder of the lock is done.
    Wait,
    /// Cancel what the holder does, then ask again.
    Interrupt,
    Denied(Denial),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// It has to be stopped first.
    Runs,
    /// It is being started.
    Starts,
    /// There is nothing to do it to: it has no process.
    DoesNotRun,
}

/// Judges a request while another one holds the machine's lock.
pub(super) fn admit_behind(request: Request, holder: Request) -> Admission {
    use Request::{Delete, Edit, EditDisks, Freeze, Pause, Resume, Start, Stop};
    match (request, holder) {
        // A boot may take minutes; whoever wants the machine gone need not watch it.
        (Stop { .. } | Delete { force: true }, Start) => Admission::Interrupt,
        // An impatient second request ends the patience of the first.
        (Stop { force: true } | Delete { force: true }, Stop { force: false }) => Admission::Interrupt,
        (Delete { force: false } | EditDisks | Freeze | Pause | Resume, Start) => {
            Admission::Denied(Denial::Starts)
        }
        (Start | Stop { .. } | Delete { .. } | Edit | EditDisks | Freeze | Pause | Resume, _) => {
            Admission::Wait
        }
    }
}

/// Judges a request that holds the machine's lock; `state` is what is true.
pub(super) fn admit(request: Request, state: VmState) -> Admission {
    use VmState::{Created, Failed, Paused, Running, Starting, Stopped, Stopping};
    match (request, state) {
        (Request::Start, Running) => Admission::AlreadyDone,
        // `Starting`: whoever drove that boot is gone, and it is taken over.
        // A paused one goes on.
        (Request::Start, Created | Stopped | Failed | Starting | Stopping | Paused) => Admission::Accepted,
        (Request::Stop { .. }, Created | Stopped | Failed) => Admission::AlreadyDone,
        (Request::Stop { .. }, Starting | Running | Stopping | Paused) => Admission::Accepted,
        (Request::Pause, Paused) | (Request::Resume, Running) => Admission::AlreadyDone,
        (Request::Pause, Running) | (Request::Resume, Paused) => Admission::Accepted,
        (Request::Pause | Request::Resume | Request::Freeze, Starting | Stopping) => {
            Admission::Denied(Denial::Starts)
        }
        (Request::Pause | Request::Resume, Created | Stopped | Failed) => {
            Admission::Denied(Denial::DoesNotRun)
        }
        (Request::Delete { force: false } | Request::EditDisks, Starting) => {
            Admission::Denied(Denial::Starts)
        }
        (Request::Delete { force: false } | Request::EditDisks, Running | Stopping | Paused) => {
            Admission::Denied(Denial::Runs)
        }
        (Request::Delete { .. } | Request::Edit | Request::EditDisks | Request::Freeze, _) => {
            Admission::Accepted
        }
    }
}

impl Denial {
    pub(super) fn error(self, name: &str, request: Request) -> Error {
        let or_force = match request {
            Request::Delete { .. } => ", `vmdeck vm delete --force` deletes it as it runs",
            _ => "",
        };
        match self {
            Self::Runs => Error::conflict(format!("machine `{name}` is running"))
                .with_hint(format!("`vmdeck vm stop {name}` stops it{or_force}")),
            Self::Starts => Error::conflict(format!("machine `{name}` is being started"))
                .with_hint(format!("`vmdeck vm stop {name}` ends that")),
            Self::DoesNotRun => Error::conflict(format!("machine `{name}` does not run"))
                .with_hint(format!("`vmdeck vm start {name}` starts it")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTS: [Request; 10] = [
        Request::Start,
        Request::Stop { force: false },
        Request::Stop { force: true },
        Request::Delete { force: false },
        Request::Delete { force: true },
        Request::Edit,
        Request::EditDisks,
        Request::Freeze,
        Request::Pause,
        Request::Resume,
    ];

    #[test]
    fn nothing_that_runs_is_deleted_unless_forced() {
        for state in VmState::ALL.into_iter().filter(|state| state.has_process()) {
            assert!(
                matches!(admit(Request::Delete { force: false }, state), Admission::Denied(_)),
                "{state:?}"
            );
            assert_eq!(admit(Request::Delete { force: true }, state), Admission::Accepted);
        }
    }

    #[test]
    fn the_same_request_twice_is_done_once() {
        assert_eq!(admit(Request::Start, VmState::Running), Admission::AlreadyDone);
        assert_eq!(admit(Request::Stop { force: false }, VmState::Stopped), Admission::AlreadyDone);
        assert_eq!(admit(Request::Pause, VmState::Paused), Admission::AlreadyDone);
        assert_eq!(admit(Request::Resume, VmState::Running), Admission::AlreadyDone);
        for request in REQUESTS {
            assert_eq!(admit_behind(request, request), Admission::Wait, "{request:?} waits for its like");
        }
    }

    #[test]
    fn a_request_with_the_lock_never_waits() {
        for request in REQUESTS {
            for state in VmState::ALL {
                assert!(
                    !matches!(admit(request, state), Admission::Wait | Admission::Interrupt),
                    "{request:?} {state:?}"
                );
            }
        }
    }

    #[test]
    fn interruptions() {
        let check = |request, holder, expected| assert_eq!(admit_behind(request, holder), expected);
        check(Request::Stop { force: false }, Request::Start, Admission::Interrupt);
        check(Request::Stop { force: true }, Request::Stop { force: false }, Admission::Interrupt);
        check(Request::Delete { force: true }, Request::Start, Admission::Interrupt);
        check(Request::Delete { force: false }, Request::Start, Admission::Denied(Denial::Starts));
        check(Request::Start, Request::Stop { force: false }, Admission::Wait);
        check(Request::Start, Request::Delete { force: true }, Admission::Wait);
    }
}
