//! A list on the screen: which rows, in which order, which one is under the cursor, which are marked.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::deck::Deck;
use super::filter::Filter;
use super::input::TextInput;

/// A row of one of the console's lists.
pub trait Listed: Sized + 'static {
    /// The columns one can sort by; the first is the default order.
    const SORTS: &'static [SortColumn<Self>];

    /// Whether news come at its head, where a cursor that was not moved waits for them.
    const GROWS_AT_HEAD: bool = false;

    fn rows(deck: &Deck) -> &[Self];

    /// What tells the row from all others for as long as it exists.
    fn key(&self) -> &str;

    /// What a user calls it.
    fn name(&self) -> &str;

    /// Other texts that a filter's words are looked for in.
    fn texts(&self) -> impl Iterator<Item = &str>;

    /// The value of a `key:value` term, if there is such a key.
    fn term(&self, key: &str) -> Option<Cow<'_, str>>;
}

/// One way to sort.
#[derive(Debug)]
pub struct SortColumn<T> {
    pub name: &'static str,
    pub compare: fn(&T, &T) -> Ordering,
}

/// State of one list.
#[derive(Clone, Debug, Default)]
pub struct ListState {
    /// Indexes into the deck's rows, filtered and sorted.
    pub rows: Vec<u32>,
    /// How many rows there are without the filter.
    pub total: usize,
    /// Index into `rows`.
    pub cursor: usize,
    /// Key of the row under the cursor: it stays there when rows come and go.
    pub selected: Option<String>,
    /// First row in sight.
    pub offset: usize,
    pub marks: BTreeSet<String>,
    /// Where a range of marks began: an index into `rows`.
    pub range_from: Option<usize>,
    /// Index into [`Listed::SORTS`].
    pub sort: usize,
    pub descending: bool,
    pub filter: Filter,
    /// The filter while it is typed.
    pub filter_input: Option<TextInput>,
}

/// What can be done to any list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListCommand {
    /// Make the rows anew after the filter or the order changed.
    Refresh,
    MoveTo(usize),
    ToggleMark,
    MarkRange,
    InvertMarks,
}

impl ListState {
    pub fn obey<T: Listed>(&mut self, deck: &Deck, command: ListCommand) {
        match command {
            ListCommand::Refresh => self.refresh::<T>(deck),
            ListCommand::MoveTo(at) => self.move_to::<T>(deck, at),
            ListCommand::ToggleMark => self.toggle_mark::<T>(deck),
            ListCommand::MarkRange => self.mark_range::<T>(deck),
            ListCommand::InvertMarks => self.invert_marks::<T>(deck),
        }
    }

    pub fn unmark(&mut self) {
        self.marks.clear();
        self.range_from = None;
    }

    /// Makes the rows anew after the snapshot, the filter or the order changed.
    pub fn refresh<T: Listed>(&mut self, deck: &Deck) {
        let all = T::rows(deck);
        self.total = all.len();
        self.rows.clear();
        let matching = all.iter().enumerate().filter(|(_, row)| self.filter.matches(*row));
        self.rows.extend(matching.map(|(index, _)| u32::try_from(index).unwrap_or(u32::MAX)));
        let compare = T::SORTS.get(self.sort).or(T::SORTS.first()).map(|sort| sort.compare);
        if let Some(compare) = compare {
            let descending = self.descending;
            self.rows.sort_by(|&left, &right| {
                let order = compare(&all[left as usize], &all[right as usize]);
                if descending { order.reverse() } else { order }
            });
        }
        if !self.marks.is_empty() {
            self.marks.retain(|key| all.iter().any(|row| row.key() == key));
        }
        // At the head of a list that grows there, the cursor stays at the head.
        let pinned = T::GROWS_AT_HEAD && self.cursor == 0;
        let selected = self.selected.as_deref().filter(|_| !pinned);
        let kept =
            selected.and_then(|key| self.rows.iter().position(|&index| all[index as usize].key() == key));
        self.cursor = kept.unwrap_or(self.cursor).min(self.rows.len().saturating_sub(1));
        self.range_from = self.range_from.filter(|&from| from < self.rows.len());
        // Where a filter lets nothing through, the cursor is where it was when that is taken back.
        if !self.rows.is_empty() || all.is_empty() {
            self.remember::<T>(deck);
        }
    }

    /// The row under the cursor.
    pub fn current<'a, T: Listed>(&self, deck: &'a Deck) -> Option<&'a T> {
        self.row(deck, self.cursor)
    }

    /// The row at a place in the list.
    pub fn row<'a, T: Listed>(&self, deck: &'a Deck, at: usize) -> Option<&'a T> {
        T::rows(deck).get(*self.rows.get(at)? as usize)
    }

    /// The marked rows, and those of a range that is being marked; else the one under the cursor: what an
    /// action is about.
    pub fn targets<'a, T: Listed>(&'a self, deck: &'a Deck) -> impl Iterator<Item = &'a T> {
        let marked = !self.marks.is_empty() || self.range_from.is_some();
        let rows = self.rows.iter().enumerate();
        let rows = rows.filter_map(|(at, &index)| Some((at, T::rows(deck).get(index as usize)?)));
        let chosen = move |at: usize, row: &T| match marked {
            true => self.marks.contains(row.key()) || self.in_range(at),
            false => at == self.cursor,
        };
        rows.filter(move |(at, row)| chosen(*at, row)).map(|(_, row)| row)
    }

    pub fn move_to<T: Listed>(&mut self, deck: &Deck, at: usize) {
        self.cursor = at.min(self.rows.len().saturating_sub(1));
        self.remember::<T>(deck);
    }

    fn remember<T: Listed>(&mut self, deck: &Deck) {
        self.selected = self.current::<T>(deck).map(|row| row.key().to_owned());
    }

    /// Scrolls so that the cursor is among `height` rows in sight.
    pub fn keep_in_sight(&mut self, height: usize) {
        let height = height.max(1);
        let last = self.rows.len().saturating_sub(height);
        self.offset = self.offset.min(last).min(self.cursor).max((self.cursor + 1).saturating_sub(height));
    }

    pub fn toggle_mark<T: Listed>(&mut self, deck: &Deck) {
        if let Some(row) = self.current::<T>(deck)
            && !self.marks.remove(row.key())
        {
            self.marks.insert(row.key().to_owned());
        }
    }

    /// Marks from where the range began to the cursor.
    pub fn mark_range<T: Listed>(&mut self, deck: &Deck) {
        match self.range_from.take() {
            None => self.range_from = Some(self.cursor),
            Some(from) => {
                for at in from.min(self.cursor)..=from.max(self.cursor) {
                    if let Some(row) = self.row::<T>(deck, at) {
                        self.marks.insert(row.key().to_owned());
                    }
                }
            }
        }
    }

    pub fn invert_marks<T: Listed>(&mut self, deck: &Deck) {
        let shown = self.rows.iter().filter_map(|&index| T::rows(deck).get(index as usize));
        let unmarked = shown.filter(|row| !self.marks.contains(row.key()));
        self.marks = unmarked.map(|row| row.key().to_owned()).collect();
    }

    /// Whether the row at a place is within the range being marked.
    pub fn in_range(&self, at: usize) -> bool {
        self.range_from.is_some_and(|from| (from.min(self.cursor)..=from.max(self.cursor)).contains(&at))
    }
}
