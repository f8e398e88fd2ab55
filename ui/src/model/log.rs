//! The console's log: what changed while it was open, read off the differences of the snapshots, so
//! that it tells of every process's doings and not only of its own; and between that, what this
//! program's own log says.

use std::collections::{HashMap, HashSet, VecDeque};

use jiff::tz::TimeZone;
use vmdeck_engine::clock::Milliseconds;
use vmdeck_engine::image::record::Image;
use vmdeck_engine::kernel::record::Kernel;
use vmdeck_engine::operation::record::OperationState;
use vmdeck_engine::snapshot::Snapshot;
use vmdeck_engine::vm::record::VmState;

use super::input::TextInput;
use super::toast::Level;
use crate::format::Took;
use crate::text::clean;

/// Lines kept.
const KEPT: usize = 5000;

/// A line is put before so many others at most.
const LATE: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    pub at: Milliseconds,
    pub level: Level,
    /// What it is about: the name of a machine, image, … or of an operation's kind; of the program's
    /// own log, the part of the program that says it.
    pub source: String,
    pub text: String,
}

/// The lines, oldest first, and how they are looked at.
#[derive(Clone, Debug)]
pub struct Log {
    pub lines: VecDeque<LogLine>,
    /// Lines taken off the front so far: the number of the first line in `lines`.
    pub first: usize,
    pub follow: bool,
    pub wrap: bool,
    /// Lines below this level are left out.
    pub least: Level,
    /// Words that lines must have, `!word` for those they must not.
    pub filter: String,
    /// The filter while it is typed.
    pub filter_input: Option<TextInput>,
    /// First line in sight while it does not follow, of those that the filter lets through.
    pub offset: usize,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            lines: VecDeque::new(),
            first: 0,
            follow: true,
            wrap: false,
            least: Level::Information,
            filter: String::new(),
            filter_input: None,
            offset: 0,
        }
    }
}

impl LogLine {
    fn matches(&self, words: &[String]) -> bool {
        let has =
            |word: &str| self.source.to_lowercase().contains(word) || self.text.to_lowercase().contains(word);
        words.iter().all(|word| match word.strip_prefix('!') {
            Some("") => true,
            Some(word) => !has(word),
            None => has(word),
        })
    }
}

impl Log {
    /// The lines that the filter lets through.
    pub fn matching(&self) -> impl DoubleEndedIterator<Item = &LogLine> {
        let words: Vec<String> = self.filter.to_lowercase().split_whitespace().map(str::to_owned).collect();
        self.lines.iter().filter(move |line| line.level >= self.least && line.matches(&words))
    }

