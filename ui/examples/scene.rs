//! Writes a screen of the sample deck to standard output, as the console would: columns, rows, theme,
//! deck (`busy`, `empty`, `pulls`) and then keys to press, one argument each; `=text` types a text.

#[path = "../tests/support/sample.rs"]
mod sample;

use std::io::Write as _;

use vmdeck_ui::options::ThemeChoice;
use vmdeck_ui::screen::Screen;
use vmdeck_ui::view::view;

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |at: usize, default: u16| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (width, height) = (number(0, 80), number(1, 24));
    let theme = arguments.get(2).and_then(|text| ThemeChoice::parse(text));
    let ascii = arguments.get(2).is_some_and(|text| text == "ascii");
    let deck = match arguments.get(3).map(String::as_str) {
        Some("empty") => sample::empty(),
        Some("pulls") => sample::pulls(50),
        _ => sample::busy(),
    };
    let mut model = sample::themed(deck, width, height, theme.unwrap_or_default(), ascii);
    for key in arguments.iter().skip(4) {
        match key.strip_prefix('=') {
            Some(text) => sample::enter(&mut model, text),
            None => sample::press(&mut model, key),
        };
    }
    let mut screen = Screen::new(width, height);
    view(&model, screen.next_frame());
    std::io::stdout().lock().write_all(screen.encode())
}
