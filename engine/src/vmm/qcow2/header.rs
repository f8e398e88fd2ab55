//! The header of a qcow2 file: written in one form, read in every form that the rest of this
//! module can handle. A file may come from anywhere; nothing here trusts a number in it.

use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{CLUSTER, CLUSTER_BITS, DiskFormat, L1_ENTRIES, L1_TABLE, REFCOUNT_TABLE};

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Length of a version 3 header without `compression_type`, which is for images that compress.
const HEADER_LENGTH: u32 = 104;
const BACKING_FORMAT_EXTENSION: u32 = 0xe279_2aca;
/// Longest name of a backing file (qcow2.txt, "backing_file_size").
pub(super) const MAX_BACKING_NAME: usize = 1023;
/// Where the header keeps the virtual size.
pub(super) const SIZE_OFFSET: u64 = 24;
/// QEMU's own limit (`QCOW_MAX_L1_SIZE`).
const MAX_L1_BYTES: u64 = 32 << 20;

const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_EXTERNAL_DATA: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION_TYPE: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

/// What a header says, checked against the limits of the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the disk in bytes.
    pub virtual_size: u64,
    /// As written in the file: relative to the overlay's folder, or absolute.
    pub backing: Option<PathBuf>,
    /// `None` where the header does not tell.
    pub backing_format: Option<DiskFormat>,
    pub(super) cluster_bits: u32,
    pub(super) l1_entries: u32,
    pub(super) l1_offset: u64,
    /// Compressed clusters are zstd, not deflate.
    pub(super) zstd: bool,
    /// L2 entries have 16 bytes: a second word tells 32 parts of the cluster apart.
    pub(super) extended_l2: bool,
}

