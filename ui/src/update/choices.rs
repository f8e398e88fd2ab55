//! Choices of one of a few: theme, order, what to copy.

use vmdeck_engine::image::record::Image;
use vmdeck_engine::snapshot::OperationView;
use vmdeck_engine::vm::record::Vm;

use super::open;
use crate::model::deck::KernelRow;
use crate::model::list::Listed;
use crate::model::overlay::{Choice, Chosen, Overlay, Picker};
use crate::model::{Model, View};
use crate::options::ThemeChoice;

pub(super) fn pick_theme(model: &mut Model) {
    let entries = ThemeChoice::ALL.into_iter().map(|choice| Choice {
        key: choice.as_str().chars().next(),
        label: choice.as_str().to_owned(),
        detail: match choice {
            ThemeChoice::Terminal => "the terminal's own 16 colours",
            ThemeChoice::Dark => "24-bit colours on dark",
            ThemeChoice::Light => "24-bit colours on light",
            ThemeChoice::Mono => "no colour",
        }
        .to_owned(),
        chosen: Chosen::Theme(choice),
    });
    let cursor = ThemeChoice::ALL.iter().position(|choice| *choice == model.theme.choice).unwrap_or(0);
    let picker = Picker { title: "Theme", entries: entries.collect(), cursor };
    open(model, Overlay::Picker(picker));
}

pub(super) fn pick_sort(model: &mut Model) {
    fn names<T: Listed>() -> Vec<&'static str> {
        T::SORTS.iter().map(|sort| sort.name).collect()
    }
    let names = match model.view {
        View::Vms => names::<Vm>(),
        View::Images => names::<Image>(),
        View::Kernels => names::<KernelRow>(),
        View::Operations => names::<OperationView>(),
        View::Log => return,
    };
    let Some(list) = model.list() else { return };
    let (sort, descending) = (list.sort, list.descending);
    let mut used = vec!['j', 'k'];
    let entries = names.into_iter().enumerate().map(|(index, name)| {
        let key = name.chars().find(|letter| letter.is_ascii_lowercase() && !used.contains(letter));
        used.extend(key);
        let detail = match (index == sort, descending) {
            (true, false) => "now; again turns it round",
            (true, true) => "now, reversed",
            (false, _) => "",
        };
        Choice { key, label: name.to_owned(), detail: detail.to_owned(), chosen: Chosen::Sort(index) }
    });
    let picker = Picker { title: "Sort by", entries: entries.collect(), cursor: sort };
    open(model, Overlay::Picker(picker));
}

pub(super) fn pick_copy(model: &mut Model) {
    let snapshot = &model.snapshot;
    let mut texts: Vec<(char, &str, String)> = Vec::new();
    match model.view {
        View::Vms => {
            let Some(vm) = model.vms.current::<Vm>(snapshot) else { return };
            texts.push(('n', "name", vm.name.clone()));
            texts.push(('i', "id", vm.id.to_string()));
            if let Some(address) = vm.address {
                texts.push(('a', "address", address.to_string()));
            }
            texts.push(('s', "ssh command", format!("vmdeck vm ssh {}", vm.name)));
            texts.push(('e', "exec command", format!("vmdeck vm exec {} -- ", vm.name)));
            texts.extend(serde_json::to_string_pretty(vm).ok().map(|json| ('o', "JSON", json)));
        }
        View::Images => {
            let Some(image) = model.images.current::<Image>(snapshot) else { return };
            texts.push(('n', "name", image.name.clone()));
            texts.push(('i', "id", image.id.to_string()));
            texts.extend(image.digest.clone().map(|digest| ('d', "digest", digest)));
            texts.extend(image.reference.clone().map(|reference| ('r', "reference", reference)));
            texts.push(('p', "path of the root file system", image.files.rootfs.display().to_string()));
            texts.extend(serde_json::to_string_pretty(image).ok().map(|json| ('o', "JSON", json)));
        }
        View::Kernels => {
            let Some(row) = model.kernels.current::<KernelRow>(snapshot) else { return };
            texts.push(('n', "name", row.name().to_owned()));
            texts.push(('s', "source", row.source().to_owned()));
            let json = match row {
                KernelRow::Here(kernel) => {
                    texts.push(('r', "release", kernel.release.clone()));
                    texts.push(('p', "path of vmlinux", kernel.vmlinux.display().to_string()));
                    serde_json::to_string_pretty(kernel)
                }
                KernelRow::Offered { item, .. } => serde_json::to_string_pretty(item),
            };
            texts.extend(json.ok().map(|json| ('o', "JSON", json)));
        }
        View::Operations => {
            let Some(view) = model.operations.current::<OperationView>(snapshot) else { return };
            texts.push(('i', "id", view.record.id.to_string()));
            texts.push(('t', "target", view.record.target.clone()));
            if let Some(error) = &view.record.error {
                texts.push(('e', "error", error.message.clone()));
            }
            texts.extend(serde_json::to_string_pretty(&view.record).ok().map(|json| ('o', "JSON", json)));
        }
        View::Log => return,
    }
    let entries = texts.into_iter().map(|(key, label, text)| Choice {
        key: Some(key),
        label: label.to_owned(),
        detail: text.lines().next().unwrap_or_default().to_owned(),
        chosen: Chosen::Copy { label: label.to_owned(), text },
    });
    let picker = Picker { title: "Copy", entries: entries.collect(), cursor: 0 };
    open(model, Overlay::Picker(picker));
}

/// How much is to be freed; what it would be is looked up before anything goes.
pub(super) fn pick_prune(model: &mut Model) {
    let choice = |key, label: &str, detail: &str, all| Choice {
        key: Some(key),
        label: label.to_owned(),
        detail: detail.to_owned(),
        chosen: Chosen::Prune { all },
    };
    let entries = vec![
        choice('l', "left-overs", "layers of no image, downloads given up", false),
        choice('a', "all", "cached layers and unused images", true),
    ];
    let picker = Picker { title: "See what can be freed", entries, cursor: 0 };
    open(model, Overlay::Picker(picker));
}
