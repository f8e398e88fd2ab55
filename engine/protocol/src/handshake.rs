//! How a connection begins on a byte stream that outlives connections.
//!
//! The engine opens with a preamble: [`MAGIC`] and a random [`Nonce`] in hexadecimal. The agent
//! finds it wherever it stands, even in the middle of a frame that a dead engine left unfinished
//! ([`HostStream`]), forgets everything of the connection before, and answers with a preamble of
//! the same nonce. The engine skips all that comes before that answer ([`GuestStream`]): it was
//! meant for somebody else.
//!
//! That the agent looks for the magic at all times needs a promise of the engine: no frame it sends
//! holds the magic. Headers cannot (see [`crate::frame`]); JSON cannot, as no byte of the magic
//! occurs in UTF-8; raw data is cut inside each occurrence, by [`chunk`].

use thiserror::Error;

use crate::frame::{DATA_CHUNK, Frame, FrameDecoder, FrameError};

/// Marks the beginning of a connection. None of its bytes occurs in UTF-8, and the first does not
/// occur again, so that a search never has to go back.
pub const MAGIC: [u8; 16] =
    [0xfe, 0xc0, 0xf9, 0xff, 0xc1, 0xfb, 0xfd, 0xf8, 0xff, 0xfa, 0xc0, 0xfc, 0xf9, 0xc1, 0xfd, 0xff];

/// Length of a nonce in hexadecimal.
const NONCE_LENGTH: usize = 32;

/// Bytes before the answer to a preamble after which the peer is taken not to be an agent. What an
/// agent can have queued in its kernel for an engine that went away is a few MiB.
pub const MAX_STALE: usize = 64 * 1024 * 1024;

/// Tells one connection from all others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nonce([u8; NONCE_LENGTH]);

impl Nonce {
    /// From 16 random bytes.
    pub fn new(random: [u8; NONCE_LENGTH / 2]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; NONCE_LENGTH];
        for (pair, byte) in text.chunks_exact_mut(2).zip(random) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 0x0f)];
        }
        Self(text)
    }

    /// The preamble of the connection with this nonce, the same in both directions.
    pub fn preamble(&self) -> [u8; MAGIC.len() + NONCE_LENGTH] {
        let mut preamble = [0; MAGIC.len() + NONCE_LENGTH];
        preamble[..MAGIC.len()].copy_from_slice(&MAGIC);
        preamble[MAGIC.len()..].copy_from_slice(&self.0);
        preamble
    }
}

/// Length of the next piece of `data` that may go into one frame: at most [`DATA_CHUNK`], and cut
/// so that no piece holds the magic. 0 only for no data.
pub fn chunk(data: &[u8]) -> usize {
    let longest = data.len().min(DATA_CHUNK);
    let mut from = 0;
    while let Some(found) = data[from..longest].iter().position(|byte| *byte == MAGIC[0]) {
        let at = from + found;
        if data[at..longest].starts_with(&MAGIC) {
            return at + MAGIC.len() / 2;
        }
        from = at + 1;
    }
    longest
}

/// What the agent finds in the stream from the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// A new connection; whatever was before it has ended.
    Opened(Nonce),
    Frame(Frame),
    /// The engine lost its step; nothing more comes until the next connection.
    Broken(FrameError),
}

/// The agent's end of the stream from the engine.
#[derive(Debug)]
pub struct HostStream {
    /// Bytes of the preamble that the newest input ends with.
    matched: usize,
    nonce: [u8; NONCE_LENGTH],
    /// Whether a connection is open; outside of one everything but a preamble is dropped.
    open: bool,
    frames: FrameDecoder,
}

impl Default for HostStream {
    fn default() -> Self {
        Self { matched: 0, nonce: [0; NONCE_LENGTH], open: false, frames: FrameDecoder::new() }
    }
}

