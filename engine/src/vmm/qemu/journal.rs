//! QEMU's events, written down by the [`super::recorder`], so that how a machine ended is known also
//! when no vmdeck process was there to see it.

use std::path::Path;

use serde_json::Value;

use super::super::Ending;
use super::command::JOURNAL;
use super::failure;
use super::qmp::Event;

/// How the machine's last run ended; [`Ending::Unknown`] while it runs.
pub(super) fn ending(directory: &Path) -> Ending {
    parse(&read(directory))
}

/// Whether the guest's CPUs stand still. `None` when neither a stop nor a start is among the last
/// events.
pub(super) fn standing_still(directory: &Path) -> Option<bool> {
    last_stop(&read(directory))
}

/// The last events. Of a guest that provokes many they may be split over two files.
fn read(directory: &Path) -> String {
    let before = failure::log_tail(&directory.join(format!("{JOURNAL}.1")), 0);
    before + &failure::log_tail(&directory.join(JOURNAL), 0)
}

fn last_stop(journal: &str) -> Option<bool> {
    journal.lines().rev().filter_map(|line| serde_json::from_str::<Event>(line).ok()).find_map(|event| {
        match event.event.as_str() {
            "STOP" => Some(true),
            "RESUME" => Some(false),
            _ => None,
        }
    })
}

/// Events of QEMU's qapi/run-state.json, oldest first.
fn parse(journal: &str) -> Ending {
    let events = journal.lines().filter_map(|line| serde_json::from_str::<Event>(line).ok());
    let mut ending = Ending::Unknown;
    for event in events {
        let text = |name: &str| event.data.get(name).and_then(Value::as_str);
        match event.event.as_str() {
            // The panic is told first; that QEMU then shuts down is only its consequence.
            "GUEST_PANICKED" => return Ending::Panicked,
            "SHUTDOWN" => {
                ending = match text("reason") {
                    Some("guest-shutdown") => Ending::PoweredOff,
                    Some("guest-reset" | "subsystem-reset") => Ending::Reset,
                    Some("guest-panic") => Ending::Panicked,
                    Some("host-signal") => Ending::Signal,
                    Some("host-error") => Ending::Unknown,
                    _ => Ending::Quit,
                };
            }
            _ => {}
        }
    }
    ending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_stop_or_start_counts() {
        let journal = |events: &[&str]| -> String {
            events.iter().map(|event| format!("{{\"event\": \"{event}\", \"data\": {{}}}}\r\n")).collect()
        };
        assert_eq!(last_stop(&journal(&["RESUME", "STOP", "BLOCK_IO_ERROR"])), Some(true));
        assert_eq!(last_stop(&journal(&["RESUME", "STOP", "RESUME", "RTC_CHANGE"])), Some(false));
        assert_eq!(last_stop(&journal(&["RTC_CHANGE"])), None);
        assert_eq!(last_stop("{\"event\": \"STO"), None);
    }

    #[test]
    fn endings() {
        let check = |journal: &str, ending| assert_eq!(parse(journal), ending, "{journal}");
        let shutdown = |guest, reason: &str| {
            format!(
                "{{\"QMP\": {{}}}}\r\n{{\"return\": {{}}}}\r\n{{\"timestamp\": {{\"seconds\": 1}}, \"event\": \"RESUME\"}}\r\n\
                 {{\"event\": \"SHUTDOWN\", \"data\": {{\"guest\": {guest}, \"reason\": \"{reason}\"}}}}\r\n"
            )
        };
        check("", Ending::Unknown);
        check("{\"event\": \"RESUME\"}\nhalf a li", Ending::Unknown);
        check(&shutdown(true, "guest-shutdown"), Ending::PoweredOff);
        check(&shutdown(true, "guest-reset"), Ending::Reset);
        check(&shutdown(false, "host-signal"), Ending::Signal);
        check(&shutdown(false, "host-qmp-quit"), Ending::Quit);
        check(
            &format!("{{\"event\": \"GUEST_PANICKED\", \"data\": {{}}}}\n{}", shutdown(true, "guest-reset")),
            Ending::Panicked,
        );
    }
}
