//! What keys do: tables of keys and the effects they have to have.

use std::sync::Arc;

use vmdeck_engine::operation::progress::ProgressState;
use vmdeck_engine::snapshot::Snapshot;
use vmdeck_engine::vm::record::NetworkMode;
use vmdeck_ui::message::{Command, Effect, Msg};
use vmdeck_ui::model::log::LogLine;
use vmdeck_ui::model::overlay::Overlay;
use vmdeck_ui::model::toast::Level;
use vmdeck_ui::model::{Model, View};
use vmdeck_ui::options::ThemeChoice;
use vmdeck_ui::update::update;

use crate::sample::{self, NOW, busy, empty, enter, press};
use crate::snapshots::{render, text};

pub(crate) fn commands(effects: Vec<Effect>) -> Vec<String> {
    let commands = effects.into_iter().filter_map(|effect| match effect {
        Effect::Run(command) => Some(command.describe()),
        Effect::Shell(name) => Some(format!("shell {name}")),
        Effect::Copy(text) => Some(format!("copy {text}")),
        Effect::Quit => Some("quit".into()),
        _ => None,
    });
    commands.collect()
}

/// Presses keys on a busy deck at 80×24 and compares what the engine is asked for.
fn check(keys: &str, expected: &[&str]) {
    let mut model = sample::model(busy(), 80, 24);
    assert_eq!(commands(press(&mut model, keys)), expected, "{keys}");
}

pub(crate) fn selected(model: &Model) -> String {
    let vm = model.vms.current::<vmdeck_engine::vm::record::Vm>(&model.snapshot);
    vm.map(|vm| vm.name.clone()).unwrap_or_default()
}

#[test]
fn machines_are_started_and_stopped() {
    check("j r", &["start build-arm"]);
    check("x", &["stop api"]);
    // A machine that runs is not started, one that is stopped is not stopped.
    check("r", &[]);
    check("j x", &[]);
    check("!", &["shell api"]);
    check("j !", &[]);
    // Of several marked ones those that it fits.
    check("* x", &["stop api", "stop ci-runner-7", "stop db", "stop scratch", "stop web"]);
}

#[test]
fn what_destroys_asks_first_and_cancel_is_the_default() {
    for keys in ["D", "X", "R"] {
        check(keys, &[]);
        check(&format!("{keys} enter"), &[]);
        check(&format!("{keys} esc"), &[]);
    }
    check("D tab enter", &["delete api"]);
    check("D y", &["delete api"]);
    check("X y", &["force off api"]);
    check("R right enter", &["restart api"]);
    check("space space D y", &["delete api", "delete build-arm"]);
}

#[test]
fn images_are_promoted_by_keys_alone() {
    // A registered image takes its own place, or another name.
    check("2 j j j P enter", &["promote golden"]);
    let mut model = sample::model(busy(), 80, 24);
    press(&mut model, "2 j j j P");
    enter(&mut model, "gold");
    assert_eq!(commands(press(&mut model, "enter")), ["promote golden as gold"]);
    // What is vmdeck's own already is told so.
    check("2 P enter", &[]);
    // A machine that is stopped becomes an image; one that runs does not.
    check("j P enter", &["promote machine build-arm as build-arm"]);
    check("P enter", &[]);
    // A name that is taken is a mistake at its field.
    let mut model = sample::model(busy(), 80, 24);
    press(&mut model, "j P ctrl-u");
    enter(&mut model, "alpine");
    assert_eq!(commands(press(&mut model, "enter")), Vec::<String>::new());
    assert!(text(&render(&model)).contains("there is already an image named `alpine`"));
}

#[test]
fn images_are_registered_exported_and_pruned_by_keys() {
    let mut model = sample::model(busy(), 80, 24);
    model.home = Some("/home/ada".into());
    press(&mut model, "2 t");
    enter(&mut model, "mine");
    press(&mut model, "tab");
    enter(&mut model, "~/mine.ext4");
    let effects = press(&mut model, "enter");
    let Some(Effect::Run(Command::RegisterImage(request))) = effects.first() else { panic!("{effects:?}") };
    assert_eq!((request.name.as_str(), request.rootfs.to_str()), ("mine", Some("/home/ada/mine.ext4")));
    check("2 x enter", &["export alpine"]);
    let effects = press(&mut model, "U a");
    assert!(matches!(effects.as_slice(), [Effect::PreviewPrune { all: true }]), "{effects:?}");
    let report = sample::prunable();
    update(&mut model, NOW, Msg::PrunePreview { all: true, report: Ok(report) });
    // Asked about first, and Cancel is the default.
    let mut asked = model.clone();
    assert_eq!(commands(press(&mut asked, "enter")), Vec::<String>::new());
    assert_eq!(commands(press(&mut model, "tab enter")), ["prune"]);
}

