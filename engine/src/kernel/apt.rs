//! Kernels out of the package archive that this host is configured for, as an ordinary user.
//!
//! apt does the work: it knows the host's sources, proxies and keys, and verifies what it fetches.
//! Nothing of the host is changed. Where the host's package lists are missing, or name a package
//! that the archive has since replaced, lists are fetched into a folder of our own.

mod command;
mod package;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::operation::Operation;
use crate::operation::progress::{ProgressState, ProgressUnit};
use command::{Apt, CommandError};
pub(super) use package::PackageSpec;
use package::{Package, PackageError};

/// The most packages one kernel may be spread over.
const MOST_PACKAGES: usize = 16;

/// A kernel that the archive has.
#[derive(Debug)]
pub(super) struct Resolved {
    apt: Apt,
    /// The packages to fetch; the first holds the kernel image.
    packages: Vec<Package>,
}

impl Resolved {
    /// What exactly it is: `linux-image-6.1.0-13-amd64=6.1.55-1`.
    pub(super) fn exact_name(&self) -> String {
        self.packages
            .first()
            .map_or_else(String::new, |package| format!("{}={}", package.name, package.version))
    }

    /// Bytes to fetch.
    pub(super) fn size(&self) -> u64 {
        self.packages.iter().map(|package| package.size).sum()
    }
}

/// Finds the kernel behind a package, which may be a meta package. `folder` is ours and empty.
pub(super) async fn resolve(spec: &PackageSpec, folder: &Path, operation: &Operation) -> Result<Resolved> {
    let cancel = operation.cancelled();
    let host = Apt::host(folder)?;
    match closure(&host, spec, cancel).await {
        Ok(packages) => return Ok(Resolved { apt: host, packages }),
        Err(error) if error.is_cancelled() => return Err(Error::cancelled()),
        Err(error @ PackageError::Command(CommandError::NotInstalled)) => return Err(explain(spec, error)),
        Err(error) => {
            operation.log(format!("{error}; fetching the archive's package lists")).await;
        }
    }
    resolve_with_own_lists(spec, folder, operation).await
}

async fn resolve_with_own_lists(
    spec: &PackageSpec,
    folder: &Path,
    operation: &Operation,
) -> Result<Resolved> {
    let cancel = operation.cancelled();
    let own = Apt::own_lists(folder)?;
    let update = own.update(cancel).await;
    match closure(&own, spec, cancel).await {
        Ok(packages) => Ok(Resolved { apt: own, packages }),
        // When the lists could not be fetched, that is why the package was not found.
        Err(error) => Err(explain(spec, update.err().map_or(error, PackageError::Command))),
    }
}

/// The exact kernels behind packages, by the packages' specs, as far as the host's lists tell. Nothing
/// is fetched; a host without apt has none.
pub(super) async fn look_up(specs: &[PackageSpec], folder: &Path) -> Result<HashMap<String, String>> {
    let (host, cancel) = (Apt::host(folder)?, CancellationToken::new());
    let mut found = HashMap::new();
    for spec in specs {
        if let Ok(packages) = closure(&host, spec, &cancel).await {
            found.insert(spec.to_string(), Resolved { apt: host.clone(), packages }.exact_name());
        }
    }
    Ok(found)
}

/// Fetches the packages of a kernel; returns their files.
pub(super) async fn download(
    mut resolved: Resolved,
    spec: &PackageSpec,
    folder: &Path,
    operation: &Operation,
) -> Result<(Resolved, Vec<PathBuf>)> {
    let debs = folder.join("debs");
    tokio::fs::create_dir(&debs)
        .await
        .map_err(|error| Error::io(format!("cannot create `{}`", debs.display()), error))?;
    let part = operation.progress().add(resolved.exact_name(), ProgressUnit::Bytes, resolved.size());
    part.set_state(ProgressState::Active);
    let mut result = resolved.apt.download(&resolved.packages, &debs, &part, operation.cancelled()).await;
    if matches!(&result, Err(CommandError::Failed { .. })) && !resolved.apt.has_own_lists() {
        // The archive removes a package when it has a newer one; the host's lists may be behind.
        operation.log("the package could not be fetched; trying again with current package lists").await;
        resolved = resolve_with_own_lists(spec, folder, operation).await?;
        part.set_total(resolved.size());
        result = resolved.apt.download(&resolved.packages, &debs, &part, operation.cancelled()).await;
    }
    if let Err(error) = result {
        part.set_state(ProgressState::Failed);
        return Err(explain(spec, PackageError::Command(error)));
    }
    part.set_done(resolved.size());
    part.set_state(ProgressState::Done);
    let files = list(&debs).map_err(|error| Error::io(format!("cannot read `{}`", debs.display()), error))?;
    Ok((resolved, files))
}

/// The packages that make up the kernel: those of its name and those they depend on, without meta
/// packages. Debian has one, Ubuntu the image and its modules apart.
async fn closure(
    apt: &Apt,
    spec: &PackageSpec,
    cancel: &CancellationToken,
) -> Result<Vec<Package>, PackageError> {
    let mut waiting = vec![spec.clone()];
    let mut seen: Vec<Package> = Vec::new();
    while let Some(spec) = waiting.pop() {
        let package = Package::parse(&apt.show(&spec, cancel).await?)
            .ok_or_else(|| PackageError::Unknown(spec.to_string()))?;
        if seen.iter().any(|known| known.name == package.name) {
            continue;
        }
        waiting.extend(package.kernel_dependencies());
        seen.push(package);
        if seen.len() > MOST_PACKAGES {
            return Err(PackageError::TooMany(spec.to_string()));
        }
    }
    seen.retain(|package| !package.is_meta());
    // The image first: it gives the kernel its name.
    seen.sort_by_key(|package| !package.name.starts_with("linux-image"));
    if seen.is_empty() { Err(PackageError::NoImage(spec.to_string())) } else { Ok(seen) }
}

fn list(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<PathBuf>>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    files.sort();
    Ok(files)
}

fn explain(spec: &PackageSpec, error: PackageError) -> Error {
    let other_ways =
        "take a kernel from a file: `vmdeck kernel import --deb FILE`, or `--vmlinuz FILE --modules DIR`";
    match error {
        PackageError::Command(CommandError::Cancelled) => Error::cancelled(),
        PackageError::Command(CommandError::NotInstalled) => {
            Error::host_cannot(format!("cannot get `apt:{spec}`: this host has no apt")).with_hint(other_ways)
        }
        PackageError::Command(error @ CommandError::Failed { .. }) => {
            Error::failed(format!("cannot get `apt:{spec}` from the package archive"))
                .with_source(error)
                .with_hint(format!("check this host's network and its apt sources, or {other_ways}"))
        }
        PackageError::Command(error) => {
            Error::failed(format!("cannot get `apt:{spec}`")).with_source(error)
        }
        error @ PackageError::Unknown(_) => Error::not_found(error.to_string())
            .with_hint("`apt-cache search --names-only linux-image` shows what there is; if it shows nothing, check this host's apt sources"),
        error @ (PackageError::NoImage(_) | PackageError::TooMany(_)) => {
            Error::failed(format!("cannot get `apt:{spec}`"))
                .with_source(error)
                .with_hint("name a package that holds a kernel, for example `apt:linux-image-cloud-amd64`")
        }
    }
}
