//! Pull and import: from a request to a published kernel.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::apt::{self, PackageSpec};
use super::assemble::{Assembled, assemble};
use super::publish::{NameTaken, publish};
use super::record::Kernel;
use super::source::{Reading, Source};
use super::{ImportKernel, ImportSource, PullKernel, Shared, host, initrd};
use crate::clock;
use crate::error::{Error, Result};
use crate::identifier::check_name;
use crate::operation::Operation;
use crate::operation::progress::{ProgressState, ProgressUnit};
use crate::staging::Staging;
use crate::store;

/// Gets a kernel from elsewhere. A kernel that is already there from the same source is the result.
pub(super) async fn pull(shared: &Shared, request: PullKernel, operation: &Operation) -> Result<Kernel> {
    let spec = request.source.strip_prefix("apt:").ok_or_else(|| {
        Error::usage(format!("`{}` is no source of kernels", request.source.escape_default()))
            .with_hint("write `apt:PACKAGE`, for example `apt:linux-image-cloud-amd64`; files are imported with `vmdeck kernel import`")
    })?;
    let spec = PackageSpec::parse(spec)?;
    if let Some(name) = &request.name {
        check_name("a kernel", name)?;
    }
    let staging = Staging::create(&shared.data, operation.id()).await?;

    operation.phase("resolve").await;
    let resolved = apt::resolve(&spec, staging.path(), operation).await?;
    let source = format!("apt:{}", resolved.exact_name());
    operation.log(format!("the kernel is {source}")).await;

    // A second pull of the same waits here, and finds the first's result.
    let key = lock_key(request.name.as_deref().unwrap_or(&source));
    let _one_at_a_time = shared.pulls.acquire(&key, operation.cancelled()).await?;
    if let Some(kernel) = already_there(shared, request.name.as_deref(), &source).await? {
        operation.log(format!("`{}` is already here", kernel.name)).await;
        return Ok(kernel);
    }

    operation.phase("download").await;
    let (resolved, packages) = apt::download(resolved, &spec, staging.path(), operation).await?;
    let source = format!("apt:{}", resolved.exact_name());
    let wanted = Wanted { name: request.name, source, taken: NameTaken::SameSourceIsFine };
    make(shared, Source::Debs(packages), wanted, &staging, operation).await
}

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
    let wanted = Wanted { name: request.name, source: named, taken: NameTaken::Conflict };
    make(shared, source, wanted, &staging, operation).await
}

/// What the new kernel is to be called, and what is kept of where it came from.
struct Wanted {
    name: Option<String>,
    source: String,
    taken: NameTaken,
}

async fn make(
    shared: &Shared,
    source: Source,
    wanted: Wanted,
    staging: &Staging,
    operation: &Operation,
) -> Result<Kernel> {
    operation.phase("unpack").await;
    let folder = staging.path().join("kernel");
    let assembled = run_assemble(source, folder.clone(), operation).await?;

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

async fn run_assemble(source: Source, folder: PathBuf, operation: &Operation) -> Result<Assembled> {
    let part = operation.progress().add("kernel and modules", ProgressUnit::Bytes, 0);
    part.set_state(ProgressState::Active);
    let (cancel, progress) = (operation.cancelled().clone(), Arc::clone(&part));
    let result = tokio::task::spawn_blocking(move || {
        progress.set_total(source.size());
        std::fs::create_dir(&folder)
            .map_err(|error| Error::io(format!("cannot create `{}`", folder.display()), error))?;
        assemble(&source, &folder, Reading { cancel: &cancel, progress: &progress })
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

/// The kernel that a pull would make again: of the same source, under the wanted name, or under its
/// own. A wanted name that another kernel has is an error.
async fn already_there(shared: &Shared, name: Option<&str>, source: &str) -> Result<Option<Kernel>> {
    let root = shared.data.root().to_owned();
    let known = shared.store.read(move |connection| store::kernels::list(connection, &root)).await?;
    let found = known.into_iter().find(|kernel| match name {
        Some(name) => kernel.name == name,
        None => kernel.source == source && kernel.name == kernel.release,
    });
    match found {
        Some(kernel) if kernel.source != source => Err(store::kernels::name_taken(&kernel.name)),
        found => Ok(found),
    }
}

/// A lock's key is part of a file name.
fn lock_key(text: &str) -> String {
    Sha256::digest(text).iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}
