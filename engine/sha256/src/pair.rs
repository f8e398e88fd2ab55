//! The compression function (FIPS 180-4, section 6.2.2) of two streams in turns.
#![allow(unsafe_code)]

use sha2::block_api::compress256;

use super::work::BLOCK;

/// Takes as many blocks of each of two streams into their states.
pub(super) fn compress(states: [&mut [u32; 8]; 2], blocks: [&[[u8; BLOCK]]; 2]) {
    assert_eq!(blocks[0].len(), blocks[1].len(), "two streams go on together");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1")
    {
        // SAFETY: the processor has these instructions, and there are as many blocks of both.
        unsafe { x86::compress(states, blocks) };
        return;
    }
    for (state, blocks) in states.into_iter().zip(blocks) {
        compress256(state, blocks);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_loadu_si128, _mm_set_epi8,
        _mm_setzero_si128, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32,
        _mm_shuffle_epi8, _mm_shuffle_epi32, _mm_storeu_si128,
    };

    use super::BLOCK;

    /// The constants of section 4.2.2.
    static ROUNDS: [u32; 64] = [
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    ];

    /// The working variables of a stream as the instructions have them: a, b, e, f and c, d, g, h.
    type Variables = (__m128i, __m128i);

    /// # Safety
    ///
    /// The processor has the SHA extensions, SSSE3 and SSE4.1; there are as many blocks of both streams.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    pub(super) unsafe fn compress(states: [&mut [u32; 8]; 2], blocks: [&[[u8; BLOCK]]; 2]) {
        // Words are stored with the most significant byte first (section 3.1).
        let order = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
        let mut variables = [load(states[0]), load(states[1])];
        for both in blocks[0].iter().zip(blocks[1]) {
            let before = variables;
            let mut schedule = [[_mm_setzero_si128(); 4]; 2];
            for (words, block) in schedule.iter_mut().zip([both.0, both.1]) {
                for (word, bytes) in words.iter_mut().zip(block.as_chunks::<16>().0) {
                    // SAFETY: 16 bytes are read of 16, and need not be aligned.
                    *word = _mm_shuffle_epi8(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }, order);
                }
            }
            // Four rounds at a time. Written out, so that both schedules stay in registers.
            macro_rules! rounds {
                ($($four:literal)*) => {$(
                    // SAFETY: four of 64 constants are read, of which these are within.
                    let constants = unsafe { _mm_loadu_si128(ROUNDS.as_ptr().add($four * 4).cast()) };
                    for (words, (abef, cdgh)) in schedule.iter().zip(&mut variables) {
                        let sum = _mm_add_epi32(words[$four % 4], constants);
                        *cdgh = _mm_sha256rnds2_epu32(*cdgh, *abef, sum);
                        *abef = _mm_sha256rnds2_epu32(*abef, *cdgh, _mm_shuffle_epi32(sum, 0x0e));
                    }
                    if $four < 12 {
                        for words in &mut schedule {
                            let [first, second, third, fourth] =
                                [0, 1, 2, 3].map(|after| words[($four + after) % 4]);
                            let sum = _mm_sha256msg1_epu32(first, second);
                            let sum = _mm_add_epi32(sum, _mm_alignr_epi8(fourth, third, 4));
                            words[$four % 4] = _mm_sha256msg2_epu32(sum, fourth);
                        }
                    }
                )*};
            }
            rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            for ((abef, cdgh), before) in variables.iter_mut().zip(before) {
                *abef = _mm_add_epi32(*abef, before.0);
                *cdgh = _mm_add_epi32(*cdgh, before.1);
            }
        }
        for (state, variables) in states.into_iter().zip(variables) {
            store(state, variables);
        }
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn load(state: &[u32; 8]) -> Variables {
        // SAFETY: four words each are read of eight, and need not be aligned.
        let (abcd, efgh) = unsafe {
            (_mm_loadu_si128(state.as_ptr().cast()), _mm_loadu_si128(state.as_ptr().add(4).cast()))
        };
        let (cdab, efgh) = (_mm_shuffle_epi32(abcd, 0xb1), _mm_shuffle_epi32(efgh, 0x1b));
        (_mm_alignr_epi8(cdab, efgh, 8), _mm_blend_epi16(efgh, cdab, 0xf0))
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn store(state: &mut [u32; 8], (abef, cdgh): Variables) {
        let (feba, dchg) = (_mm_shuffle_epi32(abef, 0x1b), _mm_shuffle_epi32(cdgh, 0xb1));
        let (abcd, efgh) = (_mm_blend_epi16(feba, dchg, 0xf0), _mm_alignr_epi8(dchg, feba, 8));
        // SAFETY: four words each are written of eight, and need not be aligned.
        unsafe {
            _mm_storeu_si128(state.as_mut_ptr().cast(), abcd);
            _mm_storeu_si128(state.as_mut_ptr().add(4).cast(), efgh);
        }
    }
}
