//! `vmdeck vm …`

use std::net::Ipv4Addr;

use clap::{Args, Subcommand, ValueEnum};
use vmdeck_engine::vm::record::{NetworkMode, PortForward, Protocol};

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// List machines
    #[command(visible_alias = "ls")]
    List,

    /// Everything known of a machine, with the phases of its last boot
    Show { name: String },

    /// Create a machine; `vm start` boots it
    Create(CreateArguments),

    /// Create and boot a machine and run a command in it
    Run(RunArguments),

    /// Boot machines
    Start {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },

    /// Stop machines: the guest syncs its disks and powers off
    Stop {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,

        /// Pull the plug
        #[arg(long, short)]
        force: bool,
    },

    /// Stop and boot machines again
    Restart {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,

        /// Pull the plug instead of a graceful stop
        #[arg(long, short)]
        force: bool,
    },

    /// Delete machines and their disks
    #[command(visible_alias = "rm")]
    Delete {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,

        /// Also when it runs
        #[arg(long, short)]
        force: bool,
    },

    /// Run a command in a machine, or its login shell
    Exec(ExecArguments),

    /// What the machine's serial console printed
    Logs {
        name: String,

        /// Go on as it prints more
        #[arg(long, short)]
        follow: bool,

        /// Only the last lines
        #[arg(long, short = 'n', value_name = "LINES")]
        tail: Option<usize>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct MachineArguments {
    /// Kernel to boot; the newest one here otherwise, and one is pulled when there is none
    #[arg(long)]
    pub(crate) kernel: Option<String>,

    /// Virtual CPUs
    #[arg(long, short, value_name = "N")]
    pub(crate) cpus: Option<u32>,

    /// Memory in MiB
    #[arg(long, short, value_name = "MIB")]
    pub(crate) memory: Option<u64>,

    /// Size of the root disk in GiB
    #[arg(long, short, value_name = "GIB")]
    pub(crate) disk: Option<u64>,

    /// How the machine reaches the network
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) network: Option<Network>,

    /// Forward a port of this host's loopback interface: `[ADDRESS:]HOST:GUEST[/tcp|/udp]`, host 0 for any
    #[arg(long = "port", short, value_name = "FORWARD", value_parser = parse_forward)]
    pub(crate) ports: Vec<PortForward>,

    /// Environment of the image's command, added to the image's own
    #[arg(long = "env", short, value_name = "NAME=VALUE")]
    pub(crate) environment: Vec<String>,

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

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct TerminalArguments {
    /// Give the command a terminal (the default when this is one)
    #[arg(long, short, overrides_with = "no_tty")]
    pub(crate) tty: bool,

    /// Give the command pipes, not a terminal
    #[arg(long, short = 'T')]
    pub(crate) no_tty: bool,

    /// Give the command no standard input
    #[arg(long, short = 'n')]
    pub(crate) no_stdin: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// Rootless: outbound by the hypervisor, inbound by forwarded ports
    User,
    None,
}

impl From<Network> for NetworkMode {
    fn from(network: Network) -> Self {
        match network {
            Network::User => Self::User,
            Network::None => Self::None,
        }
    }
}

/// `[ADDRESS:]HOST:GUEST[/tcp|/udp]`
fn parse_forward(text: &str) -> Result<PortForward, String> {
    let (ports, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some((_, other)) => return Err(format!("`{other}` is neither tcp nor udp")),
    };
    let port = |text: &str| text.parse::<u16>().map_err(|_| format!("`{text}` is no port number"));
    let (rest, guest) = ports.rsplit_once(':').ok_or("write HOST:GUEST, for example 8080:80")?;
    let (address, host) = match rest.rsplit_once(':') {
        Some((address, host)) => {
            (address.parse::<Ipv4Addr>().map_err(|_| format!("`{address}` is no IPv4 address"))?, host)
        }
        None => (Ipv4Addr::LOCALHOST, rest),
    };
    if !address.is_loopback() {
        return Err(format!("{address} is not a loopback address: forwards are bound to 127.0.0.0/8 only"));
    }
    let guest_port = port(guest)?;
    if guest_port == 0 {
        return Err("the guest's port cannot be 0".into());
    }
    let host_port = if host.is_empty() { 0 } else { port(host)? };
    Ok(PortForward { protocol, host_address: address, host_port, guest_port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_read_as_documented() {
        let forward = |host: [u8; 4], host_port, guest_port, protocol| {
            Ok(PortForward { protocol, host_address: host.into(), host_port, guest_port })
        };
        assert_eq!(parse_forward("8080:80"), forward([127, 0, 0, 1], 8080, 80, Protocol::Tcp));
        assert_eq!(parse_forward(":80"), forward([127, 0, 0, 1], 0, 80, Protocol::Tcp));
        assert_eq!(parse_forward("127.0.0.2:53:53/udp"), forward([127, 0, 0, 2], 53, 53, Protocol::Udp));
        for bad in ["80", "a:80", "80:0", "0.0.0.0:80:80", "80:80/sctp", "1:2:3:4", "70000:1", ""] {
            assert!(parse_forward(bad).is_err(), "{bad}");
        }
    }
}
