//! Any size, any deck, any keys: nothing panics, and nothing a guest says reaches the terminal raw.

use std::sync::Arc;

use crossterm::event::{KeyModifiers, MouseButton, MouseEvent, MouseEventKind};
use proptest::prelude::*;
use proptest::sample::select;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use vmdeck_engine::snapshot::Snapshot;
use vmdeck_ui::message::Msg;
use vmdeck_ui::model::log::LogLine;
use vmdeck_ui::model::toast::Level;
use vmdeck_ui::options::ThemeChoice;
use vmdeck_ui::screen::Screen;
use vmdeck_ui::update::update;
use vmdeck_ui::view::view;

use crate::sample::{self, NOW, busy, empty, large, press, pulls};

const KEYS: &[&str] = &[
    "j",
    "k",
    "g g",
    "G",
    "ctrl-d",
    "ctrl-u",
    "page-down",
    "home",
    "end",
    "enter",
    "esc",
    "tab",
    "shift-tab",
    "1",
    "2",
    "3",
    "4",
    "5",
    "/",
    ":",
    "?",
    "space",
    "v",
    "*",
    "s",
    "S",
    "n",
    "r",
    "x",
    "X",
    "R",
    "D",
    "!",
    "p",
    "B",
    "y",
    "f",
    "w",
    "ctrl-c",
    "ctrl-l",
    "m",
    "h",
    "l",
    "7",
    "0 9",
    "a",
    "backspace",
    "up",
    "down",
    "left",
    "right",
    "ctrl-w",
    "q",
];

fn deck(which: u8) -> Snapshot {
    match which {
        0 => empty(),
        1 => busy(),
        2 => pulls(50),
        3 => large(300, 5),
        4 => hostile(),
        _ => Snapshot::default(),
    }
}

/// Names and messages as somebody who means harm would choose them.
fn hostile() -> Snapshot {
    const TEXTS: [&str; 5] = [
        "\u{1b}]52;c;cm0gLXJmIC8=\u{7}\u{1b}[31mred",
        "gpj.\u{202e}exe\u{2066}\u{200b}\u{feff}",
        "漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字",
        "e\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}zalgo\n\r\t\u{9b}2J",
        "",
    ];
    let mut snapshot = busy();
    let mut vms = (*snapshot.vms).clone();
    for (index, vm) in vms.iter_mut().enumerate() {
        let text = TEXTS[index % TEXTS.len()];
        (vm.name, vm.image, vm.kernel) = (text.into(), text.repeat(3), text.into());
        if let Some(failure) = vm.boot.as_mut().and_then(|boot| boot.failure.as_mut()) {
            failure.console_tail = TEXTS.map(|text| text.repeat(20)).into();
            failure.message = TEXTS[0].into();
            failure.hint = TEXTS[3].repeat(50);
        }
    }
    let mut images = (*snapshot.images).clone();
    for (index, image) in images.iter_mut().enumerate() {
        let text = TEXTS[index % TEXTS.len()];
        (image.name, image.reference, image.used_bytes) = (text.into(), Some(text.repeat(9)), u64::MAX / 8);
        image.config.environment = vec![text.repeat(100)];
        image.created_at = i64::MIN / 2;
    }
    let mut operations = (*snapshot.operations).clone();
    for (index, view) in operations.iter_mut().enumerate() {
        view.record.target = TEXTS[index % TEXTS.len()].repeat(4);
        view.record.started_at = i64::MAX / 2;
        if let Some(error) = &mut view.record.error {
            error.message = TEXTS.concat();
        }
    }
    (snapshot.vms, snapshot.images, snapshot.operations) =
        (Arc::new(vms), Arc::new(images), Arc::new(operations));
    snapshot
}

/// `PROPTEST_CASES` says how many; SPECIFICATION.md is measured with 10,000.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(2000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics(
        width in 0u16..220,
        height in 0u16..70,
        which in 0u8..6,
        theme in select(ThemeChoice::ALL.to_vec()),
        ascii: bool,
        keys in proptest::collection::vec((select(KEYS.to_vec()), 0u16..220, 0u16..70, 0u8..14), 0..25),
    ) {
        let mut model = sample::themed(deck(which), width, height, theme, ascii);
        for (step, (key, x, y, what)) in keys.into_iter().enumerate() {
            let now = NOW + i64::try_from(step).unwrap() * 137;
            match what {
                0 => drop(update(&mut model, now, Msg::Resize(x, y))),
                1 => drop(update(&mut model, now, Msg::Snapshot(Arc::new(deck((x % 6) as u8))))),
                2 => drop(update(&mut model, now, Msg::Paste("q\u{1b}[A debian:12\nD".into()))),
                3 | 4 => {
                    let kind = if what == 3 { MouseEventKind::Down(MouseButton::Left) } else { MouseEventKind::ScrollDown };
                    let event = MouseEvent { kind, column: x, row: y, modifiers: KeyModifiers::NONE };
                    update(&mut model, now, Msg::Mouse(event));
                }
                5 => drop(update(&mut model, now, Msg::Tick)),
                6 => drop(update(&mut model, now, Msg::KernelCatalog(Ok(sample::kernel_catalog())))),
                7 => {
                    let line = LogLine { at: NOW - i64::from(x), level: Level::Detail, source: key.into(), text: key.repeat(90) };
                    update(&mut model, now, Msg::Events(vec![line]));
                    if let Some(id) = model.selected_vm().map(|vm| vm.id.clone()) {
                        update(&mut model, now, Msg::Guest(id, Box::new(Ok(sample::guest(u64::from(y))))));
                    }
                }
                _ => drop(press(&mut model, key)),
            }
            let mut buffer = Buffer::empty(Rect::new(0, 0, model.width, model.height));
            view(&model, &mut buffer);
        }
        // In the moment of a resize the buffer may have another size than the model knows.
        let mut buffer = Buffer::empty(Rect::new(0, 0, height, width));
        view(&model, &mut buffer);
    }

    #[test]
    fn no_text_commands_the_terminal(
        width in 40u16..220, height in 10u16..60, keys in proptest::collection::vec(select(KEYS.to_vec()), 0..6)
    ) {
        let mut model = sample::model(hostile(), width, height);
        for key in keys {
            press(&mut model, key);
        }
        let mut screen = Screen::new(width, height);
        view(&model, screen.next_frame());
        let bytes = String::from_utf8(screen.encode().to_vec()).unwrap();
        // Every escape sequence is one of ours: a cursor position, an erasure, a pen, a frame's ends.
        for sequence in bytes.split('\u{1b}').skip(1) {
            let rest = sequence.strip_prefix('[').expect("only CSI sequences");
            let end = rest.find(|c: char| c.is_ascii_alphabetic()).expect("a final byte");
            prop_assert!("HJKmhl".contains(&rest[end..=end]), "{:?}", sequence);
        }
        let raw = bytes.chars().any(|c| c.is_control() && c != '\u{1b}');
        let turned = bytes.contains('\u{202e}') || bytes.contains('\u{200b}');
        prop_assert!(!raw && !turned);
    }
}

#[test]
fn the_extremes() {
    for (width, height) in [(0, 0), (1, 1), (0, 60), (200, 0), (500, 200), (1000, 500)] {
        for which in 0..6 {
            let mut model = sample::model(deck(which), width, height);
            for keys in ["", "?", "esc n", "esc v G D", "esc 4 enter", "5"] {
                press(&mut model, keys);
                let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
                view(&model, &mut buffer);
            }
        }
    }
}
