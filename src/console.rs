//! Opens the console.

use std::io::IsTerminal;
use std::process::ExitCode;

use vmdeck_engine::Error;

use crate::cli::{Cli, OutputFormat};
use crate::headless::output::Output;
use crate::headless::{self, Outcome};

pub(crate) fn run(_cli: &Cli) -> ExitCode {
    let output = Output::new(OutputFormat::Table, false);
    let error = if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        Error::failed("the console is being written")
    } else {
        Error::usage("the console needs a terminal")
            .with_hint("give a command, for example `vmdeck vm list`; `vmdeck --help` shows all of them")
    };
    output.error(&error);
    ExitCode::from(error.kind().exit_code())
}

/// Prints the effective key bindings.
pub(crate) fn keys(cli: &Cli, _output: Output) -> Outcome {
    headless::data_path(cli)?;
    Err(Error::failed("the console is being written"))
}
