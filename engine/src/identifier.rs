//! Identifiers and names: what the store, the data directory and the command line call things.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

macro_rules! identifier {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// A new one: 12 random hexadecimal digits.
            pub fn random() -> Self {
                Self(random_hex())
            }

            /// One that was stored before.
            pub fn from_stored(text: String) -> Self {
                Self(text)
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier!(
    /// An image: the name of its folder under `images/`.
    ImageId
);
identifier!(
    /// A machine: the name of its folder under `vms/`.
    VmId
);
identifier!(
    /// A frozen disk: the name of its folder under `layers/`.
    LayerId
);
identifier!(
    /// An operation: the name of its folder under `staging/`.
    OperationId
);

/// Names for a message: all of a few, else the first and how many more there are.
pub fn list_names<T: AsRef<str>>(names: &[T]) -> String {
    const SHOWN: usize = 6;
    let shown = if names.len() > SHOWN + 1 { SHOWN } else { names.len() };
    let mut text = names[..shown].iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    if shown < names.len() {
        text.push_str(&format!(" and {} more", names.len() - shown));
    }
    text
}

fn random_hex() -> String {
    let mut bytes = [0u8; 6];
    getrandom::fill(&mut bytes).expect("the kernel's random numbers are there once it runs programs");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Characters of the longest name.
pub const LONGEST_NAME: usize = 63;

/// Checks a name a user gives to an image, kernel or machine.
///
/// Letters, digits, `.`, `_`, `-` and `+`, 1 … 63 characters, the first a letter or digit: what is at
/// once a safe file name, and (for machines) close enough to a host name.
pub fn check_name(noun: &str, name: &str) -> Result<()> {
    let fits = (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+'))
        && name.as_bytes()[0].is_ascii_alphanumeric();
    if fits {
        return Ok(());
    }
    Err(Error::usage(format!("`{}` cannot be the name of {noun}", name.escape_default()))
        .with_hint("use 1 to 63 letters, digits, `.`, `_`, `-` or `+`, beginning with a letter or digit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_a_few_and_counts_the_rest() {
        let names = |count: usize| (0..count).map(|number| number.to_string()).collect::<Vec<_>>();
        assert_eq!(list_names(&names(2)), "0, 1");
        assert_eq!(list_names(&names(7)), "0, 1, 2, 3, 4, 5, 6");
        assert_eq!(list_names(&names(200)), "0, 1, 2, 3, 4, 5 and 194 more");
    }

    #[test]
    fn names_are_safe_as_file_names() {
        for good in ["a", "debian-12", "6.12.90+deb12-cloud-amd64", "A_b"] {
            assert!(check_name("an image", good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-x", "a/b", "a b", "ä", "x\u{1b}[m", &"a".repeat(64)] {
            assert!(check_name("an image", bad).is_err(), "{bad}");
        }
    }
}
