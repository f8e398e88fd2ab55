//! Kernels: list, show, pull, import, export, delete, catalog.
//!
//! ```text
//! apt / URL / image / package / files / this host ─▶ source ─parts─▶ assemble ─▶ staging folder ─▶ publish
//! ```
//!
//! A kernel is a `vmlinux` that the hypervisor enters directly, an initrd with our init and the few
//! modules needed to reach the root disk, and `modules.ext4`, mounted at `/lib/modules/<release>`.
//! The service owns the folders below `kernels/` and the rows of that table. It boots nothing.

mod apt;
mod assemble;
mod boot_image;
mod catalog;
mod configuration;
mod create;
mod decompress;
mod elf;
mod export;
mod host;
mod initrd;
mod modules;
mod own;
mod publish;
mod pull;
pub mod record;
mod renew;
mod source;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::image::Settings;
use crate::lock::KeyedLocks;
use crate::operation::record::OperationKind;
use crate::operation::{Operation, Operations, Task};
use crate::store::{self, Store};
pub use catalog::{CatalogEntry, CatalogItem, CatalogState};
pub use export::{ExportKernel, ExportedKernel};
pub use own::OwnKernel;
pub use pull::SOURCES;
use record::Kernel;

/// The service: a cheap handle.
#[derive(Clone, Debug)]
pub struct KernelService {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    data: DataDirectory,
    store: Store,
    operations: Operations,
    /// One pull at a time of the same kernel, among all processes.
    pulls: KeyedLocks,
    /// One renewal at a time of one kernel's initrd.
    renewals: KeyedLocks,
    archive: catalog::Archive,
    settings: Settings,
}

/// The kernel package that is pulled when a machine needs a kernel and there is none.
pub const DEFAULT_SOURCE: &str = "apt:linux-image-cloud-amd64";

/// What to pull.
#[derive(Clone, Debug, Default)]
pub struct PullKernel {
    /// One of [`SOURCES`].
    pub source: String,
    /// Name of the new kernel; its release by default.
    pub name: Option<String>,
    /// Allow plain HTTP also when the host is not this one.
    pub plain_http: bool,
}

/// A kernel that lies on this host.
#[derive(Clone, Debug)]
pub struct ImportKernel {
    pub from: ImportSource,
    pub name: Option<String>,
}

#[derive(Clone, Debug)]
pub enum ImportSource {
    Deb(PathBuf),
    /// A bzImage or vmlinux; `modules` is `lib/modules/<release>` of it. A folder without `modules`
    /// is an unpacked tree: its newest kernel is taken.
    Files {
        vmlinuz: PathBuf,
        modules: Option<PathBuf>,
    },
    /// The newest kernel in this host's `/boot`.
    Host,
}

impl KernelService {
    pub fn new(data: DataDirectory, store: Store, operations: Operations) -> Self {
        Self::with_settings(data, store, operations, default_settings())
    }

    /// `settings` are those of image pulls, with the catalog of kernels.
    pub fn with_settings(
        data: DataDirectory,
        store: Store,
        operations: Operations,
        settings: Settings,
    ) -> Self {
        let pulls = KeyedLocks::new(data.locks(), "kernel-pull");
        let renewals = KeyedLocks::new(data.locks(), "kernel-initrd");
        let archive = catalog::Archive::default();
        Self { shared: Arc::new(Shared { data, store, operations, pulls, renewals, archive, settings }) }
    }

    /// Newest first.
    pub async fn list(&self) -> Result<Vec<Kernel>> {
        let root = self.shared.data.root().to_owned();
        self.shared.store.read(move |connection| store::kernels::list(connection, &root)).await
    }

    pub async fn find(&self, name: &str) -> Result<Kernel> {
        let (root, wanted) = (self.shared.data.root().to_owned(), name.to_owned());
        let found = self
            .shared
            .store
            .read(move |connection| store::kernels::by_name(connection, &root, &wanted))
            .await?;
        found.ok_or_else(|| unknown(name))
    }

    /// Gets a kernel from elsewhere. Pulling what is already here changes nothing; pulling the same
    /// twice at once does the work once.
    pub fn pull(&self, request: PullKernel, parent: Option<&Operation>) -> Task<Kernel> {
        let (target, shared) = (request.source.clone(), Arc::clone(&self.shared));
        self.shared.operations.spawn(OperationKind::KernelPull, target, parent, |operation| async move {
            pull::pull(&shared, request, &operation).await
        })
    }

    /// The kernels there are to be had, and how they stand. Fetches nothing.
    pub async fn catalog(&self) -> Result<Vec<CatalogItem>> {
        catalog::list(&self.shared, &self.list().await?).await
    }

    /// Writes a kernel to an OCI archive, for a registry or another host to pull it from.
    pub fn export(&self, request: ExportKernel, parent: Option<&Operation>) -> Task<ExportedKernel> {
        let (target, shared) = (request.name.clone(), Arc::clone(&self.shared));
        self.shared.operations.spawn(OperationKind::KernelExport, target, parent, |operation| async move {
            export::export(&shared, request, &operation).await
        })
    }

    /// Makes a kernel out of files of this host.
    pub fn import(&self, request: ImportKernel, parent: Option<&Operation>) -> Task<Kernel> {
        let (target, shared) = (request.from.to_string(), Arc::clone(&self.shared));
        self.shared.operations.spawn(OperationKind::KernelImport, target, parent, |operation| async move {
            create::import(&shared, request, &operation).await
        })
    }

    /// The kernel a machine is to boot: the named one, else the newest (of those that have no
    /// warnings, where there are any), else the default is pulled.
    pub async fn ensure(&self, name: Option<&str>, parent: &Operation) -> Result<Kernel> {
        if let Some(name) = name {
            return self.find(name).await;
        }
        let mut kernels = self.list().await?;
        if !kernels.is_empty() {
            let sound = kernels.iter().position(|kernel| kernel.warnings.is_empty());
            return Ok(kernels.swap_remove(sound.unwrap_or(0)));
        }
        let request = PullKernel { source: DEFAULT_SOURCE.into(), ..PullKernel::default() };
        self.pull(request, Some(parent)).wait().await
    }

    /// The kernel with an initrd that holds this vmdeck's guest binary; one of an earlier vmdeck is
    /// renewed in place. Fine while machines run: each has its own copy.
    pub async fn ensure_current(&self, kernel: &Kernel) -> Result<Kernel> {
        renew::ensure_current(&self.shared, kernel).await
    }

    /// Deletes a kernel that no machine uses.
    pub async fn delete(&self, name: &str) -> Result<Kernel> {
        self.shared.data.use_reserve();
        publish::delete(&self.shared.data, &self.shared.store, name).await
    }

    /// Removes kernel folders that belong to no kernel.
    pub async fn reconcile(&self) -> Result<()> {
        publish::remove_orphans(&self.shared.data, &self.shared.store).await
    }
}

impl fmt::Display for ImportSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deb(path) => write!(f, "{}", path.display()),
            Self::Files { vmlinuz, .. } => write!(f, "{}", vmlinuz.display()),
            Self::Host => f.write_str("this host's kernel"),
        }
    }
}

fn default_settings() -> Settings {
    Settings { catalog: catalog::user_file(), ..Settings::default() }
}

fn unknown(name: &str) -> Error {
    Error::not_found(format!("there is no kernel `{}`", name.escape_default()))
        .with_hint("`vmdeck kernel list` shows them, `vmdeck kernel pull` gets one")
}
