//! Decompression of what kernels come in, told by its first bytes, never beyond a limit.

use std::io::{self, Read};

use liblzma::stream::Stream;

/// How something is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Xz,
    /// The `.lzma` format of before xz.
    Lzma,
    Bzip2,
    /// The format of `lz4 -l`, which the kernel uses.
    Lz4Legacy,
    Zstd,
    Lzo,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum DecompressError {
    #[error("{0} compression is not supported")]
    Unsupported(&'static str),
    #[error("it is larger than {limit} bytes when decompressed")]
    TooLarge { limit: u64 },
    #[error("the compressed data is damaged")]
    Damaged(#[source] io::Error),
}

impl Compression {
    /// Tells the format by its magic number (kernel: `scripts/extract-vmlinux`).
    pub(super) fn detect(bytes: &[u8]) -> Option<Self> {
        Some(match bytes {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x5d, 0, 0, ..] => Self::Lzma,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0x02, 0x21, 0x4c, 0x18, ..] => Self::Lz4Legacy,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0x89, b'L', b'Z', b'O', ..] => Self::Lzo,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Bzip2 => "bzip2",
            Self::Lz4Legacy => "lz4",
            Self::Zstd => "zstd",
            Self::Lzo => "lzo",
        }
    }
}

/// Decompresses the one stream that `bytes` begins with; what follows it is ignored.
pub(super) fn decompress(
    compression: Compression,
    bytes: &[u8],
    limit: u64,
) -> Result<Vec<u8>, DecompressError> {
    let mut content = Vec::new();
    decompress_into(compression, bytes, limit, &mut content)?;
    Ok(content)
}

/// As [`decompress`], into a buffer that is emptied first and may be used again.
pub(super) fn decompress_into(
    compression: Compression,
    bytes: &[u8],
    limit: u64,
    content: &mut Vec<u8>,
) -> Result<(), DecompressError> {
    content.clear();
    match compression {
        Compression::Gzip => read_bounded(flate2::bufread::GzDecoder::new(bytes), limit, content),
        Compression::Xz | Compression::Lzma => {
            let stream = match compression {
                Compression::Xz => Stream::new_stream_decoder(LZMA_MEMORY, 0),
                _ => Stream::new_lzma_decoder(LZMA_MEMORY),
            };
            let stream = stream.map_err(|error| DecompressError::Damaged(error.into()))?;
            read_bounded(liblzma::bufread::XzDecoder::new_stream(bytes, stream), limit, content)
        }
        Compression::Zstd => {
            let decoder =
                zstd::stream::read::Decoder::with_buffer(bytes).map_err(DecompressError::Damaged)?;
            read_bounded(decoder.single_frame(), limit, content)
        }
        Compression::Lz4Legacy => lz4_legacy(bytes, limit, content),
        Compression::Bzip2 | Compression::Lzo => Err(DecompressError::Unsupported(compression.name())),
    }
}

/// Memory the decoder of xz and lzma may take, in bytes: dictionaries of `xz -9` have 64 MiB.
pub(super) const LZMA_MEMORY: u64 = 256 << 20;

fn read_bounded(reader: impl Read, limit: u64, content: &mut Vec<u8>) -> Result<(), DecompressError> {
    reader.take(limit.saturating_add(1)).read_to_end(content).map_err(DecompressError::Damaged)?;
    if content.len() as u64 > limit {
        return Err(DecompressError::TooLarge { limit });
    }
    Ok(())
}

/// Blocks of the legacy format hold this much, the last one less.
const LZ4_BLOCK: usize = 8 << 20;

/// Frames of a magic number and blocks, each with its compressed length before it (lz4's
/// `lz4_Frame_format.md`, "Legacy frame"). Ends at the end of the input, or where less than another
/// block is left: a kernel's build puts the decompressed length, four bytes, behind it.
fn lz4_legacy(bytes: &[u8], limit: u64, content: &mut Vec<u8>) -> Result<(), DecompressError> {
    let damaged = |what: &str| DecompressError::Damaged(io::Error::new(io::ErrorKind::InvalidData, what));
    let mut rest = bytes;
    while let Some((head, behind)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*head);
        if length == 0x184c_2102 {
            rest = behind;
            continue;
        }
        if behind.is_empty() {
            break;
        }
        let (block, behind) = usize::try_from(length)
            .ok()
            .and_then(|length| behind.split_at_checked(length))
            .ok_or_else(|| damaged("an lz4 block is longer than the input"))?;
        let before = content.len();
        if (before + LZ4_BLOCK) as u64 > limit.next_multiple_of(LZ4_BLOCK as u64) {
            return Err(DecompressError::TooLarge { limit });
        }
        content.resize(before + LZ4_BLOCK, 0);
        let written = lz4_flex::block::decompress_into(block, &mut content[before..])
            .map_err(|error| DecompressError::Damaged(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        content.truncate(before + written);
        rest = behind;
    }
    if content.len() as u64 > limit {
        return Err(DecompressError::TooLarge { limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    fn sample() -> Vec<u8> {
        (0..100_000u32).flat_map(|number| (number / 7).to_le_bytes()).collect()
    }

    /// The sample in each format we can also write.
    fn compressed() -> Vec<(Compression, Vec<u8>)> {
        let sample = sample();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&sample).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&sample).unwrap();
        let options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
        let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
        let mut lzma = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        lzma.write_all(&sample).unwrap();
        let block = lz4_flex::block::compress(&sample);
        let mut lz4 = vec![0x02, 0x21, 0x4c, 0x18];
        lz4.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
        lz4.extend(block);
        vec![
            (Compression::Gzip, gzip.finish().unwrap()),
            (Compression::Xz, xz.finish().unwrap()),
            (Compression::Lzma, lzma.finish().unwrap()),
            (Compression::Lz4Legacy, lz4),
            (Compression::Zstd, zstd::bulk::compress(&sample, 1).unwrap()),
        ]
    }

    #[test]
    fn every_format_is_told_and_read_with_the_length_behind_it() {
        for (compression, mut bytes) in compressed() {
            assert_eq!(Compression::detect(&bytes), Some(compression));
            bytes.extend(400_000u32.to_le_bytes());
            assert_eq!(decompress(compression, &bytes, 400_000).unwrap(), sample(), "{compression:?}");
        }
    }

    #[test]
    fn nothing_grows_beyond_the_limit() {
        for (compression, bytes) in compressed() {
            let result = decompress(compression, &bytes, 399_999);
            assert!(matches!(result, Err(DecompressError::TooLarge { .. })), "{compression:?} {result:?}");
        }
    }

    #[test]
    fn a_truncated_stream_is_an_error() {
        for (compression, bytes) in compressed() {
            let result = decompress(compression, &bytes[..bytes.len() / 2], 400_000);
            assert!(matches!(result, Err(DecompressError::Damaged(_))), "{compression:?} {result:?}");
        }
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 0usize..2000, value: u8, which in 0usize..5) {
            static SAMPLES: LazyLock<Vec<(Compression, Vec<u8>)>> = LazyLock::new(compressed);
            let (compression, mut bytes) = SAMPLES[which].clone();
            let at = at.min(bytes.len() - 1);
            bytes[at] = value;
            let _ = decompress(compression, &bytes, 1 << 20);
        }
    }
}
