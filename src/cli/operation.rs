//! `vmdeck operation …`

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum OperationCommand {
    /// List operations, the newest first
    #[command(visible_alias = "ls")]
    List {
        /// How many
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: usize,

        /// Only those that run now
        #[arg(long)]
        running: bool,
    },

    /// Everything known of an operation, with its log
    Show {
        /// Its id, or the beginning of it
        id: String,
    },

    /// Follow an operation to its end, whichever process runs it
    Watch {
        /// Its id, or the beginning of it
        id: String,
    },

    /// Cancel an operation, whichever process runs it
    Cancel {
        /// Its id, or the beginning of it
        id: String,
    },
}
