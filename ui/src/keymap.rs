//! Keys and what they do: the defaults in `assets/keys.toml`, and a user's changes to them.

use std::fmt;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use toml::de::{DeTable, DeValue};

use crate::action::{ACTIONS, Action, Scope};

const DEFAULTS: &str = include_str!("../assets/keys.toml");

/// One key press.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub code: KeyCode,
    pub ctrl: bool,
    pub alt: bool,
    /// Only for keys that are no characters: the shift of a character is in the character.
    pub shift: bool,
}

impl From<KeyEvent> for Key {
    fn from(event: KeyEvent) -> Self {
        let shifts = !matches!(event.code, KeyCode::Char(_) | KeyCode::BackTab);
        let ctrl = event.modifiers.contains(KeyModifiers::CONTROL);
        Self {
            // Some terminals tell ctrl-shift-x as a capital letter: the binding is of the letter.
            code: match event.code {
                // The bytes 0x1c to 0x1f are told as ctrl-4 to ctrl-7.
                KeyCode::Char(digit @ '4'..='7') if ctrl => {
                    KeyCode::Char(['\\', ']', '^', '_'][digit as usize - '4' as usize])
                }
                KeyCode::Char(letter) if ctrl => KeyCode::Char(letter.to_ascii_lowercase()),
                code => code,
            },
            ctrl,
            alt: event.modifiers.contains(KeyModifiers::ALT),
            shift: shifts && event.modifiers.contains(KeyModifiers::SHIFT),
        }
    }
}

/// Names of keys that are no characters.
const NAMED: [(&str, KeyCode); 16] = [
    ("space", KeyCode::Char(' ')),
    ("enter", KeyCode::Enter),
    ("esc", KeyCode::Esc),
    ("tab", KeyCode::Tab),
    ("shift-tab", KeyCode::BackTab),
    ("backspace", KeyCode::Backspace),
    ("delete", KeyCode::Delete),
    ("insert", KeyCode::Insert),
    ("up", KeyCode::Up),
    ("down", KeyCode::Down),
    ("left", KeyCode::Left),
    ("right", KeyCode::Right),
    ("home", KeyCode::Home),
    ("end", KeyCode::End),
    ("page-up", KeyCode::PageUp),
    ("page-down", KeyCode::PageDown),
];

impl Key {
    pub const fn plain(code: KeyCode) -> Self {
        Self { code, ctrl: false, alt: false, shift: false }
    }

    /// Reads a key as it is written in the file of key bindings.
    pub fn parse(text: &str) -> Option<Self> {
        let named = |name: &str| NAMED.iter().find(|(known, _)| *known == name).map(|(_, code)| *code);
        if let Some(code) = named(text) {
            return Some(Self::plain(code));
        }
        let (mut rest, mut key) = (text, Self::plain(KeyCode::Null));
        loop {
            if let Some(after) = rest.strip_prefix("ctrl-").filter(|after| !after.is_empty()) {
                (rest, key.ctrl) = (after, true);
            } else if let Some(after) = rest.strip_prefix("alt-").filter(|after| !after.is_empty()) {
                (rest, key.alt) = (after, true);
            } else if let Some(after) = rest.strip_prefix("shift-").filter(|after| named(after).is_some()) {
                (rest, key.shift) = (after, true);
            } else {
                break;
            }
        }
        let mut characters = rest.chars();
        key.code = match (named(rest), characters.next(), characters.next()) {
            (Some(code), ..) => code,
            (None, Some(only), None) if !only.is_control() => KeyCode::Char(only),
            (None, Some('f'), Some(_)) => {
                KeyCode::F(rest[1..].parse().ok().filter(|number| (1..=12).contains(number))?)
            }
            _ => return None,
        };
        if key.ctrl
            && let KeyCode::Char(letter) = key.code
        {
            key.code = KeyCode::Char(letter.to_ascii_lowercase());
        }
        Some(key)
    }

