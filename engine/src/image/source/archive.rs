//! Tar files as places to read from at random: an index of their members, made by one pass over the
//! headers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream;
use tokio_util::sync::CancellationToken;

use super::{OpenLayer, SourceError};
use crate::error::{DISK_FULL, Error, Result};
use crate::image::inspect;
use crate::image::text::{bytes, printable};
use crate::operation::progress::{Counted, Progress, ProgressState, ProgressUnit};
use crate::regular_file;
use crate::rootfs::{Magic, RootfsLimits, is_bomb, magic};
use crate::space;

/// Most members taken: an archive of an image has a few per layer.
const MOST_MEMBERS: usize = 100_000;
/// Links followed from one member to another.
const MOST_LINKS: usize = 8;
/// Bytes read at a time.
const PIECE: usize = 256 << 10;

/// A range of an open file.
#[derive(Debug)]
pub(crate) struct FilePart {
    pub(crate) file: File,
    pub(crate) start: u64,
    pub(crate) length: u64,
}

impl FilePart {
    /// Reads from `offset` within the part to its end.
    pub(crate) fn reader(mut self, offset: u64) -> io::Result<io::Take<File>> {
        self.file.seek(SeekFrom::Start(self.start + offset))?;
        Ok(self.file.take(self.length.saturating_sub(offset)))
    }

    /// The same for a task: each piece is read on a thread that may block.
    pub(crate) fn stream(self, offset: u64, place: String) -> Result<OpenLayer> {
        let file = Arc::new(self.file);
        let (start, end) = (self.start + offset, self.start + self.length);
        let bytes = stream::unfold(start, move |position| {
            let (file, place) = (Arc::clone(&file), place.clone());
            async move {
                let length = usize::try_from(end.saturating_sub(position)).unwrap_or(PIECE).min(PIECE);
                if length == 0 {
                    return None;
                }
                let read = tokio::task::spawn_blocking(move || read_at(&file, position, length)).await;
                let result = match read {
                    Ok(Ok(bytes)) if bytes.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(result) => result,
                    Err(error) => Err(io::Error::other(error)),
                };
                let next = result.as_ref().map_or(end, |bytes| position + bytes.len() as u64);
                let result = result.map_err(|error| {
                    SourceError::Permanent(Error::io(format!("cannot read {place}"), error))
                });
                Some((result, next))
            }
        });
        Ok(OpenLayer { offset, bytes: bytes.boxed() })
    }
}

fn read_at(file: &File, position: u64, length: usize) -> io::Result<Bytes> {
    let mut buffer = BytesMut::zeroed(length);
    let read = file.read_at(&mut buffer, position)?;
    buffer.truncate(read);
    Ok(buffer.freeze())
}

/// What lies where in a tar file.
#[derive(Debug)]
pub(crate) struct TarIndex {
    path: PathBuf,
    file: File,
    members: HashMap<String, Member>,
}

#[derive(Debug)]
enum Member {
    File { start: u64, length: u64 },
    Link(String),
}

impl TarIndex {
    /// Opens a tar file, plain or packed by gzip or zstd. A packed one is unpacked into a nameless
    /// file first. Blocking.
    pub(crate) fn open_file(path: &Path, scratch: &Scratch) -> Result<Self> {
        let (file, length) =
            regular_file::open(path).map_err(|error| inspect::unopened(path, "archive", error))?;
        let file = unpack(file, length, path, scratch)?;
        Self::new(path, file)
    }

