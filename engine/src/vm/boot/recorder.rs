//! Keeps a boot on record as it goes, for every process to see.

use super::timeline::Timeline;
use crate::clock;
use crate::error::Result;
use crate::identifier::VmId;
use crate::operation::Operation;
use crate::store::{self, Store};
use crate::vm::record::{Boot, BootFailure, BootPhaseName, Vm, VmEnd, VmRun, VmState};
use crate::vmm::Accelerator;

/// A boot on record.
#[derive(Debug)]
pub(in crate::vm) struct Recorder {
    store: Store,
    vm: VmId,
    timeline: Timeline,
    /// Is told of the phases, too.
    operation: Option<Operation>,
}

impl Recorder {
    /// Puts a new boot on record, together with the state `starting`.
    pub(in crate::vm) async fn begin(store: &Store, vm: &Vm, operation: &Operation) -> Result<Self> {
        let first = vm.boot.is_none();
        let mut timeline = Timeline::new(clock::now(), vm.creation.filter(|_| first));
        let (id, boot) = (vm.id.clone(), timeline.boot().clone());
        let row = store
            .write_relaxed(move |transaction| {
                store::vms::set_state(transaction, &id, VmState::Starting, None, None)?;
                store::vms::insert_boot(transaction, &id, &boot)
            })
            .await?;
        timeline.set_id(row);
        Ok(Self { store: store.clone(), vm: vm.id.clone(), timeline, operation: Some(operation.clone()) })
    }

    /// Goes on with a boot that another process began.
    pub(in crate::vm) fn resume(store: &Store, vm: &VmId, boot: Boot) -> Self {
        Self { store: store.clone(), vm: vm.clone(), timeline: Timeline::resume(boot), operation: None }
    }

    pub(in crate::vm) fn boot(&self) -> &Boot {
        self.timeline.boot()
    }

    /// The phase under way.
    pub(in crate::vm) fn active(&self) -> BootPhaseName {
        self.timeline.active().unwrap_or(BootPhaseName::Resolve)
    }

    pub(in crate::vm) fn set_accelerator(&mut self, accelerator: Accelerator) {
        self.timeline.set_accelerator(accelerator);
    }

    /// What the machine will have to do without; on record with the next phase.
    pub(in crate::vm) fn warn(&mut self, warning: String) {
        self.timeline.add_warnings(vec![warning]);
    }

    pub(in crate::vm) async fn phase(&mut self, name: BootPhaseName) -> Result<()> {
        if !self.timeline.begin(name, clock::now()) {
            return Ok(());
        }
        tracing::debug!(vm = %self.vm, phase = name.as_str(), "boot");
        let boot = self.timeline.boot().clone();
        self.store
            .write_relaxed(move |transaction| store::vms::update_boot(transaction, boot.id, &boot))
            .await?;
        if let Some(operation) = &self.operation {
            operation.phase(name.as_str()).await;
        }
        Ok(())
    }

    /// The machine is ready: the end of the boot and the state `running` become true together.
    pub(in crate::vm) async fn ready(mut self, run: &VmRun, warnings: Vec<String>) -> Result<()> {
        self.timeline.finish(clock::now());
        self.timeline.add_warnings(warnings);
        let (id, boot, run) = (self.vm, self.timeline.boot().clone(), run.clone());
        self.store
            .write_relaxed(move |transaction| {
                store::vms::update_boot(transaction, boot.id, &boot)?;
                store::vms::set_state(transaction, &id, VmState::Running, Some(&run), None)
            })
            .await
    }

    /// The boot ended; so did the machine's process.
    pub(in crate::vm) async fn failed(
        mut self,
        failure: BootFailure,
        state: VmState,
        ended: VmEnd,
    ) -> Result<()> {
        self.timeline.fail(failure, clock::now());
        let (id, boot) = (self.vm, self.timeline.boot().clone());
        self.store
            .write_relaxed(move |transaction| {
                store::vms::update_boot(transaction, boot.id, &boot)?;
                store::vms::set_state(transaction, &id, state, None, Some(&ended))
            })
            .await
    }
}
