//! The configuration a kernel was built with, and what will not work because of it.

use std::collections::HashMap;

use super::decompress::{Compression, decompress};

/// The largest configuration that is read, in bytes; real ones have 150–300 KiB.
const LARGEST: u64 = 8 << 20;

/// How a feature was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Built {
    In,
    Module,
    Not,
}

/// A kernel's `.config`.
#[derive(Debug)]
pub(super) struct Configuration {
    options: HashMap<String, Built>,
}

/// Options that nothing can replace, and what goes wrong without them. Drivers that may be modules
/// are not here: whether those can be had is told by the modules there are.
const NEEDED: [(&str, &str); 9] = [
    ("BLK_DEV_INITRD", "it ignores the initrd, so it cannot boot"),
    ("BINFMT_ELF", "it cannot run programs, so it cannot boot"),
    ("DEVTMPFS", "it makes no device nodes by itself, so no disk is found"),
    ("PROC_FS", "there is no /proc, without which the guest's init cannot work"),
    ("SYSFS", "there is no /sys, without which the guest's disks cannot be told apart"),
    ("TMPFS", "there is no tmpfs for /run and /dev/shm"),
    ("UNIX", "there are no unix sockets, so most services do not start"),
    ("SERIAL_8250_CONSOLE", "it prints nothing on the serial port, so `vm logs` stays empty"),
    ("CGROUPS", "there are no control groups, so systemd does not start"),
];

impl Configuration {
    /// Reads the text of a `config-*` file; `None` when it is none.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(text);
        let options: HashMap<_, _> = text
            .lines()
            .filter_map(|line| {
                let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
                let built = match value {
                    "m" => Built::Module,
                    "n" => Built::Not,
                    _ => Built::In,
                };
                Some((name.to_owned(), built))
            })
            .collect();
        (!options.is_empty()).then_some(Self { options })
    }

    /// The configuration that a kernel built with CONFIG_IKCONFIG carries in itself (kernel:
    /// `kernel/configs.c`, `scripts/extract-ikconfig`).
    pub(super) fn in_vmlinux(vmlinux: &[u8]) -> Option<Self> {
        const MARK: &[u8] = b"IKCFG_ST";
        let at = super::boot_image::find(vmlinux, MARK)?;
        let packed = &vmlinux[at + MARK.len()..];
        let compression = Compression::detect(packed)?;
        Self::parse(&decompress(compression, packed, LARGEST).ok()?)
    }

    pub(super) fn option(&self, name: &str) -> Built {
        self.options.get(name).copied().unwrap_or(Built::Not)
    }

    /// What will not work, one sentence each.
    pub(super) fn warnings(&self) -> Vec<String> {
        NEEDED
            .iter()
            .filter(|(option, _)| self.option(option) != Built::In)
            .map(|(option, effect)| format!("the kernel was built without CONFIG_{option}: {effect}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn options_are_in_modules_or_not_there() {
        let configuration =
            Configuration::parse(b"# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C=m\nCONFIG_D=\"text\"\n")
                .unwrap();
        let built = ["A", "B", "C", "D"].map(|name| configuration.option(name));
        assert_eq!(built, [Built::Not, Built::In, Built::Module, Built::In]);
        assert!(Configuration::parse(b"\x7fELF").is_none());
    }

    #[test]
    fn each_missing_option_says_what_it_breaks() {
        let text: String = NEEDED.iter().skip(1).map(|(name, _)| format!("CONFIG_{name}=y\n")).collect();
        let warnings = Configuration::parse(text.as_bytes()).unwrap().warnings();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("CONFIG_BLK_DEV_INITRD: it ignores the initrd"), "{warnings:?}");
    }

    #[test]
    fn a_kernel_that_carries_its_configuration_is_asked() {
        let mut gzip = flate2::write::GzEncoder::new(b"xxIKCFG_ST".to_vec(), flate2::Compression::fast());
        gzip.write_all(b"CONFIG_UNIX=y\n").unwrap();
        let mut vmlinux = gzip.finish().unwrap();
        vmlinux.extend(b"IKCFG_ED");
        assert_eq!(Configuration::in_vmlinux(&vmlinux).unwrap().option("UNIX"), Built::In);
        assert!(Configuration::in_vmlinux(b"IKCFG_ST").is_none());
    }
}
