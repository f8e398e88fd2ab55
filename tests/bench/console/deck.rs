//! Data directories with machines and images on record.

use std::path::Path;
use std::process::Child;

use vmdeck_engine::Engine;
use vmdeck_engine::process::ProcessIdentity;
use vmdeck_engine::store::{self, Store};
use vmdeck_engine::vm::record::{Vm, VmRun, VmState};

use crate::{machine, sample};

/// Puts machines that do not run and as many images on record.
pub(crate) fn fill(data: &Path, count: usize) {
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
        store
            .write_relaxed(move |transaction| {
                for kernel in snapshot.kernels.iter() {
                    store::kernels::insert(transaction, &root, kernel)?;
                }
                for image in snapshot.images.iter() {
                    store::images::insert(transaction, &root, image)?;
                }
                for vm in snapshot.vms.iter() {
                    let stopped = Vm { state: VmState::Stopped, run: None, address: None, ..vm.clone() };
                    store::vms::insert(transaction, &stopped)?;
                }
                Ok(())
            })
            .await
            .unwrap();
        engine.shutdown().await;
    });
}

/// Processes that work a little, each in the folder of a machine, as a hypervisor would be.
pub(crate) struct Machines(Vec<Child>);

impl Machines {
    /// Has so many of the machines on record run in such processes. What has a folder and no record
    /// is cleared away when an engine opens, so the record comes first.
    pub(crate) fn start(data: &Path, count: usize) -> Self {
        fill(data, count);
        let (mut machines, mut running) = (Self(Vec::new()), Vec::new());
        for (number, vm) in (0..).zip(sample::large(count, 1).vms.iter()) {
            let folder = data.join("vms").join(vm.id.as_str());
            std::fs::create_dir_all(&folder).unwrap();
            let child = machine::command(number).current_dir(folder).spawn().unwrap();
            let process = ProcessIdentity::of(i32::try_from(child.id()).unwrap()).unwrap();
            running.push((vm.id.clone(), VmRun { process, ..vm.run.clone().unwrap() }));
            machines.0.push(child);
        }
        let store = Store::open(&data.join("vmdeck.db")).unwrap();
        let record = store.write_relaxed(move |transaction| {
            for (id, run) in &running {
                store::vms::set_state(transaction, id, VmState::Running, Some(run), None)?;
            }
            Ok(())
        });
        tokio::runtime::Runtime::new().unwrap().block_on(record).unwrap();
        machines
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
