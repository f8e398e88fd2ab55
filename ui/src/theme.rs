//! Colours and glyphs.
//!
//! The default theme uses the terminal's own 16 colours and never sets a background of its own but for
//! the selection, so that it fits whatever the user has chosen. Colour never says alone what a glyph
//! or a word does not say too: the mono theme loses nothing but comfort.

use ratatui::style::{Color, Modifier, Style};

use crate::options::ThemeChoice;
use crate::paint::Lines;

/// Styles by what they mean.
#[derive(Clone, Debug)]
pub struct Theme {
    pub choice: ThemeChoice,
    pub text: Style,
    /// What stands back: units, borders' titles, what is not available.
    pub dim: Style,
    pub bold: Style,
    pub accent: Style,
    pub good: Style,
    pub busy: Style,
    pub warning: Style,
    pub bad: Style,
    pub border: Style,
    pub border_focused: Style,
    pub title: Style,
    /// The row or entry under the cursor, in the pane that has the keys.
    pub selected: Style,
    /// The same in a pane that has not.
    pub selected_unfocused: Style,
    pub marked: Style,
    pub column_title: Style,
    pub key: Style,
    pub field: Style,
    pub cursor: Style,
    pub button: Style,
    pub button_focused: Style,
    pub bar_done: Style,
    pub bar_rest: Style,
    /// Letters that a filter matched.
    pub matched: Style,
}

impl Theme {
    pub fn new(choice: ThemeChoice) -> Self {
        match choice {
            ThemeChoice::Terminal => Self::terminal(),
            ThemeChoice::Dark => Self::coloured(choice, &DARK),
            ThemeChoice::Light => Self::coloured(choice, &LIGHT),
            ThemeChoice::Mono => Self::mono(),
        }
    }

    fn terminal() -> Self {
        // Not the palette's bright black, which some palettes have for their background.
        let (plain, dim) = (Style::new(), Style::new().add_modifier(Modifier::DIM));
        Self {
            choice: ThemeChoice::Terminal,
            text: plain,
            dim,
            bold: plain.bold(),
            accent: plain.fg(Color::Cyan),
            good: plain.fg(Color::Green),
            busy: plain.fg(Color::Cyan),
            warning: plain.fg(Color::Yellow),
            bad: plain.fg(Color::Red),
            border: dim,
            border_focused: plain.fg(Color::Cyan),
            title: plain.bold(),
            selected: plain.add_modifier(Modifier::REVERSED),
            selected_unfocused: plain.add_modifier(Modifier::UNDERLINED),
            marked: plain.fg(Color::Magenta),
            column_title: dim,
            key: plain.fg(Color::Cyan).bold(),
            field: plain.add_modifier(Modifier::UNDERLINED),
            cursor: plain.add_modifier(Modifier::REVERSED),
            button: plain.fg(Color::Gray),
            button_focused: plain.add_modifier(Modifier::REVERSED).bold(),
            bar_done: plain.fg(Color::Green),
            bar_rest: dim,
            matched: plain.fg(Color::Yellow).bold(),
        }
    }

    fn mono() -> Self {
        let plain = Style::new();
        let (bold, dim) = (plain.bold(), plain.add_modifier(Modifier::DIM));
        Self {
            choice: ThemeChoice::Mono,
            text: plain,
            dim,
            bold,
            accent: bold,
            good: plain,
            busy: plain,
            warning: bold,
            bad: bold,
            border: dim,
            border_focused: bold,
            title: bold,
            selected: plain.add_modifier(Modifier::REVERSED),
            selected_unfocused: plain.add_modifier(Modifier::UNDERLINED),
            marked: bold,
            column_title: dim,
            key: bold,
            field: plain.add_modifier(Modifier::UNDERLINED),
            cursor: plain.add_modifier(Modifier::REVERSED),
            button: plain,
            button_focused: plain.add_modifier(Modifier::REVERSED).bold(),
            bar_done: plain,
            bar_rest: dim,
            matched: plain.bold().add_modifier(Modifier::UNDERLINED),
        }
    }

    fn coloured(choice: ThemeChoice, palette: &Palette) -> Self {
        let colour = |(red, green, blue): (u8, u8, u8)| Color::Rgb(red, green, blue);
        let ink = |of: (u8, u8, u8)| Style::new().fg(colour(of)).bg(colour(palette.background));
        let text = ink(palette.text);
        Self {
            choice,
            text,
            dim: ink(palette.dim),
            bold: text.bold(),
            accent: ink(palette.accent),
            good: ink(palette.good),
            busy: ink(palette.accent),
            warning: ink(palette.warning),
            bad: ink(palette.bad),
            border: ink(palette.line),
            border_focused: ink(palette.accent),
            title: text.bold(),
            selected: Style::new().bg(colour(palette.selection)).bold(),
            selected_unfocused: Style::new().bg(colour(palette.selection_unfocused)),
            marked: ink(palette.mark),
            column_title: ink(palette.dim),
            key: ink(palette.accent).bold(),
            field: Style::new().fg(colour(palette.text)).bg(colour(palette.selection_unfocused)),
            cursor: Style::new().fg(colour(palette.background)).bg(colour(palette.text)),
            button: Style::new().fg(colour(palette.text)).bg(colour(palette.selection_unfocused)),
            button_focused: Style::new().fg(colour(palette.background)).bg(colour(palette.accent)).bold(),
            bar_done: ink(palette.good),
            bar_rest: ink(palette.line),
            matched: ink(palette.warning).bold(),
        }
    }
}

