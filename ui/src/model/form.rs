//! The form of a new machine.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use vmdeck_engine::identifier::check_name;
use vmdeck_engine::image::record::Image;
use vmdeck_engine::snapshot::Snapshot;
use vmdeck_engine::vm::record::{NetworkMode, PortForward, Protocol};
use vmdeck_engine::vm::{CreateVm, MAXIMUM_DISK_GIB, MINIMUM_MEMORY_MIB};

use super::input::TextInput;
use crate::message::HostFacts;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Image,
    Name,
    Kernel,
    Cpus,
    Memory,
    Disk,
    Network,
    Ports,
    Start,
}

impl Field {
    pub const ALL: [Self; 9] = [
        Self::Image,
        Self::Name,
        Self::Kernel,
        Self::Cpus,
        Self::Memory,
        Self::Disk,
        Self::Network,
        Self::Ports,
        Self::Start,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::Image => "Image",
            Self::Name => "Name",
            Self::Kernel => "Kernel",
            Self::Cpus => "CPUs",
            Self::Memory => "Memory",
            Self::Disk => "Disk",
            Self::Network => "Network",
            Self::Ports => "Ports",
            Self::Start => "Boot it",
        }
    }

    /// What stands in the field while it is empty.
    pub fn placeholder(self) -> &'static str {
        match self {
            Self::Image => "name of an image here, or a reference to pull",
            Self::Name => "made up, such as crisp-osprey",
            Self::Cpus => "2",
            Self::Memory => "1G",
            Self::Disk => "8G",
            Self::Ports => "none; such as 8080:80, 5353:53/udp",
            Self::Kernel | Self::Network | Self::Start => "",
        }
    }

    /// Whether it is chosen by ← and → rather than typed.
    pub fn is_choice(self) -> bool {
        matches!(self, Self::Kernel | Self::Network | Self::Start)
    }
}

/// The form.
#[derive(Clone, Debug)]
pub struct NewVmForm {
    pub focus: Field,
    pub image: TextInput,
    pub name: TextInput,
    /// Index into the kernels; `None`: the newest, or the default is pulled.
    pub kernel: Option<usize>,
    pub cpus: TextInput,
    pub memory: TextInput,
    pub disk: TextInput,
    pub network: NetworkMode,
    pub ports: TextInput,
    pub start: bool,
    /// What is wrong, at its field.
    pub error: Option<(Field, String)>,
    /// The suggestion under the cursor, if one was moved to.
    pub suggestion: Option<usize>,
}

impl NewVmForm {
    /// A form whose defaults boot: the image given, else the newest one here, one that vmdeck
    /// has the files of before one that was only registered.
    pub fn new(image: Option<&str>, snapshot: &Snapshot) -> Self {
        let newest = || {
            let newest = snapshot.images.iter().max_by_key(|image| (image.managed, image.created_at));
            newest.map(|image| image.name.as_str())
        };
        Self {
            focus: Field::Image,
            image: TextInput::offer(image.or_else(newest).unwrap_or_default()),
            name: TextInput::default(),
            kernel: None,
            cpus: TextInput::default(),
            memory: TextInput::default(),
            disk: TextInput::default(),
            network: NetworkMode::User,
            ports: TextInput::default(),
            start: true,
            error: None,
            suggestion: None,
        }
    }

    pub fn input(&self, field: Field) -> Option<&TextInput> {
        match field {
            Field::Image => Some(&self.image),
            Field::Name => Some(&self.name),
            Field::Cpus => Some(&self.cpus),
            Field::Memory => Some(&self.memory),
            Field::Disk => Some(&self.disk),
            Field::Ports => Some(&self.ports),
            Field::Kernel | Field::Network | Field::Start => None,
        }
    }

    pub fn input_mut(&mut self, field: Field) -> Option<&mut TextInput> {
        match field {
            Field::Image => Some(&mut self.image),
            Field::Name => Some(&mut self.name),
            Field::Cpus => Some(&mut self.cpus),
            Field::Memory => Some(&mut self.memory),
            Field::Disk => Some(&mut self.disk),
            Field::Ports => Some(&mut self.ports),
            Field::Kernel | Field::Network | Field::Start => None,
        }
    }

    pub fn move_focus(&mut self, by: isize) {
        let count = Field::ALL.len();
        let at = Field::ALL.iter().position(|field| *field == self.focus).unwrap_or(0);
        let to = (at + count).saturating_add_signed(by) % count;
        self.focus = Field::ALL[to];
        self.suggestion = None;
    }

