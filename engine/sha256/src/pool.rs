//! Where streams wait for each other.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::work::{BLOCK, Work};

/// All streams of this process: those of different images are as good for each other as those of one.
pub(super) static POOL: Pool = Pool {
    streams: Mutex::new(Streams { next: 0, places: BTreeMap::new(), waiters: 0 }),
    put: Condvar::new(),
};

pub(super) struct Pool {
    streams: Mutex<Streams>,
    /// Something was put back.
    put: Condvar,
}

struct Streams {
    next: u64,
    /// `None` while a thread has the stream.
    places: BTreeMap<u64, Option<Work>>,
    /// Threads that wait for `put`: rarely one, and telling nobody costs a system call.
    waiters: usize,
}

impl Pool {
    pub(super) fn enter(&self, work: Work) -> u64 {
        let mut streams = self.lock();
        let id = streams.next;
        streams.next += 1;
        streams.places.insert(id, Some(work));
        id
    }

    pub(super) fn leave(&self, id: u64) {
        let left = self.lock().places.remove(&id);
        // Its pieces go after the lock is free.
        drop(left);
    }

    /// Takes a stream, as soon as no other thread has it.
    pub(super) fn take(&self, id: u64) -> Work {
        let mut streams = self.lock();
        loop {
            let place = streams.places.get_mut(&id).expect("a stream leaves last");
            if let Some(work) = place.take() {
                return work;
            }
            streams.waiters += 1;
            streams = self.put.wait(streams).unwrap_or_else(PoisonError::into_inner);
            streams.waiters -= 1;
        }
    }

    /// Puts a stream back, if it is still there.
    pub(super) fn put(&self, id: u64, work: Work) {
        let mut streams = self.lock();
        let gone = match streams.places.get_mut(&id) {
            Some(place) => place.replace(work),
            None => Some(work),
        };
        let is_awaited = streams.waiters > 0;
        drop(streams);
        drop(gone);
        if is_awaited {
            self.put.notify_all();
        }
    }

    /// Hashes a stream that was taken together with others that wait, for as long as there are any.
    pub(super) fn hash_with_others(&self, work: &mut Work) {
        while work.waiting() >= BLOCK {
            let Some(mut other) = self.other() else { return };
            if let Some(other) = &mut other.work {
                work.hash_both(other);
            }
        }
    }

    /// Takes the stream of which most waits.
    fn other(&self) -> Option<Other<'_>> {
        let mut streams = self.lock();
        let waiting = |work: &Option<Work>| work.as_ref().map_or(0, Work::waiting);
        let (id, place) = streams.places.iter_mut().max_by_key(|(_, work)| waiting(work))?;
        if waiting(place) < BLOCK {
            return None;
        }
        Some(Other { pool: self, id: *id, work: place.take() })
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        // What is in there is whole at every moment.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream of another thread, which is put back whatever happens.
struct Other<'a> {
    pool: &'a Pool,
    id: u64,
    work: Option<Work>,
}

impl Drop for Other<'_> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.pool.put(self.id, work);
        }
    }
}
