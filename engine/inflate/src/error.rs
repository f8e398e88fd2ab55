/// What is wrong with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("it does not begin as gzip does")]
    Magic,
    #[error("its header asks for something unknown")]
    Header,
    #[error("the header's checksum is wrong")]
    HeaderChecksum,
    #[error("a block is of no known type")]
    BlockType,
    #[error("the length of a stored block is damaged")]
    StoredLength,
    #[error("a block's codes are damaged")]
    Codes,
    #[error("there is a code that nothing stands for")]
    Symbol,
    #[error("a match reaches back before the beginning")]
    Distance,
    #[error("the checksum is wrong")]
    Checksum,
    #[error("the length is wrong")]
    Length,
}

/// Why unpacking stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    Damaged(Damage),
    /// The packed bytes ended too early.
    Truncated,
    /// What the input or the output said.
    Stream(E),
}

impl<E> From<Damage> for Error<E> {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}
