use bytes::Bytes;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::Stream;

const WAITING: usize = 320 << 10;

fn content(length: usize, seed: u8) -> Vec<u8> {
    let mut value = u64::from(seed) + 1;
    (0..length)
        .map(|_| {
            value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (value >> 56) as u8
        })
        .collect()
}

fn expected(pieces: &[Vec<u8>]) -> [u8; 32] {
    Sha256::digest(pieces.concat()).into()
}

fn hash(pieces: &[Vec<u8>]) -> [u8; 32] {
    let mut stream = Stream::new(WAITING);
    for piece in pieces {
        stream.update(Bytes::from(piece.clone()));
    }
    stream.finish()
}

#[test]
fn the_digests_of_the_standard() {
    let hex = |digest: [u8; 32]| digest.map(|byte| format!("{byte:02x}")).concat();
    // FIPS 180-4's examples, and the digest of nothing.
    let of = |text: &str| hex(hash(&[text.as_bytes().to_vec()]));
    assert_eq!(of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(
        of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    );
}

#[test]
fn every_length_of_a_last_block() {
    for length in 0..=200 {
        let pieces = [content(length, 3)];
        assert_eq!(hash(&pieces), expected(&pieces), "{length}");
    }
}

#[test]
fn many_threads_hash_each_others_pieces() {
    std::thread::scope(|scope| {
        for seed in 0..8 {
            scope.spawn(move || {
                let lengths = [64, 1, 100_000, WAITING + 17, 63, 0, 262_144, 5, 400_000, 127];
                let pieces: Vec<_> = (0..60_u8)
                    .map(|index| content(lengths[usize::from(index + seed) % lengths.len()], index ^ seed))
                    .collect();
                assert_eq!(hash(&pieces), expected(&pieces), "stream {seed}");
            });
        }
    });
}

#[test]
fn a_stream_that_is_given_up_is_in_nobodys_way() {
    let (mut left, mut kept) = (Stream::new(WAITING), Stream::new(WAITING));
    left.update(content(100_000, 1).into());
    let pieces = [content(50_000, 2), content(120_000, 3)];
    kept.update(pieces[0].clone().into());
    drop(left);
    kept.update(pieces[1].clone().into());
    assert_eq!(kept.finish(), expected(&pieces));
}

#[test]
fn so_much_waits_and_no_more() {
    const PIECE: usize = 80 << 10;
    let mut stream = Stream::new(WAITING);
    let owner = std::sync::Arc::new(());
    struct Held(Vec<u8>, #[allow(dead_code)] std::sync::Arc<()>);
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let piece = || Bytes::from_owner(Held(content(PIECE, 1), std::sync::Arc::clone(&owner)));
    for _ in 0..64 {
        stream.update(piece());
        assert!(std::sync::Arc::strong_count(&owner) <= 1 + WAITING / PIECE);
    }
    let _digest = stream.finish();
    assert_eq!(std::sync::Arc::strong_count(&owner), 1);
}

proptest! {
    /// Pieces of several streams, in any order.
    #[test]
    fn streams_in_turns(turns in proptest::collection::vec((0_usize..3, 0_usize..3_000, any::<u8>()), 0..40)) {
        let mut streams = [0, WAITING, 1_000].map(Stream::new);
        let mut pieces = [const { Vec::new() }; 3];
        for (stream, length, seed) in turns {
            let piece = content(length, seed);
            streams[stream].update(piece.clone().into());
            pieces[stream].push(piece);
        }
        for (stream, pieces) in streams.into_iter().zip(pieces) {
            prop_assert_eq!(stream.finish(), expected(&pieces));
        }
    }
}
