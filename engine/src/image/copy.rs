//! Copies of disk images: shared blocks where the file system can, else data only, holes left out.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::operation::progress::{ProgressPart, ProgressState};

/// Bytes between two looks at the cancellation.
const STEP: u64 = 16 << 20;

/// How a copy was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copied {
    /// The new file shares the old one's blocks until one of them changes (FICLONE, ioctl_ficlone(2)).
    Shared,
    /// So many bytes were copied; the rest are holes.
    Bytes(u64),
}

/// Copies a file to a new name and syncs it. Blocking.
///
/// # Errors
/// Also when the original changes under the copy: half of the old and half of the new is neither.
pub(crate) fn copy_sparse(
    from: &Path,
    to: &Path,
    part: &ProgressPart,
    cancel: &CancellationToken,
) -> Result<Copied> {
    let doing = || format!("cannot copy `{}`", from.display());
    let source = File::open(from).map_err(|error| Error::io(doing(), error))?;
    let before = source.metadata().map_err(|error| Error::io(doing(), error))?;
    let target = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(|error| Error::io(format!("cannot create `{}`", to.display()), error))?;
    part.set_total(before.len());
    part.set_state(ProgressState::Active);
    let copied = match rustix::fs::ioctl_ficlone(&target, &source) {
        Ok(()) => Copied::Shared,
        Err(_) => {
            let bytes = copy_data(&source, &target, before.len(), part, cancel).map_err(|error| {
                if cancel.is_cancelled() { Error::cancelled() } else { Error::io(doing(), error) }
            })?;
            Copied::Bytes(bytes)
        }
    };
    target.sync_all().map_err(|error| Error::io(doing(), error))?;
    let after = std::fs::metadata(from).map_err(|error| Error::io(doing(), error))?;
    let identity = |metadata: &std::fs::Metadata| {
        (metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())
    };
    if identity(&before) != identity(&after) {
        return Err(Error::conflict(format!("`{}` changed while it was copied", from.display()))
            .with_hint("stop what writes to it, and try again"));
    }
    part.set_done(before.len());
    part.set_state(ProgressState::Done);
    Ok(copied)
}

/// Whether a file can share its blocks with one in `folder`: same file system, and one that can.
pub(crate) fn shares_blocks(file: &Path, folder: &Path) -> bool {
    let probe = folder.join(".probe");
    let shared = File::open(file).and_then(|source| {
        let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe)?;
        Ok(rustix::fs::ioctl_ficlone(&target, &source)?)
    });
    let _ = std::fs::remove_file(&probe);
    shared.is_ok()
}

fn copy_data(
    source: &File,
    target: &File,
    length: u64,
    part: &ProgressPart,
    cancel: &CancellationToken,
) -> io::Result<u64> {
    target.set_len(length)?;
    let mut copied = 0;
    for_each_extent(source, length, |mut start, end| {
        while start < end {
            if cancel.is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let step = (end - start).min(STEP);
            position(source, start)?;
            position(target, start)?;
            // In the kernel where the file systems can: std uses copy_file_range(2).
            let done = io::copy(&mut io::Read::take(source, step), &mut &*target)?;
            if done != step {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            start += step;
            copied += step;
            part.set_done(start);
        }
        Ok(())
    })?;
    Ok(copied)
}

/// Calls `work` with start and end of each stretch that holds data; the rest of the file are holes.
/// A file system that knows no holes has one stretch (lseek(2), SEEK_DATA).
pub(crate) fn for_each_extent(
    file: &File,
    length: u64,
    mut work: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let seek = |offset: u64, whence| -> io::Result<Option<u64>> {
        match lseek(file, i64::try_from(offset).map_err(io::Error::other)?, whence) {
            Ok(found) => Ok(Some(u64::try_from(found).map_err(io::Error::other)?)),
            Err(Errno::ENXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    };
    let mut end = 0;
    while end < length {
        let Some(start) = seek(end, Whence::SeekData)? else { break };
        end = seek(start, Whence::SeekHole)?.unwrap_or(length).min(length);
        if start >= end {
            break;
        }
        work(start, end)?;
    }
    Ok(())
}

fn position(file: &File, offset: u64) -> io::Result<()> {
    io::Seek::seek(&mut &*file, io::SeekFrom::Start(offset)).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::operation::progress::{Progress, ProgressUnit};

    fn part() -> std::sync::Arc<ProgressPart> {
        Progress::default().add("copy", ProgressUnit::Bytes, 0)
    }

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        for offset in [0, 5 << 20, (64 << 20) - 4096] {
            file.write_all_at(&[7; 4096], offset).unwrap();
        }
        let part = part();
        copy_sparse(&from, &to, &part, &CancellationToken::new()).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        assert_eq!((part.done(), part.total()), (64 << 20, 64 << 20));
        // An existing file is never written to.
        assert!(copy_sparse(&from, &to, &part, &CancellationToken::new()).is_err());
    }

    #[test]
    fn a_copy_can_be_cancelled_and_an_empty_file_copied() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::write(&from, b"").unwrap();
        copy_sparse(&from, &to, &part(), &CancellationToken::new()).unwrap();
        assert_eq!(std::fs::metadata(&to).unwrap().len(), 0);
        std::fs::write(&from, vec![1; 100_000]).unwrap();
        let cancel = CancellationToken::new();
        cancel.cancel();
        let result = copy_sparse(&from, &folder.path().join("other"), &part(), &cancel);
        // Where blocks can be shared there is nothing to cancel.
        assert!(matches!(result, Ok(Copied::Shared)) || result.unwrap_err().is_cancelled());
    }
}
