//! The outer archive of a Debian package.
//!
//! Format: deb(5) and ar(5): a magic line, then members, each with a header of 60 bytes, padded to
//! an even length.

use std::io::{self, Read, Seek, SeekFrom};

const MAGIC: &[u8; 8] = b"!<arch>\n";
const HEADER: usize = 60;

#[derive(Debug, thiserror::Error)]
pub(super) enum ArError {
    #[error("it is no Debian package: it does not begin as an `ar` archive")]
    NotAr,
    #[error("the header of a member is damaged")]
    Header,
    #[error("it ends before its member `{}` does", .0.escape_debug())]
    Truncated(String),
    #[error("it cannot be read")]
    Io(#[from] io::Error),
}

/// A member: its name, and its length in bytes. The reader stands at its content.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) size: u64,
}

/// Goes through the members of an archive.
#[derive(Debug)]
pub(super) struct Members<R> {
    reader: R,
    /// Where the next header is.
    next: u64,
    length: u64,
}

impl<R: Read + Seek> Members<R> {
    pub(super) fn new(mut reader: R) -> Result<Self, ArError> {
        let length = reader.seek(SeekFrom::End(0))?;
        reader.rewind()?;
        let mut magic = [0; MAGIC.len()];
        match reader.read_exact(&mut magic) {
            Ok(()) if magic == *MAGIC => Ok(Self { reader, next: MAGIC.len() as u64, length }),
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error.into()),
            _ => Err(ArError::NotAr),
        }
    }

    /// The next member; the reader then stands at its content.
    pub(super) fn advance(&mut self) -> Result<Option<Member>, ArError> {
        if self.next >= self.length {
            return Ok(None);
        }
        self.reader.seek(SeekFrom::Start(self.next))?;
        let mut header = [0; HEADER];
        self.reader.read_exact(&mut header).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ArError::Header,
            _ => error.into(),
        })?;
        let text = |range: std::ops::Range<usize>| {
            std::str::from_utf8(&header[range]).map(str::trim_end).map_err(|_| ArError::Header)
        };
        if &header[58..] != b"`\n" {
            return Err(ArError::Header);
        }
        // Debian's own have no slash at the end, GNU's have one.
        let name = text(0..16)?.trim_end_matches('/').to_owned();
        let size: u64 = text(48..58)?.parse().map_err(|_| ArError::Header)?;
        let content = self.next + HEADER as u64;
        if size > self.length - content {
            return Err(ArError::Truncated(name));
        }
        self.next = content + size + size % 2;
        Ok(Some(Member { name, size }))
    }

    pub(super) fn reader(&mut self) -> &mut R {
        &mut self.reader
    }
}

#[cfg(test)]
pub(in crate::kernel) mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    pub(in crate::kernel) fn build(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        for (name, content) in members {
            let length = content.len();
            file.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{length:<10}`\n", 0, 0, 0, 100644).bytes());
            file.extend_from_slice(content);
            file.extend((content.len() % 2 == 1).then_some(b'\n'));
        }
        file
    }

    #[test]
    fn members_are_found_by_their_headers() {
        let mut members = Members::new(Cursor::new(build(&[("a", b"odd"), ("data.tar/", b"xy")]))).unwrap();
        assert_eq!(members.advance().unwrap(), Some(Member { name: "a".into(), size: 3 }));
        assert_eq!(members.advance().unwrap(), Some(Member { name: "data.tar".into(), size: 2 }));
        let mut content = [0; 2];
        members.reader().read_exact(&mut content).unwrap();
        assert_eq!(&content, b"xy");
        assert_eq!(members.advance().unwrap(), None);
    }

    #[test]
    fn damage_is_told() {
        assert!(matches!(Members::new(Cursor::new(b"PK".to_vec())), Err(ArError::NotAr)));
        let mut file = build(&[("a", b"content")]);
        file.truncate(70);
        assert!(matches!(Members::new(Cursor::new(file)).unwrap().advance(), Err(ArError::Truncated(_))));
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic_or_go_on_for_ever(at in 0usize..150, damage in prop::collection::vec(any::<u8>(), 1..20)) {
            let mut file = build(&[("a", b"odd"), ("data.tar", b"content")]);
            let end = (at + damage.len()).min(file.len());
            let at = at.min(end);
            file[at..end].copy_from_slice(&damage[..end - at]);
            if let Ok(mut members) = Members::new(Cursor::new(file)) {
                for _ in 0..5 {
                    if !matches!(members.advance(), Ok(Some(_))) {
                        break;
                    }
                }
            }
        }
    }
}
