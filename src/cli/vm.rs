//! `vmdeck vm …`

mod values;

use clap::{Args, Subcommand, ValueEnum};
use vmdeck_engine::vm::record::{NetworkMode, PortForward};

use values::{
    LabelFilter, parse_forward, parse_gibibytes, parse_host_side, parse_label, parse_label_filter,
    parse_mebibytes,
};

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// List machines
    #[command(visible_alias = "ls")]
    List {
        /// Only those with this label, or with this value of it
        #[arg(long = "label", short, value_name = "KEY[=VALUE]", value_parser = parse_label_filter)]
        labels: Vec<LabelFilter>,

        /// Ports, network and labels as well
        #[arg(long, short)]
        wide: bool,
    },

    /// Everything known of a machine, with the phases of its last boot
    Show {
        /// Its name, or the beginning of its id
        name: String,
    },

    /// Create a machine; `vm start` boots it
    Create(CreateArguments),

    /// Create and boot a machine and run a command in it
    Run(RunArguments),

    /// Boot machines
    Start {
        #[command(flatten)]
        which: Selection,
    },

    /// Stop machines: the guest syncs its disks and powers off
    Stop {
        #[command(flatten)]
        which: Selection,

        /// Pull the plug
        #[arg(long, short)]
        force: bool,
    },

    /// Stop and boot machines again
    Restart {
        #[command(flatten)]
        which: Selection,

        /// Pull the plug instead of a graceful stop
        #[arg(long, short)]
        force: bool,
    },

    /// Delete machines and their disks
    #[command(visible_alias = "rm")]
    Delete {
        #[command(flatten)]
        which: Selection,

        /// Also when it runs
        #[arg(long, short)]
        force: bool,
    },

    /// Let machines stand still, in memory
    Pause {
        #[command(flatten)]
        which: Selection,
    },

    /// Let paused machines go on
    Resume {
        #[command(flatten)]
        which: Selection,
    },

    /// Change a machine; says what takes effect now and what at its next start
    Set(SetArguments),

    /// Throw the root disk away: the next start has a fresh one of the image; the work disk stays
    Reset {
        #[command(flatten)]
        which: Selection,
    },

    /// What a machine's disks held at one moment: kept, put back, forgotten
    #[command(subcommand, visible_alias = "snap")]
    Snapshot(SnapshotCommand),

    /// Make a machine whose disks begin as another one's are now; instant, nothing is copied
    Clone {
        /// The machine whose disks they are
        name: String,

        /// Name of the new machine; one is made up otherwise
        new: Option<String>,
    },

    /// The forwarded ports of a machine; adds and removes some, at once also when it runs
    Ports {
        /// Whose ports
        name: String,

        /// Forward a port of this host's loopback interface: `[ADDRESS:]HOST:GUEST[/tcp|/udp]`, host 0 for any
        #[arg(long, short, value_name = "FORWARD", value_parser = parse_forward)]
        add: Vec<PortForward>,

        /// Forward a port of this host no more: `[ADDRESS:]HOST[:GUEST][/tcp|/udp]`
        #[arg(long, short, value_name = "FORWARD", value_parser = parse_host_side)]
        remove: Vec<PortForward>,
    },

    /// Attach this terminal to the machine's serial console; ctrl-] leaves
    Console {
        /// A machine that runs
        name: String,
    },

    /// Run a command in a machine, or its login shell
    Exec(ExecArguments),

    /// Open this host's SSH client on a machine, which needs no sshd
    Ssh(SshArguments),

    /// Serve one SSH client on standard input and output (a `ProxyCommand`)
    #[command(hide = true)]
    SshProxy {
        /// A machine that runs
        name: String,
    },

    /// Copy files and folders between this host and a machine
    ///
    /// Either SOURCE or TARGET is NAME:PATH. A path in a machine that does not begin with `/` begins in
    /// the home of root, which `NAME:` alone is. A folder is copied with all in it; into a folder that
    /// is there it goes under its own name, and `DIR/.` means its content. Permissions, times, symbolic
    /// links, hard links among what is copied and extended attributes (user.*, access lists,
    /// capabilities) are kept. Owners are those of who copies (root in the machine); out of a machine
    /// no set-user-id bits and no capabilities come; devices, sockets and pipes are left out, with a
    /// warning.
    #[command(visible_alias = "copy")]
    Cp {
        /// A file or folder: of this host, or NAME:PATH in a machine
        source: String,

        /// Where to: on this host, or NAME:PATH in a machine
        target: String,
    },

    /// What running machines are doing: processors, memory, disks, network
    Stats {
        /// All that run otherwise
        #[arg(value_name = "NAME")]
        names: Vec<String>,

        /// Go on, once in so many seconds, until interrupted
        #[arg(long, short, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..))]
        watch: Option<u64>,
    },

    /// What the machine's serial console printed
    Logs {
        /// Whose console
        name: String,

        /// Go on as it prints more, over its restarts, until interrupted
        #[arg(long, short)]
        follow: bool,

        /// Only the last lines
        #[arg(long, short = 'n', value_name = "LINES")]
        tail: Option<usize>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Keep what the disks hold now; the machine may run, then as a power cut would leave them
    Create {
        /// Whose disks
        #[arg(value_name = "MACHINE")]
        machine: String,

        /// Name of the snapshot; s1, s2, … otherwise
        name: Option<String>,
    },

    /// List the snapshots of a machine, oldest first
    #[command(visible_alias = "ls")]
    List {
        /// Whose snapshots
        #[arg(value_name = "MACHINE")]
        machine: String,
    },

    /// Put the disks of a stopped machine back; what was written since is lost
    Restore {
        /// Whose disks
        #[arg(value_name = "MACHINE")]
        machine: String,

        /// Which of its snapshots
        name: String,
    },

    /// Forget snapshots; the machine and its clones keep what they need of them
    #[command(visible_alias = "rm")]
    Delete {
        /// Whose snapshots
        #[arg(value_name = "MACHINE")]
        machine: String,

        /// Which of them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Which machines a command is for.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub(crate) struct Selection {
    /// Which machines
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,

    /// Those with this label, or with this value of it; several narrow it down
    #[arg(long = "label", short, value_name = "KEY[=VALUE]", value_parser = parse_label_filter, conflicts_with = "names")]
    pub(crate) labels: Vec<LabelFilter>,

    /// All machines
    #[arg(long, short, conflicts_with_all = ["names", "labels"])]
    pub(crate) all: bool,
}

/// What `create`, `run` and `set` have in common.
#[derive(Args, Debug)]
pub(crate) struct ResourceArguments {
    /// Virtual CPUs; a new machine has 2
    #[arg(long, short, value_name = "N")]
    pub(crate) cpus: Option<u32>,

    /// Memory in MiB, or as 512M or 2G; a new machine has 1024
    #[arg(long, short, value_name = "MIB", value_parser = parse_mebibytes)]
    pub(crate) memory: Option<u64>,

    /// Size of its disks in GiB, or as 20G or 1T, 8 or what the image needs for a new machine; they only grow, and the file systems on them follow
    #[arg(long, short, value_name = "GIB", value_parser = parse_gibibytes)]
    pub(crate) disk: Option<u64>,

    /// Forward a port of this host's loopback interface: `[ADDRESS:]HOST:GUEST[/tcp|/udp]`, host 0 for any
    #[arg(long = "port", short, value_name = "FORWARD", value_parser = parse_forward)]
    pub(crate) ports: Vec<PortForward>,

    /// Put a label on it, to tell machines apart by
    #[arg(long = "label", short, value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) labels: Vec<(String, String)>,
}

#[derive(Args, Debug)]
pub(crate) struct SetArguments {
    /// Which machine
    pub(crate) name: String,

    /// Give it another name
    #[arg(long, value_name = "NAME")]
    pub(crate) rename: Option<String>,

    #[command(flatten)]
    pub(crate) resources: ResourceArguments,

    /// Boot another kernel
    #[arg(long, value_name = "KERNEL")]
    pub(crate) kernel: Option<String>,

    /// Whether it has its work disk, which is kept either way
    #[arg(long, value_enum, value_name = "ON|OFF")]
    pub(crate) work_disk: Option<Switch>,

    /// Forward a port of this host no more: `[ADDRESS:]HOST[:GUEST][/tcp|/udp]`
    #[arg(long = "remove-port", value_name = "FORWARD", value_parser = parse_host_side)]
    pub(crate) remove_ports: Vec<PortForward>,

    /// Set a variable of the command's environment; `NAME` alone takes it away
    #[arg(long = "env", short, value_name = "NAME[=VALUE]")]
    pub(crate) environment: Vec<String>,

    /// Take a label away
    #[arg(long, value_name = "KEY")]
    pub(crate) remove_label: Vec<String>,

    /// Replaces the image's command, when the image has no init of its own
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,

    /// Give the image's command back
    #[arg(long, conflicts_with = "command")]
    pub(crate) image_command: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Args, Debug)]
