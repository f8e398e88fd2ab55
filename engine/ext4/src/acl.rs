//! POSIX access control lists: the form system calls use, and the shorter one ext4 stores.
//!
//! Formats: `include/uapi/linux/posix_acl_xattr.h` (version 2, entries of 8 bytes) and
//! `fs/ext4/acl.h` (version 1, entries of 4 bytes unless they name a user or group).

const XATTR_VERSION: u32 = 2;
const DISK_VERSION: u32 = 1;
const USER: u16 = 0x02;
const GROUP: u16 = 0x08;
const WITHOUT_ID: [u16; 4] = [0x01, 0x04, 0x10, 0x20];
/// What entries without an id carry in its place.
const UNDEFINED_ID: u32 = u32::MAX;

/// From the form of system calls to that on disk; `None` when it is malformed.
pub(crate) fn to_disk(xattr: &[u8]) -> Option<Vec<u8>> {
    let (version, entries) = xattr.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != XATTR_VERSION || entries.len() % 8 != 0 {
        return None;
    }
    let mut disk = DISK_VERSION.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        match tag {
            USER | GROUP => disk.extend_from_slice(entry),
            _ if WITHOUT_ID.contains(&tag) => disk.extend_from_slice(&entry[..4]),
            _ => return None,
        }
    }
    Some(disk)
}

/// From the form on disk to that of system calls; `None` when it is malformed.
pub(crate) fn from_disk(disk: &[u8]) -> Option<Vec<u8>> {
    let (version, mut entries) = disk.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != DISK_VERSION {
        return None;
    }
    let mut xattr = XATTR_VERSION.to_le_bytes().to_vec();
    while let Some((head, rest)) = entries.split_first_chunk::<4>() {
        let tag = u16::from_le_bytes([head[0], head[1]]);
        xattr.extend_from_slice(head);
        entries = rest;
        match tag {
            USER | GROUP => {
                let (id, rest) = entries.split_first_chunk::<4>()?;
                xattr.extend_from_slice(id);
                entries = rest;
            }
            _ if WITHOUT_ID.contains(&tag) => xattr.extend_from_slice(&UNDEFINED_ID.to_le_bytes()),
            _ => return None,
        }
    }
    entries.is_empty().then_some(xattr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, permissions: u16, id: u32) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    }

    #[test]
    fn the_two_forms_convert_into_each_other() {
        let mut xattr = 2u32.to_le_bytes().to_vec();
        for (tag, id) in [(1, u32::MAX), (2, 70_000), (4, u32::MAX), (0x10, u32::MAX), (0x20, u32::MAX)] {
            xattr.extend(entry(tag, 6, id));
        }
        let disk = to_disk(&xattr).unwrap();
        assert_eq!(disk.len(), 4 + 4 * 4 + 8);
        assert_eq!(from_disk(&disk).unwrap(), xattr);
    }

    #[test]
    fn malformed_lists_are_refused() {
        assert_eq!(to_disk(b""), None);
        assert_eq!(to_disk(&1u32.to_le_bytes()), None);
        assert_eq!(to_disk(&[&2u32.to_le_bytes()[..], &[1, 0, 7]].concat()), None);
        assert_eq!(to_disk(&[&2u32.to_le_bytes()[..], &entry(0x40, 7, 0)].concat()), None);
        assert_eq!(from_disk(&[&1u32.to_le_bytes()[..], &[2, 0, 7, 0]].concat()), None);
    }
}