    /// Steps through the choices of a field that has such.
    pub fn step(&mut self, by: isize, kernels: usize) {
        match self.focus {
            Field::Kernel => {
                let at = self.kernel.map_or(0, |index| index + 1);
                let to = (at + kernels + 1).saturating_add_signed(by) % (kernels + 1);
                self.kernel = to.checked_sub(1);
            }
            Field::Network => {
                const MODES: [NetworkMode; 5] = [
                    NetworkMode::User,
                    NetworkMode::Isolated,
                    NetworkMode::None,
                    NetworkMode::Bridge,
                    NetworkMode::Lan,
                ];
                let at = MODES.iter().position(|mode| *mode == self.network).unwrap_or(0);
                self.network = MODES[(at + MODES.len()).saturating_add_signed(by) % MODES.len()];
            }
            Field::Start => self.start = !self.start,
            _ => {}
        }
    }

    /// The local image that the field names exactly, if there is one.
    pub fn local_image<'a>(&self, snapshot: &'a Snapshot) -> Option<&'a Image> {
        snapshot.images.iter().find(|image| image.name == self.image.text().trim())
    }

    /// What is to be created, or the first mistake and its field.
    pub fn request(&self, snapshot: &Snapshot, host: HostFacts) -> Result<CreateVm, (Field, String)> {
        let image = self.image.text().trim();
        if image.is_empty() {
            return Err((Field::Image, "which image? Type a name or a reference such as debian:12".into()));
        }
        let name = self.name.text().trim();
        if !name.is_empty() {
            check_name("a machine", name).map_err(|error| {
                (Field::Name, error.hint().map_or_else(|| error.to_string(), str::to_owned))
            })?;
            if snapshot.vms.iter().any(|vm| vm.name == name) {
                return Err((Field::Name, format!("there is already a machine named `{name}`")));
            }
        }
        let kernel =
            self.kernel.and_then(|index| snapshot.kernels.get(index)).map(|kernel| kernel.name.clone());
        Ok(CreateVm {
            name: (!name.is_empty()).then(|| name.to_owned()),
            image: image.to_owned(),
            kernel,
            cpus: cpus(self.cpus.text(), host).map_err(|problem| (Field::Cpus, problem))?,
            memory_mib: memory_mib(self.memory.text(), host).map_err(|problem| (Field::Memory, problem))?,
            disk_gib: disk_gib(self.disk.text()).map_err(|problem| (Field::Disk, problem))?,
            network: Some(self.network),
            ports: ports(self.ports.text()).map_err(|problem| (Field::Ports, problem))?,
            ..CreateVm::default()
        })
    }
}

/// Processors, as many as this host has at most.
pub fn cpus(text: &str, host: HostFacts) -> Result<Option<u32>, String> {
    match number(text)? {
        Some(count) if host.cpus > 0 && count > host.cpus => Err(format!("this host has {}", host.cpus)),
        count => Ok(count),
    }
}

/// Memory, as much as this host has at most.
pub fn memory_mib(text: &str, host: HostFacts) -> Result<Option<u64>, String> {
    let most = host.memory_bytes >> 20;
    match size_mib(text, 1).map_err(|problem| format!("{problem}, such as 512M or 2G"))? {
        Some(size) if size < MINIMUM_MEMORY_MIB => Err(format!("{MINIMUM_MEMORY_MIB}M is the least")),
        Some(size) if most > 0 && size > most => Err(format!("this host has {most}M")),
        size => Ok(size),
    }
}

/// A disk's length in whole GiB.
pub fn disk_gib(text: &str) -> Result<Option<u64>, String> {
    let size = size_mib(text, 1024).map_err(|problem| format!("{problem}, such as 20G"))?;
    match size.map(|mebibytes| mebibytes.div_ceil(1024)) {
        Some(size) if size > MAXIMUM_DISK_GIB => Err(format!("{MAXIMUM_DISK_GIB}G is the most")),
        size => Ok(size),
    }
}

/// A count of 1 or more.
fn number(text: &str) -> Result<Option<u32>, String> {
    match text.trim() {
        "" => Ok(None),
        text => match text.parse() {
            Ok(number) if number > 0 => Ok(Some(number)),
            _ => Err("a whole number, 1 or more".into()),
        },
    }
}

/// A size in MiB; without a unit the number counts `unit` MiB.
fn size_mib(text: &str, unit: u64) -> Result<Option<u64>, &'static str> {
    let text = text.trim().to_ascii_lowercase();
    if text.is_empty() {
        return Ok(None);
    }
    let text = text.trim_end_matches("ib").trim_end_matches('b');
    let (number, factor) = match text.as_bytes().last() {
        Some(b'm') => (&text[..text.len() - 1], 1),
        Some(b'g') => (&text[..text.len() - 1], 1024),
        Some(b't') => (&text[..text.len() - 1], 1024 * 1024),
        _ => (text, unit),
    };
    let number: u64 = number.trim().parse().map_err(|_| "a size")?;
    number.checked_mul(factor).filter(|size| *size > 0).map(Some).ok_or("a size of some use")
}

