//! Extended attributes (xattr(7)): which of them travel, and how they are read and set.
//!
//! | attribute | into a machine | out of one |
//! |---|---|---|
//! | `user.*` | kept | kept |
//! | `system.posix_acl_access`, `system.posix_acl_default` | kept | kept |
//! | `security.capability` | kept | dropped, as set-user-id bits are |
//! | all others | – | – |
//!
//! The others belong to the system they are on: labels of its security modules, notes of overlays.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;

use crate::Policy;

/// Longest name, longest value and longest list of names, in bytes (`XATTR_NAME_MAX`, `XATTR_SIZE_MAX`
/// and `XATTR_LIST_MAX` of Linux' limits.h).
pub(crate) const MAX_NAME: usize = 255;
pub(crate) const MAX_VALUE: usize = 64 * 1024;
const MAX_LIST: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    User,
    AccessList,
    Capability,
}

impl Kind {
    /// `None` for what does not travel.
    pub(crate) fn of(name: &OsStr) -> Option<Self> {
        match name.as_bytes() {
            b"system.posix_acl_access" | b"system.posix_acl_default" => Some(Self::AccessList),
            b"security.capability" => Some(Self::Capability),
            name if name.starts_with(b"user.") && name.len() <= MAX_NAME => Some(Self::User),
            _ => None,
        }
    }

    /// Whether it is taken from a peer.
    pub(crate) fn is_taken(self, policy: Policy) -> bool {
        match self {
            Self::User | Self::AccessList => true,
            // It lets a file run with rights that nobody here has given it.
            Self::Capability => policy == Policy::Trusted,
        }
    }
}

/// Tells all of a file's that travel, in the order of the file system.
pub(crate) fn each<E>(
    file: impl AsFd,
    mut tell: impl FnMut(&OsStr, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    // A file system without them, or one that does not let them be read, has none to tell.
    let Ok(list) = read(MAX_LIST, |buffer| flistxattr(&file, buffer)) else { return Ok(()) };
    for name in list.split(|byte| *byte == 0).map(OsStr::from_bytes) {
        // It may be gone by now.
        if Kind::of(name).is_some()
            && let Ok(value) = read(MAX_VALUE, |buffer| fgetxattr(&file, name, buffer))
        {
            tell(name, &value)?;
        }
    }
    Ok(())
}

/// Reads by a call that wants as much room as it has to say. Most files have little or nothing.
fn read(most: usize, mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 512];
    let length = match call(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer.resize(most, 0);
            call(&mut buffer)?
        }
        result => result?,
    };
    buffer.truncate(length);
    Ok(buffer)
}

/// Sets one; what was there under its name is replaced.
pub(crate) fn set(file: impl AsFd, name: &OsStr, value: &[u8]) -> io::Result<()> {
    fsetxattr(file, name, value, XattrFlags::empty()).map_err(|error| match error {
        // What ext4 says when all of a file's together are longer than a block.
        Errno::NOSPC => io::Error::other("there is no room for it"),
        error => error.into(),
    })
}
