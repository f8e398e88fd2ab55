//! Loose matching: the letters of the pattern in their order, the better the closer together and the
//! nearer to beginnings of words.

/// How well `pattern` (lower case) matches `text`; `None` when it does not. Higher is better.
pub fn score(text: &str, pattern: &str) -> Option<i32> {
    let mut positions = Vec::new();
    score_with(text, pattern, &mut positions)
}

/// Whether the letters stand close to each other: no more between them than three times as many as there are.
pub fn is_near(text: &str, pattern: &str) -> bool {
    let mut positions = Vec::new();
    let found = score_with(text, pattern, &mut positions).is_some();
    let spread = positions.last().zip(positions.first()).map_or(0, |(last, first)| last - first + 1);
    found && spread <= positions.len() * 4
}

/// As [`score`]; `positions` gets the indexes of the characters that matched.
pub fn score_with(text: &str, pattern: &str, positions: &mut Vec<usize>) -> Option<i32> {
    positions.clear();
    if pattern.is_empty() {
        return Some(0);
    }
    let letters: Vec<char> = text.chars().collect();
    let wanted: Vec<char> = pattern.chars().collect();
    // The end of the first match, then backwards from there: the shortest match that ends there.
    let mut next = 0;
    let mut end = None;
    for (index, &letter) in letters.iter().enumerate() {
        if same(letter, wanted[next]) {
            next += 1;
            if next == wanted.len() {
                end = Some(index);
                break;
            }
        }
    }
    let mut at = end? + 1;
    for &letter in wanted.iter().rev() {
        while at > 0 {
            at -= 1;
            if same(letters[at], letter) {
                positions.push(at);
                break;
            }
        }
    }
    positions.reverse();
    let mut score = 0i32;
    for (index, &position) in positions.iter().enumerate() {
        let starts_word = position == 0 || !letters[position - 1].is_alphanumeric();
        let follows = index > 0 && positions[index - 1] + 1 == position;
        score += 1 + if starts_word { 8 } else { 0 } + if follows { 9 } else { 0 };
    }
    let spread = positions.last()? - positions.first()? + 1 - positions.len();
    let length = i32::try_from(letters.len()).unwrap_or(i32::MAX / 64);
    Some(score * 16 - i32::try_from(spread).unwrap_or(i32::MAX / 64) * 4 - length.min(256))
}

fn same(letter: char, wanted: char) -> bool {
    letter == wanted || letter.to_lowercase().eq(wanted.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn letters_match_in_their_order() {
        assert!(score("debian-12", "d12").is_some());
        assert!(score("Debian", "deb").is_some());
        assert!(score("debian", "dx").is_none());
        assert!(score("abc", "cb").is_none());
    }

    #[test]
    fn closer_matches_and_word_beginnings_are_better() {
        let better = |pattern: &str, good: &str, bad: &str| {
            assert!(score(good, pattern) > score(bad, pattern), "{pattern}: {good} {bad}");
        };
        better("deb", "debian", "d-e-b");
        better("web", "my-web", "swear-bar");
        better("deb", "deb", "debian");
    }

    proptest! {
        #[test]
        fn positions_spell_the_pattern(text in "[a-zA-Z-]{0,20}", pattern in "[a-z]{0,5}") {
            let mut positions = Vec::new();
            if score_with(&text, &pattern, &mut positions).is_some() {
                let spelt: String = positions.iter().map(|&at| text.chars().nth(at).unwrap()).collect();
                prop_assert_eq!(spelt.to_lowercase(), pattern);
            }
        }
    }
}