/// `[ADDRESS:]HOST:GUEST[/udp]`, separated by commas or blanks.
pub fn ports(text: &str) -> Result<Vec<PortForward>, String> {
    let parts = text.split([',', ' ']).filter(|part| !part.is_empty());
    let mut taken = HashSet::new();
    parts
        .map(|part| {
            let wrong = || format!("`{part}` is no forward: HOST:GUEST, such as 8080:80 or 5353:53/udp");
            let (numbers, protocol) = match part.split_once('/') {
                None | Some((_, "tcp")) => (part.trim_end_matches("/tcp"), Protocol::Tcp),
                Some((numbers, "udp")) => (numbers, Protocol::Udp),
                Some(_) => return Err(wrong()),
            };
            let (host, guest) = numbers.rsplit_once(':').ok_or_else(wrong)?;
            let (address, host) = host.rsplit_once(':').unwrap_or(("127.0.0.1", host));
            let port = |text: &str| text.parse::<u16>().map_err(|_| wrong());
            let guest_port = port(guest)?;
            if guest_port == 0 {
                return Err(wrong());
            }
            let (host_address, host_port) = (address.parse::<Ipv4Addr>().map_err(|_| wrong())?, port(host)?);
            // 0 is one that is to be chosen.
            if host_port != 0 && !taken.insert((protocol.as_str(), host_address, host_port)) {
                return Err(format!("port {host_port} is there twice"));
            }
            Ok(PortForward { protocol, host_address, host_port, guest_port })
        })
        .collect()
}

/// Forwards as [`ports`] reads them.
pub fn ports_text(ports: &[PortForward]) -> String {
    let texts = ports.iter().map(|port| {
        let address = match port.host_address {
            Ipv4Addr::LOCALHOST => String::new(),
            address => format!("{address}:"),
        };
        let protocol = if port.protocol == Protocol::Udp { "/udp" } else { "" };
        format!("{address}{}:{}{protocol}", port.host_port, port.guest_port)
    });
    texts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, unit, size) in [("", 1, Ok(None)), ("512", 1, Ok(Some(512))), ("2G", 1, Ok(Some(2048)))] {
            assert_eq!(size_mib(text, unit), size);
        }
        assert_eq!(size_mib("20", 1024), Ok(Some(20_480)));
        assert_eq!(size_mib("1.5g", 1), Err("a size"));
        assert_eq!(size_mib("512MiB", 1), Ok(Some(512)));
        assert!(size_mib("0", 1).is_err());
        assert!(size_mib("99999999999999999999t", 1).is_err());
        assert!(size_mib("18446744073709551615t", 1).is_err());
    }

    #[test]
    fn forwards_are_read() {
        let one = &ports("0.0.0.0:8080:80, 53:53/udp").unwrap();
        assert_eq!((one[0].host_port, one[0].guest_port, one[0].protocol), (8080, 80, Protocol::Tcp));
        assert_eq!(one[0].host_address, Ipv4Addr::UNSPECIFIED);
        assert_eq!((one[1].host_address, one[1].protocol), (Ipv4Addr::LOCALHOST, Protocol::Udp));
        for wrong in ["80", "a:80", "80:", "70000:1", "1:0", "1:2/sctp", "::1:2:3"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
        assert_eq!(ports(" , ").unwrap(), []);
        let text = "0.0.0.0:8080:80, 53:53/udp";
        assert_eq!(ports_text(&ports(text).unwrap()), text);
    }

    #[test]
    fn the_defaults_are_the_engines_and_the_first_mistake_has_its_field() {
        let snapshot = Snapshot::default();
        let mut form = NewVmForm::new(None, &snapshot);
        let host = HostFacts { cpus: 4, memory_bytes: 8 << 30 };
        assert_eq!(form.request(&snapshot, host).unwrap_err().0, Field::Image);
        form.image.set("debian:12");
        let request = form.request(&snapshot, host).unwrap();
        assert_eq!(
            (request.name, request.cpus, request.memory_mib, request.disk_gib),
            (None, None, None, None)
        );
        form.memory.set("lots");
        assert_eq!(form.request(&snapshot, host).unwrap_err().0, Field::Memory);
        // More than this host has is told before anything is begun.
        form.memory.set("9G");
        assert_eq!(form.request(&snapshot, host).unwrap_err(), (Field::Memory, "this host has 8192M".into()));
        form.memory.set("2G");
        form.cpus.set("5");
        assert_eq!(form.request(&snapshot, host).unwrap_err(), (Field::Cpus, "this host has 4".into()));
        form.cpus.set("4");
        form.disk.set("100T");
        assert_eq!(form.request(&snapshot, host).unwrap_err().0, Field::Disk);
        form.disk.set("");
        form.ports.set("8080:80, 8080:81");
        assert_eq!(
            form.request(&snapshot, host).unwrap_err(),
            (Field::Ports, "port 8080 is there twice".into())
        );
        form.ports.set("8080:80, 8080:80/udp, 0:1, 0:2");
        assert_eq!(form.request(&snapshot, host).unwrap().ports.len(), 4);
        form.name.set("no name");
        assert_eq!(form.request(&snapshot, host).unwrap_err().0, Field::Name);
    }
}
