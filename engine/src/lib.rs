//! The engine of vmdeck: everything that is not a screen.
//!
//! [`Engine`] is a cheap handle. It owns one service per noun; each service owns its own state and
//! locks and none reaches into another's. Long work runs as an operation on a task of its own.

pub mod clock;
pub mod cpio;
pub mod data_directory;
pub mod disk_usage;
pub mod doctor;
pub mod error;
pub mod guest;
pub mod identifier;
pub mod image;
pub mod kernel;
pub mod keys;
pub mod lock;
pub mod network;
pub mod operation;
mod pieces;
pub mod process;
pub mod readiness;
mod regular_file;
pub mod rootfs;
pub mod snapshot;
mod space;
pub mod staging;
pub mod store;
#[cfg(test)]
mod test_support;
pub mod vm;
pub mod vmm;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use data_directory::DataDirectory;
pub use error::{Error, ErrorKind, Result};
use image::ImageService;
use kernel::KernelService;
use operation::Operations;
use snapshot::{Publisher, Snapshot};
use store::Store;
use vm::VmService;
use vmm::Vmm;
use vmm::qemu::Qemu;

/// The facade: every command is one line that forwards to its service.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    data: DataDirectory,
    operations: Operations,
    images: ImageService,
    kernels: KernelService,
    vms: VmService,
    vmm: Arc<dyn Vmm>,
    publisher: Publisher,
}

impl Engine {
    /// Opens the engine on a data directory and brings what is on record in line with what is.
    pub async fn open(path: PathBuf) -> Result<Self> {
        let engine = Self::open_for_screen(path).await?;
        engine.tidy().await?;
        Ok(engine)
    }

    /// Opens as far as a screen needs it: what is on record of operations and machines is true when
    /// this returns. What processes that are gone left lying is still there: the caller lets
    /// [`Self::tidy`] run next, while the screen is looked at.
    pub async fn open_for_screen(path: PathBuf) -> Result<Self> {
        let data = tokio::task::spawn_blocking(move || DataDirectory::open(path))
            .await
            .map_err(|error| Error::failed("opening the data directory failed").with_source(error))??;
        let place = data.clone();
        let open = move || match Store::open(&place.database()) {
            // Opening takes some room, too.
            Err(_) if place.use_reserve() => Store::open(&place.database()),
            Err(error) if place.is_full() => Err(error.with_hint(error::DISK_FULL)),
            result => result,
        };
        let store = tokio::task::spawn_blocking(open)
            .await
            .map_err(|error| Error::failed("opening the store failed").with_source(error))??;
        let operations = Operations::new(store.clone())?;
        let images = ImageService::new(data.clone(), store.clone(), operations.clone());
        let kernels = KernelService::new(data.clone(), store.clone(), operations.clone());
        let vmm: Arc<dyn Vmm> = Arc::new(Qemu::new(data.root().join("cache")));
        let vms = VmService::new(
            data.clone(),
            store.clone(),
            operations.clone(),
            images.clone(),
            kernels.clone(),
            Arc::clone(&vmm),
        );
        operations.reconcile().await?;
        vms.establish().await?;
        // The first picture is one of what is true.
        let publisher = Publisher::start(&data, store, operations.clone());
        Ok(Self { shared: Arc::new(Shared { data, operations, images, kernels, vms, vmm, publisher }) })
    }

    /// Removes what processes that are gone left lying: work space, folders without a row, images
    /// whose files are gone. Looks at every folder there is.
    pub async fn tidy(&self) -> Result<()> {
        staging::sweep(&self.shared.data).await?;
        self.vms().tidy().await?;
        self.images().reconcile().await?;
        self.kernels().reconcile().await
    }

    pub fn data(&self) -> &DataDirectory {
        &self.shared.data
    }

    pub fn images(&self) -> &ImageService {
        &self.shared.images
    }

    pub fn kernels(&self) -> &KernelService {
        &self.shared.kernels
    }

    pub fn vms(&self) -> &VmService {
        &self.shared.vms
    }

    pub fn vmm(&self) -> &Arc<dyn Vmm> {
        &self.shared.vmm
    }

    pub fn operations(&self) -> &Operations {
        &self.shared.operations
    }

    /// Everything there is, live, whichever process changes it.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.shared.publisher.subscribe()
    }

    /// The same, with changes of the process' first seconds somewhat later: it ends sooner.
    pub fn subscribe_relaxed(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.shared.publisher.subscribe_relaxed()
    }

    /// Cancels this process's operations and waits for them to clean up. Machines go on running.
    pub async fn shutdown(&self) {
        self.operations().shutdown(Duration::from_secs(20)).await;
    }
}
