//! vmdeck: a terminal console for microVMs. This package only wires: the engine does the work, the
//! console shows it, the headless commands script it.

mod cli;
mod console;
mod headless;
mod logging;
mod memory;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    memory::keep_few_heaps();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and version on stdout with status 0, errors on stderr with 2.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match &cli.command {
        Some(_) => headless::run(cli),
        None if cli.headless => headless::nothing_to_do(),
        None => console::run(&cli),
    }
}
