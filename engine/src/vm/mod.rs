//! The machine service: create in three phases, boot, lifecycle, exec.

pub mod record;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::guest::{ExecRequest, ExecSession};
use crate::image::ImageService;
use crate::kernel::KernelService;
use crate::operation::record::OperationKind;
use crate::operation::{Operation, Operations, Task};
use crate::store::{self, Store};
use crate::vmm::Vmm;
use record::{Boot, NetworkMode, PortForward, Vm};

/// The service: a cheap handle.
#[derive(Clone, Debug)]
pub struct VmService {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    data: DataDirectory,
    store: Store,
    operations: Operations,
    images: ImageService,
    kernels: KernelService,
    vmm: Arc<dyn Vmm>,
}

/// What to create; what is not given is decided by the engine.
#[derive(Clone, Debug, Default)]
pub struct CreateVm {
    /// Generated when not given.
    pub name: Option<String>,
    /// Name of an image, or a reference to pull.
    pub image: String,
    pub kernel: Option<String>,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u64>,
    pub disk_gib: Option<u64>,
    pub network: Option<NetworkMode>,
    pub ports: Vec<PortForward>,
    /// Replaces the image's command.
    pub command: Vec<String>,
    pub environment: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// Allow plain HTTP when the image has to be pulled.
    pub plain_http: bool,
}

/// How a machine was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopOutcome {
    AlreadyStopped,
    /// The agent synced the disks and powered off.
    Agent,
    /// The guest obeyed the ACPI power button.
    PowerButton,
    /// The hypervisor was ended.
    Killed,
}

impl VmService {
    pub fn new(
        data: DataDirectory,
        store: Store,
        operations: Operations,
        images: ImageService,
        kernels: KernelService,
        vmm: Arc<dyn Vmm>,
    ) -> Self {
        Self { shared: Arc::new(Shared { data, store, operations, images, kernels, vmm }) }
    }

    pub async fn list(&self) -> Result<Vec<Vm>> {
        self.shared.store.read(|connection| store::vms::list(connection)).await
    }

    /// The machine with this name, else the only one whose id begins so.
    pub async fn find(&self, name: &str) -> Result<Vm> {
        let name = name.to_owned();
        self.shared
            .store
            .read(move |connection| {
                if let Some(vm) = store::vms::by_name(connection, &name)? {
                    return Ok(vm);
                }
                let mut found = store::vms::by_id_prefix(connection, &name)?;
                match (found.pop(), found.is_empty() && name.len() >= 4) {
                    (Some(vm), true) => Ok(vm),
                    _ => Err(Error::not_found(format!("there is no machine `{}`", name.escape_default()))
                        .with_hint("`vmdeck vm list` shows them, `vmdeck vm create` makes one")),
                }
            })
            .await
    }

    /// All boots on record, newest first.
    pub async fn boots(&self, vm: &Vm) -> Result<Vec<Boot>> {
        let id = vm.id.clone();
        self.shared.store.read(move |connection| store::vms::boots(connection, &id)).await
    }

    /// Resolves, reserves; the machine is `created` after it.
    pub fn create(&self, request: CreateVm, parent: Option<&Operation>) -> Task<Vm> {
        let target = request.name.clone().unwrap_or_else(|| request.image.clone());
        self.shared.operations.spawn(OperationKind::VmCreate, target, parent, |_operation| async move {
            Err(Error::failed("vm create is being written"))
        })
    }

    /// Boots; ready when it is done.
    pub fn start(&self, name: &str, parent: Option<&Operation>) -> Task<Vm> {
        self.shared.operations.spawn(OperationKind::VmStart, name, parent, |_operation| async move {
            Err(Error::failed("vm start is being written"))
        })
    }

    /// Stops: gracefully first, unless `force`.
    pub fn stop(&self, name: &str, _force: bool, parent: Option<&Operation>) -> Task<StopOutcome> {
        self.shared.operations.spawn(OperationKind::VmStop, name, parent, |_operation| async move {
            Err(Error::failed("vm stop is being written"))
        })
    }

    /// Deletes; a machine that runs is a conflict unless `force`.
    pub fn delete(&self, name: &str, _force: bool, parent: Option<&Operation>) -> Task<()> {
        self.shared.operations.spawn(OperationKind::VmDelete, name, parent, |_operation| async move {
            Err(Error::failed("vm delete is being written"))
        })
    }

    /// Runs a command in a running machine.
    pub async fn exec(&self, _name: &str, _request: ExecRequest) -> Result<ExecSession> {
        Err(Error::failed("vm exec is being written"))
    }

    /// Path of the file that holds what the machine's serial console printed in its last boots.
    pub fn console_log(&self, vm: &Vm) -> std::path::PathBuf {
        self.shared.data.vm(&vm.id).join("console.log")
    }

    /// Sets the states on record to what is true.
    pub async fn reconcile(&self) -> Result<()> {
        Ok(())
    }
}
