//! Commands without the console: the same engine, its results on standard output, its progress on
//! standard error. One file per noun.

mod copy;
mod exec;
mod image;
mod interrupt;
mod kernel;
mod logs;
mod man;
mod operation;
pub(crate) mod output;
mod progress;
mod several;
mod ssh;
mod stats;
mod terminal;
mod vm;

use std::process::ExitCode;

use clap::CommandFactory;
use vmdeck_engine::data_directory::DataDirectory;
use vmdeck_engine::operation::Task;
use vmdeck_engine::{Engine, Error, Result};

use crate::cli::vm::VmCommand;
use crate::cli::{Cli, Command, OutputFormat};
use crate::logging;
use output::{Output, human};

/// What every command has at hand.
pub(crate) struct Context {
    pub(crate) engine: Engine,
    pub(crate) output: Output,
    /// What was told of operations so far.
    pub(crate) told: progress::Told,
}

/// How a command ended when it did not fail: its exit status.
pub(crate) type Outcome = Result<u8>;

/// Runs the command and reports its error.
pub(crate) fn run(cli: Cli) -> ExitCode {
    let output = Output::new(cli.output, cli.quiet);
    match dispatch(cli, output) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

/// `vmdeck --headless` alone.
pub(crate) fn nothing_to_do() -> ExitCode {
    let output = Output::new(crate::cli::OutputFormat::Table, false);
    let error = Error::usage("`--headless` needs a command")
        .with_hint("for example `vmdeck --headless vm list`; `vmdeck --help` shows all commands");
    output.error(&error);
    ExitCode::from(error.kind().exit_code())
}

fn dispatch(mut cli: Cli, output: Output) -> Outcome {
    let Some(command) = cli.command.take() else { return Err(Error::usage("no command was given")) };
    if let (true, Some(what)) = (output.format() != OutputFormat::Table, text_only(&command)) {
        return Err(Error::usage(format!("`vmdeck {what}` writes text, and has no form as JSON"))
            .with_hint("leave `--output` out"));
    }
    // What needs no engine must work where there is no data directory.
    let command = match command {
        Command::Completions { shell } => return man::completions(shell),
        Command::Man { directory } => return man::pages(directory.as_deref()),
        Command::Version => return version(output),
        Command::Keys => return crate::console::keys(&cli, output),
        other => other,
    };
    let path = data_path(&cli)?;
    let data = DataDirectory::open(&path)?;
    let _log = logging::start(&data, None)?;
    if matches!(command, Command::LanSwitch) {
        return lan_switch(data);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("vmdeck")
        .build()
        .map_err(|error| Error::io("cannot start the runtime", error))?;
    let outcome = runtime.block_on(async {
        let context = Context { engine: Engine::open(path).await?, output, told: progress::Told::default() };
        let outcome = match command {
            Command::Image(command) => image::run(&context, command).await,
            Command::Kernel(command) => kernel::run(&context, command).await,
            Command::Vm(command) => vm::run(&context, command).await,
            Command::Operation(command) => operation::run(&context, command).await,
            Command::Doctor => doctor(&context).await,
            Command::SshConfig => ssh::config(&context).await,
            Command::Df => disk_usage(&context).await,
            Command::Completions { .. }
            | Command::Man { .. }
            | Command::Version
            | Command::Keys
            | Command::LanSwitch => Ok(0),
        };
        context.engine.shutdown().await;
        outcome
    });
    // A thread that blocks on standard input must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// Commands whose result is a text for other programs or for people.
fn text_only(command: &Command) -> Option<&'static str> {
    match command {
        Command::Vm(VmCommand::Logs { .. }) => Some("vm logs"),
        Command::SshConfig => Some("ssh-config"),
        Command::Keys => Some("keys"),
        Command::Completions { .. } => Some("completions"),
        Command::Man { .. } => Some("man"),
        _ => None,
    }
}

/// Runs the switch of `--network lan` until no machine needs it.
fn lan_switch(data: DataDirectory) -> Outcome {
    // Nobody reads what would be printed.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("the network between machines has a bug: {panic}")
    }));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("cannot start the runtime", error))?;
    let ended = runtime.block_on(vmdeck_engine::network::lan::process::run(data));
    if let Err(error) = &ended {
        tracing::error!(error = error.full_message(), "the network between machines ended");
    }
    ended.map(|()| 0)
}

