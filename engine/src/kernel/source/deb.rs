//! A Debian package: `data.tar` in an `ar` archive (deb(5)).

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::ar::{ArError, Members};
use super::file::Counted;
use super::tar::{self, TarError};
use super::{Budget, Reading, Sink};
use crate::error::{Error, Result};
use crate::kernel::decompress::Compression;
use crate::regular_file;

#[derive(Debug, thiserror::Error)]
enum DebError {
    #[error(transparent)]
    Ar(#[from] ArError),
    #[error("its `{}` is compressed in a way that is not supported", .0.escape_debug())]
    Compression(String),
    #[error("it has no data.tar")]
    NoData,
    #[error("its data.tar cannot be read")]
    Tar(#[from] TarError),
}

/// Hands what belongs to a kernel to `sink`.
pub(super) fn read(
    path: &Path,
    reading: Reading<'_>,
    budget: &mut Budget,
    sink: &mut dyn Sink,
) -> Result<()> {
    let (file, _) = regular_file::open(path)
        .map_err(|error| Error::io(format!("cannot open the package `{}`", path.display()), error))?;
    read_members(file, reading, budget, sink).map_err(|error| match error {
        _ if reading.cancel.is_cancelled() => Error::cancelled(),
        DebError::Tar(TarError::Sink(error)) => error,
        error => Error::failed(format!("cannot read the package `{}`", path.display())).with_source(error),
    })
}

fn read_members(
    file: File,
    reading: Reading<'_>,
    budget: &mut Budget,
    sink: &mut dyn Sink,
) -> Result<(), DebError> {
    let mut members = Members::new(Counted::new(file, reading))?;
    while let Some(member) = members.advance()? {
        let Some(suffix) = member.name.strip_prefix("data.tar") else { continue };
        let compression = match suffix {
            "" => None,
            ".gz" => Some(Compression::Gzip),
            ".xz" => Some(Compression::Xz),
            ".zst" => Some(Compression::Zstd),
            _ => return Err(DebError::Compression(member.name)),
        };
        let packed = BufReader::with_capacity(256 << 10, members.reader().take(member.size));
        return Ok(tar::read(tar::unpack(packed, compression)?, budget, sink)?);
    }
    Err(DebError::NoData)
}
