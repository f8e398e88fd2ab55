//! Maps of sparse files: the GNU formats `S`, 0.0, 0.1 and 1.0.

use super::{BLOCK, TarError, number};

/// Content at `offset`; everything no fragment covers is zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rootfs) struct Fragment {
    pub(in crate::rootfs) offset: u64,
    pub(in crate::rootfs) length: u64,
}

/// Fragments of one file. GNU tar writes one for each run of data, so that this is a file of
/// 1 TiB with a hole every 4 MiB; a map takes 4 MiB of memory at most.
const FRAGMENTS: usize = 1 << 18;

pub(super) fn push(map: &mut Vec<Fragment>, fragment: Fragment) -> Result<(), TarError> {
    // A fragment of no bytes marks the end of the file.
    if fragment.length > 0 {
        if map.len() == FRAGMENTS {
            return Err(TarError::SparseMap);
        }
        map.push(fragment);
    }
    Ok(())
}

/// Checks that a map is sorted, fits the file, and asks for exactly the content that is stored.
pub(super) fn check(map: &[Fragment], size: u64, stored: u64) -> Result<(), TarError> {
    let mut end = 0;
    let mut sum: u64 = 0;
    for fragment in map {
        if fragment.offset < end {
            return Err(TarError::SparseMap);
        }
        end = fragment.offset.checked_add(fragment.length).ok_or(TarError::SparseMap)?;
        // Cannot overflow: the fragments do not overlap and end below 2^64.
        sum += fragment.length;
    }
    if end > size || sum != stored { Err(TarError::SparseMap) } else { Ok(()) }
}

/// Reads the structs of an old GNU header (4 of them) or extension block (21): offset and length,
/// 12 bytes each. Stops at the first unused one.
pub(super) fn old_gnu(structs: &[u8], map: &mut Vec<Fragment>) -> Result<(), TarError> {
    for fragment in structs.chunks_exact(24) {
        if fragment[0] == 0 || fragment[12] == 0 {
            break;
        }
        let part = |bytes| {
            number::field(bytes, "sparse map").and_then(|n| u64::try_from(n).map_err(|_| TarError::SparseMap))
        };
        push(map, Fragment { offset: part(&fragment[..12])?, length: part(&fragment[12..])? })?;
    }
    Ok(())
}

/// Reads the map in front of the content of a version 1.0 file: decimal numbers, one a line, first
/// the count of fragments, then offset and length of each; filled up to a whole block.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    /// Digits of a number that goes on in the next block.
    digits: Vec<u8>,
    /// Numbers still to come; `None` before the first.
    missing: Option<u64>,
    offset: Option<u64>,
    map: Vec<Fragment>,
}

impl MapReader {
    /// Takes one block; true when the map is complete.
    pub(super) fn block(&mut self, block: &[u8; BLOCK]) -> Result<bool, TarError> {
        for byte in block {
            if *byte != b'\n' {
                if self.digits.len() == 20 {
                    return Err(TarError::SparseMap);
                }
                self.digits.push(*byte);
                continue;
            }
            let number: u64 = number::decimal(&self.digits).ok_or(TarError::SparseMap)?;
            self.digits.clear();
            let missing = match self.missing {
                None if number > FRAGMENTS as u64 => return Err(TarError::SparseMap),
                None => number * 2,
                Some(missing) => {
                    match self.offset.take() {
                        None => self.offset = Some(number),
                        Some(offset) => push(&mut self.map, Fragment { offset, length: number })?,
                    }
                    missing - 1
                }
            };
            self.missing = Some(missing);
            if missing == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn finish(self) -> Vec<Fragment> {
        self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(offset: u64, length: u64) -> Fragment {
        Fragment { offset, length }
    }

    #[test]
    fn maps_must_be_sorted_fit_and_match_what_is_stored() {
        assert_eq!(check(&[fragment(0, 10), fragment(10, 5)], 20, 15), Ok(()));
        assert_eq!(check(&[], 1 << 40, 0), Ok(()));
        for (map, size, stored) in [
            (vec![fragment(5, 10), fragment(10, 5)], 20, 15),
            (vec![fragment(0, 10)], 9, 10),
            (vec![fragment(0, 10)], 20, 9),
            (vec![fragment(u64::MAX, 10)], u64::MAX, 10),
        ] {
            assert_eq!(check(&map, size, stored), Err(TarError::SparseMap));
        }
    }

    #[test]
    fn a_map_may_run_over_several_blocks() {
        let text: String = "100\n"
            .chars()
            .chain((0..100).flat_map(|i| format!("{}\n1\n", i * 4096).chars().collect::<Vec<_>>()))
            .collect();
        let mut bytes = text.into_bytes();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        let mut reader = MapReader::default();
        let blocks: Vec<&[u8; BLOCK]> = bytes.as_chunks().0.iter().collect();
        for (position, block) in blocks.iter().enumerate() {
            assert_eq!(reader.block(block).unwrap(), position + 1 == blocks.len());
        }
        let map = reader.finish();
        assert_eq!(map.len(), 100);
        assert_eq!(map[99], fragment(99 * 4096, 1));
    }

    #[test]
    fn an_endless_map_is_refused() {
        let mut block = [b'1'; BLOCK];
        assert!(MapReader::default().block(&block).is_err());
        block[..8].copy_from_slice(b"9999999\n");
        assert!(MapReader::default().block(&block).is_err());
    }
}
