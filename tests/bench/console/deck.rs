//! Data directories with machines and images on record.

use std::path::Path;
use std::process::{Child, Command};

use vmdeck_engine::Engine;
use vmdeck_engine::process::ProcessIdentity;
use vmdeck_engine::store::{self, Store};
use vmdeck_engine::vm::record::{Vm, VmRun, VmState};

use crate::sample;

/// Puts machines and as many images on record. The first machines run in these processes, the others
/// do not run.
pub(crate) fn fill(data: &Path, count: usize, processes: &[ProcessIdentity]) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let engine = Engine::open(data.to_owned()).await.unwrap();
        let (root, path) = (engine.data().root().to_owned(), engine.data().database());
        let snapshot = sample::large(count, count);
        for image in snapshot.images.iter() {
            let folder = root.join("images").join(image.id.as_str());
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("rootfs.ext4"), "").unwrap();
        }
        for kernel in snapshot.kernels.iter() {
            let folder = root.join("kernels").join(&kernel.name);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("vmlinux"), "").unwrap();
        }
        let store = Store::open(&path).unwrap();
        let processes = processes.to_vec();
        store
            .write_relaxed(move |transaction| {
                for kernel in snapshot.kernels.iter() {
                    store::kernels::insert(transaction, &root, kernel)?;
                }
                for image in snapshot.images.iter() {
                    store::images::insert(transaction, &root, image)?;
                }
                for (number, vm) in snapshot.vms.iter().enumerate() {
                    let process = processes.get(number).cloned();
                    let state = if process.is_some() { VmState::Running } else { VmState::Stopped };
                    let run = vm.run.clone().zip(process).map(|(run, process)| VmRun { process, ..run });
                    store::vms::insert(transaction, &Vm { state, run, address: None, ..vm.clone() })?;
                }
                Ok(())
            })
            .await
            .unwrap();
        engine.shutdown().await;
    });
}

/// Processes that do nothing, each in the folder of a machine, as a hypervisor would be.
pub(crate) struct Sleepers(Vec<Child>);

impl Sleepers {
    pub(crate) fn start(data: &Path, count: usize) -> Self {
        let vms = sample::large(count, 1).vms;
        let start = |vm: &Vm| {
            let folder = data.join("vms").join(vm.id.as_str());
            std::fs::create_dir_all(&folder).unwrap();
            Command::new("sleep").arg("86400").current_dir(folder).spawn().unwrap()
        };
        Self(vms.iter().map(start).collect())
    }

    pub(crate) fn processes(&self) -> Vec<ProcessIdentity> {
        self.0.iter().map(|child| ProcessIdentity::of(i32::try_from(child.id()).unwrap()).unwrap()).collect()
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
