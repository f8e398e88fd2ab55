//! Everything a boot needs before there is a process: disks, initrd, settings, command line.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::guest::settings::{self, GuestLan, GuestNetwork, GuestSettings};
use crate::image::record::Image;
use crate::kernel::record::Kernel;
use crate::keys;
use crate::network::address::{self, AddressPool};
use crate::network::{self, bridge, host_name, lan};
use crate::vm::disk;
use crate::vm::layer::Base;
use crate::vm::record::{NetworkMode, Vm};
use crate::vmm::{Accelerator, Disk, LanAttachment, MachineSpec, NetworkAttachment, UserNetwork};

/// What a boot is made of, put together by [`prepare`].
#[derive(Debug)]
pub(in crate::vm) struct Prepared {
    disks: Vec<Disk>,
    initrd: PathBuf,
    network: Connection,
}

/// The machine's first network card, where it has one.
#[derive(Debug)]
enum Connection {
    None,
    /// The hypervisor's own network.
    User(UserNetwork),
    /// The bridge, with this address.
    Bridge(Ipv4Addr),
}

/// Makes the disks that are missing and writes this boot's initrd. Blocking, brief.
pub(in crate::vm) fn prepare(
    data: &DataDirectory,
    addresses: &AddressPool,
    directory: &Path,
    vm: &Vm,
    image: &Image,
    kernel: &Kernel,
    bases: &[Base],
) -> Result<Prepared> {
    let disks = disk::prepare(directory, &data.images(), image, kernel, &vm.settings, bases)?;
    let initrd = directory.join("initrd");
    let key = keys::installation_key(data)?;
    let network = connection(vm, addresses);
    let archive = settings::archive(&guest_settings(vm, image, kernel, &network, key.public_line))?;
    write_initrd(&initrd, &kernel.initrd, &archive)
        .map_err(|error| Error::io(format!("cannot write the initrd `{}`", initrd.display()), error))?;
    Ok(Prepared { disks, initrd, network })
}

/// The kernel's initrd with the machine's settings appended. The kernel wants each archive to begin
/// at a multiple of 4 bytes and skips zeros between them (Linux, buffer-format.rst).
fn write_initrd(path: &Path, base: &Path, archive: &[u8]) -> std::io::Result<()> {
    let _ = fs::remove_file(path);
    let length = fs::copy(base, path)?;
    // Environments hold secrets.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let mut file = File::options().append(true).open(path)?;
    let padding = length.next_multiple_of(4) - length;
    file.write_all(&[0; 3][..usize::try_from(padding).unwrap_or_default()])?;
    file.write_all(archive)
}

fn guest_settings(
    vm: &Vm,
    image: &Image,
    kernel: &Kernel,
    network: &Connection,
    key: String,
) -> GuestSettings {
    let config = &image.config;
    // As container engines do it: a command replaces the image's command, not its entrypoint.
    let command = if vm.settings.command.is_empty() { &config.command } else { &vm.settings.command };
    GuestSettings {
        hostname: host_name(&vm.name),
        network: guest_network(vm, network),
        lan: guest_lan(vm),
        authorized_keys: vec![key],
        work_disk: vm.settings.work_disk,
        modules_disk: kernel.modules.is_some(),
        entrypoint: config.entrypoint.iter().chain(command).cloned().collect(),
        environment: config.environment.iter().chain(&vm.settings.environment).cloned().collect(),
        working_directory: config.working_directory.clone(),
        user: config.user.clone(),
        stop_signal: config.stop_signal.clone(),
        time: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|time| u64::try_from(time.as_nanos()).ok())
            .unwrap_or_default(),
    }
}

fn guest_network(vm: &Vm, network: &Connection) -> Option<GuestNetwork> {
    let mac = network::mac(&vm.id);
    match network {
        Connection::None => None,
        Connection::User(network) => Some(GuestNetwork {
            mac,
            address: network.guest,
            prefix: network.prefix,
            gateway: network.gateway,
            resolvers: vec![network.resolver],
        }),
        Connection::Bridge(address) => Some(GuestNetwork {
            mac,
            address: *address,
            prefix: bridge::PREFIX,
            gateway: bridge::gateway(*address),
            resolvers: bridge::resolvers(),
        }),
    }
}