impl HostStream {
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the connection: the carrier says that the engine went away.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Takes what arrived and calls `event` for each thing found in it, in order.
    pub fn push(&mut self, mut input: &[u8], mut event: impl FnMut(HostEvent)) {
        while let Some(&byte) = input.first() {
            if self.matched == 0 {
                let plain = input.iter().position(|byte| *byte == MAGIC[0]).unwrap_or(input.len());
                let (head, rest) = input.split_at(plain);
                self.decode(head, &mut event);
                input = rest;
                if !input.is_empty() {
                    self.matched = 1;
                    input = &input[1..];
                }
                continue;
            }
            if self.matched < MAGIC.len() {
                if byte == MAGIC[self.matched] {
                    self.matched += 1;
                    input = &input[1..];
                } else {
                    // It was data that only looked like a beginning.
                    let looked_like = &MAGIC[..self.matched];
                    self.matched = 0;
                    self.decode(looked_like, &mut event);
                }
                continue;
            }
            // In the nonce: from here on the connection before is gone, whatever follows.
            self.open = false;
            self.frames.reset();
            if byte.is_ascii_hexdigit() {
                self.nonce[self.matched - MAGIC.len()] = byte;
                self.matched += 1;
                input = &input[1..];
                if self.matched == MAGIC.len() + NONCE_LENGTH {
                    self.matched = 0;
                    self.open = true;
                    event(HostEvent::Opened(Nonce(self.nonce)));
                }
            } else {
                self.matched = 0;
            }
        }
    }

    fn decode(&mut self, mut bytes: &[u8], event: &mut impl FnMut(HostEvent)) {
        while self.open && !bytes.is_empty() {
            match self.frames.next(&mut bytes) {
                Ok(Some(frame)) => event(HostEvent::Frame(frame)),
                Ok(None) => return,
                Err(error) => {
                    self.open = false;
                    self.frames.reset();
                    event(HostEvent::Broken(error));
                }
            }
        }
    }
}

/// Why the engine gives a stream from a guest up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StreamError {
    #[error("{MAX_STALE} bytes arrived without an answer to the handshake")]
    NoAnswer,
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// The engine's end of the stream from the agent.
#[derive(Debug)]
pub struct GuestStream {
    preamble: [u8; MAGIC.len() + NONCE_LENGTH],
    /// Bytes of the preamble seen; all of them when the connection is open.
    matched: usize,
    /// Bytes skipped before it.
    stale: usize,
    frames: FrameDecoder,
}

impl GuestStream {
    pub fn new(nonce: Nonce) -> Self {
        Self { preamble: nonce.preamble(), matched: 0, stale: 0, frames: FrameDecoder::new() }
    }

    /// Whether the agent has answered.
    pub fn is_open(&self) -> bool {
        self.matched == self.preamble.len()
    }

