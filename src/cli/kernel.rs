//! `vmdeck kernel …`

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum KernelCommand {
    /// List kernels, the newest first
    #[command(visible_alias = "ls")]
    List,

    /// Everything known of a kernel
    Show { name: String },

    /// Get a kernel and make it bootable
    Pull {
        /// `apt:PACKAGE`: the newest such package of the archive this host is configured for
        #[arg(value_name = "SOURCE", default_value = vmdeck_engine::kernel::DEFAULT_SOURCE)]
        source: String,

        /// What to call it here; its release otherwise
        #[arg(long)]
        name: Option<String>,
    },

    /// Make a kernel of files on this host
    Import(ImportArguments),

    /// Delete kernels that no machine uses
    #[command(visible_alias = "rm")]
    Delete {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("source").required(true).args(["deb", "vmlinuz", "host"])))]
pub(crate) struct ImportArguments {
    /// A Debian kernel package
    #[arg(long, value_name = "FILE")]
    pub(crate) deb: Option<PathBuf>,

    /// A bzImage or an uncompressed vmlinux
    #[arg(long, value_name = "FILE")]
    pub(crate) vmlinuz: Option<PathBuf>,

    /// Its modules: a folder like `/lib/modules/RELEASE`
    #[arg(long, value_name = "DIR", requires = "vmlinuz")]
    pub(crate) modules: Option<PathBuf>,

    /// The newest kernel in this host's /boot
    #[arg(long)]
    pub(crate) host: bool,

    /// What to call it here; its release otherwise
    #[arg(long)]
    pub(crate) name: Option<String>,
}
