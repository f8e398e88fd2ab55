//! Which drivers a guest needs, and where they are: compiled in, a module, or missing.

use crate::kernel::configuration::{Built, Configuration};
use crate::kernel::modules::set::ModuleSet;

/// A driver: its module, its option in the configuration, and what fails without it.
struct Driver {
    module: &'static str,
    option: &'static str,
    effect: &'static str,
}

/// In the order in which they are loaded: the root disk first, it is what the guest waits for.
const DRIVERS: [Driver; 5] = [
    Driver {
        module: "virtio_pci",
        option: "VIRTIO_PCI",
        effect: "cannot reach the root disk, the network or the engine",
    },
    Driver { module: "virtio_blk", option: "VIRTIO_BLK", effect: "cannot reach the root disk" },
    Driver { module: "ext4", option: "EXT4_FS", effect: "cannot mount the root disk" },
    Driver {
        module: "virtio_console",
        option: "VIRTIO_CONSOLE",
        effect: "cannot talk to the engine, so no command can be run in the guest",
    },
    Driver { module: "virtio_net", option: "VIRTIO_NET", effect: "has no network" },
];

/// What to load, and what will not work.
#[derive(Debug, Default)]
pub(super) struct Drivers {
    /// Positions of modules, in the order in which to load them.
    pub load: Vec<usize>,
    pub warnings: Vec<String>,
}

pub(super) fn choose(set: &ModuleSet, configuration: Option<&Configuration>) -> Drivers {
    let wanted = DRIVERS.map(|driver| driver.module);
    let plan = set.plan(&wanted);
    let mut warnings = Vec::new();
    let mut unknown = Vec::new();
    for driver in DRIVERS.iter().filter(|driver| plan.missing.iter().any(|name| name == driver.module)) {
        let Driver { module, option, effect } = driver;
        match configuration.map(|configuration| configuration.option(option)) {
            Some(Built::In) => {}
            Some(Built::Module) => warnings.push(format!(
                "{effect}: its driver {module} is a module (CONFIG_{option}=m), and that module is missing"
            )),
            Some(Built::Not) => {
                warnings.push(format!("{effect}: the kernel was built without CONFIG_{option}"));
            }
            None if set.knows_builtin() => warnings
                .push(format!("{effect}: there is no driver {module}, neither compiled in nor as a module")),
            None => unknown.push(*module),
        }
    }
    if !unknown.is_empty() {
        warnings.push(format!(
            "whether these drivers are compiled in could not be checked: {}",
            unknown.join(", ")
        ));
    }
    Drivers { load: plan.order, warnings }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_driver_is_named_with_its_effect() {
        let builtin = "kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio_pci.ko\n";
        let drivers = choose(&ModuleSet::new(vec![], "", builtin), None);
        assert_eq!(drivers.warnings.len(), 3, "{:?}", drivers.warnings);
        assert!(drivers.warnings[0].starts_with("cannot reach the root disk: there is no driver virtio_blk"));
    }

    #[test]
    fn the_configuration_tells_where_the_lists_do_not() {
        let configuration = Configuration::parse(
            b"CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_BLK=m\nCONFIG_EXT4_FS=y\nCONFIG_VIRTIO_NET=y\n",
        );
        let drivers = choose(&ModuleSet::default(), configuration.as_ref());
        assert_eq!(drivers.warnings.len(), 2, "{:?}", drivers.warnings);
        assert!(drivers.warnings[0].contains("CONFIG_VIRTIO_BLK=m"));
        assert!(drivers.warnings[1].contains("without CONFIG_VIRTIO_CONSOLE"));
    }

    #[test]
    fn without_either_it_says_that_it_does_not_know() {
        let drivers = choose(&ModuleSet::default(), None);
        assert_eq!(drivers.warnings.len(), 1);
        assert!(drivers.warnings[0].contains("could not be checked"));
    }
}
