//! Points in time as inodes hold them: 32 bits of seconds, and a word with 2 more bits of seconds
//! and 30 bits of nanoseconds.
//!
//! Format: kernel documentation, `filesystems/ext4/inodes.rst` (inode timestamps).

use crate::tree::Timestamp;

/// 1901-12-13T20:45:52Z.
const FIRST: i64 = i32::MIN as i64;
/// 2446-05-10T22:38:55Z.
const LAST: i64 = i32::MAX as i64 + (3 << 32);

/// The word with the seconds and the extra word. What lies outside of the range is clamped.
pub(crate) fn encode(time: Timestamp) -> (u32, u32) {
    let (seconds, nanoseconds) = if time.seconds < FIRST {
        (FIRST, 0)
    } else if time.seconds > LAST {
        (LAST, 999_999_999)
    } else {
        (time.seconds, time.nanoseconds.min(999_999_999))
    };
    let low = seconds as i32;
    let epoch = (((seconds - i64::from(low)) >> 32) & 3) as u32;
    (low as u32, nanoseconds << 2 | epoch)
}

/// The point in time that the two words stand for.
pub(crate) fn decode(low: u32, extra: u32) -> Timestamp {
    Timestamp {
        seconds: i64::from(low as i32) + (i64::from(extra & 3) << 32),
        nanoseconds: (extra >> 2).min(999_999_999),
    }
}

/// The seconds as the superblock holds them: 40 bits, never negative.
pub(crate) fn superblock(time: Timestamp) -> (u32, u8) {
    let seconds = time.seconds.clamp(0, (1 << 40) - 1) as u64;
    (seconds as u32, (seconds >> 32) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_from_1901_to_2446_survive() {
        for seconds in [FIRST, -1, 0, 1, i64::from(i32::MAX), 1 << 31, 4_102_444_800, 1 << 33, LAST] {
            let time = Timestamp { seconds, nanoseconds: 123_456_789 };
            let (low, extra) = encode(time);
            assert_eq!(decode(low, extra), time);
        }
    }

    #[test]
    fn times_outside_are_clamped() {
        let at = |seconds| {
            let (low, extra) = encode(Timestamp { seconds, nanoseconds: 5 });
            decode(low, extra)
        };
        assert_eq!(at(i64::MIN), Timestamp { seconds: FIRST, nanoseconds: 0 });
        assert_eq!(at(i64::MAX), Timestamp { seconds: LAST, nanoseconds: 999_999_999 });
        assert_eq!(superblock(Timestamp { seconds: -5, nanoseconds: 0 }), (0, 0));
        assert_eq!(superblock(Timestamp { seconds: 0x1_8000_0001, nanoseconds: 0 }), (0x8000_0001, 1));
    }
}
