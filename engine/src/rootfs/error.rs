//! What can be wrong with layers, and how it is told.

use std::fmt;
use std::io;

use vmdeck_ext4::FormatError;

use crate::error::Error;

use super::tar::TarError;

/// Why an image could not be made. Turns into the engine's [`Error`] at the edge.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    #[error("cancelled")]
    Cancelled,
    /// One layer is damaged, hostile, or not what was announced.
    #[error("{layer}")]
    Layer { layer: LayerName, source: LayerError },
    #[error("layer {index} was never begun")]
    Missing { index: usize },
    #[error("there is no layer {index}, or it was begun already")]
    Unexpected { index: usize },
    #[error("cannot add `{path}` to the image")]
    Injection { path: String, source: EntryError },
    #[error("cannot {doing}")]
    Io { doing: String, source: io::Error },
    #[error("cannot {doing}")]
    Format { doing: &'static str, source: FormatError },
}

/// How a layer is called in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerName {
    /// From 0, bottom first.
    pub index: usize,
    /// Its diff_id, when that is known.
    pub diff_id: Option<String>,
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // People count from one.
        write!(f, "layer {}", self.index + 1)?;
        match &self.diff_id {
            Some(diff_id) => write!(f, " ({})", diff_id.get(.."sha256:".len() + 12).unwrap_or(diff_id)),
            None => Ok(()),
        }
    }
}

