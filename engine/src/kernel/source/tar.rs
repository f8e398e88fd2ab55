//! A tar archive of a kernel's tree: the inside of a package, a layer of an image, a file.
//!
//! The archive may be hostile: paths only ever select what is taken, nothing is written under a name
//! that comes from it, and links and devices in it are passed over.

use std::io::{self, BufRead, Read};

use liblzma::stream::Stream;
use vmdeck_ext4::Timestamp;

use super::{Budget, LimitError, ModuleFile, Part, Place, Sink};
use crate::error::Error;
use crate::kernel::decompress::{Compression, LZMA_MEMORY};

/// The longest name an extended header may give, in bytes.
const LONGEST_NAME: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub(super) enum TarError {
    #[error("{0} compression is not supported here")]
    Compression(&'static str),
    #[error("the tar archive is damaged")]
    Damaged(#[from] io::Error),
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// Not the archive's fault.
    #[error("its content could not be taken")]
    Sink(Error),
}

/// The plain bytes of a packed archive.
pub(super) fn unpack<'a>(
    packed: impl BufRead + 'a,
    compression: Option<Compression>,
) -> Result<Box<dyn Read + 'a>, TarError> {
    Ok(match compression {
        None => Box::new(packed),
        Some(Compression::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        Some(Compression::Xz) => {
            let stream = Stream::new_stream_decoder(LZMA_MEMORY, 0).map_err(io::Error::from)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(packed, stream))
        }
        Some(Compression::Zstd) => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
        Some(other) => return Err(TarError::Compression(other.name())),
    })
}

/// Hands what belongs to a kernel to `sink`.
pub(super) fn read(tar: impl Read, budget: &mut Budget, sink: &mut dyn Sink) -> Result<(), TarError> {
    let mut archive = tar::Archive::new(tar);
    // Raw, because the crate itself reads extended headers of any length into memory.
    let entries = archive.entries()?.raw(true);
    let mut long_name = None;
    for entry in entries {
        let mut entry = entry?;
        let size = entry.size();
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            let mut text = Vec::new();
            entry.take(LONGEST_NAME).read_to_end(&mut text)?;
            if kind.is_gnu_longname() {
                text.truncate(text.iter().position(|&byte| byte == 0).unwrap_or(text.len()));
                long_name = Some(text);
            } else {
                long_name = pax_path(&text).or(long_name);
            }
            continue;
        }
        let name = long_name.take().unwrap_or_else(|| entry.header().path_bytes().into_owned());
        let Ok(name) = String::from_utf8(name) else { continue };
        let Some(place) = Place::of(&name).filter(|_| kind.is_file()) else { continue };
        budget.take(&name, size)?;
        let modified = entry.header().mtime().unwrap_or_default();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        let part = match place {
            Place::Image { release } => Part::Image { release: Some(release.to_owned()), content },
            Place::Configuration => Part::Configuration(content),
            Place::Module { release, path } => Part::Module(ModuleFile {
                release: Some(release.to_owned()),
                path: path.to_owned(),
                modified: Timestamp { seconds: i64::try_from(modified).unwrap_or_default(), nanoseconds: 0 },
                content,
            }),
        };
        sink.take(part).map_err(TarError::Sink)?;
    }
    Ok(())
}

/// The record `path` of a pax extended header: lines of `LENGTH KEY=VALUE` (POSIX, pax, "pax
/// Extended Header").
fn pax_path(mut text: &[u8]) -> Option<Vec<u8>> {
    let mut path = None;
    while !text.is_empty() {
        let blank = text.iter().take(8).position(|&byte| byte == b' ')?;
        let length: usize = std::str::from_utf8(&text[..blank]).ok()?.parse().ok()?;
        let record = text.get(blank + 1..length)?.strip_suffix(b"\n")?;
        if let Some(value) = record.strip_prefix(b"path=") {
            path = Some(value.to_vec());
        }
        text = &text[length..];
    }
    path
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_path_of_an_extended_header_counts() {
        assert_eq!(pax_path(b"10 path=a\n12 mtime=1\n10 path=b\n"), None);
        assert_eq!(pax_path(b"9 path=a\n11 mtime=1\n9 path=b\n"), Some(b"b".to_vec()));
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(text in prop::collection::vec(prop_oneof![Just(b' '), Just(b'9'), Just(b'\n'), any::<u8>()], 0..60)) {
            let _ = pax_path(&text);
        }
    }
}
