//! The binary index files that libkmod searches (`modules.*.bin`): a trie with compressed paths.
//!
//! Format (kmod, `libkmod/libkmod-index.c`), numbers big-endian: magic, version, place of the root
//! node; a node is its prefix (ended by a zero byte), then the first and last character of its
//! children and their places, then its values with their priorities. Flags in the high bits of a
//! node's place tell which of these it has. Children are written before their parent.

use std::collections::BTreeMap;

const MAGIC: u32 = 0xb007_f457;
/// 2.1
const VERSION: u32 = 0x0002_0001;
const HAS_PREFIX: u32 = 0x8000_0000;
const HAS_VALUES: u32 = 0x4000_0000;
const HAS_CHILDREN: u32 = 0x2000_0000;
/// Places have 28 bits.
const LARGEST: usize = 0x0fff_ffff;

/// An index under construction. Keys are ASCII.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: BTreeMap<Vec<u8>, Vec<(u32, String)>>,
}

impl Index {
    /// Adds a value to a key; those of lower priority numbers come first.
    ///
    /// Keys and values have passed [`super::module::is_plain`]: what has not is left out.
    pub(super) fn insert(&mut self, key: &str, value: &str, priority: u32) {
        if !super::module::is_plain(key) || value.contains('\0') || !value.is_ascii() {
            return;
        }
        let values = self.entries.entry(key.as_bytes().to_vec()).or_default();
        // Before those of the same priority, as depmod has it.
        let at = values.partition_point(|(other, _)| *other < priority);
        values.insert(at, (priority, value.to_owned()));
    }

    /// The file; `None` when it would be larger than the format allows (256 MiB).
    pub(super) fn to_bytes(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_be_bytes());
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend([0; 4]);
        let entries: Vec<_> =
            self.entries.iter().map(|(key, values)| (key.as_slice(), values.as_slice())).collect();
        // The root alone never has a prefix.
        let root = write_node(&mut bytes, &entries, 0, 0)?;
        bytes[8..12].copy_from_slice(&root.to_be_bytes());
        Some(bytes)
    }
}

type Entry<'a> = (&'a [u8], &'a [(u32, String)]);

/// Writes the node for `entries`, which are sorted and agree in their first `depth` bytes, of which
/// the node's prefix is the last `prefix`. Returns its place with its flags.
///
/// Recursion is as deep as the longest key, which is bounded.
fn write_node(bytes: &mut Vec<u8>, entries: &[Entry<'_>], depth: usize, prefix: usize) -> Option<u32> {
    let (own, below) = match entries.split_first() {
        Some((first, rest)) if first.0.len() == depth => (Some(*first), rest),
        _ => (None, entries),
    };
    let mut children: Vec<(u8, u32)> = Vec::new();
    for group in below.chunk_by(|left, right| left.0[depth] == right.0[depth]) {
        let end = common_length(group);
        let child = write_node(bytes, group, end, end - depth - 1)?;
        children.push((group[0].0[depth], child));
    }

    let mut place = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= LARGEST)?;
    if prefix > 0 {
        bytes.extend_from_slice(&entries.first()?.0[depth - prefix..depth]);
        bytes.push(0);
        place |= HAS_PREFIX;
    }
    if let (Some(&(first, _)), Some(&(last, _))) = (children.first(), children.last()) {
        bytes.extend([first, last]);
        let mut places = children.iter().peekable();
        for character in first..=last {
            let child = places.next_if(|(own, _)| *own == character).map_or(0, |(_, place)| *place);
            bytes.extend(child.to_be_bytes());
        }
        place |= HAS_CHILDREN;
    }
    if let Some((_, values)) = own {
        bytes.extend(u32::try_from(values.len()).ok()?.to_be_bytes());
        for (priority, value) in values {
            bytes.extend(priority.to_be_bytes());
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        }
        place |= HAS_VALUES;
    }
    Some(place)
}

/// How many bytes all keys of a sorted group agree in.
fn common_length(group: &[Entry<'_>]) -> usize {
    let (Some(first), Some(last)) = (group.first(), group.last()) else { return 0 };
    first.0.iter().zip(last.0).take_while(|(left, right)| left == right).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_has_the_bytes_of_the_format() {
        let mut index = Index::default();
        index.insert("one", "B", 2);
        index.insert("on", "A", 1);
        index.insert("one", "C", 1);
        let expected = [
            // magic, version, place of the root
            &[0xb0, 0x07, 0xf4, 0x57, 0, 2, 0, 1, 0x20, 0, 0, 46][..],
            // 12: leaf "one" (no prefix: its last character is the branch), two values
            &[0, 0, 0, 2, 0, 0, 0, 1, b'C', 0, 0, 0, 0, 2, b'B', 0],
            // 28: "on": prefix, child 'e', one value
            b"n\0ee\x40\0\0\x0c",
            &[0, 0, 0, 1, 0, 0, 0, 1, b'A', 0],
            // 46: root
            b"oo\xe0\0\0\x1c",
        ];
        assert_eq!(index.to_bytes().unwrap(), expected.concat());
    }

    #[test]
    fn an_empty_index_has_an_empty_root() {
        assert_eq!(Index::default().to_bytes().unwrap()[8..], [0, 0, 0, 12]);
    }
}
