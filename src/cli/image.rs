//! `vmdeck image …`

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List images
    #[command(visible_alias = "ls")]
    List,

    /// Everything known of an image
    Show {
        /// Its name
        name: String,
    },

    /// Pull an image and make it bootable
    Pull(PullArguments),

    /// Record files on this host as an image; they stay where they are
    Register(RegisterArguments),

    /// Copy a registered image's files here, or make an image of a stopped machine's disk
    Promote(PromoteArguments),

    /// Write an image to a file
    Export(ExportArguments),

    /// Short names of images that can be pulled
    Catalog,

    /// Remove what nothing needs: partial downloads, cached layers
    Prune {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,

        /// Also every cached layer, and every image that was pulled and that no machine uses
        #[arg(long, short)]
        all: bool,
    },

    /// Delete images that no machine uses
    #[command(visible_alias = "rm")]
    Delete {
        /// Which images
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct PullArguments {
    /// `[docker://]NAME[:TAG][@DIGEST]`, `oci:DIR[:TAG|@DIGEST]`, `oci-archive:FILE[:TAG|@DIGEST]`,
    /// `docker-archive:FILE[:TAG]`, `bundle:FILE|URL[@sha256:DIGEST]`, or a name of the catalog
    #[arg(value_name = "REFERENCE")]
    pub(crate) reference: String,

    /// What to call it here; the last part of its name otherwise
    #[arg(long)]
    pub(crate) name: Option<String>,

    /// Take the place of an image of that name, as when a tag has moved; machines made of it keep it, under
    /// another name
    #[arg(long)]
    pub(crate) replace: bool,

    /// Allow plain HTTP for a registry that is not on the loopback interface
    #[arg(long)]
    pub(crate) plain_http: bool,
}

#[derive(Args, Debug)]
pub(crate) struct RegisterArguments {
    /// What to call it here
    pub(crate) name: String,

    /// An ext4 file system, raw
    #[arg(long, value_name = "FILE")]
    pub(crate) rootfs: PathBuf,

    /// An ext4 file system: what new machines' work disks begin as
    #[arg(long, value_name = "FILE")]
    pub(crate) work_seed: Option<PathBuf>,

    /// A kernel of its own
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,

    /// The initrd of that kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,

    /// An ext4 file system: that kernel's modules
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) modules: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("from").required(true).args(["name", "from_vm"])))]
pub(crate) struct PromoteArguments {
    /// A registered image
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Name of the managed image; the registered one's own otherwise
    #[arg(value_name = "NEW", requires = "name")]
    pub(crate) new_name: Option<String>,

    /// Make the image of this stopped machine's disk
    #[arg(long, num_args = 2, value_names = ["MACHINE", "NEW"])]
    pub(crate) from_vm: Option<Vec<String>>,
}

#[derive(Args, Debug)]
pub(crate) struct ExportArguments {
    /// Which image
    pub(crate) name: String,

    /// The file to write; it must not be there yet
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// What to write
    #[arg(long, value_enum, default_value_t = ExportForm::Bundle, value_name = "FORM")]
    pub(crate) form: ExportForm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportForm {
    /// The file systems as they are, for `image pull bundle:FILE`
    Bundle,
    /// One layer in an OCI archive, for other tools and registries
    OciArchive,
}