    /// Takes bytes from the front of `input` until a frame is whole or the input is used up.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, StreamError> {
        while !self.is_open() {
            let Some((&byte, rest)) = input.split_first() else { return Ok(None) };
            *input = rest;
            // The first byte of the preamble occurs only there, so a mismatch never has to look
            // further back than at the byte itself.
            self.matched = match byte {
                byte if byte == self.preamble[self.matched] => self.matched + 1,
                byte if byte == MAGIC[0] => 1,
                _ => 0,
            };
            self.stale += 1;
            if self.stale > MAX_STALE {
                return Err(StreamError::NoAnswer);
            }
        }
        Ok(self.frames.next(input)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;
    use proptest::prelude::*;

    fn framed(payload: &[u8]) -> Vec<u8> {
        let mut wire = Vec::new();
        frame::encode(2, 7, payload, &mut wire).unwrap();
        wire
    }

    fn events(stream: &mut HostStream, wire: &[u8], step: usize) -> Vec<HostEvent> {
        let mut found = Vec::new();
        for piece in wire.chunks(step) {
            stream.push(piece, |event| found.push(event));
        }
        found
    }

    #[test]
    fn no_byte_of_the_magic_is_utf8_and_the_first_is_alone() {
        for byte in MAGIC {
            assert!(std::str::from_utf8(&[b'a', byte, 0x80, 0x80, 0x80]).is_err());
            assert!(matches!(byte, 0xc0 | 0xc1 | 0xf8..=0xff));
        }
        assert!(!MAGIC[1..].contains(&MAGIC[0]));
    }

    #[test]
    fn data_before_a_preamble_is_dropped() {
        let nonce = Nonce::new([7; 16]);
        let mut wire = b"left over".to_vec();
        wire.extend(nonce.preamble());
        wire.extend(framed(b"x"));
        let found = events(&mut HostStream::new(), &wire, 1);
        assert_eq!(found[0], HostEvent::Opened(nonce));
        assert!(matches!(&found[1], HostEvent::Frame(frame) if frame.payload == b"x"));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn after_a_lost_step_only_a_preamble_counts() {
        let nonce = Nonce::new([1; 16]);
        let mut stream = HostStream::new();
        let mut wire = nonce.preamble().to_vec();
        wire.extend([0xee; 40]);
        wire.extend(framed(b"lost"));
        wire.extend(nonce.preamble());
        wire.extend(framed(b"found"));
        let found = events(&mut stream, &wire, 9);
        assert!(matches!(found[1], HostEvent::Broken(_)));
        assert_eq!(found[2], HostEvent::Opened(nonce));
        assert!(matches!(&found[3], HostEvent::Frame(frame) if frame.payload == b"found"));
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn an_agent_that_never_answers_is_given_up() {
        let mut stream = GuestStream::new(Nonce::new([0; 16]));
        let noise = vec![0; 1024 * 1024];
        let ended = (0..100).find_map(|_| stream.next(&mut noise.as_slice()).err());
        assert_eq!(ended, Some(StreamError::NoAnswer));
    }

    /// Data in which parts of the magic are frequent.
    fn tricky() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            3 => (0..=MAGIC.len()).prop_map(|length| MAGIC[..length].to_vec()),
            1 => Just(MAGIC.to_vec()),
            2 => prop::collection::vec(any::<u8>(), 0..20),
        ];
        prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn data_with_the_magic_in_it_arrives_and_opens_nothing(data in tricky(), step in 1_usize..70) {
            let nonce = Nonce::new([9; 16]);
            let mut wire = nonce.preamble().to_vec();
            let mut rest = data.as_slice();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(chunk(rest));
                wire.extend(framed(piece));
                rest = after;
            }
            // Closes what may still look like a beginning.
            wire.extend(framed(b""));
            let mut found = events(&mut HostStream::new(), &wire, step).into_iter();
            prop_assert_eq!(found.next(), Some(HostEvent::Opened(nonce)));
            let mut arrived = Vec::new();
            for event in found {
                match event {
                    HostEvent::Frame(frame) => arrived.extend(frame.payload),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            prop_assert_eq!(arrived, data);
        }

        #[test]
        fn a_new_connection_is_found_after_any_cut(
            payload in tricky(), cut in 0_usize..400, step in 1_usize..70,
        ) {
            let (first, second) = (Nonce::new([1; 16]), Nonce::new([2; 16]));
            let mut wire = first.preamble().to_vec();
            let mut rest = payload.as_slice();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(chunk(rest));
                wire.extend(framed(piece));
                rest = after;
            }
            wire.truncate(cut);
            wire.extend(second.preamble());
            wire.extend(framed(b"fresh"));
            let found = events(&mut HostStream::new(), &wire, step);
            let opened = found.iter().rposition(|event| *event == HostEvent::Opened(second));
            let opened = opened.expect("the second connection is seen");
            prop_assert_eq!(found.len(), opened + 2);
            let fresh = matches!(&found[opened + 1], HostEvent::Frame(frame) if frame.payload == b"fresh");
            prop_assert!(fresh);
        }

        #[test]
        fn the_engine_skips_stale_bytes(stale in tricky(), step in 1_usize..70) {
            let nonce = Nonce::new([3; 16]);
            let mut wire = stale;
            // What was meant for an engine before looks just like an answer, but for the nonce.
            wire.extend(Nonce::new([4; 16]).preamble());
            wire.extend(framed(b"not for us"));
            wire.extend(nonce.preamble());
            wire.extend(framed(b"for us"));
            let mut stream = GuestStream::new(nonce);
            let mut found = Vec::new();
            for mut piece in wire.chunks(step) {
                while let Some(frame) = stream.next(&mut piece).unwrap() {
                    found.push(frame.payload);
                }
            }
            prop_assert_eq!(found, vec![b"for us".to_vec()]);
        }

        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..2000)) {
            let nonce = Nonce::new([5; 16]);
            let mut wire = nonce.preamble().to_vec();
            wire.extend(&noise);
            let _ = events(&mut HostStream::new(), &wire, 33);
            let mut stream = GuestStream::new(nonce);
            let mut input = wire.as_slice();
            while let Ok(Some(_)) = stream.next(&mut input) {}
        }
    }
}
