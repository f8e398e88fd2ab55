//! Questions before something is taken away.

use vmdeck_engine::identifier::list_names;
use vmdeck_engine::image::record::Image;
use vmdeck_engine::image::{PruneReport, PrunedKind};
use vmdeck_engine::kernel::record::Kernel;
use vmdeck_engine::vm::record::Vm;

use super::{open, say};
use crate::format::Bytes;
use crate::message::{Command, Effect};
use crate::model::Model;
use crate::model::deck::KernelRow;
use crate::model::overlay::{Confirm, Overlay};
use crate::model::toast::Level;

/// Ends the console, unless something would be cut short by it.
pub(super) fn quit(model: &mut Model, targets: Vec<String>, effects: &mut Vec<Effect>) {
    if targets.is_empty() {
        effects.push(Effect::Quit);
        return;
    }
    let confirm = Confirm {
        title: "Quit while operations run?".into(),
        targets,
        consequences: vec![
            "They run in this console and are cancelled; a pull goes on where it was when it is asked for again."
                .into(),
            "Machines that run go on running.".into(),
        ],
        verb: "Stop them and quit",
        effects: vec![Effect::Quit],
        on_verb: false,
    };
    open(model, Overlay::Confirm(confirm));
}

fn machines(count: usize) -> String {
    if count == 1 { "this machine".into() } else { format!("{count} machines") }
}

pub(super) fn vm_names(model: &Model, wanted: impl Fn(&Vm) -> bool) -> Vec<String> {
    let targets = model.vms.targets::<Vm>(&model.snapshot);
    targets.filter(|vm| wanted(vm)).map(|vm| vm.name.clone()).collect()
}

pub(super) fn delete_vms(model: &mut Model) {
    let targets: Vec<&Vm> = model.vms.targets(&model.snapshot).collect();
    let running = targets.iter().filter(|vm| vm.state.has_process()).count();
    let mut consequences = vec!["Their disks go with everything on them. This cannot be undone.".to_owned()];
    if running > 0 {
        consequences.push(format!("{running} of them run and are switched off at once."));
    }
    let mut images: Vec<&str> = targets.iter().map(|vm| vm.image.as_str()).collect();
    images.sort_unstable();
    images.dedup();
    consequences.push(format!("What they were made of stays: {}.", images.join(", ")));
    if targets.len() == 1 {
        consequences[0] = "Its disks go with everything on them. This cannot be undone.".into();
        if running > 0 {
            consequences[1] = "It runs and is switched off at once.".into();
        }
        if let Some(last) = consequences.last_mut() {
            *last = format!("The image it was made of stays: {}.", images.join(", "));
        }
    }
    let effects = targets
        .iter()
        .map(|vm| Effect::Run(Command::DeleteVm { name: vm.name.clone(), force: vm.state.has_process() }));
    let confirm = Confirm {
        title: format!("Delete {}?", machines(targets.len())),
        effects: effects.collect(),
        targets: targets
            .iter()
            .map(|vm| format!("{}  ({}, {})", vm.name, vm.state.as_str(), vm.image))
            .collect(),
        consequences,
        verb: "Delete",
        on_verb: false,
    };
    open(model, Overlay::Confirm(confirm));
}

pub(super) fn force_off(model: &mut Model) {
    let names = vm_names(model, |vm| vm.state.has_process());
    let effects = names.iter().map(|name| Effect::Run(Command::StopVm { name: name.clone(), force: true }));
    let confirm = Confirm {
        title: format!("Force {} off?", machines(names.len())),
        effects: effects.collect(),
        consequences: vec![
            "What the guest has not written to its disks yet is lost, as when the plug is pulled.".into(),
            match names.len() {
                1 => "The machine, its disks and its settings stay.".into(),
                _ => "The machines, their disks and their settings stay.".into(),
            },
        ],
        targets: names,
        verb: "Force off",
        on_verb: false,
    };
    open(model, Overlay::Confirm(confirm));
}

pub(super) fn restart(model: &mut Model) {
    let names = vm_names(model, |vm| vm.state.has_process());
    let effects = names.iter().map(|name| Effect::Run(Command::RestartVm { name: name.clone() }));
    let confirm = Confirm {
        title: format!("Restart {}?", machines(names.len())),
        effects: effects.collect(),
        consequences: vec![
            "Everything that runs in the guest ends; the guest is shut down in good order first.".into(),
            "Disks and settings stay.".into(),
        ],
        targets: names,
        verb: "Restart",
        on_verb: false,
    };
    open(model, Overlay::Confirm(confirm));
}

