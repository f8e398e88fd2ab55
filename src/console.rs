//! Opens the console.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use tokio::sync::watch;
use vmdeck_engine::data_directory::DataDirectory;
use vmdeck_engine::operation::record::OperationState;
use vmdeck_engine::snapshot::Snapshot;
use vmdeck_engine::{Engine, Error, Result};
use vmdeck_ui::events::EventRing;
use vmdeck_ui::{ConsoleOptions, KeysFile, ThemeChoice};

use crate::cli::{Cli, ConsoleArguments, OutputFormat, Theme};
use crate::headless::output::Output;
use crate::headless::{self, Outcome};
use crate::{logging, memory};

/// How long the first look has the host's processors to itself.
const TIDY_AFTER: Duration = Duration::from_millis(300);

/// When what the start needed is no longer.
const QUIET_AFTER: Duration = Duration::from_secs(3);

/// Runs the console until the user leaves it.
pub(crate) fn run(cli: &Cli) -> ExitCode {
    match open(cli) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            Output::new(OutputFormat::Table, false).error(&error);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn open(cli: &Cli) -> Outcome {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(Error::usage("the console needs a terminal")
            .with_hint("give a command, for example `vmdeck vm list`; `vmdeck --help` shows all of them"));
    }
    let path = headless::data_path(cli)?;
    let data = DataDirectory::open(&path)?;
    let events = EventRing::default();
    let _log = logging::start(&data, Some(events.clone()))?;
    let arguments = &cli.console;
    let options = ConsoleOptions {
        data_label: label(&path),
        theme: theme(asked_theme(arguments)?),
        ascii: arguments.ascii || !locale_is_utf8(),
        read_only: arguments.read_only,
        no_mouse: arguments.no_mouse,
        keys: keys_file(cli)?,
        home: std::env::var_os("HOME").map(PathBuf::from),
        write_new: Some(write_new),
        events: Some(events),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("vmdeck")
        .build()
        .map_err(|error| Error::io("cannot start the runtime", error))?;
    let ending = vmdeck_ui::run(options, runtime.handle(), open_engine(path));
    runtime.shutdown_background();
    Ok(ending?.exit_code())
}

/// The engine as soon as there is something to show; the folders are looked at behind that.
async fn open_engine(path: PathBuf) -> Result<Engine> {
    let engine = Engine::open_for_screen(path).await?;
    let tidied = engine.clone();
    tokio::spawn(async move {
        tokio::time::sleep(TIDY_AFTER).await;
        if let Err(error) = tidied.tidy().await {
            tracing::warn!(%error, "what earlier processes left lying is not cleared away");
        }
    });
    tokio::spawn(give_memory_back(engine.subscribe()));
    Ok(engine)
}

/// Gives memory back whenever the last operation of several has ended, and once after the start.
async fn give_memory_back(mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    tokio::time::sleep(QUIET_AFTER).await;
    loop {
        memory::give_back();
        let busy = |snapshot: &Arc<Snapshot>| {
            snapshot.operations.iter().any(|view| view.local && view.record.state == OperationState::Running)
        };
        // Gone with the engine.
        if snapshots.wait_for(busy).await.is_err() {
            return;
        }
        if snapshots.wait_for(|now| !busy(now)).await.is_err() {
            return;
        }
    }
}

/// Prints the effective key bindings.
pub(crate) fn keys(cli: &Cli, output: Output) -> Outcome {
    output.text(&vmdeck_ui::keymap(keys_file(cli)?.as_ref())?.table())?;
    Ok(0)
}

fn keys_file(cli: &Cli) -> Result<Option<KeysFile>> {
    let given = cli.console.keys.clone().or_else(|| variable("VMDECK_KEYS").map(PathBuf::from));
    let (path, asked) = match (given, own_keys()) {
        (Some(path), _) => (path, true),
        (None, Some(path)) => (path, false),
        (None, None) => return Ok(None),
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !asked => return Ok(None),
        Err(error) => {
            return Err(Error::io(format!("cannot read the key bindings in `{}`", path.display()), error));
        }
    };
    Ok(Some(KeysFile { label: path.display().to_string(), text }))
}

/// Where a user's own key bindings are looked for: `$XDG_CONFIG_HOME/vmdeck/keys.toml`, else in
/// `~/.config` (XDG Base Directory Specification: a path that is not absolute is no path).
fn own_keys() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let configuration = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")))?;
    Some(configuration.join("vmdeck/keys.toml"))
}

/// Writes a file that must not be there yet.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    std::fs::File::create_new(path)?.write_all(text.as_bytes())
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The theme that an argument asks for, else a variable.
fn asked_theme(arguments: &ConsoleArguments) -> Result<Option<Theme>> {
    let Some(name) = variable("VMDECK_THEME").filter(|_| arguments.theme.is_none()) else {
        return Ok(arguments.theme);
    };
    let name = name.to_string_lossy();
    Theme::from_str(&name, false).map(Some).map_err(|_| {
        let known = Theme::value_variants().iter().filter_map(Theme::to_possible_value);
        let known: Vec<String> = known.map(|value| format!("`{}`", value.get_name())).collect();
        Error::usage(format!("VMDECK_THEME is `{}`, which is no theme", name.escape_default()))
            .with_hint(format!("set it to one of {}", known.join(", ")))
    })
}

/// The theme asked for; `NO_COLOR` (no-color.org) asks for the one without colours.
fn theme(asked: Option<Theme>) -> ThemeChoice {
    match asked {
        Some(Theme::Terminal) => ThemeChoice::Terminal,
        Some(Theme::Dark) => ThemeChoice::Dark,
        Some(Theme::Light) => ThemeChoice::Light,
        Some(Theme::Mono) => ThemeChoice::Mono,
        None if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) => ThemeChoice::Mono,
        None => ThemeChoice::default(),
    }
}

/// Whether the locale's characters are UTF-8 (setlocale(3): the first of these that is set decides).
fn locale_is_utf8() -> bool {
    ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .is_some_and(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.ends_with("utf-8") || locale.ends_with("utf8")
        })
}

/// The data directory with the home folder written as `~`.
fn label(path: &Path) -> String {
    match std::env::var_os("HOME").and_then(|home| path.strip_prefix(home).ok().map(Path::to_owned)) {
        Some(rest) => format!("~/{}", rest.display()),
        None => path.display().to_string(),
    }
}
