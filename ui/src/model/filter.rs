//! Filters: words that match loosely, `!word` that must not, `key:value` terms.

use crate::fuzzy;

use super::list::Listed;

/// A filter of a list; an empty one lets everything through.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// As it was typed.
    pub text: String,
    terms: Vec<Term>,
}

#[derive(Clone, Debug)]
struct Term {
    inverted: bool,
    key: Option<String>,
    text: String,
}

impl Filter {
    pub fn parse(text: &str) -> Self {
        let terms = text.split_whitespace().filter_map(|word| {
            let (inverted, word) = word.strip_prefix('!').map_or((false, word), |rest| (true, rest));
            let (key, text) = match word.split_once(':') {
                Some((key, text)) if !key.is_empty() => (Some(key.to_lowercase()), text),
                _ => (None, word),
            };
            (!text.is_empty()).then(|| Term { inverted, key, text: text.to_lowercase() })
        });
        Self { text: text.to_owned(), terms: terms.collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    pub fn matches<T: Listed>(&self, row: &T) -> bool {
        self.terms.iter().all(|term| term.found(row) != term.inverted)
    }
}

impl Term {
    fn found<T: Listed>(&self, row: &T) -> bool {
        // A colon may also be part of a word: `debian:12`.
        if let Some(key) = &self.key {
            return match row.term(key) {
                Some(value) => value.to_lowercase().contains(&self.text),
                None => {
                    let word = format!("{key}:{}", self.text);
                    row.texts().chain([row.name()]).any(|text| text.to_lowercase().contains(&word))
                }
            };
        }
        // A name matches loosely when letters are left out; what must not match is meant as it is typed.
        let loosely = !self.inverted && fuzzy::is_near(row.name(), &self.text);
        loosely || row.texts().chain([row.name()]).any(|text| text.to_lowercase().contains(&self.text))
    }
}
