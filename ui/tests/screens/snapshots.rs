//! Whole screens as text, at 80×24 and 200×60, in `ui/tests/snapshots`. After a change that is meant,
//! `VMDECK_BLESS=1 cargo test -p vmdeck-ui` writes them anew; look at the difference before committing.

use std::fs;
use std::path::PathBuf;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use vmdeck_engine::error::{ErrorKind, ErrorReport};
use vmdeck_engine::snapshot::Snapshot;
use vmdeck_ui::layout::WIDE;
use vmdeck_ui::message::{Command, Msg};
use vmdeck_ui::model::Model;
use vmdeck_ui::model::log::LogLine;
use vmdeck_ui::model::toast::Level;
use vmdeck_ui::options::ThemeChoice;
use vmdeck_ui::update::update;
use vmdeck_ui::view::view;

use crate::sample::{self, NOW, busy, empty, enter, press, pulls};

const SIZES: [(u16, u16); 2] = [(80, 24), (200, 60)];

pub(crate) fn render(model: &Model) -> Buffer {
    let mut buffer = Buffer::empty(Rect::new(0, 0, model.width, model.height));
    view(model, &mut buffer);
    buffer
}

pub(crate) fn text(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width).max(1);
    let lines = buffer.content().chunks(width).map(|row| {
        let line: String = row.iter().map(|cell| cell.symbol()).collect();
        format!("{}\n", line.trim_end())
    });
    lines.collect()
}

fn check(name: &str, deck: fn() -> Snapshot, prepare: impl Fn(&mut Model)) {
    for (width, height) in SIZES {
        let mut model = sample::model(deck(), width, height);
        prepare(&mut model);
        compare(&format!("{name}-{width}x{height}"), &text(&render(&model)));
    }
}

