//! The formatter: an image from its creation to its last metadata block.

use std::fs::File;

use crate::tree::{FileData, Timestamp, Tree};

/// What a new file system is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Length of the file system in bytes; it becomes larger when the content does not fit.
    /// Rounded up to whole 4 KiB blocks. The image is sparse: free space costs nothing.
    pub size: u64,
    /// Least free bytes to leave for the one who mounts it.
    pub free: u64,
    /// Length of the journal in bytes; 0 for none (a file system that is only ever read).
    pub journal: u64,
    pub uuid: [u8; 16],
    /// Volume label, at most 16 bytes.
    pub label: String,
    /// Time of creation, for the superblock and for inodes that have no time of their own.
    pub created: Timestamp,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Length of the file system in bytes.
    pub size: u64,
    /// Bytes in use, metadata included.
    pub used: u64,
    pub inodes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error("cannot write the image")]
    Io(#[from] std::io::Error),
}

/// One image under construction. Shared by the threads that stream data into it.
#[derive(Debug)]
pub struct Formatter {
    _file: File,
}

/// Streams the content of files to their final place. One per thread: it owns an arena of blocks.
#[derive(Debug)]
pub struct DataWriter<'a> {
    _formatter: &'a Formatter,
}

impl Formatter {
    /// Begins an image in an empty file that is open for reading and writing.
    pub fn create(file: File, _options: Options) -> Result<Self, FormatError> {
        Ok(Self { _file: file })
    }

    pub fn data_writer(&self) -> DataWriter<'_> {
        DataWriter { _formatter: self }
    }

    /// Gives back the blocks of content that the finished tree will not name.
    pub fn release(&self, _data: &FileData) -> Result<(), FormatError> {
        Ok(())
    }

    /// Reads content written before; bytes of holes are zeros.
    pub fn read_at(&self, _data: &FileData, _offset: u64, _buffer: &mut [u8]) -> Result<usize, FormatError> {
        Ok(0)
    }

    /// Writes all metadata. The image is complete when this returns; it is not synced.
    pub fn finish(self, _tree: &Tree) -> Result<(File, Summary), FormatError> {
        Err(FormatError::Io(std::io::Error::other("being written")))
    }
}

impl DataWriter<'_> {
    /// Begins a file. `size` is the length announced for it: large files get one run of blocks.
    pub fn begin(&mut self, _size: u64) -> Result<(), FormatError> {
        Ok(())
    }

    /// Appends content. Runs of zeros that fill whole blocks become holes.
    pub fn write(&mut self, _content: &[u8]) -> Result<(), FormatError> {
        Ok(())
    }

    /// Appends zeros that take no blocks.
    pub fn write_hole(&mut self, _length: u64) -> Result<(), FormatError> {
        Ok(())
    }

    /// Ends the file. The last blocks may reach the image only with [`DataWriter::flush`].
    pub fn end(&mut self) -> Result<FileData, FormatError> {
        Ok(FileData::default())
    }

    /// Writes what is still buffered. Must be called before the writer is dropped.
    pub fn flush(&mut self) -> Result<(), FormatError> {
        Ok(())
    }
}
