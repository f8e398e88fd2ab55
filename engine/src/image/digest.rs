//! Digests of blobs (OCI image-spec, descriptor.md, "Digests").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use vmdeck_sha256::Stream;

/// A SHA-256 digest: `sha256:` and 64 lower-case hexadecimal digits.
///
/// The specification knows `sha512` too; no registry in use serves it, so it is refused by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a text is no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("it is not of the form `algorithm:hexadecimal digits`")]
    Form,
    #[error("its algorithm is not sha256, the only one supported")]
    Algorithm,
    #[error("after `sha256:` there must be 64 lower-case hexadecimal digits")]
    Digits,
}

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// What the hash of a stream has come to.
    pub fn of_stream(stream: Stream) -> Self {
        Self(stream.finish())
    }

    /// What a hasher has come to.
    pub fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 digits without the algorithm.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The first 12 digits: enough for a person to tell blobs of one image apart.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, digits) = text.split_once(':').ok_or(DigestError::Form)?;
        if algorithm != "sha256" {
            return Err(DigestError::Algorithm);
        }
        let digits: &[u8; 64] = digits.as_bytes().try_into().map_err(|_| DigestError::Digits)?;
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(DigestError::Digits),
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| {
            serde::de::Error::custom(format!("`{}` is no digest: {error}", text.escape_default()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_is_kept_and_nothing_else_is_taken() {
        // FIPS 180-4, the digest of the empty message.
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse(), Ok(Digest::of(b"")));
        assert_eq!(Digest::of(b"").short(), "e3b0c44298fc");
        assert_eq!("e3b0".parse::<Digest>(), Err(DigestError::Form));
        assert_eq!("sha512:00".parse::<Digest>(), Err(DigestError::Algorithm));
        assert_eq!(
            empty.to_uppercase().replace("SHA256", "sha256").parse::<Digest>(),
            Err(DigestError::Digits)
        );
        assert_eq!(empty[..empty.len() - 1].parse::<Digest>(), Err(DigestError::Digits));
        // 64 bytes, though not 64 characters.
        assert_eq!(format!("sha256:{}", "é".repeat(32)).parse::<Digest>(), Err(DigestError::Digits));
    }
}