pub(crate) struct MachineArguments {
    /// Kernel to boot; the newest one here otherwise, and one is pulled when there is none
    #[arg(long)]
    pub(crate) kernel: Option<String>,

    #[command(flatten)]
    pub(crate) resources: ResourceArguments,

    /// How the machine reaches the network; `user` otherwise
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) network: Option<Network>,

    /// Environment of the image's command, added to the image's own
    #[arg(long = "env", short, value_name = "NAME=VALUE")]
    pub(crate) environment: Vec<String>,

    /// No work disk at the home of root
    #[arg(long)]
    pub(crate) no_work_disk: bool,

    /// Allow plain HTTP when the image has to be pulled from a registry
    #[arg(long)]
    pub(crate) plain_http: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CreateArguments {
    /// Name of the machine; one is made up otherwise
    pub(crate) name: Option<String>,

    /// An image, or a reference to pull
    #[arg(long, short, value_name = "IMAGE")]
    pub(crate) image: String,

    #[command(flatten)]
    pub(crate) machine: MachineArguments,

    /// Runs in place of the image's command, when the image has no init of its own
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct RunArguments {
    /// An image, or a reference to pull
    pub(crate) image: String,

    /// Name of the machine; one is made up otherwise
    #[arg(long)]
    pub(crate) name: Option<String>,

    /// Delete the machine when the command has ended
    #[arg(long)]
    pub(crate) rm: bool,

    #[command(flatten)]
    pub(crate) machine: MachineArguments,

    #[command(flatten)]
    pub(crate) terminal: TerminalArguments,

    /// What to run; without it the machine is left running
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ExecArguments {
    /// A machine that runs
    pub(crate) name: String,

    /// User to run as: name or number, with `:GROUP` if need be
    #[arg(long, short)]
    pub(crate) user: Option<String>,

    /// Folder to run in
    #[arg(long, short, value_name = "DIR")]
    pub(crate) workdir: Option<String>,

    /// Environment, added to the image's own
    #[arg(long = "env", short, value_name = "NAME=VALUE")]
    pub(crate) environment: Vec<String>,

    #[command(flatten)]
    pub(crate) terminal: TerminalArguments,

    /// What to run; the user's login shell otherwise
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct SshArguments {
    /// A machine that runs
    pub(crate) name: String,

    /// User to log in as
    #[arg(long, short, default_value = "root")]
    pub(crate) user: String,

    /// An argument for the client, for example `--option=-L8080:localhost:80`; can be repeated
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub(crate) option: Vec<String>,

    /// What to run; a login shell otherwise
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct TerminalArguments {
    /// Give the command a terminal (the default when this is one)
    #[arg(long, short, overrides_with = "no_tty")]
    pub(crate) tty: bool,

    /// Give the command pipes, not a terminal
    #[arg(long, short = 'T', overrides_with = "tty")]
    pub(crate) no_tty: bool,

    /// Give the command no standard input
    #[arg(long, short = 'n')]
    pub(crate) no_stdin: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// Rootless: outbound by the hypervisor, inbound by forwarded ports; the guest also reaches
    /// services on this host's loopback interface
    User,
    /// Forwarded ports lead in, nothing leads out: for guests that are not trusted
    Isolated,
    /// As `user`, and machines of this mode reach each other, by address and as NAME or NAME.vmdeck
    Lan,
    /// For root or CAP_NET_ADMIN: on a bridge of this host, which reaches the machine at its address, on
    /// every port; outbound by the host's address
    Bridge,
    None,
}

impl From<Network> for NetworkMode {
    fn from(network: Network) -> Self {
        match network {
            Network::User => Self::User,
            Network::Isolated => Self::Isolated,
            Network::Lan => Self::Lan,
            Network::Bridge => Self::Bridge,
            Network::None => Self::None,
        }
    }
}
