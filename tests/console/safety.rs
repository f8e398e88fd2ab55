//! Whatever happens, the terminal is given back as it was, and nothing from outside commands it.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::deck::Deck;
use crate::terminal::Terminal;

/// Longest that an end may take here, where other tests have the processors too;
/// SPECIFICATION.md has what is measured.
const BOUND: Duration = Duration::from_secs(10);

/// A console that has painted its list.
fn open(deck: &Deck) -> Terminal {
    with(deck.on_terminal([]))
}

fn with(command: Command) -> Terminal {
    let mut terminal = Terminal::run(command, 100, 30);
    terminal.wait_for("No machine yet");
    terminal.settle();
    terminal
}

/// The modes are what they were, and every mode that was set was set back.
#[track_caller]
fn assert_restored(terminal: &Terminal) {
    assert_eq!(terminal.modes(), terminal.before);
    terminal.with_screen(|screen| {
        assert!(!screen.alternate_screen(), "the alternate screen is left on");
        assert!(!screen.hide_cursor(), "the cursor is left hidden");
        assert!(!screen.bracketed_paste(), "bracketed paste is left on");
        assert_eq!(screen.mouse_protocol_mode(), vt100::MouseProtocolMode::None);
    });
}

#[test]
fn leaving_and_ending_by_a_signal_restore_the_terminal() {
    let deck = Deck::new();
    let mut terminal = open(&deck);
    terminal.type_in("q");
    assert_eq!(terminal.end(BOUND).0.code(), Some(0));
    terminal.settle();
    assert_restored(&terminal);
    for (signal, status) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGINT, 130)] {
        let mut terminal = open(&deck);
        terminal.signal(signal);
        assert_eq!(terminal.end(BOUND).0.code(), Some(status), "{signal}");
        terminal.settle();
        assert_restored(&terminal);
    }
}

#[test]
fn a_terminal_that_disappears_takes_the_program_along_even_where_sighup_is_ignored() {
    let deck = Deck::new();
    let mut terminal = with(deck.on_terminal_without_hangups());
    let (_, took) = terminal.hang_up(BOUND);
    eprintln!("gone {took:?} after its terminal");
    // The store is sound, and the next program sees it.
    deck.run(["vm", "list"]).expect(0);
}

