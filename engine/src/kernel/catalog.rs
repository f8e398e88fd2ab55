//! The kernels vmdeck knows how to get, and how they stand: here, newer to be had, not to be had.
//!
//! The catalog is data: `assets/kernels.toml`, and a file of the user's own that adds to it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Shared;
use super::apt::{self, PackageSpec};
use super::pull::PullSource;
use super::record::Kernel;
use crate::error::{Error, Result};
use crate::identifier::{OperationId, check_name};
use crate::image::flatten::blocking;
use crate::image::text::printable;
use crate::staging::Staging;

const BUILT_IN: &str = include_str!("../../../assets/kernels.toml");
/// The largest catalog of a user's own, in bytes.
const LARGEST: u64 = 1 << 20;

/// A kernel that can be pulled by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogEntry {
    pub name: String,
    /// Architecture as OCI names it.
    #[serde(alias = "arch")]
    pub architecture: String,
    /// None where the source always gives its newest.
    #[serde(default)]
    pub version: Option<String>,
    /// What `kernel pull` takes in its place.
    pub source: String,
    /// Of the file, for sources that are a URL: 64 hexadecimal digits.
    #[serde(default)]
    pub sha256: Option<String>,
    #[serde(default)]
    pub note: String,
    /// Where the entry stands: `built in`, or the path of the user's file.
    #[serde(skip_deserializing)]
    pub origin: String,
}

/// An entry, and how it stands on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CatalogItem {
    #[serde(flatten)]
    pub entry: CatalogEntry,
    /// What exactly a pull would get now, where that can be told without fetching anything.
    pub available: Option<String>,
    /// Names of the kernels that are here from this entry, newest first.
    pub installed: Vec<String>,
    pub state: CatalogState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CatalogState {
    /// Can be pulled.
    Available,
    /// Here, and nothing newer is known.
    Installed,
    /// Here, and a pull would get another one.
    NewerAvailable,
    /// The package archive of this host has no such kernel.
    Unavailable,
}

impl CatalogState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Installed => "installed",
            Self::NewerAvailable => "newer-available",
            Self::Unavailable => "unavailable",
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogFile {
    #[serde(default)]
    kernel: Vec<CatalogEntry>,
}

/// `$XDG_CONFIG_HOME/vmdeck/kernels.toml`, else `~/.config/vmdeck/kernels.toml`.
pub(super) fn user_file() -> Option<PathBuf> {
    let variable =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
    let folder = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")))?;
    Some(folder.join("vmdeck/kernels.toml"))
}

/// All entries: the user's, then the built-in ones that it does not replace. Blocks.
pub(super) fn read(user: Option<&Path>) -> Result<Vec<CatalogEntry>> {
    let mut entries = Vec::new();
    if let Some(path) = user
        && let Some(text) = read_bounded(path)
            .map_err(|error| Error::io(format!("cannot read the catalog `{}`", path.display()), error))?
    {
        entries = parse(&text, &path.display().to_string())?;
    }
    for entry in parse(BUILT_IN, "built in")? {
        if !entries.iter().any(|own| own.name == entry.name) {
            entries.push(entry);
        }
    }
    Ok(entries)
}

fn read_bounded(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text)?;
    Ok(Some(text))
}

