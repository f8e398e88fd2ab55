//! The files that depmod(8) writes: text for people and busybox, `.bin` for libkmod.

use std::fmt::Write as _;

use super::index::Index;
use super::module::normalize;
use super::set::ModuleSet;

/// The most text `modules.dep` may come to, in bytes. A kernel with 6,000 modules has about 1 MB.
const LARGEST_DEPENDENCIES: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub(in crate::kernel) enum DepmodError {
    #[error("the modules depend on each other in more ways than can be listed")]
    TooManyDependencies,
    #[error("there are more modules than an index can name")]
    TooManyModules,
}

/// A file of `lib/modules/<release>`: its name and content.
pub(in crate::kernel) type IndexFile = (&'static str, Vec<u8>);

/// Names of the files made here; those of a source tree are not taken over.
pub(in crate::kernel) const GENERATED: [&str; 11] = [
    "modules.dep",
    "modules.dep.bin",
    "modules.alias",
    "modules.alias.bin",
    "modules.symbols",
    "modules.symbols.bin",
    "modules.builtin.bin",
    "modules.builtin.alias.bin",
    "modules.softdep",
    "modules.devname",
    "modules.weakdep",
];

/// All index files of a kernel. `builtin_modinfo` is the content of `modules.builtin.modinfo`.
pub(in crate::kernel) fn files(
    set: &ModuleSet,
    builtin_modinfo: &[u8],
) -> Result<Vec<IndexFile>, DepmodError> {
    let [dependencies, dependency_index] = dependencies(set)?;
    let [aliases, alias_index] = aliases(set)?;
    let [symbols, symbol_index] = symbols(set)?;
    Ok(vec![
        ("modules.dep", dependencies),
        ("modules.dep.bin", dependency_index),
        ("modules.alias", aliases),
        ("modules.alias.bin", alias_index),
        ("modules.symbols", symbols),
        ("modules.symbols.bin", symbol_index),
        ("modules.builtin.bin", builtin(set)?),
        ("modules.builtin.alias.bin", builtin_aliases(builtin_modinfo)?),
        ("modules.softdep", soft_dependencies(set)),
        ("modules.devname", device_names(set)),
    ])
}

fn finish(index: &Index) -> Result<Vec<u8>, DepmodError> {
    index.to_bytes().ok_or(DepmodError::TooManyModules)
}

/// Modules and their positions, which are the priorities in the indices.
fn numbered(set: &ModuleSet) -> impl Iterator<Item = (u32, &super::module::Module)> {
    (0u32..).zip(set.modules())
}

fn dependencies(set: &ModuleSet) -> Result<[Vec<u8>; 2], DepmodError> {
    let (mut text, mut index) = (String::new(), Index::default());
    for (position, module) in numbered(set) {
        let mut line = format!("{}:", module.path);
        for needed in set.dependencies(position as usize) {
            line.push(' ');
            line.push_str(&set.modules()[needed].path);
            if text.len() + line.len() > LARGEST_DEPENDENCIES {
                return Err(DepmodError::TooManyDependencies);
            }
        }
        index.insert(&module.name, &line, position);
        text.push_str(&line);
        text.push('\n');
    }
    Ok([text.into_bytes(), finish(&index)?])
}

fn aliases(set: &ModuleSet) -> Result<[Vec<u8>; 2], DepmodError> {
    let mut text = String::from("# Aliases extracted from modules themselves.\n");
    let mut index = Index::default();
    for (position, module) in numbered(set) {
        for alias in &module.aliases {
            let _ = writeln!(text, "alias {alias} {}", module.name);
            if let Some(alias) = normalize_alias(alias) {
                index.insert(&alias, &module.name, position);
            }
        }
    }
    Ok([text.into_bytes(), finish(&index)?])
}

fn symbols(set: &ModuleSet) -> Result<[Vec<u8>; 2], DepmodError> {
    let mut text = String::from("# Aliases for symbols, used by symbol_request().\n");
    let mut index = Index::default();
    for (position, module) in numbered(set) {
        for symbol in &module.symbols {
            let _ = writeln!(text, "alias symbol:{symbol} {}", module.name);
            index.insert(&format!("symbol:{symbol}"), &module.name, position);
        }
    }
    Ok([text.into_bytes(), finish(&index)?])
}

fn builtin(set: &ModuleSet) -> Result<Vec<u8>, DepmodError> {
    let mut index = Index::default();
    for name in set.builtin() {
        index.insert(name, "", 0);
    }
    finish(&index)
}

/// `modinfo` holds `module.key=value`, each ended by a zero byte. It names more than what could be a
/// module: `debugfs` has an alias and is in no list.
fn builtin_aliases(modinfo: &[u8]) -> Result<Vec<u8>, DepmodError> {
    let mut index = Index::default();
    for entry in modinfo.split(|&byte| byte == 0) {
        let parsed = std::str::from_utf8(entry)
            .ok()
            .and_then(|entry| entry.split_once('='))
            .and_then(|(name, value)| Some((name.strip_suffix(".alias")?, value)));
        if let Some((module, alias)) = parsed
            && let Some(alias) = normalize_alias(alias)
        {
            index.insert(&alias, &normalize(module), 0);
        }
    }
    finish(&index)
}

fn soft_dependencies(set: &ModuleSet) -> Vec<u8> {
    let mut text = String::from("# Soft dependencies extracted from modules themselves.\n");
    for module in set.modules() {
        for line in &module.soft_dependencies {
            let _ = writeln!(text, "softdep {} {line}", module.name);
        }
    }
    text.into_bytes()
}

/// Device nodes whose opening loads a module; udev and kmod's `static-nodes` read it.
fn device_names(set: &ModuleSet) -> Vec<u8> {
    let mut text = String::from("# Device nodes to trigger on-demand module loading.\n");
    for module in set.modules() {
        let name = module.aliases.iter().find_map(|alias| alias.strip_prefix("devname:"));
        let number = module.aliases.iter().find_map(|alias| device_number(alias));
        if let (Some(name), Some((kind, major, minor))) = (name, number) {
            let _ = writeln!(text, "{} {name} {kind}{major}:{minor}", module.name);
        }
    }
    text.into_bytes()
}

/// `char-major-10-203` → `('c', 10, 203)`; none when the minor is a pattern.
fn device_number(alias: &str) -> Option<(char, u32, u32)> {
    let (kind, numbers) = match alias.split_once("-major-")? {
        ("char", numbers) => ('c', numbers),
        ("block", numbers) => ('b', numbers),
        _ => return None,
    };
    let (major, minor) = numbers.split_once('-')?;
    Some((kind, major.parse().ok()?, minor.parse().ok()?))
}

/// `_` for `-`, but not within brackets, where `-` is a range; none when brackets do not match.
fn normalize_alias(alias: &str) -> Option<String> {
    let mut within = false;
    let normalized = alias
        .chars()
        .map(|character| {
            match (character, within) {
                ('[', false) => within = true,
                (']', true) => within = false,
                (']', false) => return None,
                ('-', false) => return Some('_'),
                _ => {}
            }
            Some(character)
        })
        .collect::<Option<String>>()?;
    (!within).then_some(normalized)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_normalized_outside_of_brackets() {
        assert_eq!(normalize_alias("usb:v1-[0-9]p-*").as_deref(), Some("usb:v1_[0-9]p_*"));
        assert_eq!(normalize_alias("a]"), None);
        assert_eq!(normalize_alias("a[b"), None);
    }

    #[test]
    fn device_numbers_are_whole_numbers() {
        assert_eq!(device_number("char-major-10-203"), Some(('c', 10, 203)));
        assert_eq!(device_number("block-major-7-*"), None);
        assert_eq!(device_number("net-pf-10"), None);
    }
}
