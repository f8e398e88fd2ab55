//! What can go wrong while an image is read or changed.

use crate::xattr::XattrError;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    #[error("cannot read or write the image")]
    Io(#[from] std::io::Error),
    #[error("not an ext4 file system: it has no superblock")]
    NotExt4,
    #[error("the file system uses {feature}, which is not supported here")]
    Unsupported { feature: &'static str },
    #[error("the file system is damaged: {what}")]
    Corrupt { what: String },
    #[error("no such file or directory: `{name}`")]
    NotFound { name: String },
    #[error("not a directory")]
    NotADirectory,
    #[error("not a regular file")]
    NotAFile,
    #[error("not a symbolic link")]
    NotASymlink,
    #[error("too many levels of symbolic links")]
    TooManySymlinks,
    #[error("larger than the {limit} bytes that were allowed")]
    TooLarge { limit: u64 },
    #[error("more than {limit} directory entries")]
    TooManyEntries { limit: usize },
    #[error("the name is already taken: `{name}`")]
    Exists { name: String },
    #[error("the name is empty, `.`, `..`, longer than 255 bytes, or holds `/` or a zero byte")]
    InvalidName,
    #[error("the directory is not empty")]
    NotEmpty,
    #[error("a directory cannot be moved into itself")]
    IntoItself,
    #[error("a directory cannot be replaced")]
    IsADirectory,
    #[error("no free blocks are left in the file system")]
    NoSpace,
    #[error("no free inodes are left in the file system")]
    NoInodes,
    #[error("an inode cannot have more links")]
    TooManyLinks,
    #[error(transparent)]
    Xattr(#[from] XattrError),
}

pub(crate) type Result<T> = std::result::Result<T, ImageError>;

/// The error for something that cannot be true of a sound file system.
pub(crate) fn corrupt<T>(what: impl Into<String>) -> Result<T> {
    Err(ImageError::Corrupt { what: what.into() })
}

pub(crate) fn display(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().to_string()
}