#[derive(Debug, thiserror::Error)]
enum CatalogError {
    #[error(transparent)]
    Toml(#[from] toml::de::Error),
    #[error("`{0}` cannot be the name of an entry: use letters, digits, `.`, `_`, `-` or `+`")]
    Name(String),
    #[error("the entry `{0}` is there twice")]
    Twice(String),
    #[error("the entry `{0}` has a malformed source")]
    Source(String, #[source] Error),
}

fn parse(text: &str, origin: &str) -> Result<Vec<CatalogEntry>> {
    let malformed = |error: CatalogError| {
        Error::failed(format!("the catalog `{origin}` is malformed")).with_source(error)
    };
    let mut entries = toml::from_str::<CatalogFile>(text).map_err(|error| malformed(error.into()))?.kernel;
    for (position, entry) in entries.iter().enumerate() {
        let name = || printable(&entry.name, 80);
        if check_name("a kernel", &entry.name).is_err() {
            return Err(malformed(CatalogError::Name(name())));
        }
        if entries[..position].iter().any(|earlier| earlier.name == entry.name) {
            return Err(malformed(CatalogError::Twice(name())));
        }
        PullSource::parse(&entry.pinned_source())
            .map_err(|error| malformed(CatalogError::Source(name(), error)))?;
    }
    for entry in &mut entries {
        entry.note = printable(&entry.note, 200);
        entry.origin = origin.to_owned();
    }
    Ok(entries)
}

impl CatalogEntry {
    /// The source with the digest of the file behind it, where there is one.
    pub(super) fn pinned_source(&self) -> String {
        match &self.sha256 {
            Some(digest) => format!("{}@sha256:{digest}", self.source),
            None => self.source.clone(),
        }
    }
}

/// How long an answer of the host's package archive is good for. Its lists change a few times a day, and
/// asking costs apt seconds of a processor.
const FRESH: Duration = Duration::from_secs(600);

/// What the host's package archive said last.
#[derive(Debug, Default)]
pub(super) struct Archive {
    /// Guards the answer; held to look at it or to put a new one there.
    answer: Mutex<Option<Answer>>,
}

#[derive(Debug)]
struct Answer {
    at: Instant,
    asked: Vec<String>,
    /// The exact kernels behind what was asked for.
    packages: Arc<HashMap<String, String>>,
}

impl Archive {
    /// What [`apt::look_up`] says, or said a while ago.
    async fn look_up(&self, specs: &[PackageSpec], shared: &Shared) -> Result<Arc<HashMap<String, String>>> {
        let asked: Vec<String> = specs.iter().map(PackageSpec::to_string).collect();
        if let Some(answer) = &*self.answer()
            && answer.at.elapsed() < FRESH
            && answer.asked == asked
        {
            return Ok(Arc::clone(&answer.packages));
        }
        let staging = Staging::create(&shared.data, &OperationId::random()).await?;
        let packages = Arc::new(apt::look_up(specs, staging.path()).await?);
        *self.answer() = Some(Answer { at: Instant::now(), asked, packages: Arc::clone(&packages) });
        Ok(packages)
    }

    fn answer(&self) -> MutexGuard<'_, Option<Answer>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All entries, and how they stand.
pub(super) async fn list(shared: &Shared, kernels: &[Kernel]) -> Result<Vec<CatalogItem>> {
    let file = shared.settings.catalog.clone();
    let entries = blocking(move || read(file.as_deref())).await?;
    let specs: Vec<PackageSpec> = entries.iter().filter_map(package).collect();
    let packages = shared.archive.look_up(&specs, shared).await?;
    let items = entries.into_iter().map(|entry| {
        let available = match package(&entry) {
            Some(spec) => packages.get(spec.as_str()).map(|exact| format!("apt:{exact}")),
            None => Some(entry.pinned_source()),
        };
        judge(entry, available, kernels)
    });
    Ok(items.collect())
}

fn package(entry: &CatalogEntry) -> Option<PackageSpec> {
    match PullSource::parse(&entry.pinned_source()) {
        Ok(PullSource::Apt(spec)) => Some(spec),
        _ => None,
    }
}

/// How an entry stands. `available` is what a pull would get, `None` when the archive lacks it; for
/// other sources than the archive it is the source itself.
fn judge(entry: CatalogEntry, available: Option<String>, kernels: &[Kernel]) -> CatalogItem {
    let is_available = |kernel: &Kernel| {
        // An image's exact source has a digest behind what the catalog says.
        available.as_ref().is_some_and(|available| {
            kernel
                .source
                .strip_prefix(available.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
        })
    };
    let from_here = |kernel: &&Kernel| {
        let asked = kernel.requested.as_deref().unwrap_or(&kernel.source);
        asked == entry.name || asked == entry.pinned_source() || is_available(kernel)
    };
    let installed: Vec<&Kernel> = kernels.iter().filter(from_here).collect();
    let is_current = installed.iter().any(|kernel| is_available(kernel));
    let state = match (&available, installed.is_empty()) {
        (None, true) => CatalogState::Unavailable,
        (Some(_), true) => CatalogState::Available,
        (Some(_), false) if !is_current => CatalogState::NewerAvailable,
        (_, false) => CatalogState::Installed,
    };
    let installed = installed.into_iter().map(|kernel| kernel.name.clone()).collect();
    CatalogItem { entry, available, installed, state }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalog_is_sound_and_leads_with_the_default() {
        let entries = read(None).unwrap();
        assert!(entries.len() >= 4);
        assert_eq!(entries[0].source, super::super::DEFAULT_SOURCE);
        assert!(entries.iter().all(|entry| !entry.note.is_empty() && entry.origin == "built in"));
    }

    #[test]
    fn a_users_entry_replaces_the_one_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels.toml");
        assert_eq!(read(Some(&path)).unwrap(), read(None).unwrap());
        std::fs::write(
            &path,
            "[[kernel]]\nname = \"debian\"\narchitecture = \"amd64\"\nsource = \"apt:mine\"\nnote = \"mine\"\n",
        )
        .unwrap();
        let entries = read(Some(&path)).unwrap();
        assert_eq!(
            (entries[0].source.as_str(), &entries[0].origin),
            ("apt:mine", &path.display().to_string())
        );
        assert_eq!(entries.iter().filter(|entry| entry.name == "debian").count(), 1);
    }

    #[test]
    fn malformed_catalogs_say_where() {
        let entry = |name: &str, rest: &str| {
            format!("[[kernel]]\nname = \"{name}\"\narchitecture = \"amd64\"\n{rest}\n")
        };
        for (text, expected) in [
            ("kernel = 1".to_owned(), "invalid type"),
            (entry("a b", "source = \"apt:linux-x\""), "cannot be the name"),
            (entry("a", "source = \"apt:linux-x\"") + &entry("a", "source = \"apt:linux-y\""), "twice"),
            (entry("a", "source = \"https://x/y\""), "without its digest"),
            (entry("a", "source = \"https://x/y\"\nsha256 = \"12\""), "without its digest"),
            (entry("a", "source = \"x\""), "malformed source"),
            (entry("a", "source = \"apt:linux-x\"\nshasum = \"12\""), "unknown field"),
        ] {
            let error = parse(&text, "mine").unwrap_err().full_message();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn a_kernel_that_an_entry_gave_is_known_also_when_there_is_a_newer_one() {
        let entry = read(None).unwrap().swap_remove(0);
        let kernel = |source: &str, requested: Option<&str>| Kernel {
            name: "k".into(),
            release: "6.1".into(),
            architecture: "amd64".into(),
            source: source.into(),
            requested: requested.map(str::to_owned),
            created_at: 0,
            vmlinux: PathBuf::new(),
            initrd: PathBuf::new(),
            modules: None,
            guest_digest: String::new(),
            initrd_modules: vec![],
            warnings: vec![],
        };
        let now = Some("apt:linux-image-6.1.0-56-cloud-amd64=2".to_owned());
        let check = |kernels: &[Kernel], available: &Option<String>, expected| {
            assert_eq!(judge(entry.clone(), available.clone(), kernels).state, expected);
        };
        check(&[], &now, CatalogState::Available);
        check(&[], &None, CatalogState::Unavailable);
        check(&[kernel("apt:linux-image-6.1.0-56-cloud-amd64=2", None)], &now, CatalogState::Installed);
        let old = kernel("apt:linux-image-6.1.0-50-cloud-amd64=1", Some("debian-cloud"));
        check(std::slice::from_ref(&old), &now, CatalogState::NewerAvailable);
        check(&[old], &None, CatalogState::Installed);
        check(&[kernel("apt:other=1", Some("apt:other"))], &now, CatalogState::Available);
    }
}
