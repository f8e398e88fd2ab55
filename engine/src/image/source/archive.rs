//! Tar files as places to read from at random: an index of their members, made by one pass over the
//! headers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream;

use super::{OpenLayer, SourceError};
use crate::error::{Error, Result};
use crate::image::text::printable;

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
        let file = std::sync::Arc::new(self.file);
        let (start, end) = (self.start + offset, self.start + self.length);
        let bytes = stream::unfold(start, move |position| {
            let (file, place) = (std::sync::Arc::clone(&file), place.clone());
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
    /// file in `scratch` first. Blocking.
    pub(crate) fn open_file(path: &Path, scratch: &Path) -> Result<Self> {
        let fail = |error| Error::io(format!("cannot open `{}`", path.display()), error);
        let file = File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::not_found(format!("there is no file `{}`", path.display()))
                    .with_hint("check the path: it is taken from the folder that vmdeck runs in")
            }
            _ => fail(error),
        })?;
        if !file.metadata().map_err(fail)?.is_file() {
            return Err(Error::failed(format!("`{}` is no regular file", path.display())));
        }
        let file = unpack(file, scratch)
            .map_err(|error| Error::io(format!("cannot unpack `{}`", path.display()), error))?;
        Self::new(path, file)
    }

    fn new(path: &Path, file: File) -> Result<Self> {
        let damaged = |error: std::io::Error| {
            // The tar library quotes what it found.
            let shown = printable(&error.to_string(), 100);
            let error =
                if error.raw_os_error().is_none() { std::io::Error::new(error.kind(), shown) } else { error };
            Error::io(format!("`{}` is no tar file, or a damaged one", path.display()), error)
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

/// The plain tar behind a file, which may be packed as a whole.
fn unpack(mut file: File, scratch: &Path) -> io::Result<File> {
    let mut magic = [0; 4];
    let read = file.read(&mut magic)?;
    file.rewind()?;
    let mut reader: Box<dyn Read> = match &magic[..read] {
        // RFC 1952, section 2.3.1; RFC 8878, section 3.1.1.
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(file)?),
        _ => return Ok(file),
    };
    let mut plain = nameless(scratch)?;
    io::copy(&mut reader, &mut plain)?;
    plain.rewind()?;
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
            let index = TarIndex::open_file(&path, folder.path()).unwrap();
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
        let error = TarIndex::open_file(&path, folder.path()).unwrap_err();
        assert!(error.to_string().contains("x.tar` is no tar file"), "{error}");
        // A text is quoted by the tar library, line breaks and all.
        std::fs::write(&path, "root:x:0:0:\u{1b}[31m:/root:/bin/sh\n".repeat(40)).unwrap();
        let message = TarIndex::open_file(&path, folder.path()).unwrap_err().full_message();
        assert!(message.len() < 300 && !message.contains(char::is_control), "{message}");
        let error = TarIndex::open_file(folder.path(), folder.path()).unwrap_err();
        assert!(error.to_string().contains("no regular file"), "{error}");
    }
}
