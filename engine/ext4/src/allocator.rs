//! Where blocks come from: one cursor that only moves up, shared by all writers.
//!
//! It steps over the copies of the superblock. Runs that were taken and not used come back and are
//! taken again first. Which blocks are in use is not kept here: the finished tree tells.

use std::sync::{Mutex, PoisonError};

use crate::geometry::{BLOCKS_PER_GROUP, Geometry, has_superblock};

/// Blocks one after the other on the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    /// First block.
    pub(crate) start: u64,
    /// First block behind the run.
    pub(crate) end: u64,
}

impl Run {
    pub(crate) fn len(&self) -> u64 {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Splits off up to `blocks` from the front.
    pub(crate) fn take(&mut self, blocks: u64) -> Run {
        let middle = self.start + blocks.min(self.len());
        let taken = Run { start: self.start, end: middle };
        self.start = middle;
        taken
    }
}

/// The position up to which blocks were handed out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    geometry: Geometry,
    next: u64,
}

impl Cursor {
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self { geometry, next: 0 }
    }

    pub(crate) fn position(&self) -> u64 {
        self.next
    }

    /// One run of 1 … `wanted` blocks: shorter where a copy of the superblock is in the way.
    pub(crate) fn take(&mut self, wanted: u64) -> Run {
        self.skip_base();
        let end = (self.next + wanted).min(self.barrier());
        let run = Run { start: self.next, end };
        self.next = end;
        run
    }

    /// One run of exactly `blocks`, which must be fewer than a group has behind its superblock.
    pub(crate) fn take_contiguous(&mut self, blocks: u64) -> Run {
        self.skip_base();
        while self.next + blocks > self.barrier() {
            self.next = self.barrier();
            self.skip_base();
        }
        self.take(blocks)
    }

    fn skip_base(&mut self) {
        let group = self.next / BLOCKS_PER_GROUP;
        let base_end = group * BLOCKS_PER_GROUP + self.geometry.base_blocks(group);
        self.next = self.next.max(base_end);
    }

    /// Start of the next group that holds a copy of the superblock.
    fn barrier(&self) -> u64 {
        let mut group = self.next / BLOCKS_PER_GROUP + 1;
        // Powers of 3 are never further apart than a factor of three, so that this ends; runs are
        // cut after 16 groups (2 GiB) to keep the search short.
        let last = group + 16;
        while group < last && !has_superblock(group) {
            group += 1;
        }
        group * BLOCKS_PER_GROUP
    }
}

#[derive(Debug)]
struct State {
    cursor: Cursor,
    returned: Vec<Run>,
}

/// The cursor, shared.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// Guards the cursor and the returned runs; held for a few instructions.
    state: Mutex<State>,
    limit: u64,
}

/// The descriptors set aside at creation cannot describe more blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfBlocks {
    /// The largest file system this one can become, in blocks.
    pub(crate) limit: u64,
}

impl Allocator {
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self {
            state: Mutex::new(State { cursor: Cursor::new(geometry), returned: Vec::new() }),
            limit: geometry.max_blocks(),
        }
    }

    /// One run of 1 … `wanted` blocks.
    pub(crate) fn take(&self, wanted: u64) -> Result<Run, OutOfBlocks> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut run) = state.returned.pop() {
            let taken = run.take(wanted);
            if !run.is_empty() {
                state.returned.push(run);
            }
            return Ok(taken);
        }
        let run = state.cursor.take(wanted);
        if run.end > self.limit {
            return Err(OutOfBlocks { limit: self.limit });
        }
        Ok(run)
    }

    /// Takes back blocks that were taken and never written.
    pub(crate) fn give_back(&self, run: Run) {
        if run.is_empty() {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if run.end == state.cursor.next {
            state.cursor.next = run.start;
        } else {
            state.returned.push(run);
        }
    }

    /// What is left to hand out, once nobody shares it any more.
    pub(crate) fn into_source(self) -> BlockSource {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut returned = state.returned;
        // Popped from the end: descending, so that the lowest blocks come first.
        returned.sort_unstable_by(|a, b| b.cmp(a));
        BlockSource { returned, cursor: state.cursor }
    }
}

/// Single blocks, lowest first. A clone hands out the same blocks again.
#[derive(Clone, Debug)]
pub(crate) struct BlockSource {
    returned: Vec<Run>,
    cursor: Cursor,
}

impl BlockSource {
    pub(crate) fn next(&mut self) -> u64 {
        while let Some(run) = self.returned.last_mut() {
            let taken = run.take(1);
            if !taken.is_empty() {
                return taken.start;
            }
            self.returned.pop();
        }
        self.cursor.take(1).start
    }

    /// Behind everything that was handed out.
    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry { descriptor_blocks: 31 };

    #[test]
    fn runs_step_over_superblock_copies() {
        let mut cursor = Cursor::new(GEOMETRY);
        assert_eq!(cursor.take(10), Run { start: 32, end: 42 });
        assert_eq!(cursor.take(40_000), Run { start: 42, end: BLOCKS_PER_GROUP });
        // Group 1 has a copy, group 2 has none, group 3 has one again.
        assert_eq!(
            cursor.take(u64::from(u32::MAX)),
            Run { start: BLOCKS_PER_GROUP + 32, end: 3 * BLOCKS_PER_GROUP }
        );
        let contiguous = cursor.take_contiguous(BLOCKS_PER_GROUP - 32);
        assert_eq!(contiguous.start, 3 * BLOCKS_PER_GROUP + 32);
        assert_eq!(contiguous.len(), BLOCKS_PER_GROUP - 32);
    }

    #[test]
    fn a_run_that_does_not_fit_moves_behind_the_next_copy() {
        let mut cursor = Cursor::new(GEOMETRY);
        cursor.take(BLOCKS_PER_GROUP - 132);
        assert_eq!(cursor.take_contiguous(512).start, BLOCKS_PER_GROUP + 32);
    }

    #[test]
    fn unused_blocks_are_taken_again() {
        let allocator = Allocator::new(GEOMETRY);
        let mut first = allocator.take(100).unwrap();
        first.take(40);
        let second = allocator.take(10).unwrap();
        allocator.give_back(first);
        assert_eq!(allocator.take(60).unwrap(), Run { start: 72, end: 132 });
        allocator.give_back(second);
        assert_eq!(allocator.take(10).unwrap(), second);
    }

    #[test]
    fn content_beyond_the_descriptors_is_refused() {
        let allocator = Allocator::new(Geometry { descriptor_blocks: 1 });
        let mut taken = 0;
        let error = loop {
            match allocator.take(64 * BLOCKS_PER_GROUP) {
                Ok(run) => taken += run.len(),
                Err(error) => break error,
            }
        };
        assert_eq!(error, OutOfBlocks { limit: 64 * BLOCKS_PER_GROUP });
        assert!(taken > 40 * BLOCKS_PER_GROUP);
    }
}
