//! Measures the console on a real pseudo-terminal of 200×60 and prints the rows of SPECIFICATION.md:
//!
//! ```text
//! cargo bench --bench console [-- SECONDS [ROW …]]
//! ```
//!
//! `SECONDS` is how long the quiet console and the one under load are watched, 60 by default; with
//! rows (`P1`, `P3` …) only those are measured. The figures are of this machine while nothing else
//! runs on it. P9 (a panic), P11 to P14 are kept by tests: `tests/console`, `ui/tests/screens`.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod allocations;
mod deck;
mod load;
mod machine;
mod process;
#[path = "../../../ui/tests/support/sample.rs"]
mod sample;
#[path = "../../e2e/support/mod.rs"]
#[allow(dead_code)]
mod support;
#[path = "../../console/terminal.rs"]
#[allow(dead_code)]
mod terminal;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use process::{cpu, resident, switches};
use support::layout::{Layout, TarBuilder};
use support::registry::Registry;
use terminal::Terminal;
use vmdeck_ui::screen::Screen;
use vmdeck_ui::view::view;

const SIZE: (u16, u16) = (200, 60);

/// Keys whose way to the screen is measured.
const KEYS: usize = 1000;

fn main() -> ExitCode {
    if let Some(data) = std::env::var_os(load::ASKED) {
        return load::run(Path::new(&data));
    }
    if let Some(number) = machine::asked() {
        return machine::run(number);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seconds = arguments.iter().find_map(|text| text.parse().ok()).unwrap_or(60);
    let rows: Vec<&str> = arguments.iter().map(String::as_str).filter(|text| text.starts_with('P')).collect();
    let period = Duration::from_secs(seconds);
    let all: [(&[&str], &dyn Fn()); 7] = [
        (&["P6"], &frames),
        (&["P7", "P8"], &first_paint),
        (&["P8"], &pulls),
        (&["P9", "P10"], &ends),
        (&["P3", "P4", "P5"], &|| loaded(period)),
        (&["P2"], &|| running(period)),
        (&["P1"], &|| quiet(period)),
    ];
    for (names, measure) in all {
        if rows.is_empty() || names.iter().any(|name| rows.contains(name)) {
            measure();
        }
    }
    ExitCode::SUCCESS
}

fn console(data: &Path) -> Command {
    let mut command = Command::new("setsid");
    command.arg("-c").arg(env!("CARGO_BIN_EXE_vmdeck")).env("VMDECK_DATA_DIR", data);
    command.env("LANG", "C.UTF-8").env("TERM", "xterm-256color");
    command
}

/// A whole frame, 50 pulls in sight, in this process.
fn frames() {
    let mut model = sample::model(sample::pulls(50), SIZE.0, SIZE.1);
    sample::press(&mut model, "4");
    let mut screen = Screen::new(SIZE.0, SIZE.1);
    let mut frame = |number: i64| {
        model.now += 33 + number % 2;
        let begun = Instant::now();
        view(&model, screen.next_frame());
        std::hint::black_box(screen.encode());
        begun.elapsed()
    };
    for number in 0..10 {
        frame(number);
    }
    let before = allocations::so_far();
    let mut taken: Vec<Duration> = (0..2000).map(&mut frame).collect();
    let allocations = (allocations::so_far() - before) / 2000;
    taken.sort();
    let figures = [ms(taken[1000]), ms(taken[1980]), allocations.to_string()];
    row("P6 frame, 50 pulls in sight: median / p99 / allocations", &figures);
}

/// Waits until a console that is only looked at has given back what its start needed.
fn come_to_rest(terminal: &Terminal) {
    std::thread::sleep(Duration::from_secs(5));
    terminal.settle();
}

fn first_paint() {
    let folder = tempfile::tempdir().unwrap();
    deck::fill(folder.path(), 1000);
    let mut taken = Vec::new();
    for round in 0..6 {
        let begun = Instant::now();
        let terminal = Terminal::run(console(folder.path()), SIZE.0, SIZE.1);
        while !terminal.has("vm-12") {
            std::thread::sleep(Duration::from_micros(300));
        }
        // The first one warms what is cached.
        if round > 0 {
            taken.push((begun.elapsed(), cpu(&terminal)));
        }
        terminal.settle();
        if round == 5 {
            come_to_rest(&terminal);
            row("P8 memory with 1,000 machines and images", &[mib(resident(&terminal))]);
        }
        leave(terminal);
    }
    taken.sort();
    let (wall, cpu) = taken[taken.len() / 2];
    row("P7 exec to the painted list, 1,000 machines and images: wall / CPU", &[ms(wall), ms(cpu)]);
    let folder = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::run(console(folder.path()), SIZE.0, SIZE.1);
    terminal.wait_for("No machine yet");
    come_to_rest(&terminal);
    row("P8 memory with nothing there", &[mib(resident(&terminal))]);
    leave(terminal);
}

/// What pulls that run take of memory: one, then four at once, each of four layers of its own.
fn pulls() {
    let Some(registry) = Registry::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    for name in ["a", "b", "c", "d", "e"] {
        let path = folder.path().join(name);
        let mut layout = Layout::new(&path);
        for layer in 0..4 {
            let mut content = vec![0; 24 << 20];
            for chunk in content.chunks_mut(8) {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                chunk.copy_from_slice(&noise.to_le_bytes()[..chunk.len()]);
            }
            let mut tar = TarBuilder::default();
            tar.file(&format!("part-{layer}"), 0o644, &content);
            layout.layer(&tar.finish());
        }
        layout.finish();
        registry.push(&path, name);
    }
    let data = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::run(console(data.path()), SIZE.0, SIZE.1);
    terminal.wait_for("No machine yet");
    terminal.wait("the engine is open", |screen| !screen.contains("opening"));
    come_to_rest(&terminal);
    terminal.type_in("2");
    let mut peak_of = |names: &[&str]| {
        for name in names {
            terminal.type_in("p");
            terminal.wait_for("Pull an image");
            terminal.type_in(&format!("{}\r", registry.reference(name)));
            terminal.wait("the form is closed", |screen| !screen.contains("Pull an image"));
        }
        // The strip of what is under way is there as long as one of them runs.
        let (mut most, mut began) = (0, false);
        while !began || terminal.has("under way") {
            began |= terminal.has("under way");
            most = most.max(resident(&terminal));
            std::thread::sleep(Duration::from_millis(5));
        }
        come_to_rest(&terminal);
        most
    };
    // The first one brings the code of pulling in, which they share.
    let (one, four) = (peak_of(&["e"]), peak_of(&["a", "b", "c", "d"]));
    let figures = [mib(one), mib(four), mib(four.saturating_sub(one) / 3)];
    row("P8 memory while one / four images are pulled; a further pull", &figures);
    drop(terminal);
}

/// How long the ends take that are not the user's.
fn ends() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let mut terminal = Terminal::run(console(folder.path()), SIZE.0, SIZE.1);
        terminal.wait_for("No machine yet");
        terminal.settle();
        terminal
    };
    for (name, signal) in [("SIGTERM", Signal::SIGTERM), ("SIGHUP", Signal::SIGHUP)] {
        let mut terminal = open();
        terminal.signal(signal);
        let begun = Instant::now();
        while terminal.with_screen(vt100::Screen::alternate_screen) {
            std::thread::sleep(Duration::from_micros(200));
        }
        let restored = begun.elapsed();
        let (_, took) = terminal.end(Duration::from_secs(10));
        row(&format!("P9 {name}: terminal restored / end"), &[ms(restored), ms(took.max(restored))]);
    }
    let (_, took) = open().hang_up(Duration::from_secs(10));
    row("P10 terminal gone to the end", &[ms(took)]);
}

