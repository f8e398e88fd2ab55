//! Extended attributes of an inode.
//!
//! Format: kernel documentation, `filesystems/ext4/attributes.rst`.

use std::collections::BTreeMap;

use super::error::{ImageError, Result, corrupt};
use super::inode::RawInode;
use super::volume::Volume;
use crate::acl;
use crate::bytes::{get_u16, get_u32};
use crate::checksum::Seed;
use crate::xattr::{ACL_ACCESS, ACL_DEFAULT, MAGIC, block_checksum, namespace_prefix};

const ENTRY_HEADER: usize = 16;
pub(crate) const BLOCK_HEADER: usize = 32;

/// All attributes with their full names.
pub(crate) fn read(volume: &Volume, inode: &RawInode) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let room = inode.record.get(128 + inode.extra_size()..).unwrap_or_default();
    if inode.extra_size() > 0 && room.len() > 4 && get_u32(room, 0) == MAGIC {
        // Value offsets count from the first entry.
        entries(&room[4..], 0, inode.number, &mut found)?;
    }
    if inode.xattr_block() != 0 {
        let block = volume.block(inode.xattr_block())?;
        check_block(volume.shape.seed, inode.xattr_block(), &block)?;
        entries(&block, BLOCK_HEADER, inode.number, &mut found)?;
    }
    Ok(found)
}

pub(crate) fn check_block(seed: Option<Seed>, number: u64, block: &[u8]) -> Result<()> {
    if get_u32(block, 0) != MAGIC || get_u32(block, 8) != 1 {
        return corrupt("a block of extended attributes has no header");
    }
    match seed {
        Some(seed) if block_checksum(seed, number, block) != get_u32(block, 16) => {
            corrupt("a block of extended attributes does not match its checksum")
        }
        _ => Ok(()),
    }
}

fn entries(area: &[u8], first: usize, number: u32, found: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> Result<()> {
    let damaged = || corrupt(format!("the extended attributes of inode {number} make no sense"));
    let mut position = first;
    loop {
        if position + 4 > area.len() {
            return damaged();
        }
        if get_u32(area, position) == 0 {
            return Ok(());
        }
        if position + ENTRY_HEADER > area.len() {
            return damaged();
        }
        let name_length = usize::from(area[position]);
        let namespace = area[position + 1];
        if get_u32(area, position + 4) != 0 {
            return Err(ImageError::Unsupported {
                feature: "extended attributes in inodes of their own (ea_inode)",
            });
        }
        let offset = usize::from(get_u16(area, position + 2));
        let size = get_u32(area, position + 8) as usize;
        let Some(name) = area.get(position + ENTRY_HEADER..position + ENTRY_HEADER + name_length) else {
            return damaged();
        };
        let value = match size {
            0 => &[][..],
            _ => match offset.checked_add(size).and_then(|end| area.get(offset..end)) {
                Some(value) => value,
                None => return damaged(),
            },
        };
        let Some(prefix) = namespace_prefix(namespace) else { return damaged() };
        let value = if namespace == ACL_ACCESS.1 || namespace == ACL_DEFAULT.1 {
            match acl::from_disk(value) {
                Some(value) => value,
                None => return damaged(),
            }
        } else {
            value.to_vec()
        };
        found.insert([prefix, name].concat(), value);
        position += (ENTRY_HEADER + name_length).next_multiple_of(4);
    }
}