#[test]
fn it_stops_and_goes_on_as_a_shells_job() {
    let deck = Deck::new();
    let mut terminal = open(&deck);
    let state = |terminal: &Terminal| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", terminal.pid())).unwrap();
        stat.rsplit(')').next().unwrap().trim().chars().next().unwrap()
    };
    let wait_for = |terminal: &Terminal, wanted: &[char]| {
        for _ in 0..1000 {
            if wanted.contains(&state(terminal)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("state {}, not {wanted:?}", state(terminal));
    };
    terminal.signal(Signal::SIGTSTP);
    wait_for(&terminal, &['T']);
    terminal.settle();
    assert_restored(&terminal);
    terminal.signal(Signal::SIGCONT);
    wait_for(&terminal, &['S', 'R']);
    terminal.wait_for("No machine yet");
    assert!(terminal.with_screen(vt100::Screen::alternate_screen));
    // By its own key too.
    terminal.type_in("\x1a");
    wait_for(&terminal, &['T']);
    terminal.settle();
    assert_restored(&terminal);
    terminal.signal(Signal::SIGCONT);
    terminal.wait_for("No machine yet");
    terminal.type_in("q");
    assert_eq!(terminal.end(BOUND).0.code(), Some(0));
}

#[test]
fn a_paste_is_never_taken_as_keys() {
    let deck = Deck::new();
    let mut terminal = open(&deck);
    terminal.type_in("\x1b[200~q\r2p\x1b[201~");
    terminal.wait_for("a paste goes into a text field");
    // Into a field it goes as text.
    terminal.type_in("2p");
    terminal.wait_for("Pull an image");
    terminal.type_in("\x1b[200~debian:12\r\x1b[201~");
    terminal.wait_for("debian:12");
    terminal.settle();
    assert!(terminal.screen().contains("Pull an image"), "{}", terminal.screen());
}

#[test]
fn without_colours_none_is_sent_and_the_selection_is_seen() {
    let deck = Deck::new();
    deck.run(["image", "pull", "oci:/no/such/layout"]).expect(3);
    let mut command = deck.on_terminal([]);
    command.env("NO_COLOR", "1");
    let mut terminal = with(command);
    terminal.type_in("4");
    terminal.wait_for("image pull");
    terminal.settle();
    for sequence in sgr(&terminal.bytes()) {
        let colours = sequence.iter().filter(|code| matches!(**code, 30..=49 | 90..=107));
        assert_eq!(colours.count(), 0, "{sequence:?}");
    }
    terminal.with_screen(|screen| {
        let (rows, columns) = screen.size();
        let reversed = (0..rows).any(|row| {
            (0..columns).filter(|&column| screen.cell(row, column).unwrap().inverse()).count() > 40
        });
        assert!(reversed, "no row is reversed:\n{}", screen.contents());
    });
}

/// The numbers of every "select graphic rendition" (ECMA-48, 8.3.117).
fn sgr(bytes: &[u8]) -> Vec<Vec<u16>> {
    let text = String::from_utf8_lossy(bytes);
    text.split("\x1b[")
        .skip(1)
        .filter_map(|rest| {
            let (numbers, _) = rest.split_once('m')?;
            if !numbers.chars().all(|letter| letter.is_ascii_digit() || letter == ';') {
                return None;
            }
            Some(numbers.split(';').map(|number| number.parse().unwrap_or(0)).collect())
        })
        .collect()
}

#[test]
fn what_comes_from_outside_cannot_command_the_terminal() {
    let deck = Deck::new();
    // A target that sets the window's title and the clipboard, on record as an operation.
    let hostile = "oci:/x\x1b]0;owned\x07\x1b]52;c;b3duZWQ=\x07\u{9b}31m";
    let ended = deck.run(["image", "pull", hostile]);
    assert_ne!(ended.status, 0);
    assert!(!ended.stderr.contains('\x1b'), "{ended:?}");
    let mut terminal = open(&deck);
    terminal.type_in("4");
    terminal.wait_for("image pull");
    terminal.type_in("\r");
    terminal.wait_for("oci:/x");
    terminal.settle();
    let bytes = terminal.bytes();
    for forbidden in [b"\x1b]".as_slice(), b"\x07", "\u{9b}".as_bytes()] {
        assert!(!bytes.windows(forbidden.len()).any(|window| window == forbidden), "{forbidden:?}");
    }
}

#[test]
fn without_a_terminal_no_escape_byte_is_written() {
    let deck = Deck::new();
    for arguments in [&["vm", "list"][..], &["image", "list"], &["doctor"], &["operation", "list"], &["keys"]]
    {
        let ended = deck.run(arguments.iter().copied());
        assert!(!ended.stdout.contains('\x1b') && !ended.stderr.contains('\x1b'), "{arguments:?}: {ended:?}");
    }
    // The console itself says what to do instead.
    deck.run([]).expect(2).says(&["needs a terminal", "vmdeck vm list"]);
}

#[test]
fn keys_of_ones_own_are_found_and_a_mistake_names_its_line() {
    let deck = Deck::new();
    let folder = deck.data().parent().unwrap().join(".config/vmdeck");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("keys.toml"), "[global]\nquit = [\"Q\"]\n").unwrap();
    let table = deck.run(["keys"]).expect(0).stdout;
    let quit = table.lines().find(|line| line.starts_with("quit")).unwrap();
    assert_eq!(quit.split_whitespace().nth(1), Some("Q"));
    let mut terminal = open(&deck);
    terminal.type_in("q");
    terminal.settle();
    terminal.type_in("Q");
    assert_eq!(terminal.end(BOUND).0.code(), Some(0));
    std::fs::write(folder.join("keys.toml"), "[global]\nquti = [\"Q\"]\n").unwrap();
    deck.run(["keys"]).expect(2).says(&["line 2", "quti"]);
}

/// What [`a_panic_gives_the_terminal_back_unless_it_is_one_of_a_task`] runs on a terminal of its own.
#[test]
fn the_child_that_panics() {
    let Ok(where_) = std::env::var("VMDECK_TEST_PANIC") else { return };
    vmdeck_ui::terminal::install_panic_hook();
    let guard = vmdeck_ui::terminal::TerminalGuard::take(true).unwrap();
    match where_.as_str() {
        "task" => {
            assert!(std::thread::spawn(|| panic!("in a task")).join().is_err());
            assert!(vmdeck_ui::terminal::is_taken());
            print("still here");
            std::thread::sleep(Duration::from_secs(2));
            drop(guard);
        }
        _ => panic!("while drawing"),
    }
}

fn print(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).unwrap();
}

#[test]
fn a_panic_gives_the_terminal_back_unless_it_is_one_of_a_task() {
    let child = |what: &str| {
        let mut command = Command::new("setsid");
        command.arg(std::env::current_exe().unwrap());
        command.args(["--exact", "safety::the_child_that_panics", "--nocapture"]);
        command.env("VMDECK_TEST_PANIC", what).env("RUST_BACKTRACE", "0");
        Terminal::run(command, 100, 30)
    };
    let mut terminal = child("drawing");
    assert_ne!(terminal.end(BOUND).0.code(), Some(0));
    terminal.settle();
    assert_restored(&terminal);
    // The message is on the screen that the user has then.
    assert!(terminal.screen().contains("while drawing"), "{}", terminal.screen());

    let mut terminal = child("task");
    terminal.wait_for("still here");
    assert!(terminal.with_screen(vt100::Screen::alternate_screen));
    assert!(!terminal.screen().contains("in a task"), "{}", terminal.screen());
    assert_eq!(terminal.end(BOUND).0.code(), Some(0));
    terminal.settle();
    assert_restored(&terminal);
}
