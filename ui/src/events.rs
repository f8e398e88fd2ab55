//! The program's own log on its way to the console: a ring that any thread puts lines into without
//! ever waiting, and the loop takes them from.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use vmdeck_engine::clock;

use crate::model::log::LogLine;
use crate::model::toast::Level;

/// Lines that may wait for the loop; what comes beyond takes the place of the oldest.
const WAITING: usize = 1000;

/// A line's text beyond this many bytes is cut.
const LONGEST: usize = 2000;

/// A handle of the ring: cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct EventRing {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Guards the lines that wait; held to add one or to take all.
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<LogLine>,
    /// Lines whose place was taken since the last look.
    lost: u64,
}

impl EventRing {
    /// Puts a line of this moment in.
    pub fn put(&self, level: Level, source: &str, mut text: String) {
        if text.len() > LONGEST {
            text.truncate(text.floor_char_boundary(LONGEST));
        }
        let line = LogLine { at: clock::now(), level, source: source.to_owned(), text };
        {
            let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.lines.len() == WAITING {
                waiting.lines.pop_front();
                waiting.lost += 1;
            }
            waiting.lines.push_back(line);
        }
        self.shared.filled.notify_one();
    }

    /// Waits until there is something to take.
    pub async fn filled(&self) {
        self.shared.filled.notified().await;
    }

    /// Takes all lines, the oldest first; where some were lost, that is told before them.
    pub fn take(&self) -> Vec<LogLine> {
        let (lines, lost) = {
            let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            (std::mem::take(&mut waiting.lines), std::mem::take(&mut waiting.lost))
        };
        let told = lines.front().filter(|_| lost > 0).map(|first| LogLine {
            at: first.at,
            level: Level::Warning,
            source: "log".into(),
            text: format!("{lost} lines came faster than they were read; the file has them"),
        });
        told.into_iter().chain(lines).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_bounded_and_told_of() {
        let ring = EventRing::default();
        for number in 0..WAITING + 7 {
            ring.put(Level::Information, "test", number.to_string());
        }
        let lines = ring.take();
        assert_eq!(lines.len(), WAITING + 1);
        assert!(lines[0].text.starts_with("7 lines"), "{}", lines[0].text);
        assert_eq!(lines[1].text, "7");
        assert!(ring.take().is_empty());
        ring.put(Level::Error, "test", "ä".repeat(LONGEST));
        assert!(ring.take()[0].text.len() <= LONGEST);
    }
}
