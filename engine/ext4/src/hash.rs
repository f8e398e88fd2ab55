//! The half-MD4 hash of file names, by which indexed directories are ordered.
//!
//! Format: kernel documentation, `filesystems/ext4/directory.rst` (hash tree directories); the
//! function is that of `fs/ext4/hash.c`. Names are taken as signed or as unsigned bytes, as the
//! superblock says; this crate writes signed ones, like mke2fs on x86, since some readers know no
//! other.

/// Hash of a name; the second part orders names within a block and is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NameHash {
    /// Always even: the lowest bit marks, in an index, that a hash goes on from the block before.
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

const INITIAL: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
const K2: u32 = 0x5A82_7999;
const K3: u32 = 0x6ED9_EBA1;
/// The hash that means "end of the directory" to readers of a directory; no name may have it.
const END: u32 = 0xffff_fffe;

/// How the bytes of names are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    Signed,
    Unsigned,
}

/// `seed` is that of the superblock; all zeros stand for the constants of MD4.
pub(crate) fn half_md4(seed: &[u32; 4], name: &[u8], bytes: Bytes) -> NameHash {
    let mut state = if *seed == [0; 4] { INITIAL } else { *seed };
    let mut rest = name;
    while !rest.is_empty() {
        transform(&mut state, &words(rest, bytes));
        rest = &rest[rest.len().min(32)..];
    }
    let major = state[1] & !1;
    NameHash { major: if major == END { END - 2 } else { major }, minor: state[2] }
}

/// Up to 32 bytes of a name as words; the padding repeats the length of what is left of it.
fn words(name: &[u8], bytes: Bytes) -> [u32; 8] {
    let length = name.len() as u32;
    let pad = length | length << 8;
    let pad = pad | pad << 16;
    let mut words = [pad; 8];
    for (word, chunk) in words.iter_mut().zip(name.chunks(4)) {
        for byte in chunk {
            let value = match bytes {
                Bytes::Signed => i32::from(*byte as i8) as u32,
                Bytes::Unsigned => u32::from(*byte),
            };
            *word = value.wrapping_add(*word << 8);
        }
    }
    words
}

fn transform(state: &mut [u32; 4], words: &[u32; 8]) {
    let choose = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
    let majority = |x: u32, y: u32, z: u32| (x & y).wrapping_add((x ^ y) & z);
    let parity = |x: u32, y: u32, z: u32| x ^ y ^ z;
    let mut s = *state;
    // Each step works on the state rotated by one place: (a b c d), (d a b c), …
    let mut step = |index: usize, mixed: fn(u32, u32, u32) -> u32, word: u32, shift: u32| {
        let at = |offset: usize| (4 - index % 4 + offset) % 4;
        let (b, c, d) = (s[at(1)], s[at(2)], s[at(3)]);
        s[at(0)] = s[at(0)].wrapping_add(mixed(b, c, d)).wrapping_add(word).rotate_left(shift);
    };
    for (index, word) in [0, 1, 2, 3, 4, 5, 6, 7].into_iter().enumerate() {
        step(index, choose, words[word], [3, 7, 11, 19][index % 4]);
    }
    for (index, word) in [1, 3, 5, 7, 0, 2, 4, 6].into_iter().enumerate() {
        step(index, majority, words[word].wrapping_add(K2), [3, 5, 9, 13][index % 4]);
    }
    for (index, word) in [3, 7, 2, 6, 1, 5, 0, 4].into_iter().enumerate() {
        step(index, parity, words[word].wrapping_add(K3), [3, 9, 11, 15][index % 4]);
    }
    for (value, addend) in state.iter_mut().zip(s) {
        *value = value.wrapping_add(addend);
    }
}