/// What is wrong with one layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("cancelled")]
    Cancelled,
    /// The other thread of this layer has ended and told why.
    #[error("the layer's other thread ended")]
    Stopped,
    #[error("the {0} stream is damaged")]
    Inflate(&'static str, #[source] io::Error),
    #[error("the {0} stream ends too early")]
    InflateTruncated(&'static str),
    #[error("the layer is packed with {0}, which container images do not use")]
    Packing(&'static str),
    #[error("the layer is said to be packed with {announced}, but begins with {found}")]
    NotPacked { announced: &'static str, found: String },
    #[error("{inflated} bytes came out of {packed}: more than {limit} for each")]
    Ratio { packed: u64, inflated: u64, limit: u64 },
    #[error("the uncompressed layer is {found}, the image's config says {expected}")]
    DiffId { expected: String, found: String },
    #[error("damaged tar archive at byte {offset}")]
    Tar { offset: u64, source: TarError },
    #[error("entry `{name}`")]
    Entry { name: String, source: EntryError },
    #[error("more than {limit} {what} in all layers")]
    Limit { what: &'static str, limit: u64 },
    #[error("cannot write its files into the image")]
    Write(#[source] FormatError),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// What is wrong with one entry of a layer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("its name leads out of the image by `..`")]
    Escapes,
    #[error("it is a hard link that leads out of the image by `..`: `{0}`")]
    LinkEscapes(String),
    #[error("its name has a part longer than 255 bytes")]
    LongName,
    #[error("its name is longer than 4,096 bytes")]
    LongPath,
    #[error("its name holds a zero byte")]
    ZeroByte,
    #[error("it would turn the root folder into something else")]
    RootReplaced,
    #[error("it is a whiteout of nothing, or of its own folder")]
    Whiteout,
    #[error("it lies inside a whiteout")]
    InsideWhiteout,
    #[error("a symbolic link needs a target of 1 to 4,095 bytes without a zero byte, this one has {0} bytes")]
    Target(usize),
    #[error("`{0}` on the way to it is not a folder")]
    NotADirectory(String),
    #[error("too many symbolic links on the way to it")]
    SymlinkLoop,
    #[error("it is a hard link to `{0}`, which does not exist")]
    LinkTarget(String),
    #[error("it is a hard link to the folder `{0}`")]
    LinkToDirectory(String),
    #[error("device number {major}:{minor} does not exist on Linux")]
    Device { major: u64, minor: u64 },
    #[error("the tree does not take it")]
    Tree(#[from] vmdeck_ext4::TreeError),
}

/// Bytes of an untrusted name as they may be shown: escaped, and not longer than a line or two.
pub(super) fn escape(name: &[u8]) -> String {
    const SHOWN: usize = 160;
    let mut text = String::new();
    for chunk in name[..name.len().min(SHOWN)].utf8_chunks() {
        for character in chunk.valid().chars() {
            if character == '`' || character.is_control() || is_invisible(character) {
                text.extend(character.escape_unicode());
            } else {
                text.push(character);
            }
        }
        if !chunk.invalid().is_empty() {
            text.push_str(&chunk.invalid().escape_ascii().to_string());
        }
    }
    if name.len() > SHOWN {
        text.push('…');
    }
    text
}

/// Characters that change how the rest of a line is shown (bidi controls and the like).
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

impl RootfsError {
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

impl From<RootfsError> for Error {
    fn from(error: RootfsError) -> Self {
        const DAMAGED: &str = "the layer is damaged or was made by a broken tool: pull it again, and if \
                               that does not help, tell the image's maker";
        const HOSTILE: &str = "no sane tool writes such a layer: do not trust this image";
        let message = error.to_string();
        let hint = match &error {
            RootfsError::Cancelled | RootfsError::Layer { source: LayerError::Cancelled, .. } => {
                return Self::cancelled();
            }
            RootfsError::Io { .. } => match error {
                RootfsError::Io { doing, source } => return Self::io(format!("cannot {doing}"), source),
                _ => None,
            },
            RootfsError::Layer { source, .. } => match source {
                LayerError::Inflate(..)
                | LayerError::InflateTruncated(_)
                | LayerError::NotPacked { .. }
                | LayerError::DiffId { .. }
                | LayerError::Tar { .. } => Some(DAMAGED),
                LayerError::Packing(_) => Some("ask the image's maker for gzip or zstd layers"),
                LayerError::Ratio { .. } | LayerError::Limit { .. } => {
                    Some("this looks like a bomb: do not trust this image")
                }
                LayerError::Entry { source, .. } => match source {
                    EntryError::Escapes
                    | EntryError::LinkEscapes(_)
                    | EntryError::RootReplaced
                    | EntryError::Whiteout
                    | EntryError::InsideWhiteout
                    | EntryError::ZeroByte => Some(HOSTILE),
                    _ => Some(DAMAGED),
                },
                LayerError::Write(source) => of_format(source),
                _ => None,
            },
            RootfsError::Format { source, .. } => of_format(source),
            _ => None,
        };
        let this = Self::failed(message);
        let this = match hint {
            Some(hint) => this.with_hint(hint),
            None => this,
        };
        match error {
            RootfsError::Layer { source, .. } => this.with_source(source),
            RootfsError::Injection { source, .. } => this.with_source(source),
            RootfsError::Format { source, .. } => this.with_source(source),
            _ => this,
        }
    }
}

fn of_format(error: &FormatError) -> Option<&'static str> {
    match error {
        FormatError::Io(source) => {
            matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
                .then_some("free some space on that file system: `vmdeck df` shows what vmdeck holds")
        }
        FormatError::Xattr { .. } | FormatError::Inode { .. } | FormatError::FileTooLarge { .. } => {
            Some("no Linux could store that file on ext4 either: tell the image's maker")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_without_control_characters_and_short() {
        assert_eq!(escape(b"a/\x1b[31mb\n"), "a/\\u{1b}[31mb\\u{a}");
        assert_eq!(escape("straße".as_bytes()), "straße");
        assert_eq!(escape(b"\xff`x"), "\\xff\\u{60}x");
        assert_eq!(escape("\u{202e}gpj".as_bytes()), "\\u{202e}gpj");
        assert!(escape(&[b'x'; 4000]).len() < 200);
    }

    #[test]
    fn a_message_names_layer_entry_cause_and_next_step() {
        let error = Error::from(RootfsError::Layer {
            layer: LayerName { index: 1, diff_id: Some(format!("sha256:{}", "ab".repeat(32))) },
            source: LayerError::Entry { name: escape(b"../../etc/passwd"), source: EntryError::Escapes },
        });
        assert_eq!(
            error.full_message(),
            "layer 2 (sha256:abababababab): entry `../../etc/passwd`: its name leads out of the image by `..`"
        );
        assert!(error.hint().unwrap().contains("do not trust"));
    }
}
