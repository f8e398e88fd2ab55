//! Frames: a header of eight bytes and a payload.
//!
//! ```text
//!  0      1      2        4           7      8
//!  kind   0      length   stream      0      payload …
//!  u8     u8     u16 LE   u24 LE      u8
//! ```
//!
//! The length cannot claim more than [`MAX_PAYLOAD`], and a decoder holds no more than one frame.
//! The zero bytes are checked, so a stream that lost its step is noticed at the next header; that
//! they are zero and kinds are below 0x80 also keeps the magic of a
//! [handshake](crate::handshake) from ever spanning a header.

use thiserror::Error;

/// Length of a header in bytes.
pub const HEADER_LENGTH: usize = 8;

/// Most bytes a frame can carry.
pub const MAX_PAYLOAD: usize = u16::MAX as usize;

/// Most bytes of a command's data put into one frame: with its header it fits the 32 KiB that Linux
/// moves in one write to a virtio-serial port.
pub const DATA_CHUNK: usize = 32 * 1024 - HEADER_LENGTH;

/// Stream numbers have 24 bits. 0 is the connection itself.
pub const MAX_STREAM: u32 = 0x00ff_ffff;

/// A frame as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// The peer does not speak this protocol, or lost its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("a frame header is not one: {0:02x?}")]
    Header([u8; HEADER_LENGTH]),
}

/// A payload that does not fit a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{length} bytes do not fit a message, which holds {MAX_PAYLOAD}")]
pub struct PayloadTooLong {
    pub length: usize,
}

/// Appends a frame to `out`.
///
/// # Panics
/// Never for kinds and streams this crate makes: kinds are constants below 0x80; a stream above
/// [`MAX_STREAM`] is cut to its 24 bits.
pub fn encode(kind: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) -> Result<(), PayloadTooLong> {
    let length = u16::try_from(payload.len()).map_err(|_| PayloadTooLong { length: payload.len() })?;
    let [length_low, length_high] = length.to_le_bytes();
    let [stream_low, stream_middle, stream_high, _] = stream.to_le_bytes();
    out.reserve(HEADER_LENGTH + payload.len());
    out.extend_from_slice(&[kind, 0, length_low, length_high, stream_low, stream_middle, stream_high, 0]);
    out.extend_from_slice(payload);
    Ok(())
}

/// Puts frames together from a byte stream. Holds at most one frame.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    header: [u8; HEADER_LENGTH],
    /// Bytes of the header that are there.
    filled: usize,
    payload: Vec<u8>,
}

impl FrameDecoder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes from the front of `input` until a frame is whole or the input is used up.
    /// After an error the decoder is to be thrown away or [reset](Self::reset).
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        if self.filled < HEADER_LENGTH {
            let take = input.len().min(HEADER_LENGTH - self.filled);
            let (head, rest) = input.split_at(take);
            self.header[self.filled..self.filled + take].copy_from_slice(head);
            self.filled += take;
            *input = rest;
            if self.filled < HEADER_LENGTH {
                return Ok(None);
            }
            let [kind, first_zero, .., last_zero] = self.header;
            if kind == 0 || kind >= 0x80 || first_zero != 0 || last_zero != 0 {
                return Err(FrameError::Header(self.header));
            }
        }
        let [kind, _, length_low, length_high, stream_low, stream_middle, stream_high, _] = self.header;
        let length = usize::from(u16::from_le_bytes([length_low, length_high]));
        // Grows with what arrives, not with what was claimed.
        let take = input.len().min(length - self.payload.len());
        let (body, rest) = input.split_at(take);
        self.payload.extend_from_slice(body);
        *input = rest;
        if self.payload.len() < length {
            return Ok(None);
        }
        self.filled = 0;
        let stream = u32::from_le_bytes([stream_low, stream_middle, stream_high, 0]);
        Ok(Some(Frame { kind, stream, payload: std::mem::take(&mut self.payload) }))
    }

    /// Forgets a frame that is not whole.
    pub fn reset(&mut self) {
        self.filled = 0;
        self.payload = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_payload_too_long_is_refused() {
        let mut out = Vec::new();
        let error = encode(1, 1, &vec![0; MAX_PAYLOAD + 1], &mut out).unwrap_err();
        assert_eq!(error, PayloadTooLong { length: MAX_PAYLOAD + 1 });
        assert!(out.is_empty());
        encode(1, 1, &vec![0; MAX_PAYLOAD], &mut out).unwrap();
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        let mut decoder = FrameDecoder::new();
        let mut input: &[u8] = &[1, 0, 0xff, 0xff, 1, 0, 0, 0, b'x'];
        assert_eq!(decoder.next(&mut input), Ok(None));
        assert!(decoder.payload.capacity() < 64);
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            frames in prop::collection::vec(
                (1_u8..0x80, 0..=MAX_STREAM, prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            cuts in prop::collection::vec(1_usize..50, 1..50),
        ) {
            let mut wire = Vec::new();
            for (kind, stream, payload) in &frames {
                encode(*kind, *stream, payload, &mut wire).unwrap();
            }
            let mut decoder = FrameDecoder::new();
            let mut decoded = Vec::new();
            let mut cuts = cuts.iter().cycle();
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                let (mut piece, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                while let Some(frame) = decoder.next(&mut piece).unwrap() {
                    decoded.push((frame.kind, frame.stream, frame.payload));
                }
                rest = after;
            }
            prop_assert_eq!(decoded, frames);
        }

        #[test]
        fn noise_ends_in_frames_or_an_error(noise in prop::collection::vec(any::<u8>(), 0..4000)) {
            let mut decoder = FrameDecoder::new();
            let mut input = noise.as_slice();
            let mut bytes = 0;
            while let Ok(Some(frame)) = decoder.next(&mut input) {
                bytes += HEADER_LENGTH + frame.payload.len();
            }
            prop_assert!(bytes <= noise.len());
            prop_assert!(decoder.payload.len() <= MAX_PAYLOAD);
        }
    }
}