struct Palette {
    background: (u8, u8, u8),
    text: (u8, u8, u8),
    dim: (u8, u8, u8),
    line: (u8, u8, u8),
    accent: (u8, u8, u8),
    good: (u8, u8, u8),
    warning: (u8, u8, u8),
    bad: (u8, u8, u8),
    mark: (u8, u8, u8),
    selection: (u8, u8, u8),
    selection_unfocused: (u8, u8, u8),
}

// Text on its background: contrast of at least 7:1, dim text 4.5:1 (WCAG 2.2, 1.4.3 and 1.4.6).
const DARK: Palette = Palette {
    background: (0x16, 0x19, 0x21),
    text: (0xd5, 0xda, 0xe3),
    dim: (0x8b, 0x93, 0xa3),
    line: (0x3d, 0x45, 0x54),
    accent: (0x6c, 0xc3, 0xf0),
    good: (0x8f, 0xce, 0x7d),
    warning: (0xec, 0xc1, 0x6b),
    bad: (0xf4, 0x85, 0x7f),
    mark: (0xd2, 0x9d, 0xf0),
    selection: (0x2c, 0x3f, 0x55),
    selection_unfocused: (0x24, 0x2a, 0x36),
};

const LIGHT: Palette = Palette {
    background: (0xfa, 0xfa, 0xf7),
    text: (0x22, 0x27, 0x30),
    dim: (0x65, 0x6c, 0x78),
    line: (0xc3, 0xc8, 0xd0),
    accent: (0x00, 0x5f, 0x9e),
    good: (0x1d, 0x6b, 0x22),
    warning: (0x80, 0x52, 0x00),
    bad: (0xb0, 0x1c, 0x1c),
    mark: (0x7c, 0x2d, 0x9a),
    selection: (0xcf, 0xe2, 0xf3),
    selection_unfocused: (0xe9, 0xec, 0xee),
};

/// Characters that are drawn rather than written.
#[derive(Clone, Debug)]
pub struct Glyphs {
    pub lines: Lines,
    pub ellipsis: char,
    pub cursor_row: char,
    pub mark: char,
    pub running: char,
    pub stopped: char,
    pub created: char,
    pub failed: char,
    pub warning: char,
    pub done: char,
    pub information: char,
    pub pending: char,
    pub spinner: &'static [char],
    pub bar_done: char,
    pub bar_rest: char,
    pub up: char,
    pub down: char,
    pub rule: char,
    /// Where a line goes down from a rule.
    pub rule_down: char,
    pub scroll: char,
    /// From lowest to highest.
    pub sparkline: &'static [char],
}

impl Glyphs {
    pub fn new(ascii: bool) -> Self {
        if ascii { Self::ascii() } else { Self::unicode() }
    }

    pub fn unicode() -> Self {
        Self {
            lines: Lines {
                horizontal: '─',
                vertical: '│',
                top_left: '╭',
                top_right: '╮',
                bottom_left: '╰',
                bottom_right: '╯',
            },
            ellipsis: '…',
            cursor_row: '▌',
            mark: '◆',
            running: '●',
            stopped: '○',
            created: '◌',
            failed: '✗',
            warning: '▲',
            done: '✓',
            information: '•',
            pending: '·',
            spinner: &['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'],
            bar_done: '━',
            bar_rest: '─',
            up: '▲',
            down: '▼',
            rule: '─',
            rule_down: '┬',
            scroll: '┃',
            sparkline: &['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
        }
    }

    pub fn ascii() -> Self {
        Self {
            lines: Lines {
                horizontal: '-',
                vertical: '|',
                top_left: '+',
                top_right: '+',
                bottom_left: '+',
                bottom_right: '+',
            },
            ellipsis: '~',
            cursor_row: '>',
            mark: '*',
            running: '@',
            stopped: 'o',
            created: '.',
            failed: 'x',
            warning: '!',
            done: '+',
            information: '-',
            pending: '.',
            spinner: &['|', '/', '-', '\\'],
            bar_done: '=',
            bar_rest: '-',
            up: '^',
            down: 'v',
            rule: '-',
            rule_down: '+',
            scroll: '#',
            sparkline: &['_', '.', '-', '=', '+', '*', '#', '@'],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_glyph_takes_one_column() {
        let glyphs = Glyphs::unicode();
        let all = [glyphs.ellipsis, glyphs.running, glyphs.failed, glyphs.warning, glyphs.done, glyphs.mark]
            .into_iter()
            .chain(glyphs.spinner.iter().copied())
            .chain(glyphs.sparkline.iter().copied());
        for glyph in all {
            assert_eq!(crate::text::shown(glyph), crate::text::Shown::Cell(glyph, 1), "{glyph}");
        }
    }

    #[test]
    fn the_mono_theme_has_no_colour_and_a_visible_selection() {
        let theme = Theme::new(ThemeChoice::Mono);
        for style in [theme.text, theme.dim, theme.good, theme.bad, theme.selected, theme.key, theme.bar_done]
        {
            assert_eq!((style.fg, style.bg), (None, None));
        }
        assert!(theme.selected.add_modifier.contains(Modifier::REVERSED));
    }
}
