//! Windows over the view: at most a few, the last one has the keys.

use super::ask::Ask;
use super::form::NewVmForm;
use super::input::TextInput;
use crate::action::Action;
use crate::message::Effect;
use crate::options::ThemeChoice;

/// A window over the view.
#[derive(Clone, Debug)]
pub enum Overlay {
    Help(Help),
    Palette(Palette),
    Confirm(Confirm),
    Ask(Box<Ask>),
    Picker(Picker),
    Messages { offset: usize },
    Doctor { offset: usize },
    NewVm(Box<NewVmForm>),
}

/// The keys that work where it was opened.
#[derive(Clone, Debug, Default)]
pub struct Help {
    pub search: TextInput,
    pub offset: usize,
}

/// Every action by its name.
#[derive(Clone, Debug, Default)]
pub struct Palette {
    pub input: TextInput,
    pub cursor: usize,
    /// How far back in the history the input is; 0 is what is typed.
    pub back: usize,
}

impl Palette {
    /// The row that is asked for, where a number is typed.
    pub fn row(&self) -> Option<u32> {
        let typed = self.input.text().trim();
        typed.parse().ok().filter(|_| typed.bytes().all(|byte| byte.is_ascii_digit()))
    }
}

/// A question before something is taken away.
#[derive(Clone, Debug)]
pub struct Confirm {
    pub title: String,
    /// What it is about, one name each.
    pub targets: Vec<String>,
    /// What happens to them and what stays, one sentence each.
    pub consequences: Vec<String>,
    /// What the button says.
    pub verb: &'static str,
    pub effects: Vec<Effect>,
    /// Whether the button has the focus rather than Cancel.
    pub on_verb: bool,
}

/// A choice of one of a few.
#[derive(Clone, Debug)]
pub struct Picker {
    pub title: &'static str,
    pub entries: Vec<Choice>,
    pub cursor: usize,
}

#[derive(Clone, Debug)]
pub struct Choice {
    /// Chooses it at once; free of the moving keys.
    pub key: Option<char>,
    pub label: String,
    /// Shown behind it.
    pub detail: String,
    pub chosen: Chosen,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Chosen {
    Sort(usize),
    Copy {
        label: String,
        text: String,
    },
    Theme(ThemeChoice),
    Action(Action),
    /// Look for what can be freed; everything that is not in use, or only what is left over.
    Prune {
        all: bool,
    },
}