#[test]
fn the_settings_of_a_machine_are_changed() {
    // Nothing changed is nothing asked for.
    check("e enter", &[]);
    let mut model = sample::model(busy(), 80, 24);
    press(&mut model, "e ctrl-u");
    enter(&mut model, "4");
    press(&mut model, "tab tab tab");
    enter(&mut model, ", 9000:90");
    let effects = press(&mut model, "enter");
    let Some(Effect::Run(Command::ChangeVm { name, change })) = effects.first() else {
        panic!("{effects:?}")
    };
    assert_eq!(
        (name.as_str(), change.cpus, change.memory_mib, change.disk_gib),
        ("api", Some(4), None, None)
    );
    assert_eq!((change.add_ports.len(), change.remove_ports.len()), (1, 0));
    assert_eq!(change.add_ports[0].host_port, 9000);
    // Disks only grow.
    let mut model = sample::model(busy(), 80, 24);
    press(&mut model, "e tab tab ctrl-u");
    enter(&mut model, "1G");
    assert_eq!(commands(press(&mut model, "enter")), Vec::<String>::new());
}

/// What is asked about consoles.
fn console_effects(effects: Vec<Effect>) -> Vec<Effect> {
    let about = |effect: &Effect| {
        matches!(
            effect,
            Effect::WatchConsole(_)
                | Effect::UnwatchConsole
                | Effect::AttachConsole(_)
                | Effect::DetachConsole
        )
    };
    effects.into_iter().filter(about).collect()
}

/// What reaches the machine's console.
fn typed(effects: &[Effect]) -> Vec<u8> {
    let typed = effects.iter().filter_map(|effect| match effect {
        Effect::TypeConsole(bytes) => Some(bytes.as_slice()),
        _ => None,
    });
    typed.collect::<Vec<_>>().concat()
}

#[test]
fn keys_go_to_the_machine_until_they_are_taken_back() {
    let mut model = sample::model(busy(), 80, 24);
    let effects = console_effects(press(&mut model, "c"));
    assert!(
        matches!(&effects[..], [Effect::WatchConsole(vm), Effect::AttachConsole(name)] if vm.name == "api" && name == "api"),
        "{effects:?}"
    );
    // What is typed while it is being connected waits in the order it was typed.
    assert_eq!(typed(&press(&mut model, "q")), b"q");
    let vm = model.console.as_ref().unwrap().vm.clone();
    update(&mut model, NOW, Msg::ConsoleAttached { vm, result: Ok(()) });
    let effects = press(&mut model, "l s space D ctrl-c tab enter : ? esc");
    assert_eq!(typed(&effects), b"ls D\x03\t\r:?\x1b");
    assert_eq!(commands(effects), Vec::<String>::new());
    assert!(model.overlays.is_empty());
    assert_eq!(typed(&update(&mut model, NOW, Msg::Paste("a\nb".into()))), b"a\rb");
    let effects = console_effects(press(&mut model, "ctrl-]"));
    assert!(matches!(&effects[..], [Effect::DetachConsole]), "{effects:?}");
    // From here on they are the console's again.
    assert_eq!(commands(press(&mut model, "x")), ["stop api"]);
    // Another machine's console is another one; none is watched that is not in sight.
    let effects = console_effects(press(&mut model, "esc j"));
    assert!(matches!(&effects[..], [Effect::UnwatchConsole]), "{effects:?}");
}

#[test]
fn a_stopped_machines_console_is_looked_at_and_not_typed_into() {
    let mut model = sample::model(busy(), 200, 60);
    let effects = press(&mut model, "j c");
    assert!(effects.iter().all(|effect| !matches!(effect, Effect::AttachConsole(_))), "{effects:?}");
    assert_eq!(typed(&press(&mut model, "i a")), b"");
}

#[test]
fn what_failed_is_done_again() {
    check("4 j j j j j r", &["pull registry.example.org/team/app:latest"]);
    check("4 r", &[]);
}

#[test]
fn what_is_in_use_is_not_deleted() {
    let mut model = sample::model(busy(), 80, 24);
    assert_eq!(commands(press(&mut model, "2 D y")), Vec::<String>::new());
    let message = model.messages.kept.back().unwrap();
    assert!(message.text.contains("alpine is used by fresh, scratch"), "{message:?}");
}

