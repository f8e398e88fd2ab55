//! Names for machines that were given none.

const ADJECTIVES: [&str; 48] = [
    "amber", "bold", "brave", "brisk", "calm", "clever", "coral", "crisp", "dapper", "deft", "eager",
    "early", "fair", "fleet", "fond", "gentle", "glad", "golden", "hardy", "honest", "ivory", "jolly",
    "keen", "kind", "lively", "lucid", "merry", "mild", "misty", "neat", "noble", "olive", "placid",
    "plucky", "prime", "proud", "quick", "quiet", "rapid", "ruby", "sage", "silent", "silver", "steady",
    "sunny", "swift", "tidy", "vivid",
];

const NOUNS: [&str; 48] = [
    "badger", "beaver", "bison", "cedar", "cobra", "condor", "crane", "dingo", "dolphin", "eagle", "falcon",
    "ferret", "finch", "fox", "gazelle", "gecko", "heron", "ibex", "jackal", "jaguar", "kestrel", "koala",
    "lemur", "lynx", "marten", "mole", "newt", "ocelot", "orca", "osprey", "otter", "owl", "panda", "petrel",
    "puffin", "quail", "raven", "robin", "salmon", "seal", "shrew", "stork", "swan", "tapir", "tern",
    "trout", "vole", "wren",
];

/// Names to try one after the other; they never end. `seed` is any number.
pub(super) fn candidates(seed: u64) -> impl Iterator<Item = String> {
    let (adjectives, nouns) = (ADJECTIVES.len() as u64, NOUNS.len() as u64);
    (0u64..).map(move |attempt| {
        // 1009 has no factor in common with the number of pairs: every pair comes once.
        let pair = (seed % (adjectives * nouns) + attempt * 1009) % (adjectives * nouns);
        let (adjective, noun) =
            (ADJECTIVES[(pair % adjectives) as usize], NOUNS[(pair / adjectives) as usize]);
        match attempt / (adjectives * nouns) {
            0 => format!("{adjective}-{noun}"),
            round => format!("{adjective}-{noun}-{}", round + 1),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identifier::check_name;

    #[test]
    fn every_pair_comes_once_and_then_with_a_number() {
        let pairs = ADJECTIVES.len() * NOUNS.len();
        let names: std::collections::HashSet<String> = candidates(u64::MAX).take(pairs + 1).collect();
        assert_eq!(names.len(), pairs + 1);
        assert!(names.iter().all(|name| check_name("a machine", name).is_ok()));
        assert_eq!(names.iter().filter(|name| name.ends_with("-2")).count(), 1);
    }
}
