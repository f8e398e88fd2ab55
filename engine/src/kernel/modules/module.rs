//! One module, as its `.modinfo` section and symbol table describe it.

use crate::kernel::elf::{Elf, ElfError};

/// The longest value in a module's description that is kept, in bytes. Real ones stay below 200.
const LONGEST_VALUE: usize = 512;

/// What a module says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::kernel) struct Module {
    /// The name of the file without `.ko`, with `_` for `-`: what the kernel calls it.
    pub name: String,
    /// Path below `lib/modules/<release>`, ending in `.ko`.
    pub path: String,
    /// Names of the modules that must be there before it.
    pub depends: Vec<String>,
    /// Patterns of device ids and other names by which it is asked for.
    pub aliases: Vec<String>,
    /// What `softdep` lines say: `pre: a b post: c`.
    pub soft_dependencies: Vec<String>,
    /// Symbols it exports.
    pub symbols: Vec<String>,
    /// Release of the kernel it was built for.
    pub release: Option<String>,
}

impl Module {
    /// Reads an uncompressed module. `path` is its path below `lib/modules/<release>`.
    pub(in crate::kernel) fn parse(path: &str, content: &[u8]) -> Result<Self, ElfError> {
        let elf = Elf::parse(content)?;
        let mut module =
            Self { name: name_of_path(path).to_owned(), path: path.to_owned(), ..Self::default() };
        module.name = normalize(&module.name);
        for (key, value) in modinfo(elf.section(b".modinfo").unwrap_or_default()) {
            match key {
                "alias" => module.aliases.push(value.to_owned()),
                "softdep" => module.soft_dependencies.push(value.to_owned()),
                "depends" => {
                    module.depends.extend(value.split(',').filter(|name| !name.is_empty()).map(normalize))
                }
                "vermagic" => module.release = value.split(' ').next().map(str::to_owned),
                _ => {}
            }
        }
        module.symbols = elf
            .symbol_names()
            .filter_map(|name| std::str::from_utf8(name.strip_prefix(b"__ksymtab_")?).ok())
            .filter(|name| is_plain(name))
            .map(str::to_owned)
            .collect();
        Ok(module)
    }

    /// Modules that a `softdep` line wants before this one.
    pub(in crate::kernel) fn soft_before(&self) -> impl Iterator<Item = String> {
        self.soft_dependencies.iter().flat_map(|line| {
            let mut before = false;
            line.split_ascii_whitespace().filter_map(move |word| match word {
                "pre:" => {
                    before = true;
                    None
                }
                "post:" => {
                    before = false;
                    None
                }
                name => before.then(|| normalize(name)),
            })
        })
    }
}

/// The pairs of a `.modinfo` section: `key=value`, each ended by a zero byte. What cannot be written
/// into a line of a text file is left out.
fn modinfo(section: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    section
        .split(|&byte| byte == 0)
        .filter_map(|pair| std::str::from_utf8(pair).ok()?.split_once('='))
        .filter(|(_, value)| is_plain(value))
}

/// Printable ASCII of a sensible length: the index files take nothing else.
pub(super) fn is_plain(text: &str) -> bool {
    text.len() <= LONGEST_VALUE && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// `kernel/drivers/block/virtio-blk.ko` → `virtio-blk`.
pub(super) fn name_of_path(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split_once(".ko").map_or(file, |(name, _)| name)
}

/// Module names know no difference between `-` and `_`; the kernel shows `_`.
pub(super) fn normalize(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::elf::tests::build;

    #[test]
    fn a_module_says_what_it_needs_and_offers() {
        let mut names = vec![0];
        names.extend(b"__ksymtab_bus_reset\0init_module\0");
        let symbols = [1u32, 21].iter().flat_map(|&name| {
            let mut symbol = [0u8; 24];
            symbol[..4].copy_from_slice(&name.to_le_bytes());
            symbol
        });
        let info =
            b"vermagic=6.1.0 SMP mod_unload \0depends=virtio,virtio-ring\0alias=virtio:d2v*\0softdep=pre: a-b c post: d\0bad\0";
        let file = build(
            &[
                (".modinfo", 1, 0, info.to_vec()),
                (".symtab", 2, 3, symbols.collect()),
                (".strtab", 3, 0, names),
            ],
            false,
        );
        let module = Module::parse("kernel/drivers/bus/my-bus.ko", &file).unwrap();
        assert_eq!(module.name, "my_bus");
        assert_eq!(module.depends, ["virtio", "virtio_ring"]);
        assert_eq!(module.aliases, ["virtio:d2v*"]);
        assert_eq!(module.symbols, ["bus_reset"]);
        assert_eq!(module.release.as_deref(), Some("6.1.0"));
        assert_eq!(module.soft_before().collect::<Vec<_>>(), ["a_b", "c"]);
    }

    proptest! {
        #[test]
        fn no_description_makes_it_panic(section in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Module::parse("a.ko", &build(&[(".modinfo", 1, 0, section)], false));
        }
    }
}