/// Why a file is no qcow2 disk, or none that vmdeck can use.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("cannot read it")]
    Io(#[from] io::Error),
    #[error("it does not begin like a qcow2 file")]
    Magic,
    #[error("qcow2 version {0} is not known")]
    Version(u32),
    #[error("it is encrypted")]
    Encrypted,
    #[error("it is marked as corrupt")]
    Corrupt,
    #[error("its data is in another file")]
    ExternalData,
    #[error("it needs features that are not known (bits {0:#x})")]
    Features(u64),
    #[error("its header has a {0} that is out of range")]
    OutOfRange(&'static str),
}

impl Header {
    /// Reads the header and its extensions.
    pub fn read(file: &File) -> Result<Self, HeaderError> {
        // Header, extensions and backing name lie in the first cluster; 64 KiB is far more than
        // they can fill with what is known of them.
        let length = file.metadata()?.len();
        let mut bytes = vec![0; usize::try_from(length.min(CLUSTER)).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        Self::parse(&bytes)
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.get(..4) != Some(&MAGIC) {
            return Err(HeaderError::Magic);
        }
        let truncated = HeaderError::OutOfRange("length");
        let u32_at = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let (Some(version), Some(backing_offset), Some(backing_length), Some(cluster_bits)) =
            (u32_at(4), u64_at(8), u32_at(16), u32_at(20))
        else {
            return Err(truncated);
        };
        let (Some(virtual_size), Some(encryption), Some(l1_entries), Some(l1_offset)) =
            (u64_at(24), u32_at(32), u32_at(36), u64_at(40))
        else {
            return Err(truncated);
        };
        let (incompatible, header_length) = match version {
            2 => (0, 72),
            3 => match (u64_at(72), u32_at(100)) {
                (Some(features), Some(length)) => (features, length),
                _ => return Err(truncated),
            },
            other => return Err(HeaderError::Version(other)),
        };
        if encryption != 0 {
            return Err(HeaderError::Encrypted);
        }
        if incompatible & INCOMPATIBLE_CORRUPT != 0 {
            return Err(HeaderError::Corrupt);
        }
        if incompatible & INCOMPATIBLE_EXTERNAL_DATA != 0 {
            return Err(HeaderError::ExternalData);
        }
        // Dirty means that refcounts may be stale; reading needs none.
        let known = INCOMPATIBLE_DIRTY | INCOMPATIBLE_COMPRESSION_TYPE | INCOMPATIBLE_EXTENDED_L2;
        if incompatible & !known != 0 {
            return Err(HeaderError::Features(incompatible & !known));
        }
        let extended_l2 = incompatible & INCOMPATIBLE_EXTENDED_L2 != 0;
        let least_bits = if extended_l2 { 14 } else { 9 };
        if !(least_bits..=21).contains(&cluster_bits) {
            return Err(HeaderError::OutOfRange("cluster size"));
        }
        let compression = match incompatible & INCOMPATIBLE_COMPRESSION_TYPE {
            0 => 0,
            _ => *bytes.get(104).ok_or(truncated)?,
        };
        if compression > 1 {
            return Err(HeaderError::OutOfRange("compression type"));
        }
        if u64::from(l1_entries) * 8 > MAX_L1_BYTES {
            return Err(HeaderError::OutOfRange("table of clusters"));
        }
        if l1_offset >> 56 != 0 || !l1_offset.is_multiple_of(1 << cluster_bits) {
            return Err(HeaderError::OutOfRange("place of its table of clusters"));
        }
        let mut header = Self {
            virtual_size,
            backing: None,
            backing_format: None,
            cluster_bits,
            l1_entries,
            l1_offset,
            zstd: compression == 1,
            extended_l2,
        };
        if u64::from(l1_entries).saturating_mul(header.bytes_per_l1_entry()) < virtual_size {
            return Err(HeaderError::OutOfRange("size"));
        }
        if backing_offset != 0 {
            let name = usize::try_from(backing_offset)
                .ok()
                .zip(usize::try_from(backing_length).ok())
                .filter(|&(_, length)| (1..=MAX_BACKING_NAME).contains(&length))
                .and_then(|(offset, length)| bytes.get(offset..offset.checked_add(length)?))
                .filter(|name| !name.contains(&0))
                .ok_or(HeaderError::OutOfRange("name of its backing file"))?;
            header.backing = Some(std::ffi::OsString::from_vec(name.to_vec()).into());
        }
        header.backing_format =
            backing_format(bytes.get(usize::try_from(header_length).unwrap_or(usize::MAX)..))?;
        Ok(header)
    }

    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(super) fn l2_entry_bytes(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    pub(super) fn bytes_per_l1_entry(&self) -> u64 {
        self.cluster() / self.l2_entry_bytes() * self.cluster()
    }
}

/// Looks for the backing file's format among the header's extensions.
fn backing_format(extensions: Option<&[u8]>) -> Result<Option<DiskFormat>, HeaderError> {
    let mut rest = extensions.unwrap_or_default();
    while let Some((head, after)) = rest.split_first_chunk::<8>() {
        let [kind, length] = [&head[..4], &head[4..]]
            .map(|word| u32::from_be_bytes(word.try_into().expect("a word has four bytes")));
        if kind == 0 {
            break;
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let data = after.get(..length).ok_or(HeaderError::OutOfRange("header extension"))?;
        if kind == BACKING_FORMAT_EXTENSION {
            return match data {
                b"raw" | b"file" => Ok(Some(DiskFormat::Raw)),
                b"qcow2" => Ok(Some(DiskFormat::Qcow2)),
                _ => Err(HeaderError::OutOfRange("format of its backing file")),
            };
        }
        rest = after.get(length.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(None)
}

/// The first bytes of a new disk: header, extensions, name of the backing file.
pub(super) fn encode(backing: Option<(&Path, DiskFormat)>, bytes: u64) -> Vec<u8> {
    let name = backing.map_or(&[][..], |(path, _)| path.as_os_str().as_bytes());
    let mut extensions = Vec::new();
    if let Some((_, format)) = backing {
        let format: &[u8] = match format {
            DiskFormat::Raw => b"raw",
            DiskFormat::Qcow2 => b"qcow2",
        };
        extensions.extend(BACKING_FORMAT_EXTENSION.to_be_bytes());
        extensions.extend((format.len() as u32).to_be_bytes());
        extensions.extend(format);
        extensions.resize(extensions.len().next_multiple_of(8), 0);
    }
    // The end of the extensions.
    extensions.extend([0; 8]);
    let name_offset = if backing.is_some() { u64::from(HEADER_LENGTH) + extensions.len() as u64 } else { 0 };

    let mut header = Vec::with_capacity(512);
    header.extend(MAGIC);
    header.extend(3_u32.to_be_bytes());
    header.extend(name_offset.to_be_bytes());
    header.extend((name.len() as u32).to_be_bytes());
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(bytes.to_be_bytes());
    header.extend(0_u32.to_be_bytes()); // not encrypted
    header.extend((L1_ENTRIES as u32).to_be_bytes());
    header.extend(L1_TABLE.to_be_bytes());
    header.extend(REFCOUNT_TABLE.to_be_bytes());
    header.extend(1_u32.to_be_bytes()); // clusters of the refcount table
    header.extend(0_u32.to_be_bytes()); // no snapshots
    header.extend(0_u64.to_be_bytes());
    header.extend([0; 24]); // features: incompatible, compatible, autoclear
    header.extend(4_u32.to_be_bytes()); // refcounts of 1 << 4 bits
    header.extend(HEADER_LENGTH.to_be_bytes());
    header.extend(extensions);
    header.extend(name);
    header
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let bytes = encode(Some((Path::new("../images/a/rootfs.ext4"), DiskFormat::Raw)), 8 << 30);
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header.backing.as_deref(), Some(Path::new("../images/a/rootfs.ext4")));
        assert_eq!(header.backing_format, Some(DiskFormat::Raw));
        assert_eq!(header.virtual_size, 8 << 30);
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_reason() {
        let good = encode(None, 1 << 20);
        let patched = |at: usize, bytes: &[u8]| {
            let mut header = good.clone();
            header[at..at + bytes.len()].copy_from_slice(bytes);
            Header::parse(&header)
        };
        assert!(matches!(patched(0, b"qfi"), Err(HeaderError::Magic)));
        assert!(matches!(patched(4, &4_u32.to_be_bytes()), Err(HeaderError::Version(4))));
        assert!(matches!(patched(32, &1_u32.to_be_bytes()), Err(HeaderError::Encrypted)));
        assert!(matches!(patched(72, &2_u64.to_be_bytes()), Err(HeaderError::Corrupt)));
        assert!(matches!(patched(72, &(1_u64 << 40).to_be_bytes()), Err(HeaderError::Features(_))));
        assert!(matches!(patched(20, &63_u32.to_be_bytes()), Err(HeaderError::OutOfRange(_))));
        assert!(matches!(patched(24, &u64::MAX.to_be_bytes()), Err(HeaderError::OutOfRange("size"))));
        assert!(matches!(patched(36, &u32::MAX.to_be_bytes()), Err(HeaderError::OutOfRange(_))));
    }

    proptest! {
        #[test]
        fn hostile_headers_do_not_panic(
            patches in proptest::collection::vec((4_usize..160, any::<u8>()), 0..24),
            length in 0_usize..200,
        ) {
            let mut bytes = encode(Some((Path::new("base"), DiskFormat::Qcow2)), 1 << 30);
            bytes.resize(200, 0);
            for (at, byte) in patches {
                bytes[at] = byte;
            }
            bytes.truncate(length);
            let _ = Header::parse(&bytes);
        }
    }
}
