//! The time of day, for a guest whose kernel got none from the hardware.

use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::log;

/// A guest's clock may be that far ahead of the time its settings were written: it is later now.
const BOOT: Duration = Duration::from_secs(3600);

/// Sets the clock to the host's time (nanoseconds since 1970) when it is clearly wrong.
pub(super) fn set(host: u64) {
    let host = Duration::from_nanos(host);
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map(Duration::from).unwrap_or_default();
    if host.is_zero() || (host <= now + Duration::from_secs(2) && now <= host + BOOT) {
        return;
    }
    // Our kernel has run for that long since the settings were written, at least.
    let running = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    if let Err(error) = clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(host + running)) {
        log::warning(&format!("the clock cannot be set: {error}"));
    }
}