fn guest_lan(vm: &Vm) -> Option<GuestLan> {
    let address = vm.address.filter(|_| vm.settings.network == NetworkMode::Lan)?;
    Some(GuestLan {
        mac: lan::mac(&vm.id),
        address,
        prefix: lan::PREFIX,
        resolver: lan::resolver(address),
        domain: lan::DOMAIN.into(),
    })
}

fn connection(vm: &Vm, addresses: &AddressPool) -> Connection {
    let Some(address) = vm.address else { return Connection::None };
    let guest = match vm.settings.network {
        NetworkMode::None => None,
        NetworkMode::Bridge => return Connection::Bridge(address),
        NetworkMode::User | NetworkMode::Isolated => Some(address),
        // Its leased address is in the other network. Nobody but itself sees this one: any will do that
        // hides neither the other nor, as it is now, a network of the host.
        NetworkMode::Lan => addresses.allocate(&BTreeSet::from([address]), &address::host_routes()),
    };
    guest.map_or(Connection::None, |guest| Connection::User(network::user_network(guest)))
}

impl Prepared {
    /// What the hypervisor is to run; a machine on the bridge has a tap.
    pub(in crate::vm) fn spec(
        self,
        directory: &Path,
        vm: &Vm,
        kernel: &Kernel,
        accelerator: Accelerator,
        tap: Option<Arc<OwnedFd>>,
    ) -> MachineSpec {
        let mac = network::mac(&vm.id);
        let network = match (self.network, tap) {
            (_, Some(device)) => NetworkAttachment::Tap { device, mac },
            (Connection::User(network), None) => NetworkAttachment::User {
                network,
                isolated: vm.settings.network == NetworkMode::Isolated,
                mac,
                forwards: vm.settings.ports.clone(),
            },
            (Connection::None | Connection::Bridge(_), None) => NetworkAttachment::None,
        };
        MachineSpec {
            directory: directory.to_owned(),
            name: vm.name.clone(),
            accelerator,
            cpus: vm.settings.cpus,
            memory_mib: vm.settings.memory_mib,
            kernel: kernel.vmlinux.clone(),
            initrd: self.initrd,
            command_line: command_line(accelerator),
            disks: self.disks,
            network,
            lan: (vm.settings.network == NetworkMode::Lan).then(|| LanAttachment {
                mac: lan::mac(&vm.id),
                guest_socket: lan::GUEST_SOCKET,
                switch_socket: lan::SWITCH_SOCKET,
            }),
        }
    }
}

/// The kernel's command line (Linux, kernel-parameters.txt).
///
/// `panic=-1` restarts at once after a panic, which ends the hypervisor: it is told not to restart
/// guests. The rest saves time that a disposable machine has no use for: a second under TCG.
fn command_line(accelerator: Accelerator) -> String {
    let console = if cfg!(target_arch = "aarch64") { "ttyAMA0" } else { "ttyS0" };
    let mut line = format!(
        "console={console} rdinit=/init panic=-1 quiet mitigations=off cryptomgr.notests random.trust_cpu=on"
    );
    if accelerator == Accelerator::Tcg {
        // Translated, neither a random place of the kernel nor a check of its timer is worth its time.
        line.push_str(" nokaslr no_timer_check");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_follow_the_initrd_at_a_multiple_of_four() {
        let folder = tempfile::tempdir().unwrap();
        let (base, path) = (folder.path().join("base"), folder.path().join("initrd"));
        for length in 0..9 {
            fs::write(&base, vec![1; length]).unwrap();
            write_initrd(&path, &base, b"070701").unwrap();
            let written = fs::read(&path).unwrap();
            assert_eq!(written.len(), length.next_multiple_of(4) + 6);
            assert!(written.ends_with(b"070701"));
        }
    }
}