    fn new(path: &Path, file: File) -> Result<Self> {
        let damaged = |error: io::Error| {
            let doing = format!("`{}` is no tar file, or a damaged one", path.display());
            // What the tar library says quotes what it found.
            if error.raw_os_error().is_none() { Error::failed(doing) } else { Error::io(doing, error) }
                .with_hint("name a file that `docker save`, `podman save` or `skopeo copy` has written")
        };
        let mut members = HashMap::new();
        {
            let mut archive = tar::Archive::new(&file);
            for entry in archive.entries_with_seek().map_err(damaged)? {
                let entry = entry.map_err(damaged)?;
                let Some(name) = clean(&entry.path().map_err(damaged)?) else { continue };
                let kind = entry.header().entry_type();
                let member = if kind.is_file() || kind == tar::EntryType::Continuous {
                    Member::File { start: entry.raw_file_position(), length: entry.size() }
                } else if kind.is_symlink() || kind.is_hard_link() {
                    let Some(target) = entry.link_name().map_err(damaged)? else { continue };
                    // A symbolic link is relative to its own folder, a hard link to the archive's root.
                    let base = Path::new(&name).parent().filter(|_| kind.is_symlink());
                    let Some(target) = clean(&base.unwrap_or(Path::new("")).join(target)) else { continue };
                    Member::Link(target)
                } else {
                    continue;
                };
                members.insert(name, member);
                if members.len() > MOST_MEMBERS {
                    return Err(Error::failed(format!(
                        "`{}` has more than the {MOST_MEMBERS} members that are taken",
                        path.display()
                    )));
                }
            }
        }
        Ok(Self { path: path.to_owned(), file, members })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A member by its name, links followed.
    pub(crate) fn open(&self, name: &str) -> Result<FilePart> {
        let missing =
            || Error::failed(format!("`{}` has no member `{}`", self.path.display(), printable(name, 200)));
        let mut current = clean(Path::new(name)).ok_or_else(missing)?;
        for _link in 0..MOST_LINKS {
            match self.members.get(&current) {
                None => return Err(missing()),
                Some(Member::Link(target)) => current.clone_from(target),
                Some(&Member::File { start, length }) => {
                    let file = self.file.try_clone().map_err(|error| {
                        Error::io(format!("cannot open `{}` again", self.path.display()), error)
                    })?;
                    return Ok(FilePart { file, start, length });
                }
            }
        }
        Err(Error::failed(format!("the links of `{}` lead in circles", printable(name, 200))))
    }

    /// A small member as a whole.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let part = self.open(name)?;
        if part.length > limit {
            return Err(Error::failed(format!(
                "`{}` in `{}` has {} bytes; at most {limit} are taken",
                printable(name, 200),
                self.path.display(),
                part.length
            )));
        }
        let length = usize::try_from(part.length).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        part.file
            .read_exact_at(&mut bytes, part.start)
            .map_err(|error| Error::io(format!("cannot read `{}`", self.path.display()), error))?;
        Ok(bytes)
    }
}

/// A path without `.` and `..`, or `None` when it leads out of the archive.
fn clean(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// Where and how far an archive may be unpacked.
#[derive(Clone, Debug)]
pub(crate) struct Scratch {
    pub(crate) folder: PathBuf,
    /// Gets a part for an archive that is packed.
    pub(crate) progress: Arc<Progress>,
    pub(crate) cancel: CancellationToken,
}

/// The plain tar behind a file, which may be packed as a whole.
fn unpack(mut file: File, length: u64, path: &Path, scratch: &Scratch) -> Result<File> {
    let fail = |error| Error::io(format!("cannot unpack `{}`", path.display()), error);
    let mut start = [0; 6];
    let read = file.read(&mut start).map_err(fail)?;
    file.rewind().map_err(fail)?;
    let packing = magic(&start[..read]);
    match packing {
        Magic::Unknown => return Ok(file),
        Magic::Other(name) => {
            return Err(Error::failed(format!(
                "`{}` is packed by {name}, which is not supported",
                path.display()
            ))
            .with_hint("unpack it first, or pack it by gzip or zstd"));
        }
        Magic::Gzip | Magic::Zstd => {}
    }
    let part = scratch.progress.add("archive", ProgressUnit::Bytes, length);
    part.set_state(ProgressState::Active);
    let counted = Counted { inner: file, part: Arc::clone(&part) };
    let mut reader: Box<dyn Read> = if packing == Magic::Zstd {
        Box::new(zstd::Decoder::new(counted).map_err(fail)?)
    } else {
        Box::new(flate2::read::MultiGzDecoder::new(counted))
    };
    let free = space::free(&scratch.folder)?;
    let mut plain = nameless(&scratch.folder).map_err(fail)?;
    let (mut buffer, mut made) = (vec![0; PIECE], 0);
    loop {
        if scratch.cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(fail(error)),
        };
        made += read as u64;
        if is_bomb(part.done(), made, RootfsLimits::default().ratio) {
            return Err(Error::failed(format!(
                "`{}` looks like a bomb: {} packed bytes give more than {made}",
                path.display(),
                part.done()
            )));
        }
        if made > free {
            return Err(Error::failed(format!(
                "`{}` is packed, and what is in it needs more than the {} that are free below `{}`",
                path.display(),
                bytes(free),
                scratch.folder.display()
            ))
            .with_hint(DISK_FULL));
        }
        plain.write_all(&buffer[..read]).map_err(fail)?;
    }
    plain.rewind().map_err(fail)?;
    part.set_done(length);
    part.set_state(ProgressState::Done);
    Ok(plain)
}