fn loaded(period: Duration) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("setsid");
    command.arg("-c").arg(std::env::current_exe().unwrap()).env(load::ASKED, folder.path());
    command.env("LANG", "C.UTF-8").env("TERM", "xterm-256color");
    let mut terminal = Terminal::run(command, SIZE.0, SIZE.1);
    terminal.wait_for("VMs");
    terminal.type_in("4");
    terminal.wait_for("load-49");
    terminal.wait_for(load::CLOCK);
    std::thread::sleep(Duration::from_secs(2));
    let whole = Instant::now();
    let before = resident(&terminal);
    let (bytes, main, begun) = (terminal.written(), process::cpu_of_main(&terminal), Instant::now());
    std::thread::sleep(Duration::from_secs(10));
    let seconds = begun.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let rate = (terminal.written() - bytes) as f64 / seconds / 1024.0;
    let share = (process::cpu_of_main(&terminal) - main).as_secs_f64() / seconds * 100.0;
    row(
        "P4 50 pulls, 75,000 events/s: UI thread / bytes to the terminal",
        &[format!("{share:.1} %"), format!("{rate:.1} KiB/s")],
    );
    let mut stale: Vec<i64> = (0..500)
        .filter_map(|number| {
            std::thread::sleep(Duration::from_millis(7 + number % 5));
            terminal.with_screen(load::age)
        })
        .collect();
    stale.sort_unstable();
    let mut taken = Vec::with_capacity(KEYS);
    for number in 0..KEYS {
        let down = number / 40 % 2 == 0;
        let from = terminal.cursor_row();
        let begun = Instant::now();
        terminal.type_in(if down { "j" } else { "k" });
        while terminal.cursor_row() == from {
            assert!(
                begun.elapsed() < Duration::from_secs(2),
                "key {number} is not seen:\n{}",
                terminal.screen()
            );
            std::thread::sleep(Duration::from_micros(100));
        }
        taken.push(begun.elapsed());
        std::thread::sleep(Duration::from_millis(17));
    }
    taken.sort();
    let figures = [taken[KEYS / 2], taken[KEYS * 99 / 100], taken[KEYS - 1]].map(ms);
    row("P3 the same, key to paint: p50 / p99 / max of 1,000", &figures);
    std::thread::sleep(period.saturating_sub(whole.elapsed()));
    let grown = mib(resident(&terminal).saturating_sub(before));
    let [median, most] = [stale.get(stale.len() / 2), stale.last()].map(|age| age.map_or(-1, |age| *age));
    row(
        &format!(
            "P5 the same: age of a shown counter, median / most; memory grown in {} s",
            whole.elapsed().as_secs()
        ),
        &[format!("{median} ms"), format!("{most} ms"), grown],
    );
    drop(terminal);
}

