//! Extended attributes: in the room behind the inode's fields, then in one block of their own.
//!
//! Format: kernel documentation, `filesystems/ext4/attributes.rst`; hashes as `fs/ext4/xattr.c`
//! computes them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::acl;
use crate::bytes::{put_u16, put_u32};
use crate::checksum::Seed;
use crate::geometry::BLOCK;

pub(crate) const MAGIC: u32 = 0xEA02_0000;
/// Bytes of an entry before its name.
const ENTRY_HEADER: usize = 16;
/// Bytes of the header of an attribute block.
const BLOCK_HEADER: usize = 32;
/// Bytes behind the fields of a 256-byte inode with 32 bytes of extra fields.
pub(crate) const INODE_ROOM: usize = 96;

/// Prefixes of attribute names and the numbers that stand for them on disk.
const NAMESPACES: [(&[u8], u8); 4] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6), (b"system.", 7)];
pub(crate) const ACL_ACCESS: (&[u8], u8) = (b"system.posix_acl_access", 2);
pub(crate) const ACL_DEFAULT: (&[u8], u8) = (b"system.posix_acl_default", 3);

/// Why the extended attributes of an inode cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XattrError {
    #[error(
        "ext4 has no name space for the extended attribute `{name}` (it knows user, trusted, security and system)"
    )]
    UnknownNamespace { name: String },
    #[error("the name of the extended attribute `{name}` is empty or longer than 255 bytes")]
    NameLength { name: String },
    #[error("the access control list in `{name}` is malformed")]
    MalformedAcl { name: String },
    #[error(
        "its extended attributes take {needed} bytes beside the inode; ext4 holds at most {limit} there, names and headers included"
    )]
    TooLarge { needed: usize, limit: usize },
}

/// Whether ext4 can hold an attribute of this name at all.
pub fn xattr_name_is_supported(name: &[u8]) -> bool {
    split_name(name).is_ok()
}

/// One attribute in the form it has on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry<'a> {
    namespace: u8,
    name: &'a [u8],
    value: Cow<'a, [u8]>,
}

impl Entry<'_> {
    fn size(&self) -> usize {
        (ENTRY_HEADER + self.name.len()).next_multiple_of(4) + self.value.len().next_multiple_of(4)
    }

    /// `ext4_xattr_hash_entry`: of the name's bytes and the value's words.
    fn hash(&self) -> u32 {
        let mut hash = 0u32;
        for byte in self.name {
            hash = hash.rotate_left(5) ^ u32::from(*byte);
        }
        for chunk in self.value.chunks(4) {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = hash.rotate_left(16) ^ u32::from_le_bytes(word);
        }
        hash
    }
}

/// The attributes of one inode, divided between the two places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes<'a> {
    in_inode: Vec<Entry<'a>>,
    in_block: Vec<Entry<'a>>,
}

impl<'a> Attributes<'a> {
    pub(crate) fn place(xattrs: &'a BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Self, XattrError> {
        Self::place_in(xattrs, INODE_ROOM, BLOCK)
    }

    /// The same for inodes with `inode_room` bytes behind their fields and blocks of `block_size`.
    pub(crate) fn place_in(
        xattrs: &'a BTreeMap<Vec<u8>, Vec<u8>>,
        inode_room: usize,
        block_size: usize,
    ) -> Result<Self, XattrError> {
        let mut placed = Self::default();
        if xattrs.is_empty() {
            return Ok(placed);
        }
        let mut entries = Vec::with_capacity(xattrs.len());
        for (name, value) in xattrs {
            let (namespace, suffix) = split_name(name)?;
            let value = if namespace == ACL_ACCESS.1 || namespace == ACL_DEFAULT.1 {
                let acl = acl::to_disk(value);
                Cow::Owned(acl.ok_or_else(|| XattrError::MalformedAcl { name: display(name) })?)
            } else {
                Cow::Borrowed(value.as_slice())
            };
            entries.push(Entry { namespace, name: suffix, value });
        }
        // The order the kernel searches attribute blocks in.
        entries.sort_by(|a, b| (a.namespace, a.name.len(), a.name).cmp(&(b.namespace, b.name.len(), b.name)));
        // Beside the magic number and the zero word that ends the list.
        let mut inode_left = inode_room.saturating_sub(8);
        let block_capacity = block_size - BLOCK_HEADER - 4;
        let mut needed = 0;
        for entry in entries {
            let size = entry.size();
            if size <= inode_left {
                inode_left -= size;
                placed.in_inode.push(entry);
            } else {
                needed += size;
                placed.in_block.push(entry);
            }
        }
        if needed > block_capacity {
            return Err(XattrError::TooLarge { needed, limit: block_capacity });
        }
        Ok(placed)
    }

    pub(crate) fn needs_block(&self) -> bool {
        !self.in_block.is_empty()
    }

