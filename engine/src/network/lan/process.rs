//! The process that is the switch.
//!
//! ```text
//!      ┌──── the store changed, a hypervisor ended ────┐
//!      ▼                                               │
//! who is there? ─▶ connect, disconnect ─▶ nobody ─▶ wait a little ─▶ the door ─▶ nobody still: end
//! ```
//!
//! It belongs to no vmdeck process. Who is there it reads from the store; that a hypervisor has ended it
//! sees by itself, so that it also ends when nobody else is there to see.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use super::frame::{Mac, Station};
use super::hub::{Connected, Hub, Member};
use super::keeper;
use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::identifier::VmId;
use crate::network::{host_name, octets};
use crate::process::{PidFd, ProcessIdentity};
use crate::store::change::ChangeWatch;
use crate::store::{self, Generations, Store};
use crate::vm::record::{NetworkMode, Vm};

pub use keeper::running;

/// How long it stays when nobody is there: a machine that is restarted comes back.
const EMPTY: Duration = Duration::from_secs(2);
/// Changes in a row make one look.
const SETTLE: Duration = Duration::from_millis(20);
/// Pause after the store could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// Runs the switch until no machine needs it. Then this process is to end at once: until it has, whoever
/// wants to start another one waits. Must be called within a tokio runtime.
pub async fn run(data: DataDirectory) -> Result<()> {
    let lock = keeper::become_the_switch(&data)?;
    let mut changes = ChangeWatch::new(data.database());
    changes.begin();
    let store = Store::open(&data.database())?;
    let mut switch = Switch {
        data,
        store,
        hub: Hub::default(),
        generation: None,
        connected: HashMap::new(),
        ends: FuturesUnordered::new(),
    };
    loop {
        let looked = switch.look().await;
        if let Err(error) = &looked {
            tracing::warn!(%error, "the machines of the network cannot be read");
        }
        let is_empty = switch.connected.is_empty();
        tokio::select! {
            changed = changes.changed() => {
                changed?;
                tokio::time::sleep(SETTLE).await;
            }
            Some((id, process)) = switch.ends.next() => switch.disconnect(&id, &process),
            () = tokio::time::sleep(RETRY), if looked.is_err() && !is_empty => {}
            () = tokio::time::sleep(EMPTY), if is_empty => {
                let door = keeper::door(&switch.data).await?;
                if switch.is_needed().await {
                    switch.generation = None;
                    continue;
                }
                tracing::info!("the network between machines ends: none needs it");
                // Both stay locked until the process is gone.
                std::mem::forget((door, lock));
                return Ok(());
            }
        }
    }
}

struct Switch {
    data: DataDirectory,
    store: Store,
    hub: Hub,
    /// Of the table of machines, as of the last look.
    generation: Option<i64>,
    connected: HashMap<VmId, (ProcessIdentity, Connected)>,
    /// One per machine that is or was connected and whose hypervisor runs.
    ends: FuturesUnordered<BoxFuture<'static, (VmId, ProcessIdentity)>>,
}

impl Switch {
    /// Connects who has come, disconnects who has gone.
    async fn look(&mut self) -> Result<()> {
        let before = self.generation;
        let read = self.store.read(move |connection| {
            let generation = Generations::read(connection)?.vms;
            Ok((before != Some(generation)).then_some((generation, store::vms::with_process(connection)?)))
        });
        let Some((generation, vms)) = read.await? else { return Ok(()) };
        let members: HashMap<VmId, (ProcessIdentity, Member)> =
            vms.iter().filter_map(|vm| member(&self.data, vm)).collect();
        let gone: Vec<(VmId, ProcessIdentity)> = self
            .connected
            .iter()
            .filter(|(id, (process, connected))| {
                members.get(*id).is_none_or(|(now, member)| now != process || member != connected.member())
            })
            .map(|(id, (process, _))| (id.clone(), process.clone()))
            .collect();
        for (id, process) in gone {
            self.disconnect(&id, &process);
        }
        for (id, (process, member)) in members {
            if self.connected.contains_key(&id) {
                continue;
            }
            let fail = |error| Error::io(format!("machine {id} cannot be connected"), error);
            let Some(descriptor) = PidFd::open(&process).map_err(fail)? else { continue };
            let connected = self.hub.connect(member).map_err(fail)?;
            tracing::info!(machine = connected.member().name, "a machine joined the network");
            self.connected.insert(id.clone(), (process.clone(), connected));
            self.ends.push(Box::pin(async move {
                if let Err(error) = descriptor.wait().await {
                    tracing::warn!(%error, "the end of a hypervisor cannot be waited for");
                    std::future::pending::<()>().await;
                }
                (id, process)
            }));
        }
        self.generation = Some(generation);
        Ok(())
    }

    fn disconnect(&mut self, id: &VmId, process: &ProcessIdentity) {
        if self.connected.get(id).is_none_or(|(connected, _)| connected != process) {
            return;
        }
        let Some((_, connected)) = self.connected.remove(id) else { return };
        let counters = connected.counters();
        tracing::info!(
            machine = connected.member().name,
            passed = counters.passed.load(Ordering::Relaxed),
            lost = counters.lost.load(Ordering::Relaxed),
            forged = counters.forged.load(Ordering::Relaxed),
            malformed = counters.malformed.load(Ordering::Relaxed),
            unwanted = counters.unwanted.load(Ordering::Relaxed),
            "a machine left the network"
        );
    }

    /// Whether a machine of the network runs. What cannot be read needs nobody: whoever can read it will
    /// start the switch again.
    async fn is_needed(&self) -> bool {
        let read = self.store.read(|connection| store::vms::with_process(connection)).await;
        read.is_ok_and(|vms| vms.iter().any(needs_switch))
    }
}

/// Whether the network between machines has to be there for this one.
pub(crate) fn needs_switch(vm: &Vm) -> bool {
    let runs = || vm.run.as_ref().is_some_and(|run| run.process.is_alive());
    vm.settings.network == NetworkMode::Lan && vm.state.has_process() && runs()
}

fn member(data: &DataDirectory, vm: &Vm) -> Option<(VmId, (ProcessIdentity, Member))> {
    let (run, address) = vm.run.as_ref().zip(vm.address).filter(|_| needs_switch(vm))?;
    let mac: Mac = octets(&super::mac(&vm.id))?;
    let station = Station { mac, address };
    let member = Member { name: host_name(&vm.name), station, directory: data.vm(&vm.id) };
    Some((vm.id.clone(), (run.process.clone(), member)))
}