/// The data directory: as asked for, else where it is by default.
pub(crate) fn data_path(cli: &Cli) -> Result<std::path::PathBuf> {
    match &cli.data_dir {
        Some(path) => std::path::absolute(path)
            .map_err(|error| Error::io(format!("cannot resolve `{}`", path.display()), error)),
        None => DataDirectory::default_path(),
    }
}

impl Context {
    /// Shows an operation's progress while it runs, and cancels it on SIGINT, SIGTERM and SIGHUP.
    pub(crate) async fn follow<T: Send + 'static>(&self, mut task: Task<T>) -> Result<T> {
        let operation = task.operation().clone();
        // Nothing would be told.
        let display = (!self.output.quiet() || self.output.format() == OutputFormat::Ndjson).then(|| {
            progress::Display::start(&self.engine, self.output, self.told.clone(), operation.id().clone())
        });
        let mut interrupt = interrupt::Interrupt::new()?;
        let result = loop {
            tokio::select! {
                result = task.wait() => break result,
                times = interrupt.next() => {
                    if times > 1 {
                        // Asked twice: whatever is half done is cleaned up by the next process.
                        std::process::exit(130);
                    }
                    self.output.message("cancelling; once more to leave at once");
                    operation.cancel();
                }
            }
        };
        if let Some(display) = display {
            display.finish().await;
        }
        result
    }
}

async fn doctor(context: &Context) -> Outcome {
    use vmdeck_engine::doctor::{self, CheckStatus};
    let report = doctor::examine(&context.engine).await?;
    if !context.output.json(&report)? {
        let mut text = String::new();
        for check in &report.checks {
            let mark = match check.status {
                CheckStatus::Ok => "ok",
                CheckStatus::Warning => "warn",
                CheckStatus::Failed => "FAIL",
            };
            text.push_str(&format!("{mark:<5} {}: {}\n", human(&check.name), human(&check.finding)));
            if let Some(fix) = &check.fix {
                text.push_str(&format!("      → {}\n", human(fix)));
            }
        }
        context.output.text(&text)?;
    }
    Ok(if report.worst() == CheckStatus::Failed { 5 } else { 0 })
}

async fn disk_usage(context: &Context) -> Outcome {
    let usage = context.engine.disk_usage().await?;
    if !context.output.json(&usage)? {
        let mut table = output::Table::new(["WHAT", "NAME", "LENGTH", "ON DISK", "RECLAIMABLE"]);
        for item in &usage.items {
            let kind = serde_json::to_value(item.kind).ok();
            table.row([
                kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or_default().to_owned(),
                item.name.clone(),
                output::bytes(item.logical_bytes),
                output::bytes(item.allocated_bytes),
                output::bytes(item.reclaimable_bytes),
            ]);
        }
        table.row([
            "total".into(),
            String::new(),
            output::bytes(usage.logical_bytes),
            output::bytes(usage.allocated_bytes),
            output::bytes(usage.reclaimable_bytes),
        ]);
        context.output.text(&table.render())?;
    }
    Ok(0)
}

fn version(output: Output) -> Outcome {
    let version = env!("CARGO_PKG_VERSION");
    if !output.json(&serde_json::json!({ "name": "vmdeck", "version": version }))? {
        output.text(&format!("vmdeck {version}\n"))?;
    }
    Ok(0)
}

/// The command line as clap knows it, for manual pages and completions.
fn command() -> clap::Command {
    Cli::command()
}
