//! Files that have several names.
//!
//! Both ends keep a table of those that were sent and may come again under another name; it has a bound
//! that both know, beyond which further files are sent as often as they have names.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::Metadata;
use std::hash::Hash;
use std::os::unix::fs::MetadataExt;

/// Most files in the table at once, and most bytes of their paths.
const MAX_FILES: usize = 65_536;
const MAX_BYTES: usize = 4 << 20;

/// A table with that bound.
#[derive(Debug)]
struct Table<K, V> {
    /// With the length of its path.
    files: HashMap<K, (usize, V)>,
    bytes: usize,
}

impl<K: Eq + Hash, V> Table<K, V> {
    fn new() -> Self {
        Self { files: HashMap::new(), bytes: 0 }
    }

    fn has_room(&self, length: usize) -> bool {
        self.files.len() < MAX_FILES && self.bytes + length <= MAX_BYTES
    }

    fn insert(&mut self, key: K, length: usize, value: V) {
        self.remove(&key);
        self.bytes += length;
        self.files.insert(key, (length, value));
    }

    fn remove(&mut self, key: &K) {
        if let Some((length, _)) = self.files.remove(key) {
            self.bytes -= length;
        }
    }
}

/// The sender's table.
#[derive(Debug)]
pub(crate) struct Sent {
    /// By device and inode: number, and how many names have not come by yet.
    table: Table<(u64, u64), (u32, u64)>,
    next: u32,
}

/// What is to be sent of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// All of it.
    Plain,
    /// All of it, and under this number it may come again.
    First(u32),
    /// This is another name of the file with that number, and maybe its last.
    Again { number: u32, is_last: bool },
}

impl Sent {
    pub(crate) fn new() -> Self {
        Self { table: Table::new(), next: 0 }
    }

    /// `length`: of its path.
    pub(crate) fn turn(&mut self, metadata: &Metadata, length: usize) -> Turn {
        if metadata.nlink() < 2 {
            return Turn::Plain;
        }
        let key = (metadata.dev(), metadata.ino());
        if let Some((_, (number, left))) = self.table.files.get_mut(&key) {
            let number = *number;
            *left = left.saturating_sub(1);
            let is_last = *left == 0;
            if is_last {
                self.table.remove(&key);
            }
            return Turn::Again { number, is_last };
        }
        if !self.table.has_room(length) {
            return Turn::Plain;
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.table.insert(key, length, (number, metadata.nlink() - 1));
        Turn::First(number)
    }
}

/// A file that this copy has made.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    /// From the target's folder.
    pub(crate) path: Vec<OsString>,
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// The receiver's table, by number.
#[derive(Debug)]
pub(crate) struct Received {
    table: Table<u32, Made>,
}

impl Received {
    pub(crate) fn new() -> Self {
        Self { table: Table::new() }
    }

    /// Remembers a file; `false` when there is no room, which no honest sender comes to. `length`: of its
    /// path from what is copied, with a separator more than the sender counts.
    pub(crate) fn insert(&mut self, number: u32, length: usize, made: Made) -> bool {
        if self.table.files.len() >= MAX_FILES || self.table.bytes + length > MAX_BYTES + MAX_FILES {
            return false;
        }
        self.table.insert(number, length, made);
        true
    }

    pub(crate) fn get(&self, number: u32) -> Option<&Made> {
        self.table.files.get(&number).map(|(_, made)| made)
    }

    pub(crate) fn forget(&mut self, number: u32) {
        self.table.remove(&number);
    }
}
