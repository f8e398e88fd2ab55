//! What keys do in lists: moving, marks, filters, order.

use std::sync::Arc;

use crossterm::event::{KeyModifiers, MouseButton, MouseEvent, MouseEventKind};
use vmdeck_engine::snapshot::Snapshot;
use vmdeck_engine::vm::record::{Vm, VmState};
use vmdeck_ui::message::Msg;
use vmdeck_ui::model::overlay::Overlay;
use vmdeck_ui::model::{Model, Pane, View};
use vmdeck_ui::update::update;

use crate::decisions::{commands, selected};
use crate::sample::{self, NOW, busy, empty, enter, press};
use crate::snapshots::{render, text};

#[test]
fn moving_takes_counts_and_ends() {
    for (keys, name) in [
        ("j", "build-arm"),
        ("j j k", "build-arm"),
        ("G", "web"),
        ("G g g", "api"),
        ("7 j", "web"),
        ("6 j", "scratch"),
        ("0 3 j", "db"),
        ("0 0 5 G", "fresh"),
        (": 4 enter", "db"),
        (": 9 9 enter", "web"),
        ("end home down", "build-arm"),
        ("9 9 j", "web"),
        ("G ctrl-u", "api"),
    ] {
        let mut model = sample::model(busy(), 80, 24);
        press(&mut model, keys);
        assert_eq!(selected(&model), name, "{keys}");
    }
}

#[test]
fn the_cursor_stays_on_its_machine_when_others_come_and_go() {
    let mut model = sample::model(busy(), 80, 24);
    press(&mut model, "j j j");
    assert_eq!(selected(&model), "db");
    let mut deck = busy();
    let mut vms = (*deck.vms).clone();
    vms.remove(0);
    deck.vms = Arc::new(vms);
    update(&mut model, NOW, Msg::Snapshot(Arc::new(deck)));
    assert_eq!((selected(&model), model.vms.cursor), ("db".into(), 2));
    update(&mut model, NOW, Msg::Snapshot(Arc::new(empty())));
    assert_eq!(selected(&model), "");
}

#[test]
fn escape_goes_back_one_layer_at_a_time() {
    let mut model = sample::model(busy(), 80, 24);
    press(&mut model, "/");
    enter(&mut model, "e");
    press(&mut model, "enter space enter ?");
    let state = |model: &Model| {
        (
            model.overlays.len(),
            model.vms.marks.len(),
            model.pane == Pane::Detail,
            !model.vms.filter.is_empty(),
        )
    };
    assert_eq!(state(&model), (1, 1, true, true));
    press(&mut model, "esc");
    assert_eq!(state(&model), (0, 1, true, true));
    press(&mut model, "esc");
    assert_eq!(state(&model), (0, 0, true, true));
    press(&mut model, "esc");
    assert_eq!(state(&model), (0, 0, false, true));
    press(&mut model, "esc");
    assert_eq!(state(&model), (0, 0, false, false));
    // And never out of the console.
    assert_eq!(commands(press(&mut model, "esc esc")), Vec::<String>::new());
}

#[test]
fn filters_are_words_without_words_and_columns() {
    for (filter, names) in [
        ("deb", vec!["ci-runner-7", "web"]),
        ("cr7", vec!["ci-runner-7"]),
        ("!deb state:running", vec!["api", "db", "scratch"]),
        ("image:devbox", vec!["api", "build-arm"]),
        ("address:10.86.4", vec!["db"]),
        ("nothing-like-it", vec![]),
    ] {
        let mut model = sample::model(busy(), 80, 24);
        press(&mut model, "/");
        enter(&mut model, filter);
        let found: Vec<_> = (0..model.vms.rows.len())
            .filter_map(|at| model.vms.row::<vmdeck_engine::vm::record::Vm>(&model.snapshot, at))
            .map(|vm| vm.name.clone())
            .collect();
        assert_eq!(found, names, "{filter}");
    }
}

#[test]
fn sorting_keeps_the_cursor_and_turns_round() {
    let mut model = sample::model(busy(), 80, 24);
    press(&mut model, "j j s");
    press(&mut model, "j enter");
    assert_eq!((selected(&model), model.vms.cursor), ("ci-runner-7".into(), 0));
    press(&mut model, "S");
    assert_eq!((selected(&model), model.vms.cursor), ("ci-runner-7".into(), 7));
}

#[test]
fn the_mouse_selects_opens_and_sorts() {
    let mut model = sample::model(busy(), 80, 24);
    let click = |model: &mut Model, column: u16, row: u16| {
        let kind = MouseEventKind::Down(MouseButton::Left);
        update(model, NOW, Msg::Mouse(MouseEvent { kind, column, row, modifiers: KeyModifiers::NONE }))
    };
    click(&mut model, 10, 6);
    assert_eq!((selected(&model), model.pane), ("ci-runner-7".into(), Pane::List));
    click(&mut model, 10, 6);
    assert_eq!(model.pane, Pane::Detail);
    press(&mut model, "esc");
    click(&mut model, 4, 3);
    assert!(model.vms.descending);
    let images = text(&render(&model)).lines().next().unwrap().find("Images").unwrap();
    click(&mut model, u16::try_from(images).unwrap(), 0);
    assert_eq!(model.view, View::Images);
    // A click beside a window changes nothing below it.
    press(&mut model, "1 ?");
    click(&mut model, 10, 8);
    assert_eq!(model.overlays.len(), 1);
    // The wheel turns what is read in one.
    let (before, at) = (text(&render(&model)), selected(&model));
    let wheel =
        MouseEvent { kind: MouseEventKind::ScrollDown, column: 10, row: 8, modifiers: KeyModifiers::NONE };
    update(&mut model, NOW, Msg::Mouse(wheel));
    assert_ne!(text(&render(&model)), before);
    assert_eq!(selected(&model), at);
}