    /// From which level on lines are shown, as a user calls it.
    pub fn level(&self) -> &'static str {
        match self.least {
            Level::Detail => "every detail",
            Level::Information | Level::Success => "info and up",
            Level::Warning => "warnings and errors",
            Level::Error => "errors only",
        }
    }

    /// To the next level.
    pub fn step_level(&mut self) {
        self.least = match self.least {
            Level::Information | Level::Success => Level::Warning,
            Level::Warning => Level::Error,
            Level::Error => Level::Detail,
            Level::Detail => Level::Information,
        };
    }

    /// How many those are.
    pub fn count(&self) -> usize {
        self.matching().count()
    }

    /// The lines that the filter lets through, as a text file.
    pub fn text(&self, time_zone: &TimeZone) -> String {
        let mut text = String::new();
        for line in self.matching() {
            if let Ok(at) = jiff::Timestamp::from_millisecond(line.at) {
                text.push_str(
                    &time_zone.to_datetime(at).round(jiff::Unit::Second).unwrap_or_default().to_string(),
                );
            }
            let what = clean(&line.text).replace('\n', " ");
            text.push_str(&format!("  {}  {}  {what}\n", line.level.as_str(), clean(&line.source)));
        }
        text
    }

    /// Adds a line where its time puts it: what another process did may be heard of late.
    pub fn add(&mut self, line: LogLine) {
        if self.lines.len() == KEPT {
            self.lines.pop_front();
            self.first += 1;
            self.offset = self.offset.saturating_sub(1);
        }
        let later = self.lines.iter().rev().take(LATE).take_while(|other| other.at > line.at).count();
        self.lines.insert(self.lines.len() - later, line);
    }

    /// Adds a line for each thing that differs between two pictures.
    pub fn compare(&mut self, now: Milliseconds, old: &Snapshot, new: &Snapshot) {
        // The first picture is no news.
        if old.generation == 0 {
            let text = format!(
                "on record: machines {}, images {}, kernels {}",
                new.vms.len(),
                new.images.len(),
                new.kernels.len()
            );
            self.add(LogLine { at: now, level: Level::Information, source: "engine".into(), text });
            return;
        }
        self.compare_operations(old, new);
        self.compare_vms(now, old, new);
        let mut add = |source: &str, text: &str| {
            self.add(LogLine {
                at: now,
                level: Level::Information,
                source: source.to_owned(),
                text: text.to_owned(),
            });
        };
        if !std::sync::Arc::ptr_eq(&old.images, &new.images) {
            fn name(image: &Image) -> &str {
                &image.name
            }
            differences(old.images.iter().map(name), new.images.iter().map(name), |name, there| {
                add(name, if there { "the image is there" } else { "the image is gone" });
            });
        }
        if !std::sync::Arc::ptr_eq(&old.kernels, &new.kernels) {
            fn name(kernel: &Kernel) -> &str {
                &kernel.name
            }
            differences(old.kernels.iter().map(name), new.kernels.iter().map(name), |name, there| {
                add(name, if there { "the kernel is there" } else { "the kernel is gone" });
            });
        }
    }

    fn compare_operations(&mut self, old: &Snapshot, new: &Snapshot) {
        if std::sync::Arc::ptr_eq(&old.operations, &new.operations) {
            return;
        }
        let before: HashMap<_, _> =
            old.operations.iter().map(|view| (&view.record.id, view.record.state)).collect();
        for view in new.operations.iter().rev() {
            let record = &view.record;
            let was = before.get(&record.id).copied();
            if was == Some(record.state) {
                continue;
            }
            // A machine's name is short, and its lines belong together; a reference is long, and what is
            // done with it tells the lines apart.
            let kind = record.kind.as_str();
            let (source, what) = if record.target.is_empty() {
                (kind, String::new())
            } else if kind.starts_with("vm ") {
                (record.target.as_str(), format!("{kind} "))
            } else {
                (kind, format!("{} ", record.target))
            };
            if was.is_none() {
                self.add(LogLine {
                    at: record.started_at,
                    level: Level::Information,
                    source: source.to_owned(),
                    text: format!("{what}began"),
                });
            }
            let took =
                Took(crate::format::between(record.started_at, record.ended_at.unwrap_or(record.started_at)));
            let why = record.error.as_ref().map_or("", |error| error.message.as_str());
            let (level, text) = match record.state {
                OperationState::Running => continue,
                OperationState::Done => (Level::Success, format!("{what}done in {took}")),
                OperationState::Failed => (Level::Error, format!("{what}failed after {took}: {why}")),
                OperationState::Cancelled => (Level::Warning, format!("{what}cancelled after {took}")),
                OperationState::Interrupted => (Level::Warning, format!("{what}was interrupted: {why}")),
            };
            let at = record.ended_at.unwrap_or(record.started_at);
            self.add(LogLine { at, level, source: source.to_owned(), text });
        }
    }

    fn compare_vms(&mut self, now: Milliseconds, old: &Snapshot, new: &Snapshot) {
        if std::sync::Arc::ptr_eq(&old.vms, &new.vms) {
            return;
        }
        let before: HashMap<_, _> = old.vms.iter().map(|vm| (&vm.id, vm.state)).collect();
        for vm in new.vms.iter() {
            let was = before.get(&vm.id).copied();
            if was == Some(vm.state) {
                continue;
            }
            let level = if vm.state == VmState::Failed { Level::Error } else { Level::Information };
            let why = vm.boot.as_ref().and_then(|boot| boot.failure.as_ref());
            let why = why.filter(|_| vm.state == VmState::Failed).map(|failure| failure.message.as_str());
            let text = match (was, why) {
                (_, Some(why)) => format!("failed: {why}"),
                (Some(was), None) => format!("{} {} {}", was.as_str(), "→", vm.state.as_str()),
                (None, None) => format!("the machine is there, {}", vm.state.as_str()),
            };
            self.add(LogLine { at: now, level, source: vm.name.clone(), text });
        }
        let now_there: HashSet<_> = new.vms.iter().map(|vm| &vm.id).collect();
        for vm in old.vms.iter().filter(|vm| !now_there.contains(&vm.id)) {
            let text = "the machine is gone".to_owned();
            self.add(LogLine { at: now, level: Level::Information, source: vm.name.clone(), text });
        }
    }
}

/// Tells of each name that is only in one of the two: whether it is in the new one.
fn differences<'a>(
    old: impl Iterator<Item = &'a str>,
    new: impl Iterator<Item = &'a str>,
    mut tell: impl FnMut(&str, bool),
) {
    let (old, new): (HashSet<_>, HashSet<_>) = (old.collect(), new.collect());
    new.difference(&old).for_each(|name| tell(name, true));
    old.difference(&new).for_each(|name| tell(name, false));
}
