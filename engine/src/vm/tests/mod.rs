//! Tests of the service as a whole. What a hypervisor does at an awkward moment is scripted
//! ([`fake`]); boots of real guests are in the end-to-end tests.

mod change;
mod create;
mod fake;
mod life;
mod pause;
mod snapshot;

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::record::{PortForward, Protocol, Vm};
use super::{CreateVm, VmService};
use crate::clock;
use crate::data_directory::DataDirectory;
use crate::error::Result;
use crate::guest::GUEST_BINARY;
use crate::identifier::ImageId;
use crate::image::ImageService;
use crate::image::record::{Image, ImageFiles};
use crate::kernel::KernelService;
use crate::kernel::record::Kernel;
use crate::operation::Operations;
use crate::store::{self, Store};
use crate::vmm::Vmm;

/// What one vmdeck process has open.
struct Process {
    data: DataDirectory,
    store: Store,
    operations: Operations,
    vms: VmService,
}

/// A data directory with an image and a kernel on record.
struct Deck {
    folder: tempfile::TempDir,
}

const IMAGE: &str = "debian";
const KERNEL: &str = "6.12";

impl Deck {
    async fn new() -> Self {
        let deck = Self { folder: tempfile::tempdir().unwrap() };
        let process = deck.open();
        deck.add_image(&process, IMAGE).await;
        let kernel = Kernel {
            name: KERNEL.into(),
            release: KERNEL.into(),
            architecture: "amd64".into(),
            source: "host".into(),
            created_at: clock::now(),
            requested: None,
            vmlinux: process.data.kernel(KERNEL).join("vmlinux"),
            initrd: process.data.kernel(KERNEL).join("initrd"),
            modules: None,
            guest_digest: format!("sha256:{}", hex(&Sha256::digest(GUEST_BINARY))),
            initrd_modules: Vec::new(),
            warnings: Vec::new(),
        };
        std::fs::create_dir_all(process.data.kernel(KERNEL)).unwrap();
        std::fs::write(&kernel.vmlinux, "kernel").unwrap();
        std::fs::write(&kernel.initrd, "initrd").unwrap();
        let root = process.data.root().to_owned();
        process
            .store
            .transaction(move |transaction| store::kernels::insert(transaction, &root, &kernel))
            .await
            .unwrap();
        deck
    }

    /// One more vmdeck process on this data directory: it shares nothing with the others but files.
    fn open(&self) -> Process {
        self.open_with(Arc::new(crate::vmm::qemu::Qemu::new(self.folder.path().join("cache"))))
    }

    fn open_with(&self, vmm: Arc<dyn Vmm>) -> Process {
        let data = DataDirectory::open(self.folder.path()).unwrap();
        let store = Store::open(&data.database()).unwrap();
        let operations = Operations::new(store.clone()).unwrap();
        let images = ImageService::new(data.clone(), store.clone(), operations.clone());
        let kernels = KernelService::new(data.clone(), store.clone(), operations.clone());
        let vms = VmService::new(data.clone(), store.clone(), operations.clone(), images, kernels, vmm);
        Process { data, store, operations, vms }
    }

    async fn add_image(&self, process: &Process, name: &str) -> Image {
        let id = ImageId::random();
        let folder = process.data.image(&id);
        std::fs::create_dir_all(&folder).unwrap();
        let rootfs = folder.join("rootfs.ext4");
        std::fs::File::create(&rootfs).unwrap().set_len(64 << 20).unwrap();
        let image = Image {
            id: id.clone(),
            name: name.into(),
            managed: true,
            content_id: Some(id),
            digest: None,
            created_at: clock::now(),
            reference: None,
            architecture: Some("amd64".into()),
            files: ImageFiles { rootfs, ..ImageFiles::default() },
            config: Default::default(),
            layers: Vec::new(),
            rootfs_bytes: 64 << 20,
            used_bytes: 1 << 20,
        };
        let (root, inserted) = (process.data.root().to_owned(), image.clone());
        process
            .store
            .transaction(move |transaction| store::images::insert(transaction, &root, &inserted))
            .await
            .unwrap();
        image
    }
}

impl Process {
    async fn create(&self, name: &str) -> Result<Vm> {
        self.vms.create(request(name), None).wait().await
    }

    async fn count(&self, table: &'static str) -> i64 {
        self.store
            .read(move |connection| {
                Ok(connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?)
            })
            .await
            .unwrap()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn request(name: &str) -> CreateVm {
    CreateVm { name: Some(name.into()), image: IMAGE.into(), ..CreateVm::default() }
}

fn tcp(host_port: u16, guest_port: u16) -> PortForward {
    PortForward {
        protocol: Protocol::Tcp,
        host_address: std::net::Ipv4Addr::LOCALHOST,
        host_port,
        guest_port,
    }
}