fn compare(name: &str, screen: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(format!("{name}.txt"));
    if std::env::var_os("VMDECK_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, screen).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(screen == expected, "{} differs; now it is\n{screen}", path.display());
}

#[test]
fn machines() {
    check("vms", busy, |_| {});
}

#[test]
fn a_failed_boot_says_why() {
    check("vm-boot-failed", busy, |model| drop(press(model, "j j j j j enter")));
}

#[test]
fn the_configuration_of_a_machine() {
    check("vm-config", busy, |model| drop(press(model, "enter h")));
}

#[test]
fn the_operations_of_a_machine() {
    check("vm-events", busy, |model| drop(press(model, "j j enter l l l l l")));
}

#[test]
fn what_a_machine_uses() {
    check("vm-stats", busy, |model| {
        sample::use_some(model);
        press(model, "enter l l");
        let id = model.selected_vm().unwrap().id.clone();
        for second in 1..60 {
            update(model, NOW, Msg::Guest(id.clone(), Box::new(Ok(sample::guest(second)))));
        }
    });
}

#[test]
fn a_guest_that_does_not_tell_is_told_of() {
    check("vm-stats-silent", busy, |model| {
        sample::use_some(model);
        press(model, "enter l l");
        let id = model.selected_vm().unwrap().id.clone();
        let silent = ErrorReport {
            kind: ErrorKind::Failed,
            message: "the agent in `api` does not answer".into(),
            hint: None,
        };
        update(model, NOW, Msg::Guest(id, Box::new(Err(silent))));
    });
}

/// `api` is up without its command.
fn refused() -> Snapshot {
    let mut deck = busy();
    let mut vms = (*deck.vms).clone();
    if let Some(boot) = vms[0].boot.as_mut() {
        boot.warnings.push("the image's command cannot be run: `/usr/bin/serve` is not in it".into());
    }
    deck.vms = vms.into();
    deck
}

#[test]
fn a_command_that_could_not_be_run() {
    check("vm-no-command", refused, |model| drop(press(model, "enter")));
}

#[test]
fn the_ports_of_a_machine() {
    check("vm-ports", busy, |model| drop(press(model, "enter l l l")));
}

#[test]
fn the_disks_of_a_machine() {
    check("vm-disks", busy, |model| {
        press(model, "enter l l l l");
        let id = model.selected_vm().unwrap().id.clone();
        update(model, NOW, Msg::Files(id, sample::files()));
    });
}

fn print(model: &mut Model, bytes: &[u8]) {
    let vm = model.console.as_ref().unwrap().vm.clone();
    update(model, NOW, Msg::ConsoleOutput { vm, anew: false, bytes: bytes.to_vec() });
}

#[test]
fn a_console() {
    check("console", busy, |model| {
        press(model, "c");
        let vm = model.console.as_ref().unwrap().vm.clone();
        update(model, NOW, Msg::ConsoleAttached { vm, result: Ok(()) });
        print(model, b"Debian GNU/Linux 12 api ttyS0\r\n\r\napi login: \x1b[31mroot\x1b[0m\r\n");
        print(model, b"\x1b]0;a title\x07root@api:~# ");
    });
}

#[test]
fn a_console_beside_the_list_is_as_wide_as_guests_think() {
    for width in [WIDE, 120, 140, 150, 300] {
        let mut model = sample::model(busy(), width, 35);
        press(&mut model, "c");
        let vm = model.console.as_ref().unwrap().vm.clone();
        update(&mut model, NOW, Msg::ConsoleAttached { vm, result: Ok(()) });
        let line = format!("{}end\r\n", "-".repeat(77));
        print(&mut model, line.as_bytes());
        let screen = text(&render(&model));
        assert!(screen.contains(line.trim_end()), "at {width} columns:\n{screen}");
        // And the list still says which machine is which.
        for name in ["api", "ci-runner-7"] {
            assert!(screen.contains(name), "{name} at {width} columns:\n{screen}");
        }
    }
}

#[test]
fn a_console_searched_on_the_whole_screen() {
    check("console-search", busy, |model| {
        press(model, "j c z");
        let lines: String = (0..200).map(|number| format!("[{number:>5}] unit {}\r\n", number % 7)).collect();
        print(model, lines.as_bytes());
        press(model, "/");
        enter(model, "unit 3");
        press(model, "enter n n");
    });
}

#[test]
fn the_first_start() {
    check("first-start", empty, |_| {});
}

#[test]
fn images() {
    check("images", busy, |model| drop(press(model, "2 j")));
}

#[test]
fn the_details_of_an_image() {
    check("image-details", busy, |model| drop(press(model, "2 j enter")));
}

#[test]
fn kernels() {
    check("kernels", busy, |model| {
        press(model, "3 j");
        update(model, NOW, Msg::KernelCatalog(Ok(sample::kernel_catalog())));
    });
}

#[test]
fn a_kernel_of_the_catalog() {
    check("kernel-offered", busy, |model| {
        press(model, "3");
        update(model, NOW, Msg::KernelCatalog(Ok(sample::kernel_catalog())));
        press(model, "j j enter");
    });
}

#[test]
fn operations() {
    check("operations", busy, |model| drop(press(model, "4")));
}

#[test]
fn the_details_of_a_pull() {
    check("pull", busy, |model| drop(press(model, "4 j j j enter")));
}

#[test]
fn an_error_with_its_next_step() {
    check("operation-failed", busy, |model| drop(press(model, "4 j j j j j enter")));
}

#[test]
fn fifty_pulls() {
    check("fifty-pulls", || pulls(50), |model| drop(press(model, "4 G")));
}

#[test]
fn the_log() {
    check("log", busy, |model| {
        let mut next = busy();
        let mut vms = (*next.vms).clone();
        vms.remove(1);
        next.vms = vms.into();
        next.operations = pulls(3).operations;
        update(model, NOW + 60_000, Msg::Snapshot(next.into()));
        press(model, "5");
    });
}

#[test]
fn the_log_filtered() {
    check("log-filter", busy, |model| {
        let next = vmdeck_engine::snapshot::Snapshot { operations: pulls(30).operations, ..busy() };
        update(model, NOW + 60_000, Msg::Snapshot(next.into()));
        press(model, "5 /");
        enter(model, "app-1 !app-11");
    });
}

#[test]
fn the_log_of_the_engine() {
    check("log-engine", busy, |model| {
        let line = |level, source: &str, text: &str| LogLine {
            at: NOW,
            level,
            source: source.into(),
            text: text.into(),
        };
        let lines = vec![
            line(Level::Detail, "guest::connection", "hello: version 3"),
            line(Level::Information, "operation 4f2a11", "3 of 5 layers are here already"),
            line(Level::Warning, "image::registry", "a request is tried again: status 503, after 2s"),
            line(Level::Error, "vm::supervise", "a machine is gone: machine web, signal 9"),
        ];
        update(model, NOW, Msg::Events(lines));
        press(model, "5 l l l");
    });
}

#[test]
fn a_filter_being_typed() {
    check("filter", busy, |model| {
        press(model, "/");
        enter(model, "image:deb !web");
    });
}

#[test]
fn help() {
    check("help", busy, |model| drop(press(model, "?")));
}

#[test]
fn help_searched() {
    check("help-search", busy, |model| {
        press(model, "?");
        enter(model, "pull");
    });
}

#[test]
fn the_palette() {
    check("palette", busy, |model| {
        press(model, ":");
        enter(model, "de");
    });
}

#[test]
fn deleting_several_is_confirmed() {
    check("confirm-delete", busy, |model| drop(press(model, "v j j v D")));
}

#[test]
fn quitting_with_operations_is_confirmed() {
    check("confirm-quit", busy, |model| drop(press(model, "q")));
}

#[test]
fn a_new_machine() {
    check("new-vm", busy, |model| {
        press(model, "n ctrl-u");
        enter(model, "de");
        press(model, "down");
    });
}

#[test]
fn a_mistake_in_the_form_stands_at_its_field() {
    check("new-vm-error", empty, |model| {
        press(model, "n");
        enter(model, "debian:12");
        press(model, "tab tab tab tab");
        enter(model, "lots");
        press(model, "enter");
    });
}

#[test]
fn pulling_an_image() {
    check("prompt-pull", busy, |model| {
        press(model, "2 p");
        enter(model, "registry.example.org/team/app:2");
    });
}

#[test]
fn promoting_a_registered_image() {
    check("promote-image", busy, |model| drop(press(model, "2 j j j P")));
}

#[test]
fn making_an_image_of_a_machine() {
    check("promote-vm", busy, |model| drop(press(model, "j P")));
}

#[test]
fn a_mistake_when_registering() {
    check("register", busy, |model| {
        press(model, "2 t");
        enter(model, "golden");
        press(model, "tab");
        enter(model, "~/golden.ext4");
        press(model, "enter");
    });
}

#[test]
fn exporting() {
    check("export", busy, |model| drop(press(model, "2 x tab right")));
}

#[test]
fn a_reference_of_the_catalog() {
    check("pull-catalog", busy, |model| {
        update(model, NOW, Msg::Catalog(sample::catalog()));
        press(model, "2 p");
        enter(model, "al");
        press(model, "down");
    });
}

#[test]
fn what_pruning_frees_is_shown_before() {
    check("prune", busy, |model| {
        press(model, "2 U a");
        update(model, NOW, Msg::PrunePreview { all: true, report: Ok(sample::prunable()) });
    });
}

#[test]
fn settings_of_a_machine() {
    check("edit-vm", busy, |model| drop(press(model, "e")));
}

#[test]
fn choosing_the_order() {
    check("sort", busy, |model| drop(press(model, "s")));
}

#[test]
fn copying() {
    check("copy", busy, |model| drop(press(model, "y")));
}

#[test]
fn messages() {
    check("toasts", busy, |model| {
        let failed = ErrorReport {
            kind: ErrorKind::NotFound,
            message: "registry.example.org has no tag `13` of team/app".into(),
            hint: Some("the newest tags are 12, 11, 10".into()),
        };
        let command = Command::PullImage { reference: "team/app:13".into(), name: None };
        update(model, NOW, Msg::Outcome(command, Err(failed)));
        for _ in 0..3 {
            update(
                model,
                NOW,
                Msg::Outcome(Command::StartVm { name: "db".into() }, Ok("machine db is ready".into())),
            );
        }
    });
}

#[test]
fn this_host() {
    check("doctor", busy, |model| {
        press(model, ":");
        enter(model, "doctor");
        press(model, "enter");
    });
}

#[test]
fn before_the_engine_has_opened() {
    for (width, height) in SIZES {
        let mut model = sample::model(Snapshot::default(), width, height);
        model.engine_open = false;
        model.doctor = None;
        compare(&format!("opening-{width}x{height}"), &text(&render(&model)));
    }
}

#[test]
fn ascii_only() {
    for (keys, name) in [
        ("", "ascii-vms"),
        ("4 j j j enter", "ascii-pull"),
        ("X", "ascii-confirm"),
        ("n tab tab", "ascii-new-vm"),
        ("?", "ascii-help"),
        ("5", "ascii-log"),
    ] {
        let mut model = sample::themed(busy(), 80, 24, ThemeChoice::Terminal, true);
        press(&mut model, keys);
        let screen = text(&render(&model));
        assert!(screen.is_ascii(), "{screen}");
        compare(&format!("{name}-80x24"), &screen);
    }
}

#[test]
fn small_windows() {
    for (width, height) in [(40, 10), (59, 16), (60, 20), (109, 30), (110, 30), (39, 10), (20, 3)] {
        let model = sample::model(busy(), width, height);
        compare(&format!("vms-{width}x{height}"), &text(&render(&model)));
    }
}
