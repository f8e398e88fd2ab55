//! A Debian package: `data.tar` in an `ar` archive (deb(5)).
//!
//! The package may be hostile: paths only ever select what is taken, nothing is written under a name
//! that comes from it, and links and devices in it are passed over.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use liblzma::stream::Stream;
use vmdeck_ext4::Timestamp;

use super::ar::{ArError, Members};
use super::{Budget, LimitError, ModuleFile, Part, Place, Reading, Sink};
use crate::error::{Error, Result};
use crate::kernel::decompress::LZMA_MEMORY;

/// The longest name an extended header may give, in bytes.
const LONGEST_NAME: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub(super) enum DebError {
    #[error(transparent)]
    Ar(#[from] ArError),
    #[error("its `{}` is compressed in a way that is not supported", .0.escape_debug())]
    Compression(String),
    #[error("it has no data.tar")]
    NoData,
    #[error("its data.tar is damaged")]
    Tar(#[source] io::Error),
    #[error(transparent)]
    Limit(#[from] LimitError),
}

/// Hands what belongs to a kernel to `sink`.
pub(super) fn read(
    path: &Path,
    reading: Reading<'_>,
    budget: &mut Budget,
    sink: &mut dyn Sink,
) -> Result<()> {
    let fail = |error: DebError| {
        if reading.cancel.is_cancelled() {
            return Error::cancelled();
        }
        Error::failed(format!("cannot read the package `{}`", path.display())).with_source(error)
    };
    let file = File::open(path)
        .map_err(|error| Error::io(format!("cannot open the package `{}`", path.display()), error))?;
    let mut members = Members::new(Counted { file, reading }).map_err(|error| fail(error.into()))?;
    while let Some(member) = members.advance().map_err(|error| fail(error.into()))? {
        let Some(suffix) = member.name.strip_prefix("data.tar") else { continue };
        let content = BufReader::with_capacity(256 << 10, members.reader().take(member.size));
        let tar: Box<dyn Read + '_> = match suffix {
            "" => Box::new(content),
            ".gz" => Box::new(flate2::bufread::GzDecoder::new(content)),
            ".xz" => {
                let stream = Stream::new_stream_decoder(LZMA_MEMORY, 0)
                    .map_err(|error| fail(DebError::Tar(error.into())))?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(content, stream))
            }
            ".zst" => Box::new(
                zstd::stream::read::Decoder::with_buffer(content)
                    .map_err(|error| fail(DebError::Tar(error)))?,
            ),
            _ => return Err(fail(DebError::Compression(member.name.clone()))),
        };
        return read_tar(tar, budget, sink, &fail);
    }
    Err(fail(DebError::NoData))
}

fn read_tar(
    tar: impl Read,
    budget: &mut Budget,
    sink: &mut dyn Sink,
    fail: &dyn Fn(DebError) -> Error,
) -> Result<()> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().map_err(|error| fail(DebError::Tar(error)))?.raw(true);
    // Raw, because the crate itself reads extended headers of any length into memory.
    let mut long_name = None;
    for entry in entries {
        let mut entry = entry.map_err(|error| fail(DebError::Tar(error)))?;
        let size = entry.size();
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            let mut text = Vec::new();
            entry.take(LONGEST_NAME).read_to_end(&mut text).map_err(|error| fail(DebError::Tar(error)))?;
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
        budget.take(&name, size).map_err(|error| fail(error.into()))?;
        let modified = entry.header().mtime().unwrap_or_default();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(|error| fail(DebError::Tar(error)))?;
        sink.take(match place {
            Place::Image { release } => Part::Image { release: Some(release.to_owned()), content },
            Place::Configuration => Part::Configuration(content),
            Place::Module { release, path } => Part::Module(ModuleFile {
                release: Some(release.to_owned()),
                path: path.to_owned(),
                modified: Timestamp { seconds: i64::try_from(modified).unwrap_or_default(), nanoseconds: 0 },
                content,
            }),
        })?;
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

/// A file whose reading is counted and can be cancelled.
struct Counted<'a> {
    file: File,
    reading: Reading<'a>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.reading.cancel.is_cancelled() {
            // `Interrupted` would be tried again.
            return Err(io::Error::other("cancelled"));
        }
        let count = self.file.read(buffer)?;
        self.reading.progress.advance(count as u64);
        Ok(count)
    }
}

impl io::Seek for Counted<'_> {
    fn seek(&mut self, position: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}