    /// The digit it types, if it is one and nothing else.
    pub fn digit(self) -> Option<u32> {
        match self {
            Self { code: KeyCode::Char(character), ctrl: false, alt: false, .. } => character.to_digit(10),
            _ => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (set, name) in [(self.ctrl, "ctrl-"), (self.alt, "alt-"), (self.shift, "shift-")] {
            if set {
                f.write_str(name)?;
            }
        }
        match (NAMED.iter().find(|(_, code)| *code == self.code), self.code) {
            (Some((name, _)), _) => f.write_str(name),
            (None, KeyCode::Char(character)) => write!(f, "{character}"),
            (None, KeyCode::F(number)) => write!(f, "f{number}"),
            (None, other) => write!(f, "{other}"),
        }
    }
}

/// Keys one after the other that mean an action in a scope.
#[derive(Clone, Debug)]
pub struct Binding {
    pub scope: Scope,
    pub keys: Vec<Key>,
    pub action: Action,
}

/// What keys typed so far mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    Action(Action),
    /// More keys are needed.
    Prefix,
    Nothing,
}

/// The table in force.
#[derive(Clone, Debug)]
pub struct Keymap {
    bindings: Vec<Binding>,
}

/// A mistake in a file of key bindings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct KeymapError {
    /// Counted from 1.
    pub line: usize,
    pub problem: String,
}

impl Default for Keymap {
    fn default() -> Self {
        let bindings = parse(DEFAULTS).expect("a test reads the default key bindings");
        Self { bindings: bindings.into_iter().flat_map(Override::into_bindings).collect() }
    }
}

/// One line of a file: an action and all its keys.
struct Override {
    line: usize,
    scope: Scope,
    action: Action,
    keys: Vec<Vec<Key>>,
}

impl Override {
    fn into_bindings(self) -> impl Iterator<Item = Binding> {
        let Self { scope, action, keys, .. } = self;
        keys.into_iter().map(move |keys| Binding { scope, keys, action })
    }
}

impl Keymap {
    /// The defaults with a user's changes, given as TOML.
    pub fn with_overrides(text: &str) -> Result<Self, KeymapError> {
        let mut map = Self::default();
        let overrides = parse(text)?;
        map.bindings.retain(|binding| overrides.iter().all(|change| change.action != binding.action));
        for change in overrides {
            let line = change.line;
            for binding in change.into_bindings() {
                // A key the user gives to another action is taken from the default that had it …
                let same = |other: &Binding| other.scope == binding.scope && other.keys == binding.keys;
                if let Some(index) = map.bindings.iter().position(same) {
                    // … and not from what the user gave it to a line before.
                    let earlier = map.bindings[index].action;
                    if Self::default()
                        .bindings
                        .iter()
                        .all(|default| !(same(default) && default.action == earlier))
                    {
                        let problem = format!(
                            "`{}` is already bound to `{}` in [{}]",
                            sequence(&binding.keys),
                            earlier.info().name,
                            binding.scope.as_str()
                        );
                        return Err(KeymapError { line, problem });
                    }
                    map.bindings.remove(index);
                }
                map.bindings.push(binding);
            }
        }
        Ok(map)
    }

    /// What `keys` mean where `scopes` apply, the most specific first.
    pub fn lookup(&self, scopes: &[Scope], keys: &[Key]) -> Lookup {
        let mut prefix = false;
        for scope in scopes {
            for binding in self.bindings.iter().filter(|binding| binding.scope == *scope) {
                if binding.keys == keys {
                    return Lookup::Action(binding.action);
                }
                prefix |= binding.keys.starts_with(keys);
            }
        }
        if prefix { Lookup::Prefix } else { Lookup::Nothing }
    }

    /// The first key sequence of an action, if it has one.
    pub fn keys_of(&self, action: Action) -> Option<&[Key]> {
        self.bindings.iter().find(|binding| binding.action == action).map(|binding| binding.keys.as_slice())
    }

    /// All key sequences of an action, as text, separated by blanks.
    pub fn describe(&self, action: Action) -> String {
        let all: Vec<_> = self
            .bindings
            .iter()
            .filter(|binding| binding.action == action)
            .map(|binding| sequence(&binding.keys))
            .collect();
        all.join(", ")
    }

