//! Names of entries: made clean, and told apart from whiteouts.
//!
//! Whiteouts are those of the OCI image specification (layer.md, "Whiteouts"), which come from
//! AUFS: `.wh.NAME` hides NAME of lower layers, `.wh..wh..opq` everything in its folder.

use super::error::{EntryError, escape};

/// Longest name an entry may have, as Linux has it (`PATH_MAX`).
const PATH_LIMIT: usize = 4096;
/// Longest part of a name (`NAME_MAX`, and what ext4 can store).
const NAME_LIMIT: usize = 255;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS keeps records of its own under such names, in the root folder.
const AUFS: &[u8] = b".wh..wh.";
/// Where AUFS keeps files that have several names. Other entries are hard links to those in it.
pub(super) const AUFS_LINKS: &[u8] = b".wh..wh.plnk";

/// What the name of an entry says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameKind {
    /// The root folder itself.
    Root,
    Ordinary,
    /// Hides a name of the lower layers; the clean path is that of what it hides.
    Whiteout,
    /// Hides all that is in a folder of the lower layers; the clean path is that of the folder.
    Opaque,
    /// AUFS' own; not a part of the image.
    Aufs,
}

/// Appends the clean form of an entry's name to `clean`: parts joined by `/`, relative to the
/// root, without `.`, `..` and empty parts. As in `umoci`, `..` is taken by the text, and absolute
/// names are relative to the root; unlike there, a name that leads out of the root is an error.
pub(super) fn clean_entry(name: &[u8], clean: &mut Vec<u8>) -> Result<NameKind, EntryError> {
    let start = clean.len();
    clean_name(name, clean).map_err(|problem| problem.of_entry())?;
    let path = &clean[start..];
    if path.is_empty() {
        return Ok(NameKind::Root);
    }
    let (parents, last) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[][..], path),
    };
    if parents.split(|byte| *byte == b'/').any(|part| part.starts_with(WHITEOUT)) {
        return if parents == AUFS_LINKS {
            Ok(NameKind::Ordinary)
        } else if parents.starts_with(AUFS) {
            Ok(NameKind::Aufs)
        } else {
            Err(EntryError::InsideWhiteout)
        };
    }
    let Some(hidden) = last.strip_prefix(WHITEOUT) else { return Ok(NameKind::Ordinary) };
    let length = parents.len();
    if last == OPAQUE {
        clean.truncate(start + length);
        return Ok(NameKind::Opaque);
    }
    if last.starts_with(AUFS) {
        return Ok(NameKind::Aufs);
    }
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(EntryError::Whiteout);
    }
    // The hidden name takes the place of the whiteout's.
    let from = start + path.len() - hidden.len();
    let to = if length == 0 { start } else { start + length + 1 };
    clean.drain(to..from);
    Ok(NameKind::Whiteout)
}

/// Appends the clean form of a hard link's target to `clean`.
pub(super) fn clean_link(target: &[u8], clean: &mut Vec<u8>) -> Result<(), EntryError> {
    clean_name(target, clean).map_err(|problem| match problem {
        NameProblem::Escapes => EntryError::LinkEscapes(escape(target)),
        other => other.of_entry(),
    })
}

enum NameProblem {
    Escapes,
    LongName,
    LongPath,
    ZeroByte,
}

impl NameProblem {
    fn of_entry(&self) -> EntryError {
        match self {
            Self::Escapes => EntryError::Escapes,
            Self::LongName => EntryError::LongName,
            Self::LongPath => EntryError::LongPath,
            Self::ZeroByte => EntryError::ZeroByte,
        }
    }
}

fn clean_name(name: &[u8], clean: &mut Vec<u8>) -> Result<(), NameProblem> {
    if name.len() > PATH_LIMIT {
        return Err(NameProblem::LongPath);
    }
    let start = clean.len();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if clean.len() == start {
                    return Err(NameProblem::Escapes);
                }
                let slash = clean[start..].iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                clean.truncate(start + slash);
            }
            part if part.len() > NAME_LIMIT => return Err(NameProblem::LongName),
            part if part.contains(&0) => return Err(NameProblem::ZeroByte),
            part => {
                if clean.len() > start {
                    clean.push(b'/');
                }
                clean.extend_from_slice(part);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, expected: Result<(NameKind, &str), EntryError>) {
        let mut clean = b"before".to_vec();
        let found = clean_entry(name.as_bytes(), &mut clean);
        match expected {
            Ok((kind, path)) => {
                assert_eq!(found, Ok(kind), "{name}");
                assert_eq!(clean, format!("before{path}").as_bytes(), "{name}");
            }
            Err(error) => assert_eq!(found, Err(error), "{name}"),
        }
    }

    #[test]
    fn names_are_made_clean() {
        check("./", Ok((NameKind::Root, "")));
        check("", Ok((NameKind::Root, "")));
        check("/", Ok((NameKind::Root, "")));
        check("a/..", Ok((NameKind::Root, "")));
        check("./a//b/./c/", Ok((NameKind::Ordinary, "a/b/c")));
        check("/etc/passwd", Ok((NameKind::Ordinary, "etc/passwd")));
        check("a/../b", Ok((NameKind::Ordinary, "b")));
        check("a/b/../../c", Ok((NameKind::Ordinary, "c")));
        check("...", Ok((NameKind::Ordinary, "...")));
        check("a.wh.b", Ok((NameKind::Ordinary, "a.wh.b")));
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["..", "../a", "/../a", "a/../../b", "a/b/../../../etc/passwd", "./../x"] {
            check(name, Err(EntryError::Escapes));
        }
        check("a\0b", Err(EntryError::ZeroByte));
        check(&"x".repeat(256), Err(EntryError::LongName));
        check(&"x".repeat(255), Ok((NameKind::Ordinary, &"x".repeat(255))));
        check(&"x/".repeat(2049), Err(EntryError::LongPath));
    }

    #[test]
    fn whiteouts_are_told_by_their_name() {
        check(".wh.a", Ok((NameKind::Whiteout, "a")));
        check("d/e/.wh.a/", Ok((NameKind::Whiteout, "d/e/a")));
        check("/d/x/../.wh.a", Ok((NameKind::Whiteout, "d/a")));
        check(".wh..hidden", Ok((NameKind::Whiteout, ".hidden")));
        check(".wh..wh..opq", Ok((NameKind::Opaque, "")));
        check("d/e/.wh..wh..opq", Ok((NameKind::Opaque, "d/e")));
        check(".wh..wh.aufs", Ok((NameKind::Aufs, ".wh..wh.aufs")));
        check(".wh..wh.plnk", Ok((NameKind::Aufs, ".wh..wh.plnk")));
        check(".wh..wh.orph/12.34", Ok((NameKind::Aufs, ".wh..wh.orph/12.34")));
        check(".wh..wh.plnk/12.34", Ok((NameKind::Ordinary, ".wh..wh.plnk/12.34")));
    }

    #[test]
    fn tricks_with_whiteouts_are_refused() {
        for name in [".wh.", "d/.wh.", "d/.wh..", "d/.wh..."] {
            check(name, Err(EntryError::Whiteout));
        }
        check("d/.wh.x/y", Err(EntryError::InsideWhiteout));
        check(".wh.x/.wh.y", Err(EntryError::InsideWhiteout));
        check("d/.wh.x/../y", Ok((NameKind::Ordinary, "d/y")));
    }
}