#[test]
fn the_last_machine_deleted_from_its_details_leaves_the_list() {
    for keys in ["enter", "z"] {
        let mut deck = busy();
        deck.vms = Arc::new(deck.vms[..1].to_vec());
        let mut model = sample::model(deck.clone(), 80, 24);
        press(&mut model, keys);
        assert_eq!(model.pane, Pane::Detail);
        let gone = Snapshot { generation: deck.generation + 1, vms: Arc::default(), ..deck };
        update(&mut model, NOW, Msg::Snapshot(Arc::new(gone)));
        assert_eq!((model.pane, model.zoom), (Pane::List, false), "{keys}");
        assert!(text(&render(&model)).contains("No machine yet"), "{keys}");
    }
}

#[test]
fn an_open_range_is_what_an_action_is_about() {
    let mut model = sample::model(busy(), 80, 24);
    press(&mut model, "g g v j D");
    let Some(Overlay::Confirm(confirm)) = model.overlays.last() else { panic!("{:?}", model.overlays) };
    assert_eq!(confirm.targets.len(), 2, "{:?}", confirm.targets);
}

#[test]
fn images_are_pulled_again_from_where_they_came() {
    let mut deck = busy();
    let mut images = (*deck.images).clone();
    images.truncate(3);
    for (image, from) in images.iter_mut().zip([Some("team/app:13"), None, Some("oci:/srv/layout")]) {
        image.reference = from.map(str::to_owned);
    }
    let names: Vec<_> = images.iter().map(|image| image.name.clone()).collect();
    deck.images = Arc::new(images);
    let mut model = sample::model(deck, 80, 24);
    let effects = press(&mut model, "2 g g u");
    assert_eq!(commands(effects), [format!("update image {}", names[0])]);
    assert!(commands(press(&mut model, "j u")).is_empty());
    assert!(text(&render(&model)).contains("not pulled from anywhere"));
    let all = commands(press(&mut model, "g g space space space u"));
    assert_eq!(all, [format!("update image {}", names[0]), format!("update image {}", names[2])]);
    assert!(model.images.marks.is_empty());
}

#[test]
fn a_registered_image_whose_files_are_gone_is_marked() {
    let mut deck = busy();
    let golden = deck.images.iter().find(|image| image.name == "golden").unwrap();
    let path = golden.files.rootfs.clone();
    deck.missing = Arc::new([(golden.id.clone(), vec![path.clone()])].into());
    let mut model = sample::model(deck, 200, 60);
    press(&mut model, "2 / g o l d e n enter");
    let screen = text(&render(&model));
    assert!(screen.contains("registered: files missing"), "{screen}");
    assert!(screen.contains(&format!("missing     {}", path.display())), "{screen}");
}

#[test]
fn escape_takes_the_count_and_leaves_the_marks() {
    let mut model = sample::model(busy(), 80, 24);
    press(&mut model, "space space 0 3 esc");
    assert_eq!((model.count, model.vms.marks.len()), (None, 2));
    press(&mut model, "esc");
    assert_eq!(model.vms.marks.len(), 0);
}

#[test]
fn a_filter_that_lets_nothing_through_gives_the_cursor_back() {
    let mut model = sample::model(busy(), 80, 24);
    press(&mut model, "g g j j");
    let before = selected(&model);
    press(&mut model, "/");
    enter(&mut model, "nothing-like-it");
    press(&mut model, "esc");
    assert_eq!(selected(&model), before);
}

#[test]
fn the_list_is_where_it_was_after_a_look_at_the_whole_screen() {
    let mut model = sample::model(busy(), 80, 24);
    press(&mut model, "g g j j");
    let (before, at) = (render(&model), selected(&model));
    press(&mut model, "z z");
    assert_eq!((model.pane, selected(&model)), (Pane::List, at));
    assert_eq!(text(&render(&model)), text(&before));
}

#[test]
fn what_a_machine_used_goes_with_its_process() {
    let mut model = sample::model(busy(), 200, 60);
    sample::use_some(&mut model);
    let id = model.snapshot.vms.iter().find(|vm| vm.state == VmState::Running).unwrap().id.clone();
    assert!(model.usage.latest(&id).is_some());
    let stopped = |vm: &Vm| {
        if vm.id == id { Vm { state: VmState::Stopped, run: None, ..vm.clone() } } else { vm.clone() }
    };
    let vms = model.snapshot.vms.iter().map(stopped).collect();
    let snapshot = Snapshot { vms: Arc::new(vms), ..(*model.snapshot).clone() };
    update(&mut model, NOW, Msg::Snapshot(Arc::new(snapshot)));
    let vm = model.snapshot.vms.iter().find(|vm| vm.id == id).unwrap();
    let screen = text(&render(&model));
    let line = screen.lines().find(|line| line.contains(&vm.name) && line.contains("stopped")).unwrap();
    assert!(line.contains(&format!("{} cpu", vm.settings.cpus)), "{line}");
}