#[test]
fn an_unused_image_is_deleted_after_a_question() {
    let mut deck = busy();
    deck.vms = Arc::default();
    let mut model = sample::model(deck, 80, 24);
    assert_eq!(commands(press(&mut model, "2 D")), Vec::<String>::new());
    assert_eq!(commands(press(&mut model, "tab enter")), ["delete image alpine"]);
}

#[test]
fn a_reference_that_is_none_stays_where_it_was_typed() {
    let mut model = sample::model(busy(), 80, 24);
    press(&mut model, "2 p");
    enter(&mut model, "dir:/srv/debian");
    assert_eq!(commands(press(&mut model, "enter")), Vec::<String>::new());
    let screen = text(&render(&model));
    assert!(screen.contains("dir:/srv/debian") && screen.contains("is not supported"), "{screen}");
    press(&mut model, "ctrl-u");
    enter(&mut model, "debian:12");
    assert_eq!(commands(press(&mut model, "enter")), ["pull debian:12"]);
}

#[test]
fn an_operation_is_cancelled_by_ctrl_c_and_never_by_esc() {
    check("4 ctrl-c", &["cancel operation 000000000027"]);
    check("4 esc esc esc", &[]);
    // One that has ended cannot be.
    check("4 G ctrl-c", &[]);
}

#[test]
fn a_paste_is_never_keys() {
    let mut model = sample::model(busy(), 80, 24);
    let paste = |model: &mut Model, text: &str| update(model, NOW, Msg::Paste(text.into()));
    assert_eq!(commands(paste(&mut model, "Dyq")), Vec::<String>::new());
    assert!(model.overlays.is_empty());
    press(&mut model, "2 p");
    paste(&mut model, "oci:/srv/debian\nq");
    let effects = press(&mut model, "enter");
    assert_eq!(commands(effects), ["pull oci:/srv/debian q"]);
    // A confirmation is no place to paste an answer.
    press(&mut model, "1 D");
    assert_eq!(commands(paste(&mut model, "y")), Vec::<String>::new());
    assert!(matches!(model.overlays.last(), Some(Overlay::Confirm(_))));
}

#[test]
fn q_is_a_letter_where_text_is_typed() {
    let mut model = sample::model(empty(), 80, 24);
    press(&mut model, "2 p");
    assert_eq!(commands(enter(&mut model, "quay.io/q")), Vec::<String>::new());
    assert_eq!(commands(press(&mut model, "enter")), ["pull quay.io/q"]);
    assert_eq!(commands(press(&mut model, "q")), ["quit"]);
}

#[test]
fn quitting_asks_while_this_console_works_on_something() {
    check("q", &[]);
    check("q enter", &[]);
    check("q tab enter", &["quit"]);
    // The picture is a moment behind: what the engine says counts.
    let mut model = sample::model(busy(), 80, 24);
    assert_eq!(commands(update(&mut model, NOW, Msg::WouldEnd(Vec::new()))), ["quit"]);
    let mut model = sample::model(empty(), 80, 24);
    let running = vec!["image pull debian:12".to_owned()];
    assert_eq!(commands(update(&mut model, NOW, Msg::WouldEnd(running))), Vec::<String>::new());
    assert!(matches!(model.overlays.last(), Some(Overlay::Confirm(_))));
}

#[test]
fn kernels_of_the_catalog_are_pulled_from_the_list() {
    let mut model = sample::model(busy(), 80, 24);
    let asked = press(&mut model, "3");
    assert!(asked.iter().any(|effect| matches!(effect, Effect::LoadKernelCatalog)), "{asked:?}");
    update(&mut model, NOW, Msg::KernelCatalog(Ok(sample::kernel_catalog())));
    // Two that are here, then what can be had.
    assert_eq!(commands(press(&mut model, "j j p enter")), ["pull kernel debian"]);
    assert_eq!(commands(press(&mut model, "space space p")), ["pull kernel debian", "pull kernel debian-rt"]);
    // What is not here cannot be deleted, and only looking asks for nothing again.
    assert_eq!(commands(press(&mut model, "D")), Vec::<String>::new());
    assert!(model.overlays.is_empty());
    assert!(update(&mut model, NOW, Msg::Tick).is_empty());
    assert_eq!(commands(press(&mut model, "g g p ctrl-u d e b i a n enter")), ["pull kernel debian"]);
}

