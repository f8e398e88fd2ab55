//! The headless contract: exit codes, where what is printed, no escape bytes.

use crate::support::deck::Deck;

#[test]
fn a_bare_headless_flag_says_what_to_give_it() {
    Deck::new().run(["--headless"]).expect(2).says(&["needs a command", "next:"]);
}

#[test]
fn without_a_terminal_the_console_says_so() {
    Deck::new().run([]).expect(2).says(&["needs a terminal", "vm list"]);
}

#[test]
fn empty_lists_are_empty_arrays() {
    let deck = Deck::new();
    for noun in ["image", "kernel", "vm", "operation"] {
        let ended = deck.run([noun, "list", "--output", "json"]).expect(0);
        assert_eq!(ended.json(), serde_json::json!([]), "{noun}");
        assert_eq!(ended.stderr, "", "{noun}");
    }
}

#[test]
fn what_is_not_there_is_status_3_and_names_it() {
    let deck = Deck::new();
    for arguments in [
        ["image", "show", "nothing"],
        ["kernel", "show", "nothing"],
        ["vm", "show", "nothing"],
        ["vm", "start", "nothing"],
        ["vm", "stop", "nothing"],
        ["vm", "delete", "nothing"],
        ["vm", "logs", "nothing"],
        ["image", "delete", "nothing"],
        ["kernel", "delete", "nothing"],
        ["operation", "cancel", "nothing"],
    ] {
        deck.run(arguments).expect(3).says(&["nothing", "next:"]);
    }
    deck.run(["vm", "exec", "nothing", "--", "true"]).expect(125).says(&["nothing"]);
}

#[test]
fn nothing_printed_into_a_pipe_holds_an_escape_byte() {
    let deck = Deck::new();
    for arguments in [
        vec!["--help"],
        vec!["vm", "run", "--help"],
        vec!["vm", "list"],
        vec!["doctor"],
        vec!["image", "pull", "nowhere\u{1b}[31m"],
        vec!["vm", "show", "\u{1b}]0;title\u{7}"],
        vec!["version"],
    ] {
        let ended = deck.run(arguments.clone());
        assert!(
            !ended.stdout.contains('\u{1b}') && !ended.stderr.contains('\u{1b}'),
            "{arguments:?}: {ended:?}"
        );
    }
}

#[test]
fn names_that_are_no_names_are_a_usage_error() {
    let deck = Deck::new();
    for name in ["../x", "a b", ".", "x/y", "-"] {
        let argument = format!("--name={name}");
        let ended = deck.run(["image", "pull", "oci:/nowhere", &argument]).expect(2);
        assert!(ended.stderr.contains("cannot be the name"), "{ended:?}");
    }
    assert_eq!(deck.files("staging"), [""; 0]);
}

#[test]
fn the_data_directory_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let deck = Deck::new();
    deck.run(["vm", "list"]).expect(0);
    let mode = std::fs::metadata(deck.data()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
