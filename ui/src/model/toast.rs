//! Messages: each is a line at the bottom for a while, and stays in the list of messages.

use std::collections::VecDeque;

use vmdeck_engine::clock::Milliseconds;

/// How long a toast stays, in milliseconds.
pub const SHOWN_FOR: Milliseconds = 4000;

/// Errors stay longer: they have a next step to read.
pub const ERROR_SHOWN_FOR: Milliseconds = 8000;

/// Toasts shown at once, and messages kept.
const SHOWN: usize = 3;
const KEPT: usize = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What matters only when something is odd.
    Detail,
    Information,
    Success,
    Warning,
    Error,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Detail => "detail",
            Self::Information => "info",
            Self::Success => "done",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub at: Milliseconds,
    pub level: Level,
    pub text: String,
    /// The next step.
    pub hint: Option<String>,
    /// How often it came in a row.
    pub count: u32,
    pub shown_until: Milliseconds,
}

/// All messages, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Messages {
    pub kept: VecDeque<Message>,
}

impl Messages {
    pub fn add(&mut self, now: Milliseconds, level: Level, text: String, hint: Option<String>) {
        let shown_until = now + if level == Level::Error { ERROR_SHOWN_FOR } else { SHOWN_FOR };
        if let Some(last) = self.kept.back_mut()
            && last.level == level
            && last.text == text
        {
            (last.count, last.at, last.shown_until) = (last.count + 1, now, shown_until);
            return;
        }
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Message { at: now, level, text, hint, count: 1, shown_until });
    }

    /// Those to be shown now, newest first.
    pub fn shown(&self, now: Milliseconds) -> impl Iterator<Item = &Message> {
        self.kept.iter().rev().take(SHOWN).filter(move |message| message.shown_until > now)
    }

    /// When the next one disappears.
    pub fn next_end(&self, now: Milliseconds) -> Option<Milliseconds> {
        self.shown(now).map(|message| message.shown_until).min()
    }

    /// Takes all toasts off the screen; returns whether there were any.
    pub fn dismiss(&mut self, now: Milliseconds) -> bool {
        let mut any = false;
        for message in self.kept.iter_mut().rev().take(SHOWN).filter(|message| message.shown_until > now) {
            message.shown_until = now;
            any = true;
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_collapse_and_toasts_end() {
        let mut messages = Messages::default();
        messages.add(0, Level::Success, "done".into(), None);
        messages.add(1000, Level::Success, "done".into(), None);
        assert_eq!(messages.kept.len(), 1);
        assert_eq!(messages.shown(1000).next().map(|m| m.count), Some(2));
        assert_eq!(messages.next_end(1000), Some(1000 + SHOWN_FOR));
        assert_eq!(messages.shown(1000 + SHOWN_FOR).count(), 0);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut messages = Messages::default();
        for number in 0..2 * KEPT {
            messages.add(0, Level::Error, number.to_string(), None);
        }
        assert_eq!(messages.kept.len(), KEPT);
    }
}
