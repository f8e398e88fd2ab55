//! The part of the OCI distribution protocol that a pull needs: `GET` of manifests and blobs, with
//! the authentication that registries ask for.
//!
//! The forms of what is said are `oci-client`'s: manifests, errors, tokens. The transport
//! is our own, over the HTTP client that it uses too, because its `Client` buffers manifests without a
//! bound, swallows errors of the token service, knows no identity tokens, does not show a response's
//! `Content-Range` and `Retry-After`, and does not authenticate anew when a token expires in the
//! middle of a pull. All of those are promises of ours. Its reader of challenges is private to it.

pub(crate) mod challenge;
pub(crate) mod client;
pub(crate) mod credentials;
pub(crate) mod download;
pub(crate) mod http;

use std::time::Duration;

/// Patience with a registry.
#[derive(Clone, Debug)]
pub struct Patience {
    /// Until a connection stands.
    pub connect: Duration,
    /// Without a byte, before the connection is given up: a dead peer sends nothing, for ever.
    pub stall: Duration,
    /// Failures in a row, without any progress in between, that end a download.
    pub attempts: u32,
    /// Pause after the first failure; doubled each time.
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// Longest wait a registry may ask for (`Retry-After`).
    pub longest_retry_after: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            attempts: 6,
            first_pause: Duration::from_millis(300),
            longest_pause: Duration::from_secs(15),
            longest_retry_after: Duration::from_secs(180),
        }
    }
}

impl Patience {
    /// How long to wait after the `failures`th failure in a row, or `None` to give up.
    ///
    /// Between half and the whole of the nominal pause, at random: clients that failed together must
    /// not come back together.
    pub(crate) fn pause(&self, failures: u32, retry_after: Option<Duration>) -> Option<Duration> {
        if failures >= self.attempts || retry_after.is_some_and(|pause| pause > self.longest_retry_after) {
            return None;
        }
        let nominal =
            self.first_pause.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(self.longest_pause);
        let mut random = [0u8; 4];
        // Without random numbers the pause is merely less scattered.
        let _ = getrandom::fill(&mut random);
        let share = 0.5 + f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX) / 2.0;
        Some(nominal.mul_f64(share).max(retry_after.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_are_scattered_and_obey_the_registry() {
        let patience = Patience::default();
        for (failures, nominal) in [(1, 300), (2, 600), (3, 1200)] {
            let pause = patience.pause(failures, None).unwrap().as_millis();
            assert!((nominal / 2..=nominal).contains(&pause), "{failures}: {pause}");
        }
        assert_eq!(patience.pause(6, None), None);
        assert_eq!(patience.pause(1, Some(Duration::from_secs(9))), Some(Duration::from_secs(9)));
        assert_eq!(patience.pause(1, Some(Duration::from_secs(3600))), None);
        let eager = Patience { attempts: u32::MAX, ..patience };
        assert!(eager.pause(u32::MAX - 1, None).unwrap() <= eager.longest_pause);
    }
}
