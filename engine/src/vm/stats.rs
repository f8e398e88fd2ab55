//! What a running machine is doing, as its guest counts it and as the host does.

use std::time::Duration;

use serde::Serialize;

use super::HostUsage;
use crate::guest::GuestStats;
use crate::guest::stats::Processor;

/// One reading. Counters only grow: a rate is the difference of two readings over that of their
/// times ([`VmStats::since`]).
#[derive(Clone, Debug, Serialize)]
pub struct VmStats {
    pub name: String,
    /// Names in it are the guest's: show them escaped.
    pub guest: GuestStats,
    pub host: HostUsage,
}

/// Rates between two readings of one run of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct VmRates {
    /// Of all the machine's processors together, 0 to 100.
    pub guest_processor_percent: f64,
    /// Of one processor of the host: more than 100 is more than one.
    pub host_processor_percent: f64,
    /// In bytes per second, of all the machine's disks.
    pub disk_read: u64,
    pub disk_written: u64,
    /// In bytes per second, of all interfaces but the loopback.
    pub network_received: u64,
    pub network_sent: u64,
}

impl VmStats {
    /// What happened between `before` and this; `None` when there is no time between them, or the
    /// machine was started anew.
    pub fn since(&self, before: &Self) -> Option<VmRates> {
        let guest_time = self.guest.uptime_nanoseconds.checked_sub(before.guest.uptime_nanoseconds)?;
        let host_milliseconds = self.host.at.checked_sub(before.host.at).filter(|time| *time > 0)?;
        if guest_time == 0 {
            return None;
        }
        let guest_seconds = Duration::from_nanos(guest_time).as_secs_f64();
        let (now, then) = (&self.guest.processor, &before.guest.processor);
        let busy = |of: &Processor| of.user_milliseconds.saturating_add(of.system_milliseconds);
        let idle = |of: &Processor| of.idle_milliseconds.saturating_add(of.waiting_milliseconds);
        let busy = busy(now).saturating_sub(busy(then)) as f64;
        let all = busy + idle(now).saturating_sub(idle(then)) as f64;
        let host = self.host.cpu_ms.saturating_sub(before.host.cpu_ms) as f64;
        let rate = |now: u64, then: u64| (now.saturating_sub(then) as f64 / guest_seconds) as u64;
        let disks = |stats: &GuestStats| {
            stats.disks.iter().fold((0_u64, 0_u64), |(read, written), disk| {
                (read.saturating_add(disk.read), written.saturating_add(disk.written))
            })
        };
        let network = |stats: &GuestStats| {
            let real = stats.interfaces.iter().filter(|interface| interface.name != "lo");
            real.fold((0_u64, 0_u64), |(received, sent), interface| {
                (received.saturating_add(interface.received), sent.saturating_add(interface.sent))
            })
        };
        let (disks_now, disks_then) = (disks(&self.guest), disks(&before.guest));
        let (network_now, network_then) = (network(&self.guest), network(&before.guest));
        Some(VmRates {
            guest_processor_percent: if all > 0.0 { (busy / all * 100.0).min(100.0) } else { 0.0 },
            host_processor_percent: host / host_milliseconds as f64 * 100.0,
            disk_read: rate(disks_now.0, disks_then.0),
            disk_written: rate(disks_now.1, disks_then.1),
            network_received: rate(network_now.0, network_then.0),
            network_sent: rate(network_now.1, network_then.1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::stats::{Disk, Interface};

    #[test]
    fn rates_are_differences_over_time() {
        let reading = |seconds: u64, busy: u64, idle: u64, moved: u64| VmStats {
            name: "x".into(),
            guest: GuestStats {
                uptime_nanoseconds: seconds * 1_000_000_000,
                processor: Processor {
                    user_milliseconds: busy,
                    idle_milliseconds: idle,
                    ..Processor::default()
                },
                disks: vec![Disk { name: "vda".into(), read: moved, written: 0 }],
                interfaces: vec![
                    Interface { name: "lo".into(), received: moved, sent: moved },
                    Interface { name: "eth0".into(), received: 0, sent: moved },
                ],
                ..GuestStats::default()
            },
            host: HostUsage {
                at: i64::try_from(seconds).unwrap() * 1000,
                cpu_ms: busy,
                resident_bytes: 0,
                read_bytes: 0,
                written_bytes: 0,
            },
        };
        let (before, after) = (reading(10, 1000, 1000, 500), reading(12, 2000, 4000, 2500));
        let rates = after.since(&before).unwrap();
        assert_eq!(rates.guest_processor_percent, 25.0);
        assert_eq!(rates.host_processor_percent, 50.0);
        assert_eq!((rates.disk_read, rates.network_sent, rates.network_received), (1000, 1000, 0));
        // A guest that was started anew, and one reading twice.
        assert!(before.since(&after).is_none());
        assert!(after.since(&after).is_none());
    }
}