#[test]
fn the_log_shows_what_matters_and_more_when_asked() {
    let mut model = sample::model(busy(), 80, 24);
    let line = |level| LogLine { at: NOW, level, source: "vm".into(), text: "x".into() };
    let all = [Level::Detail, Level::Information, Level::Warning, Level::Error];
    model.log = vmdeck_ui::model::log::Log::default();
    update(&mut model, NOW, Msg::Events(all.map(line).into()));
    let mut seen = vec![model.log.count()];
    press(&mut model, "5");
    for _ in 0..4 {
        press(&mut model, "l");
        seen.push(model.log.count());
    }
    assert_eq!(seen, [3, 2, 1, 4, 3]);
}

#[test]
fn a_machine_is_made_by_two_keys_from_an_image_that_is_here() {
    let mut model = sample::model(busy(), 80, 24);
    let effects = press(&mut model, "n enter");
    let [Effect::Run(Command::CreateVm { request, start })] = &effects[..] else { panic!("{effects:?}") };
    assert!(*start);
    assert_eq!(
        (request.image.as_str(), request.name.clone(), request.kernel.clone()),
        ("alpine", None, None)
    );
}

#[test]
fn the_form_takes_everything() {
    let mut model = sample::model(busy(), 80, 24);
    press(&mut model, "n ctrl-u");
    enter(&mut model, "pg");
    press(&mut model, "down tab");
    enter(&mut model, "db2");
    press(&mut model, "tab right tab");
    enter(&mut model, "2");
    press(&mut model, "tab");
    enter(&mut model, "2G");
    press(&mut model, "tab");
    enter(&mut model, "20");
    press(&mut model, "tab right right tab");
    enter(&mut model, "5432:5432");
    press(&mut model, "tab space");
    let effects = press(&mut model, "enter");
    let [Effect::Run(Command::CreateVm { request, start })] = &effects[..] else { panic!("{effects:?}") };
    assert!(!*start);
    assert_eq!((request.image.as_str(), request.name.as_deref()), ("postgres", Some("db2")));
    assert_eq!(request.kernel.as_deref(), Some("6.12.48+deb12-cloud-amd64"));
    assert_eq!((request.cpus, request.memory_mib, request.disk_gib), (Some(2), Some(2048), Some(20)));
    assert_eq!((request.network, request.ports.len()), (Some(NetworkMode::None), 1));
}

#[test]
fn the_palette_reaches_every_action_and_remembers() {
    let mut model = sample::model(busy(), 80, 24);
    press(&mut model, ":");
    enter(&mut model, "view-im");
    press(&mut model, "enter");
    assert_eq!(model.view, View::Images);
    press(&mut model, ": up");
    let Some(Overlay::Palette(palette)) = model.overlays.last() else { panic!() };
    assert_eq!(palette.input.text(), "view-images");
    press(&mut model, "esc :");
    enter(&mut model, "sto");
    // About a row of another view, which has to be seen first.
    assert_eq!(commands(press(&mut model, "enter")), Vec::<String>::new());
    assert_eq!(model.view, View::Vms);
    assert!(model.messages.kept.back().unwrap().text.contains("of which?"));
    // About none: its form is opened.
    press(&mut model, ":");
    enter(&mut model, "pull-image");
    press(&mut model, "enter");
    assert_eq!(model.view, View::Images);
    assert!(matches!(model.overlays.last(), Some(Overlay::Ask(_))));
    // From a machine's console as well, which has keys of its own.
    for keys in ["1 g g c ctrl-]", "1 g g enter", "1 g g z"] {
        let mut model = sample::model(busy(), 200, 60);
        press(&mut model, keys);
        press(&mut model, ":");
        enter(&mut model, "new-vm");
        press(&mut model, "enter");
        assert!(matches!(model.overlays.last(), Some(Overlay::NewVm(_))), "{keys}: {:?}", model.overlays);
    }
}

#[test]
fn a_read_only_console_changes_nothing() {
    let mut model = sample::model(busy(), 80, 24);
    for keys in ["n enter", "x", "D tab enter", "X tab enter", "!", "2 p a enter", "3 p enter", "4 ctrl-c"] {
        model = sample::model(busy(), 80, 24);
        model.read_only = true;
        assert_eq!(commands(press(&mut model, keys)), Vec::<String>::new(), "{keys}");
    }
    assert!(!text(&render(&model)).lines().last().unwrap().contains("cancel"));
}

#[test]
fn names_are_copied() {
    check("y n", &["copy api"]);
    check("y a", &["copy 10.86.1.15"]);
    check("2 y enter", &["copy alpine"]);
}

#[test]
fn a_tiny_window_still_answers_q() {
    let mut model = sample::model(empty(), 30, 2);
    assert_eq!(commands(press(&mut model, "n D q")), ["quit"]);
}

