//! What a machine runs with, and what it will have from its next start on.
//!
//! Settings go on record at once, and a machine that runs keeps what it was started with. A [`Vm`] says
//! what is so now; where its next start changes something, that stands beside it.

use serde::{Deserialize, Serialize};

use super::record::{Vm, VmSettings};

/// What counts for a whole run: the hypervisor, the guest's kernel or its init were given it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedWith {
    pub kernel: String,
    pub cpus: u32,
    pub memory_mib: u64,
    /// Grows when the disks of a machine that runs are made longer.
    pub disk_bytes: u64,
    pub command: Vec<String>,
    pub environment: Vec<String>,
    pub work_disk: bool,
}

/// What the next start of a machine that runs changes; never empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_disk: Option<bool>,
}

impl StartedWith {
    /// What a machine that does not run is started with now.
    pub(super) fn of(vm: &Vm) -> Self {
        let settings = vm.next_settings();
        Self {
            kernel: vm.next_kernel().to_owned(),
            cpus: settings.cpus,
            memory_mib: settings.memory_mib,
            disk_bytes: settings.disk_bytes,
            command: settings.command,
            environment: settings.environment,
            work_disk: settings.work_disk,
        }
    }
}

/// Puts what is so in place of what will be, which is returned where it differs.
fn exchange<T: PartialEq>(field: &mut T, now: T) -> Option<T> {
    let next = std::mem::replace(field, now);
    (next != *field).then_some(next)
}

impl Vm {
    /// Takes a machine as its row has it, with the settings of its next start. One of an older vmdeck
    /// does not say what it was started with: it is shown with what is on record.
    pub(crate) fn showing_its_run(mut self) -> Self {
        let Some(with) = self.run.as_ref().and_then(|run| run.started_with.clone()) else { return self };
        let settings = &mut self.settings;
        let pending = Pending {
            kernel: exchange(&mut self.kernel, with.kernel),
            cpus: exchange(&mut settings.cpus, with.cpus),
            memory_mib: exchange(&mut settings.memory_mib, with.memory_mib),
            disk_bytes: exchange(&mut settings.disk_bytes, with.disk_bytes),
            command: exchange(&mut settings.command, with.command),
            environment: exchange(&mut settings.environment, with.environment),
            work_disk: exchange(&mut settings.work_disk, with.work_disk),
        };
        self.pending = (pending != Pending::default()).then_some(pending);
        self
    }

    /// The settings of its next start, which are those on record.
    pub fn next_settings(&self) -> VmSettings {
        let mut settings = self.settings.clone();
        if let Some(pending) = self.pending.clone() {
            let Pending { kernel: _, cpus, memory_mib, disk_bytes, command, environment, work_disk } =
                pending;
            settings.cpus = cpus.unwrap_or(settings.cpus);
            settings.memory_mib = memory_mib.unwrap_or(settings.memory_mib);
            settings.disk_bytes = disk_bytes.unwrap_or(settings.disk_bytes);
            settings.command = command.unwrap_or(settings.command);
            settings.environment = environment.unwrap_or(settings.environment);
            settings.work_disk = work_disk.unwrap_or(settings.work_disk);
        }
        settings
    }

    /// Whether it runs with this kernel, or will.
    pub fn uses_kernel(&self, kernel: &str) -> bool {
        self.kernel == kernel || self.next_kernel() == kernel
    }

    /// The kernel of its next start.
    pub fn next_kernel(&self) -> &str {
        self.pending.as_ref().and_then(|pending| pending.kernel.as_deref()).unwrap_or(&self.kernel)
    }
}
