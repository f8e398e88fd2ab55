//! From a source to a published kernel; imports of files that lie on this host.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::assemble::{Assembled, assemble};
use super::publish::{NameTaken, publish};
use super::record::Kernel;
use super::source::{Reading, Source};
use super::{ImportKernel, ImportSource, Shared, host, initrd};
use crate::clock;
use crate::error::{Error, Result};
use crate::identifier::check_name;
use crate::operation::Operation;
use crate::operation::progress::{ProgressState, ProgressUnit};
use crate::staging::Staging;
use crate::store;

/// Makes a kernel out of files of this host.
pub(super) async fn import(shared: &Shared, request: ImportKernel, operation: &Operation) -> Result<Kernel> {
    if let Some(name) = &request.name {
        check_name("a kernel", name)?;
        refuse_taken(shared, name).await?;
    }
    let (source, named) = tokio::task::spawn_blocking(move || locate(request.from))
        .await
        .map_err(|error| Error::failed("looking for the kernel's files failed").with_source(error))??;
    let staging = Staging::create(&shared.data, operation.id()).await?;
    let wanted = Wanted { name: request.name, source: named, requested: None, taken: NameTaken::Conflict };
    make(shared, source, wanted, &staging, operation).await
}

/// What the new kernel is to be called, and what is kept of where it came from.
#[derive(Debug)]
pub(super) struct Wanted {
    pub name: Option<String>,
    /// What exactly it is.
    pub source: String,
    /// What was asked for.
    pub requested: Option<String>,
    pub taken: NameTaken,
}

/// Makes the kernel's files in the staging folder, and publishes them.
pub(super) async fn make(
    shared: &Shared,
    source: Source,
    wanted: Wanted,
    staging: &Staging,
    operation: &Operation,
) -> Result<Kernel> {
    operation.phase("unpack").await;
    let folder = staging.path().join("kernel");
    let assembled = run_assemble(source, folder.clone(), operation).await?;
    finish(shared, assembled, folder, wanted, staging, operation).await
}

/// Publishes what was made in `folder`.
pub(super) async fn finish(
    shared: &Shared,
    assembled: Assembled,
    folder: PathBuf,
    wanted: Wanted,
    staging: &Staging,
    operation: &Operation,
) -> Result<Kernel> {
    operation.phase("publish").await;
    let name = wanted.name.unwrap_or_else(|| assembled.release.clone());
    check_name("a kernel", &name)?;
    for warning in &assembled.warnings {
        operation.log(format!("warning: {warning}")).await;
    }
    let place = shared.data.kernel(&name);
    let kernel = Kernel {
        name,
        release: assembled.release,
        architecture: "amd64".to_owned(),
        requested: wanted.requested.filter(|requested| *requested != wanted.source),
        source: wanted.source,
        created_at: clock::now(),
        vmlinux: place.join(assembled.vmlinux),
        initrd: place.join(assembled.initrd),
        modules: assembled.modules.map(|file| place.join(file)),
        guest_digest: initrd::guest_digest().to_owned(),
        initrd_modules: assembled.initrd_modules,
        warnings: assembled.warnings,
    };
    if operation.cancelled().is_cancelled() {
        return Err(Error::cancelled());
    }
    publish(&shared.data, &shared.store, staging, folder, kernel, wanted.taken).await
}

/// Runs the assembly on a thread that may block; `folder` is created.
pub(super) async fn run_assemble(
    source: Source,
    folder: PathBuf,
    operation: &Operation,
) -> Result<Assembled> {
    let part = operation.progress().add("kernel and modules", ProgressUnit::Bytes, 0);
    part.set_state(ProgressState::Active);
    let (cancel, progress) = (operation.cancelled().clone(), Arc::clone(&part));
    let result = tokio::task::spawn_blocking(move || {
        progress.set_total(source.size());
        std::fs::create_dir(&folder)
            .map_err(|error| Error::io(format!("cannot create `{}`", folder.display()), error))?;
        assemble(source, &folder, Reading { cancel: &cancel, progress: &progress })
    })
    .await
    .map_err(|error| Error::failed("the import of the kernel failed").with_source(error))?;
    if result.is_ok() {
        part.set_done(part.total());
    }
    part.set_state(if result.is_ok() { ProgressState::Done } else { ProgressState::Failed });
    result
}

/// Finds the files of an import; returns also how the source is called. Blocks.
fn locate(from: ImportSource) -> Result<(Source, String)> {
    match from {
        ImportSource::Deb(path) => {
            let named = format!("deb:{}", path.display());
            exists(&path)?;
            Ok((Source::Debs(vec![path]), named))
        }
        ImportSource::Files { vmlinuz, modules: None } if vmlinuz.is_dir() => {
            let named = format!("tree:{}", vmlinuz.display());
            Ok((host::newest(&vmlinuz)?, named))
        }
        ImportSource::Files { vmlinuz, modules } => {
            exists(&vmlinuz)?;
            if let Some(modules) = &modules {
                exists(modules)?;
            }
            let named = format!("file:{}", vmlinuz.display());
            if modules.is_none()
                && let source @ (Source::Debs(_) | Source::Tar(_)) = Source::of_file(vmlinuz.clone())?
            {
                return Ok((source, named));
            }
            let configuration = configuration_beside(&vmlinuz);
            Ok((Source::Files { image: vmlinuz, configuration, modules }, named))
        }
        ImportSource::Host => Ok((host::newest(Path::new("/"))?, "host".to_owned())),
    }
}

fn exists(path: &Path) -> Result<()> {
    match path.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::not_found(format!("there is no `{}`", path.display()))),
        Err(error) => Err(Error::io(format!("cannot read `{}`", path.display()), error)),
    }
}

/// `vmlinuz-X` → `config-X`, when it is there.
fn configuration_beside(image: &Path) -> Option<PathBuf> {
    let release = image.file_name()?.to_str()?.split_once('-')?.1;
    Some(image.with_file_name(format!("config-{release}"))).filter(|path| path.is_file())
}

async fn refuse_taken(shared: &Shared, name: &str) -> Result<()> {
    let (root, wanted) = (shared.data.root().to_owned(), name.to_owned());
    let known =
        shared.store.read(move |connection| store::kernels::by_name(connection, &root, &wanted)).await?;
    known.map_or(Ok(()), |kernel| Err(store::kernels::name_taken(&kernel.name)))
}