/// Machines that run, as far as the console can tell, and whose figures change every second.
fn running(period: Duration) {
    let folder = tempfile::tempdir().unwrap();
    let _machines = deck::Machines::start(folder.path(), 20);
    let mut terminal = Terminal::run(console(folder.path()), SIZE.0, SIZE.1);
    terminal.wait_for("vm-12");
    terminal.wait("machines run", |screen| screen.matches("running").count() >= 20);
    std::thread::sleep(Duration::from_secs(12));
    let (bytes, used, begun) = (terminal.written(), cpu(&terminal), Instant::now());
    std::thread::sleep(period);
    let seconds = begun.elapsed().as_secs_f64();
    // What is measured is what it claims: the machines run all the time.
    assert!(terminal.screen().matches("running").count() >= 20, "{}", terminal.screen());
    #[allow(clippy::cast_precision_loss)]
    let rate = (terminal.written() - bytes) as f64 / seconds / 1024.0;
    let share = (cpu(&terminal) - used).as_secs_f64() / seconds * 100.0;
    row(
        "P2 20 running machines, their figures once a second: CPU / bytes to the terminal",
        &[format!("{share:.2} %"), format!("{rate:.2} KiB/s")],
    );
    leave(terminal);
}

fn quiet(period: Duration) {
    let folder = tempfile::tempdir().unwrap();
    deck::fill(folder.path(), 20);
    let mut terminal = Terminal::run(console(folder.path()), SIZE.0, SIZE.1);
    terminal.wait_for("vm-12");
    std::thread::sleep(Duration::from_secs(12));
    let (bytes, used, switched) = (terminal.written(), cpu(&terminal), switches(&terminal));
    std::thread::sleep(period);
    #[allow(clippy::cast_precision_loss)]
    let switches = (switches(&terminal) - switched) as f64 / period.as_secs_f64();
    let share = (cpu(&terminal) - used).as_secs_f64() / period.as_secs_f64() * 100.0;
    let figures = [
        format!("{} bytes", terminal.written() - bytes),
        format!("{switches:.2}/s"),
        format!("{share:.3} %"),
    ];
    row(&format!("P1 quiet for {} s: output / switches / CPU", period.as_secs()), &figures);
    leave(terminal);
}

fn leave(mut terminal: Terminal) {
    terminal.type_in("q");
    terminal.end(Duration::from_secs(10));
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

fn mib(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}

fn row(what: &str, figures: &[String]) {
    println!("| {what} | {} |", figures.join(" / "));
}