#[test]
fn nothing_moves_when_nothing_happens() {
    let mut model = sample::model(empty(), 80, 24);
    assert_eq!(model.next_tick(), None);
    // Machines that run long change the screen once a minute.
    let mut deck = busy();
    let vms: Vec<_> = deck.vms.iter().filter(|vm| vm.name == "db").cloned().collect();
    (deck.vms, deck.operations) = (Arc::new(vms), Arc::default());
    update(&mut model, NOW, Msg::Snapshot(Arc::new(deck)));
    assert_eq!(model.next_tick(), Some(60_000));
    press(&mut model, "2");
    assert_eq!(model.next_tick(), None);
    update(&mut model, NOW, Msg::Snapshot(Arc::new(busy())));
    assert_eq!(model.next_tick(), Some(125));
    press(&mut model, "4");
    assert_eq!(model.next_tick(), Some(100));
}

#[test]
fn details_are_asked_for_once() {
    let mut model = sample::model(Snapshot::default(), 200, 60);
    let effects = update(&mut model, NOW, Msg::Snapshot(Arc::new(busy())));
    let loads: Vec<_> = effects.iter().filter(|effect| matches!(effect, Effect::LoadBoots(..))).collect();
    assert!(matches!(&loads[..], [Effect::LoadBoots(name, _)] if name == "api"), "{effects:?}");
    assert!(update(&mut model, NOW, Msg::Tick).is_empty());
    let effects = press(&mut model, "4");
    assert!(matches!(&effects[..], [Effect::LoadOperationLog(_)]), "{effects:?}");
    assert!(press(&mut model, "tab tab").is_empty());
}

#[test]
fn the_selection_is_seen_without_colour() {
    let mut model = sample::themed(busy(), 80, 24, ThemeChoice::Mono, false);
    press(&mut model, "j");
    let buffer = render(&model);
    let reversed = |y: u16| {
        let cell = buffer.cell((20, y)).unwrap();
        cell.modifier.contains(ratatui::style::Modifier::REVERSED)
    };
    assert!(reversed(5) && !reversed(4) && !reversed(6));
    use ratatui::style::Color::Reset;
    assert!(buffer.content().iter().all(|cell| cell.fg == Reset && cell.bg == Reset));
}

#[test]
fn the_way_back_is_told_in_details() {
    let bar = |keys: &str| {
        let mut model = sample::model(busy(), 80, 24);
        press(&mut model, keys);
        text(&render(&model)).lines().last().unwrap_or_default().to_owned()
    };
    for keys in ["enter", "enter l l", "2 enter", "4 enter"] {
        assert!(bar(keys).contains("esc back"), "{keys}: {}", bar(keys));
    }
    assert!(bar("enter").contains("h l tabs"));
    assert!(!bar("").contains("esc back"));
    // Nothing of a hint is left out.
    for hint in bar("/").trim().split("  ") {
        assert!(!hint.contains('…'), "{hint}");
    }
}

#[test]
fn the_host_is_examined_after_the_first_picture_and_only_then() {
    let examined = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Examine));
    let mut model = sample::model(Snapshot::default(), 80, 24);
    let first = update(&mut model, NOW, Msg::Snapshot(Arc::new(busy())));
    assert!(examined(&first));
    let second = Snapshot { generation: 8, ..busy() };
    assert!(!examined(&update(&mut model, NOW, Msg::Snapshot(Arc::new(second)))));
}

#[test]
fn escape_takes_the_filter_off_the_log() {
    let mut model = sample::model(busy(), 80, 24);
    press(&mut model, "5 /");
    enter(&mut model, "web");
    press(&mut model, "enter");
    assert_eq!(model.log.filter, "web");
    press(&mut model, "esc");
    assert_eq!(model.log.filter, "");
}

#[test]
fn a_pull_of_which_nothing_comes_is_told_to_be_stalled() {
    let deck = sample::pulls(1);
    let part = deck.operations[0].progress.parts()[0].clone();
    part.set_state(ProgressState::Active);
    part.set_total(part.done() + (1 << 20));
    let mut model = sample::model(deck, 200, 60);
    press(&mut model, "4 enter");
    let mut wait = |seconds: i64| {
        for _ in 0..seconds {
            let now = model.now + 1000;
            update(&mut model, now, Msg::Tick);
        }
        text(&render(&model))
    };
    assert!(!wait(2).contains("stalled"));
    let screen = wait(10);
    assert!(screen.contains("stalled") && screen.contains("nothing for 12s"), "{screen}");
    part.advance(1000);
    assert!(!wait(1).contains("stalled"));
}
