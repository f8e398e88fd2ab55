//! The catalog: short names for images, in a data file that comes with the program and in one of the
//! user's own.
//!
//! ```toml
//! [[image]]
//! name = "debian-12"
//! description = "Debian 12 (bookworm)"
//! reference = "docker.io/library/debian:12"
//!
//! [[image]]
//! name = "builder"
//! description = "our build machine"
//! reference = "bundle:https://images.example/builder.tar.zst"
//! sha256 = "…64 hexadecimal digits…"
//! ```
//!
//! A bundle is a file system nobody else has verified, so it must be pinned by its digest; a
//! registry's image verifies itself, and may be pinned by `@sha256:…` in the reference.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::reference::{BundleLocation, ImageReference};
use super::text::printable;
use crate::error::{Error, Result};
use crate::identifier::check_name;

/// The catalog that comes with the program.
const BUILT_IN: &str = include_str!("../../../assets/images.toml");
/// Longest catalog file taken.
const LONGEST: u64 = 4 << 20;

/// One short name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CatalogEntry {
    pub name: String,
    pub description: String,
    /// What is pulled.
    pub reference: String,
    /// Where the entry stands: `built in`, or the path of the user's file.
    pub origin: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, rename = "image")]
    images: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default)]
    description: String,
    reference: String,
    sha256: Option<String>,
}

/// `$XDG_CONFIG_HOME/vmdeck/images.toml`, else `~/.config/vmdeck/images.toml`.
pub fn user_catalog() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    variable("XDG_CONFIG_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".config")))
        .map(|folder| folder.join("vmdeck/images.toml"))
}

/// All entries; a name in the user's file goes before the same one that is built in. Blocking, brief.
pub(crate) fn load(user: Option<&Path>) -> Result<Vec<CatalogEntry>> {
    let mut entries = Vec::new();
    if let Some(path) = user {
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() > LONGEST => {
                return Err(Error::failed(format!("the catalog `{}` is too long", path.display())));
            }
            Ok(_) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    Error::io(format!("cannot read the catalog `{}`", path.display()), error)
                })?;
                entries = parse(&text, &path.display().to_string())?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Error::io(format!("cannot read the catalog `{}`", path.display()), error));
            }
        }
    }
    let known: HashSet<String> = entries.iter().map(|entry| entry.name.clone()).collect();
    entries.extend(parse(BUILT_IN, "built in")?.into_iter().filter(|entry| !known.contains(&entry.name)));
    Ok(entries)
}

fn parse(text: &str, origin: &str) -> Result<Vec<CatalogEntry>> {
    let file: File = toml::from_str(text)
        .map_err(|error| Error::failed(format!("the catalog `{origin}` is malformed")).with_source(error))?;
    let mut names = HashSet::new();
    file.images
        .into_iter()
        .map(|entry| {
            let wrong = |why: String| {
                let name = printable(&entry.name, 80);
                Error::failed(format!("the entry `{name}` of the catalog `{origin}` {why}"))
            };
            check_name("an image", &entry.name)
                .map_err(|error| wrong("has a malformed name".into()).with_source(error))?;
            if !names.insert(entry.name.clone()) {
                return Err(wrong("is there twice".into()));
            }
            let reference = match &entry.sha256 {
                Some(digest) => format!("{}@sha256:{digest}", entry.reference),
                None => entry.reference.clone(),
            };
            let parsed = reference.parse();
            let pinned = match &parsed {
                Ok(ImageReference::Registry(image)) => image.digest.is_some(),
                Ok(ImageReference::Bundle(_, digest)) => digest.is_some(),
                _ => false,
            };
            if let (Some(digest), false) = (&entry.sha256, pinned) {
                let digest = printable(digest, 80);
                return Err(wrong(format!(
                    "has the `sha256` {digest}, which is none or stands at what cannot be pinned by it: \
                     64 hexadecimal digits pin a bundle or a registry's image"
                )));
            }
            match parsed {
                Ok(ImageReference::Bundle(BundleLocation::Url(_), None)) => {
                    return Err(wrong("is a bundle from a URL without its `sha256`".into()));
                }
                Ok(_) => {}
                Err(error) => return Err(wrong("has a malformed reference".into()).with_source(error)),
            }
            Ok(CatalogEntry {
                name: entry.name.clone(),
                description: printable(&entry.description, 200),
                reference,
                origin: origin.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalog_is_well_formed() {
        let entries = load(None).unwrap();
        assert!(entries.iter().any(|entry| entry.name == "debian-12"));
        assert!(entries.iter().all(|entry| !entry.description.is_empty()));
    }

    #[test]
    fn the_users_entries_go_before_and_bundles_are_pinned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.toml");
        let digest = "ab".repeat(32);
        let mine = format!(
            "[[image]]\nname = \"debian-12\"\nreference = \"bundle:https://h.example/d.tar.zst\"\nsha256 = \"{digest}\"\n"
        );
        std::fs::write(&path, &mine).unwrap();
        let entries = load(Some(&path)).unwrap();
        let found: Vec<_> = entries.iter().filter(|entry| entry.name == "debian-12").collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].reference, format!("bundle:https://h.example/d.tar.zst@sha256:{digest}"));

        let check = |text: &str, expected: &str| {
            std::fs::write(&path, text).unwrap();
            let error = load(Some(&path)).unwrap_err();
            assert!(error.full_message().contains(expected), "{}", error.full_message());
        };
        let unpinned = mine.lines().filter(|line| !line.starts_with("sha256")).collect::<Vec<_>>().join("\n");
        check(&unpinned, "without its `sha256`");
        check(&mine.replace("ab", "zz"), "64 hexadecimal digits");
        check(&mine.replace("bundle:https://h.example/d.tar.zst", "oci:/lay"), "cannot be pinned");
        check(&mine.replace("debian-12", "../x"), "malformed name");
        check(&format!("{mine}{mine}"), "is there twice");
        check("[[image]]\nnmae = 1", "malformed");
        assert!(load(Some(&folder.path().join("none"))).is_ok());
    }
}