    /// The table in force, for programs.
    pub fn entries(&self) -> Vec<KeymapEntry> {
        let all = Scope::ALL.iter().flat_map(|scope| ACTIONS.iter().filter(move |info| info.scope == *scope));
        all.map(|info| {
            let bindings = self.bindings.iter().filter(|binding| binding.action == info.action);
            let keys = bindings.map(|binding| sequence(&binding.keys)).collect();
            KeymapEntry { scope: info.scope.as_str(), action: info.name, keys, help: info.help }
        })
        .collect()
    }

    /// The table in force, for people: scope, action, keys, what it does.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for scope in Scope::ALL {
            text.push_str(&format!("[{}]\n", scope.as_str()));
            for info in ACTIONS.iter().filter(|info| info.scope == scope) {
                text.push_str(&format!(
                    "{:<16} {:<16} {}\n",
                    info.name,
                    self.describe(info.action),
                    info.help
                ));
            }
            text.push('\n');
        }
        text.pop();
        text
    }
}

/// One row of the table in force, for programs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct KeymapEntry {
    pub scope: &'static str,
    pub action: &'static str,
    /// Each is a sequence, its keys separated by blanks.
    pub keys: Vec<String>,
    pub help: &'static str,
}

/// A key sequence as it is written in the file.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a>(pub &'a [Key]);

impl fmt::Display for Sequence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, key) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{key}")?;
        }
        Ok(())
    }
}

/// The same as a text.
pub fn sequence(keys: &[Key]) -> String {
    Sequence(keys).to_string()
}

