//! A single file, told by its first bytes: a package, an archive, or a kernel itself.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::tar::{self, TarError};
use super::{Budget, Reading, Sink, Source};
use crate::error::{Error, Result};
use crate::kernel::decompress::Compression;
use crate::regular_file;

impl Source {
    /// What this file is to be read as. Blocks.
    pub(in crate::kernel) fn of_file(path: PathBuf) -> Result<Self> {
        let kind =
            kind(&path).map_err(|error| Error::io(format!("cannot read `{}`", path.display()), error))?;
        Ok(match kind {
            Kind::Deb => Self::Debs(vec![path]),
            Kind::Tar => Self::Tar(path),
            Kind::Other => Self::Files { image: path, configuration: None, modules: None },
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Deb,
    Tar,
    Other,
}

fn kind(path: &Path) -> io::Result<Kind> {
    let mut file = BufReader::new(regular_file::open(path)?.0);
    let start = file.fill_buf()?;
    if start.starts_with(b"!<arch>\n") {
        return Ok(Kind::Deb);
    }
    let compression = Compression::detect(start);
    let Ok(plain) = tar::unpack(file, compression) else { return Ok(Kind::Other) };
    let mut header = Vec::new();
    // What cannot be decompressed is no tar; what it is instead is for others to say.
    let is_tar = plain.take(512).read_to_end(&mut header).is_ok() && header.get(257..262) == Some(b"ustar");
    Ok(if is_tar { Kind::Tar } else { Kind::Other })
}

/// Reads a tar archive.
pub(super) fn read_tar(
    path: &Path,
    reading: Reading<'_>,
    budget: &mut Budget,
    sink: &mut dyn Sink,
) -> Result<()> {
    let opened = regular_file::open(path);
    let (file, _) = opened.map_err(|error| Error::io(format!("cannot open `{}`", path.display()), error))?;
    let mut packed = BufReader::with_capacity(256 << 10, Counted::new(file, reading));
    read_packed(&mut packed, budget, sink).map_err(|error| match error {
        _ if reading.cancel.is_cancelled() => Error::cancelled(),
        TarError::Sink(error) => error,
        error => Error::failed(format!("cannot read the archive `{}`", path.display())).with_source(error),
    })
}

/// Reads a tar archive whose compression is told by its first bytes.
pub(super) fn read_packed(
    packed: &mut impl BufRead,
    budget: &mut Budget,
    sink: &mut dyn Sink,
) -> Result<(), TarError> {
    let compression = Compression::detect(packed.fill_buf()?);
    tar::read(tar::unpack(packed, compression)?, budget, sink)
}

/// A file whose reading is counted and can be cancelled.
pub(super) struct Counted<'a> {
    file: File,
    reading: Reading<'a>,
}

impl<'a> Counted<'a> {
    pub(super) fn new(file: File, reading: Reading<'a>) -> Self {
        Self { file, reading }
    }
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
