//! The command line: `vmdeck [--headless] NOUN VERB …`. One file per noun.

pub(crate) mod image;
pub(crate) mod kernel;
pub(crate) mod operation;
pub(crate) mod vm;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

const AFTER_HELP: &str = "\
First machine:
  vmdeck doctor                                  what this host can do, and what to mend
  vmdeck vm run debian:12 -- uname -a            pull, boot, run a command in it
  vmdeck                                         the console: everything live, under your keys

Exit status: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict (name taken, in use),
5 this host cannot, 130 cancelled. `vm exec` and `vm run` pass on the guest command's own
status; 127 when the guest has no such program, 126 when it cannot be executed, 125 when vmdeck
failed before that.";

/// A console for microVMs: pulls any OCI image, boots it under a real hypervisor, without root.
///
/// Without a command the console opens. With a command vmdeck runs it, prints the result on
/// standard output and progress on standard error, and exits.
#[derive(Debug, Parser)]
#[command(name = "vmdeck", version, after_help = AFTER_HELP, max_term_width = 100, propagate_version = false)]
pub(crate) struct Cli {
    /// Never open the console (a command implies it)
    #[arg(long, global = true)]
    pub(crate) headless: bool,

    // Variables are read where they are needed: clap takes what they hold for arguments that were
    // given, and writes them into each line of usage.
    /// Where images, kernels and machines are kept [env: VMDECK_DATA_DIR]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Form of the result on standard output
    #[arg(
        long,
        short,
        global = true,
        value_enum,
        default_value_t = OutputFormat::Table,
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub(crate) output: OutputFormat,

    /// No progress and no messages on standard error, errors excepted
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub(crate) quiet: bool,

    #[command(flatten)]
    pub(crate) console: ConsoleArguments,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Console options")]
pub(crate) struct ConsoleArguments {
    /// Colours of the console [env: VMDECK_THEME]
    #[arg(long, value_enum, value_name = "THEME")]
    pub(crate) theme: Option<Theme>,

    /// Draw with ASCII characters only
    #[arg(long)]
    pub(crate) ascii: bool,

    /// Show everything, change nothing
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Leave the mouse to the terminal
    #[arg(long)]
    pub(crate) no_mouse: bool,

    /// A TOML file with key bindings of your own [env: VMDECK_KEYS] [default: vmdeck/keys.toml in
    /// $XDG_CONFIG_HOME, else in ~/.config]
    #[arg(long, value_name = "FILE")]
    pub(crate) keys: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Theme {
    /// The terminal's own sixteen colours
    Terminal,
    Dark,
    Light,
    /// No colours
    Mono,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people
    Table,
    /// One JSON document
    Json,
    /// One JSON object a line: events as they happen, then the result
    Ndjson,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Images: what machines are made of
    #[command(subcommand, visible_alias = "images")]
    Image(image::ImageCommand),

    /// Kernels: what machines boot
    #[command(subcommand, visible_alias = "kernels")]
    Kernel(kernel::KernelCommand),

    /// Machines
    #[command(subcommand, visible_alias = "vms")]
    Vm(vm::VmCommand),

    /// Operations: everything that runs or ran, in any vmdeck process
    #[command(subcommand, visible_alias = "operations")]
    Operation(operation::OperationCommand),

    /// What this host can and cannot do, and the fix
    Doctor,

    /// What the data directory holds, in bytes, and what could be freed
    Df,

    /// What OpenSSH needs to reach the machines, for an `Include` in ~/.ssh/config
    SshConfig,

    /// The effective key bindings of the console
    Keys,

    /// Completions for a shell, on standard output
    Completions {
        /// Which one
        shell: clap_complete::Shell,
    },

    /// The manual page, on standard output
    Man {
        /// Write one page per command into this folder instead
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
    },

    /// Version of vmdeck
    Version,

    /// The switch of `--network lan`: a process of its own that vmdeck starts when machines need it
    #[command(hide = true, name = vmdeck_engine::network::lan::VERB)]
    LanSwitch,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn every_argument_says_what_it_is() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments() {
                let name = argument.get_id();
                assert!(argument.get_help().is_some(), "`{}`: `{name}` has no text", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&super::Cli::command());
    }

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