/// A file without a name: it goes with the process, whatever ends that.
pub(crate) fn nameless(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!("unpacked-{}", crate::identifier::OperationId::random()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
    }

    fn link(builder: &mut tar::Builder<Vec<u8>>, name: &str, target: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, name, target).unwrap();
    }

    fn scratch(folder: &Path) -> Scratch {
        Scratch { folder: folder.into(), progress: Arc::default(), cancel: CancellationToken::new() }
    }

    #[test]
    fn members_are_found_by_name_through_links_also_in_a_packed_archive() {
        let folder = tempfile::tempdir().unwrap();
        let long = format!("{}/x", "d".repeat(150));
        let plain = archive(|builder| {
            add(builder, "./a/layer.tar", b"layer");
            add(builder, &long, b"long");
            link(builder, "b/layer.tar", "../a/layer.tar");
            link(builder, "loop", "loop");
            link(builder, "out", "../../etc/passwd");
        });
        let gzip = {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut encoder, &plain).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
        for (index, bytes) in [plain, gzip, zstd].into_iter().enumerate() {
            let path = folder.path().join(format!("{index}.tar"));
            std::fs::write(&path, bytes).unwrap();
            let index = TarIndex::open_file(&path, &scratch(folder.path())).unwrap();
            assert_eq!(index.read("a/layer.tar", 10).unwrap(), b"layer");
            assert_eq!(index.read("b/layer.tar", 10).unwrap(), b"layer");
            assert_eq!(index.read(&long, 10).unwrap(), b"long");
            assert!(index.read("a/layer.tar", 4).unwrap_err().to_string().contains("at most 4"));
            assert!(index.read("loop", 4).unwrap_err().to_string().contains("in circles"));
            assert!(index.read("out", 4).unwrap_err().to_string().contains("no member"));
            assert!(index.read("../a/layer.tar", 9).unwrap_err().to_string().contains("no member"));
        }
    }

    #[test]
    fn what_is_no_tar_file_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar");
        std::fs::write(&path, [7; 2000]).unwrap();
        let error = TarIndex::open_file(&path, &scratch(folder.path())).unwrap_err();
        assert!(error.to_string().contains("x.tar` is no tar file"), "{error}");
        // A text is quoted by the tar library, line breaks and all.
        std::fs::write(&path, "root:x:0:0:\u{1b}[31m:/root:/bin/sh\n".repeat(40)).unwrap();
        let message = TarIndex::open_file(&path, &scratch(folder.path())).unwrap_err().full_message();
        assert!(message.len() < 300 && !message.contains(char::is_control), "{message}");
        std::fs::write(&path, b"\xfd7zXZ\0 and so on").unwrap();
        let error = TarIndex::open_file(&path, &scratch(folder.path())).unwrap_err();
        assert!(error.to_string().contains("packed by xz"), "{error}");
        let error = TarIndex::open_file(folder.path(), &scratch(folder.path())).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::Usage);
        assert!(error.to_string().contains("is a folder"), "{error}");
    }

    #[test]
    fn unpacking_ends_at_a_bomb_and_when_cancelled_and_tells_how_far_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let pack = |length: u64| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::copy(&mut io::repeat(0).take(length), &mut encoder).unwrap();
            encoder.finish().unwrap()
        };
        let path = folder.path().join("x.tar.gz");
        // Deflate gives a thousandfold at most, zstd much more.
        let zeros = zstd::encode_all(io::repeat(0).take(4 << 30), 1).unwrap();
        std::fs::write(&path, &zeros).unwrap();
        let error = TarIndex::open_file(&path, &scratch(folder.path())).unwrap_err();
        assert!(error.to_string().contains("looks like a bomb"), "{error}");

        std::fs::write(&path, pack(32 << 20)).unwrap();
        let begun = scratch(folder.path());
        begun.cancel.cancel();
        assert!(TarIndex::open_file(&path, &begun).unwrap_err().is_cancelled());
        // Empty blocks are an archive without members.
        let whole = scratch(folder.path());
        TarIndex::open_file(&path, &whole).unwrap();
        let parts = whole.progress.parts();
        let length = std::fs::metadata(&path).unwrap().len();
        assert_eq!((parts[0].done(), parts[0].total()), (length, length));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