fn parse(text: &str) -> Result<Vec<Override>, KeymapError> {
    let line_of =
        |offset: usize| 1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count();
    let fail = |offset: usize, problem: String| KeymapError { line: line_of(offset), problem };
    let document = DeTable::parse(text).map_err(|error| {
        fail(error.span().map_or(0, |span| span.start), error.message().replace('\n', ", "))
    })?;
    let mut overrides: Vec<Override> = Vec::new();
    for (name, value) in document.get_ref() {
        let at = name.span().start;
        let Some(scope) = Scope::ALL.into_iter().find(|scope| scope.as_str() == name.get_ref().as_ref())
        else {
            let known: Vec<_> = Scope::ALL.iter().map(|scope| scope.as_str()).collect();
            return Err(fail(
                at,
                format!("there is no table [{}]; there are {}", name.get_ref(), known.join(", ")),
            ));
        };
        let DeValue::Table(actions) = value.get_ref() else {
            return Err(fail(at, format!("[{}] has to be a table", scope.as_str())));
        };
        for (name, value) in actions {
            let at = name.span().start;
            let Some(action) = Action::parse(name.get_ref()) else {
                return Err(fail(
                    at,
                    format!("there is no action `{}`; `vmdeck keys` lists them", name.get_ref()),
                ));
            };
            if action.info().scope != scope {
                let problem = format!("`{}` belongs into [{}]", name.get_ref(), action.info().scope.as_str());
                return Err(fail(at, problem));
            }
            let DeValue::Array(sequences) = value.get_ref() else {
                return Err(fail(
                    value.span().start,
                    "expected a list of keys, such as [\"j\", \"down\"]".into(),
                ));
            };
            let mut keys = Vec::new();
            for value in sequences.iter() {
                let at = value.span().start;
                let DeValue::String(sequence) = value.get_ref() else {
                    return Err(fail(at, "expected a key as a string, such as \"ctrl-u\"".into()));
                };
                let sequence: Vec<_> = sequence
                    .split_ascii_whitespace()
                    .map(|part| Key::parse(part).ok_or_else(|| fail(at, format!("there is no key `{part}`"))))
                    .collect::<Result<_, _>>()?;
                if sequence.is_empty() {
                    return Err(fail(at, "an empty key; write `space` for the space bar".into()));
                }
                keys.push(sequence);
            }
            overrides.push(Override { line: line_of(at), scope, action, keys });
        }
    }
    // In the order of the file, so that mistakes are told of the later line.
    overrides.sort_by_key(|change| change.line);
    Ok(overrides)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Vec<Key> {
        text.split(' ').map(|part| Key::parse(part).unwrap()).collect()
    }

    #[test]
    fn every_action_is_in_the_default_file_and_no_key_twice() {
        let file = parse(DEFAULTS).unwrap();
        for info in ACTIONS {
            assert_eq!(file.iter().filter(|change| change.action == info.action).count(), 1, "{}", info.name);
        }
        let bindings = Keymap::default().bindings;
        for (index, binding) in bindings.iter().enumerate() {
            let same = bindings[..index]
                .iter()
                .find(|other| other.scope == binding.scope && other.keys == binding.keys);
            assert!(same.is_none(), "{binding:?} {same:?}");
        }
    }

    #[test]
    fn no_key_that_slips_destroys_anything() {
        for binding in Keymap::default().bindings {
            if binding.action.info().impact == crate::action::Impact::Destroys {
                let KeyCode::Char(letter) = binding.keys[0].code else { panic!("{binding:?}") };
                assert!(letter.is_ascii_uppercase(), "{binding:?}");
            }
        }
    }

    #[test]
    fn keys_are_written_as_they_are_read() {
        for text in [
            "j",
            "G",
            "?",
            "space",
            "ctrl-u",
            "alt-x",
            "shift-tab",
            "page-up",
            "f12",
            "ctrl-alt-a",
            "-",
            "shift-up",
        ] {
            assert_eq!(Key::parse(text).map(|key| key.to_string()).as_deref(), Some(text));
        }
        for text in ["", "ctrl-", "f13", "ab", "f0"] {
            assert_eq!(Key::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_most_specific_scope_wins() {
        let map = Keymap::default();
        let look = |scopes: &[Scope], text: &str| map.lookup(scopes, &keys(text));
        assert_eq!(look(&[Scope::Vms, Scope::List, Scope::Global], "D"), Lookup::Action(Action::DeleteVm));
        assert_eq!(
            look(&[Scope::Images, Scope::List, Scope::Global], "D"),
            Lookup::Action(Action::DeleteImage)
        );
        assert_eq!(look(&[Scope::Vms, Scope::Global], "g"), Lookup::Prefix);
        assert_eq!(look(&[Scope::Vms, Scope::Global], "g g"), Lookup::Action(Action::Top));
        assert_eq!(look(&[Scope::Vms, Scope::Global], "g x"), Lookup::Nothing);
    }

    #[test]
    fn a_user_rebinds_an_action_and_takes_its_key_from_another() {
        let map = Keymap::with_overrides("[vms]\nstop = [\"r\", \"ctrl-s\"]\n").unwrap();
        let scopes = [Scope::Vms, Scope::Global];
        assert_eq!(map.lookup(&scopes, &keys("r")), Lookup::Action(Action::StopVm));
        assert_eq!(map.lookup(&scopes, &keys("ctrl-s")), Lookup::Action(Action::StopVm));
        assert_eq!(map.lookup(&scopes, &keys("x")), Lookup::Nothing);
        assert_eq!(map.keys_of(Action::StartVm), None);
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let check = |text: &str, line: usize, part: &str| {
            let error = Keymap::with_overrides(text).unwrap_err();
            assert!(error.line == line && error.problem.contains(part), "{error}");
        };
        check("[vms]\n\nstopp = [\"x\"]\n", 3, "no action `stopp`");
        check("[vm]\n", 1, "no table [vm]");
        check("[list]\nstop = [\"x\"]\n", 2, "belongs into [vms]");
        check("[vms]\nstop = \"x\"\n", 2, "list of keys");
        check("[vms]\nstop = [\"x\",\n  \"hyper-x\"]\n", 3, "no key `hyper-x`");
        check("[vms]\nstop = [\"a\"]\nstart = [\"a\"]\n", 3, "already bound to `stop`");
        check("[vms\n", 1, "");
    }
}
