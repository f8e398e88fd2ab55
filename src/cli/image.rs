//! `vmdeck image …`

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List images
    #[command(visible_alias = "ls")]
    List,

    /// Everything known of an image
    Show { name: String },

    /// Pull an image and make it bootable
    Pull(PullArguments),

    /// Delete images that no machine uses
    #[command(visible_alias = "rm")]
    Delete {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct PullArguments {
    /// `[docker://]NAME[:TAG][@DIGEST]`, `oci:DIR[:TAG]`, `oci-archive:FILE` or `docker-archive:FILE`
    #[arg(value_name = "REFERENCE")]
    pub(crate) reference: String,

    /// What to call it here; the last part of its name otherwise
    #[arg(long)]
    pub(crate) name: Option<String>,

    /// Allow plain HTTP for a registry that is not on the loopback interface
    #[arg(long)]
    pub(crate) plain_http: bool,
}