    /// Writes the attributes that fit behind the inode's fields. `room` is zeroed.
    pub(crate) fn encode_in_inode(&self, room: &mut [u8]) {
        if self.in_inode.is_empty() {
            return;
        }
        put_u32(room, 0, MAGIC);
        // Value offsets in an inode count from the first entry.
        encode_entries(&self.in_inode, &mut room[4..], 0);
    }

    /// Writes the attribute block that will lie at `block`. `record` is zeroed.
    pub(crate) fn encode_block(&self, seed: Option<Seed>, block: u64, record: &mut [u8]) {
        put_u32(record, 0, MAGIC);
        put_u32(record, 4, 1); // references
        put_u32(record, 8, 1); // blocks
        // Value offsets in a block count from its start.
        let hash = encode_entries(&self.in_block, record, BLOCK_HEADER);
        put_u32(record, 12, hash);
        if let Some(seed) = seed {
            let checksum = block_checksum(seed, block, record);
            put_u32(record, 16, checksum);
        }
    }
}

/// The checksum that belongs into an attribute block.
pub(crate) fn block_checksum(seed: Seed, block: u64, record: &[u8]) -> u32 {
    let mut checked = Vec::with_capacity(8 + record.len());
    checked.extend_from_slice(&block.to_le_bytes());
    checked.extend_from_slice(record);
    checked[8 + 16..8 + 20].fill(0);
    seed.checksum(&checked)
}

/// Entries from `first` upwards, values from the end downwards. Returns the hash over all entries.
fn encode_entries(entries: &[Entry<'_>], area: &mut [u8], first: usize) -> u32 {
    let mut position = first;
    let mut value_end = area.len();
    let mut all = 0u32;
    for entry in entries {
        let hash = entry.hash();
        area[position] = entry.name.len() as u8;
        area[position + 1] = entry.namespace;
        if !entry.value.is_empty() {
            value_end -= entry.value.len().next_multiple_of(4);
            area[value_end..value_end + entry.value.len()].copy_from_slice(&entry.value);
            put_u16(area, position + 2, value_end as u16);
        }
        put_u32(area, position + 8, entry.value.len() as u32);
        put_u32(area, position + 12, hash);
        area[position + ENTRY_HEADER..][..entry.name.len()].copy_from_slice(entry.name);
        position += (ENTRY_HEADER + entry.name.len()).next_multiple_of(4);
        all = all.rotate_left(16) ^ hash;
    }
    all
}

fn split_name(name: &[u8]) -> Result<(u8, &[u8]), XattrError> {
    for (full, namespace) in [ACL_ACCESS, ACL_DEFAULT] {
        if name == full {
            return Ok((namespace, b""));
        }
    }
    for (prefix, namespace) in NAMESPACES {
        if let Some(suffix) = name.strip_prefix(prefix) {
            if suffix.is_empty() || suffix.len() > 255 || suffix.contains(&0) {
                return Err(XattrError::NameLength { name: display(name) });
            }
            return Ok((namespace, suffix));
        }
    }
    Err(XattrError::UnknownNamespace { name: display(name) })
}

/// What stands before the names of a name space; `None` for numbers that stand for nothing.
pub(crate) fn namespace_prefix(namespace: u8) -> Option<&'static [u8]> {
    [ACL_ACCESS, ACL_DEFAULT]
        .into_iter()
        .chain(NAMESPACES)
        .find(|(_, number)| *number == namespace)
        .map(|(prefix, _)| prefix)
}

fn display(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &[u8])]) -> BTreeMap<Vec<u8>, Vec<u8>> {
        pairs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect()
    }

    #[test]
    fn small_attributes_stay_in_the_inode() {
        let xattrs = map(&[("security.capability", &[1; 20])]);
        assert!(!Attributes::place(&xattrs).unwrap().needs_block());
        let xattrs = map(&[("security.capability", &[1; 20]), ("user.big", &[1; 3000])]);
        let placed = Attributes::place(&xattrs).unwrap();
        assert_eq!((placed.in_inode.len(), placed.in_block.len()), (1, 1));
    }

    #[test]
    fn what_ext4_cannot_hold_is_named() {
        let error = Attributes::place(&map(&[("com.apple.provenance", b"x")])).unwrap_err();
        assert!(error.to_string().contains("com.apple.provenance"), "{error}");
        assert!(matches!(Attributes::place(&map(&[("user.", b"x")])), Err(XattrError::NameLength { .. })));
        let error = Attributes::place(&map(&[("user.a", &[0; 4096])])).unwrap_err();
        assert!(error.to_string().contains("4060"), "{error}");
        assert!(matches!(
            Attributes::place(&map(&[("system.posix_acl_access", b"x")])),
            Err(XattrError::MalformedAcl { .. })
        ));
        assert!(xattr_name_is_supported(b"user.a"));
        assert!(!xattr_name_is_supported(b"com.apple.quarantine"));
    }
}
