//! `vmdeck kernel …`

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum KernelCommand {
    /// List kernels, the newest first
    #[command(visible_alias = "ls")]
    List,

    /// Everything known of a kernel
    Show {
        /// Its name
        name: String,
    },

    /// Get a kernel and make it bootable
    ///
    /// SOURCE is a name that `vmdeck kernel catalog` shows, `apt:PACKAGE[=VERSION]` (from the package
    /// archive this host is configured for), `https://…@sha256:DIGEST` (a package, an archive, a
    /// bzImage or a vmlinux), `docker://NAME[:TAG]`, `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]` (an
    /// image that holds a kernel).
    Pull {
        /// Where to get it
        #[arg(value_name = "SOURCE", default_value = vmdeck_engine::kernel::DEFAULT_SOURCE)]
        source: String,

        /// What to call it here; its release otherwise
        #[arg(long)]
        name: Option<String>,

        /// Allow plain HTTP for a host that is not on the loopback interface
        #[arg(long)]
        plain_http: bool,
    },

    /// Kernels that are known, and whether they are here or newer ones are to be had
    Catalog,

    /// Write a kernel to an OCI archive, to be pushed to a registry or pulled on another host
    Export {
        /// Which kernel
        name: String,

        /// `oci-archive:FILE[:TAG]`; the file must not be there yet
        #[arg(long, value_name = "REFERENCE")]
        to: String,
    },

    /// Make a kernel of files on this host
    Import(ImportArguments),

    /// Delete kernels that no machine uses
    #[command(visible_alias = "rm")]
    Delete {
        /// Which kernels
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

    /// Its modules: a folder like `/lib/modules/RELEASE`, or an ext4 image of one
    #[arg(long, value_name = "DIR", requires = "vmlinuz")]
    pub(crate) modules: Option<PathBuf>,

    /// The newest kernel in this host's /boot
    #[arg(long)]
    pub(crate) host: bool,

    /// What to call it here; its release otherwise
    #[arg(long)]
    pub(crate) name: Option<String>,
}