/// Names what a dry run found and asks whether it is to go.
pub(super) fn prune(model: &mut Model, all: bool, report: &PruneReport) {
    if report.items.is_empty() {
        let hint = (!all).then(|| "images that no machine uses go with \"all\"".to_owned());
        say(model, Level::Information, "there is nothing to free".into(), hint);
        return;
    }
    let targets = report.items.iter().map(|item| {
        let kind = match item.kind {
            PrunedKind::Image => "image",
            PrunedKind::Blob => "layer",
            PrunedKind::PartialBlob => "part of a layer",
        };
        // A digest is told by its first digits.
        let name: String = match item.name.strip_prefix("sha256:") {
            Some(digits) => digits.chars().take(12).collect(),
            None => item.name.chars().take(40).collect(),
        };
        format!("{:>9}  {kind} {name}", Bytes(item.bytes).to_string())
    });
    let images = report.items.iter().filter(|item| item.kind == PrunedKind::Image).count();
    let mut consequences = vec![match images {
        0 => "Images and machines stay; layers are downloaded again when they are needed.".to_owned(),
        1 => "An image goes that no machine uses; what machines use stays.".to_owned(),
        _ => format!("{images} images go that no machine uses; what machines use stays."),
    }];
    consequences.push("What came into use since this was looked up stays.".into());
    let confirm = Confirm {
        title: format!("Free {}?", Bytes(report.bytes)),
        targets: targets.collect(),
        consequences,
        verb: "Free",
        effects: vec![Effect::Run(Command::Prune { all })],
        on_verb: false,
    };
    open(model, Overlay::Confirm(confirm));
}

/// Names of what uses one of the targets, for a message: what is in use cannot be deleted.
fn in_use<'a>(names: impl Iterator<Item = (&'a str, Vec<&'a str>)>) -> Option<String> {
    names
        .into_iter()
        .find(|(_, users)| !users.is_empty())
        .map(|(name, users)| format!("{name} is used by {}", list_names(&users)))
}

pub(super) fn delete_images(model: &mut Model) {
    let targets: Vec<&Image> = model.images.targets(&model.snapshot).collect();
    let users = |image: &Image| {
        let users = model.snapshot.vms.iter().filter(|vm| vm.image_id == image.id);
        users.map(|vm| vm.name.as_str()).collect::<Vec<_>>()
    };
    if let Some(why) = in_use(targets.iter().map(|image| (image.name.as_str(), users(image)))) {
        say(model, Level::Warning, format!("delete: {why}"), Some("delete those machines first".into()));
        return;
    }
    let unmanaged = targets.iter().filter(|image| !image.managed).count();
    let mut consequences = Vec::new();
    if unmanaged < targets.len() {
        consequences
            .push("Files that no other image shares go; what was downloaded stays in the cache.".into());
    }
    if unmanaged > 0 {
        consequences.push("Registered files stay where they are; only the entry goes.".into());
    }
    let effects =
        targets.iter().map(|image| Effect::Run(Command::DeleteImage { name: image.name.clone() })).collect();
    let title = match targets.len() {
        1 => "Delete this image?".into(),
        count => format!("Delete {count} images?"),
    };
    let targets = targets.iter().map(|image| image.name.clone()).collect();
    let confirm = Confirm { title, targets, consequences, verb: "Delete", effects, on_verb: false };
    open(model, Overlay::Confirm(confirm));
}

pub(super) fn delete_kernels(model: &mut Model) {
    let targets = model.kernels.targets::<KernelRow>(&model.snapshot);
    let targets: Vec<&Kernel> = targets.filter_map(KernelRow::here).collect();
    let users = |kernel: &Kernel| {
        let users = model.snapshot.vms.iter().filter(|vm| vm.uses_kernel(&kernel.name));
        users.map(|vm| vm.name.as_str()).collect::<Vec<_>>()
    };
    if let Some(why) = in_use(targets.iter().map(|kernel| (kernel.name.as_str(), users(kernel)))) {
        say(
            model,
            Level::Warning,
            format!("delete: {why}"),
            Some("let them boot another (`vmdeck vm set NAME --kernel KERNEL`), or delete them first".into()),
        );
        return;
    }
    let effects = targets
        .iter()
        .map(|kernel| Effect::Run(Command::DeleteKernel { name: kernel.name.clone() }))
        .collect();
    let title = match targets.len() {
        1 => "Delete this kernel?".into(),
        count => format!("Delete {count} kernels?"),
    };
    let targets = targets.iter().map(|kernel| kernel.name.clone()).collect();
    let consequences = vec!["Its files go; it can be pulled again.".into()];
    let confirm = Confirm { title, targets, consequences, verb: "Delete", effects, on_verb: false };
    open(model, Overlay::Confirm(confirm));
}
