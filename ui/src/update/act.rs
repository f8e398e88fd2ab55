//! Actions: whether each makes sense now, and what it does.

use vmdeck_engine::image::record::Image;
use vmdeck_engine::kernel::record::Kernel;
use vmdeck_engine::operation::record::OperationState;
use vmdeck_engine::snapshot::OperationView;
use vmdeck_engine::vm::record::{Vm, VmState};

use super::{open, refresh, say, selected_name, windows};
use crate::action::{Action, Impact};
use crate::layout::layout;
use crate::message::{Command, Effect};
use crate::model::form::NewVmForm;
use crate::model::input::TextInput;
use crate::model::list::Listed;
use crate::model::overlay::{Choice, Chosen, Confirm, Help, Overlay, Palette, Picker, Prompt, PromptKind};
use crate::model::toast::Level;
use crate::model::{Model, Pane, View, VmTab};
use crate::options::ThemeChoice;

/// Whether an action makes sense now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    Available,
    /// Not now; the reason, for a message.
    Unavailable(String),
    /// Never in this view.
    Elsewhere,
}

impl Availability {
    fn when(yes: bool, otherwise: &str) -> Self {
        if yes { Self::Available } else { Self::Unavailable(otherwise.to_owned()) }
    }
}

/// Whether an action makes sense now, and if not, why.
pub fn availability(model: &Model, action: Action) -> Availability {
    use Availability::{Available, Elsewhere, Unavailable};
    let info = action.info();
    if info.scope != crate::action::Scope::Global && !model.scopes().contains(&info.scope) {
        return Elsewhere;
    }
    if info.impact != Impact::Looks {
        if model.read_only {
            return Unavailable("this console only looks on (--read-only)".into());
        }
        if !model.engine_open {
            return Unavailable("the engine is still opening".into());
        }
    }
    let vms = |wanted: fn(VmState) -> bool, otherwise: &str| {
        let targets = model.vms.targets::<Vm>(&model.snapshot);
        if targets.is_empty() {
            return Unavailable("no machine is selected".into());
        }
        Availability::when(targets.iter().any(|vm| wanted(vm.state)), otherwise)
    };
    match action {
        Action::StartVm => vms(
            |state| matches!(state, VmState::Created | VmState::Stopped | VmState::Failed),
            "it runs already",
        ),
        Action::StopVm | Action::ForceOffVm | Action::RestartVm => {
            vms(VmState::has_process, "it does not run")
        }
        Action::DeleteVm => vms(|_| true, ""),
        Action::Shell => match model.vms.current::<Vm>(&model.snapshot) {
            None => Unavailable("no machine is selected".into()),
            Some(vm) => Availability::when(vm.state == VmState::Running, "a shell needs a running machine"),
        },
        Action::BootImage => Availability::when(
            model.images.current::<Image>(&model.snapshot).is_some(),
            "no image is selected",
        ),
        Action::DeleteImage => Availability::when(
            !model.images.targets::<Image>(&model.snapshot).is_empty(),
            "no image is selected",
        ),
        Action::DeleteKernel => {
            let any = !model.kernels.targets::<Kernel>(&model.snapshot).is_empty();
            Availability::when(any, "no kernel is selected")
        }
        Action::CancelOperation => {
            let targets = model.operations.targets::<OperationView>(&model.snapshot);
            let running = targets.iter().any(|view| view.record.state == OperationState::Running);
            Availability::when(running, "it has ended already")
        }
        Action::Open | Action::Mark | Action::MarkRange | Action::MarkInvert | Action::Yank => {
            let any = model.list().is_some_and(|list| !list.rows.is_empty());
            Availability::when(any, "there is nothing here")
        }
        Action::Filter | Action::Sort | Action::SortReverse => {
            Availability::when(model.list().is_some_and(|list| list.total > 0), "there is nothing here")
        }
        Action::NextTab | Action::PreviousTab if model.view != View::Vms => {
            Unavailable("no tabs here".into())
        }
        Action::NextPane | Action::PreviousPane => {
            let any = model.list().is_some_and(|list| !list.rows.is_empty());
            Availability::when(any, "there is only one pane here")
        }
        _ => Available,
    }
}

/// Does it, or says why not.
pub(super) fn act(model: &mut Model, action: Action, effects: &mut Vec<Effect>) {
    match availability(model, action) {
        Availability::Available => {}
        Availability::Unavailable(why) => {
            model.count = None;
            say(model, Level::Warning, format!("{}: {why}", action.info().title), None);
            return;
        }
        Availability::Elsewhere => {
            model.count = None;
            let scope = action.info().scope.title();
            say(model, Level::Warning, format!("{} works only in: {scope}", action.info().title), None);
            return;
        }
    }
    let count = model.count.take();
    match action {
        Action::Quit => quit(model, effects),
        Action::Help => open(model, Overlay::Help(Help::default())),
        Action::Palette => open(model, Overlay::Palette(Palette::default())),
        Action::Messages => open(model, Overlay::Messages { offset: 0 }),
        Action::Doctor => {
            effects.push(Effect::Examine);
            open(model, Overlay::Doctor { offset: 0 });
        }
        Action::Theme => pick_theme(model),
        Action::ViewVms => go(model, View::Vms),
        Action::ViewImages => go(model, View::Images),
        Action::ViewKernels => go(model, View::Kernels),
        Action::ViewOperations => go(model, View::Operations),
        Action::ViewLog => go(model, View::Log),
        Action::NextPane | Action::PreviousPane => {
            let other = if model.pane == Pane::List { Pane::Detail } else { Pane::List };
            model.pane =
                if model.list().is_some_and(|list| list.rows.is_empty()) { Pane::List } else { other };
        }
        Action::Back => back(model),
        Action::Mouse => {
            model.mouse = !model.mouse;
            effects.push(Effect::Mouse(model.mouse));
            let text = if model.mouse {
                "the console has the mouse"
            } else {
                "the terminal has the mouse: select text as usual"
            };
            say(model, Level::Information, text.into(), None);
        }
        Action::Redraw => effects.push(Effect::Redraw),
        Action::Suspend => effects.push(Effect::Suspend),
        Action::Down
        | Action::Up
        | Action::HalfPageDown
        | Action::HalfPageUp
        | Action::PageDown
        | Action::PageUp
        | Action::Top
        | Action::Bottom => scroll(model, action, count),
        Action::NextTab => tab(model, 1),
        Action::PreviousTab => tab(model, VmTab::ALL.len() - 1),
        Action::Open => model.pane = Pane::Detail,
        Action::Filter => {
            if let Some(list) = model.list_mut() {
                list.filter_input = Some(TextInput::new(list.filter.text.clone()));
            }
            model.pane = Pane::List;
        }
        Action::Mark => {
            let Model { snapshot, vms, images, kernels, operations, view, .. } = model;
            match view {
                View::Vms => vms.toggle_mark::<Vm>(snapshot),
                View::Images => images.toggle_mark::<Image>(snapshot),
                View::Kernels => kernels.toggle_mark::<Kernel>(snapshot),
                View::Operations => operations.toggle_mark::<OperationView>(snapshot),
                View::Log => {}
            }
            scroll(model, Action::Down, None);
        }
        Action::MarkRange => {
            let Model { snapshot, vms, images, kernels, operations, view, .. } = model;
            match view {
                View::Vms => vms.mark_range::<Vm>(snapshot),
                View::Images => images.mark_range::<Image>(snapshot),
                View::Kernels => kernels.mark_range::<Kernel>(snapshot),
                View::Operations => operations.mark_range::<OperationView>(snapshot),
                View::Log => {}
            }
        }
        Action::MarkInvert => {
            let Model { snapshot, vms, images, kernels, operations, view, .. } = model;
            match view {
                View::Vms => vms.invert_marks::<Vm>(snapshot),
                View::Images => images.invert_marks::<Image>(snapshot),
                View::Kernels => kernels.invert_marks::<Kernel>(snapshot),
                View::Operations => operations.invert_marks::<OperationView>(snapshot),
                View::Log => {}
            }
        }
        Action::Sort => pick_sort(model),
        Action::SortReverse => {
            if let Some(list) = model.list_mut() {
                list.descending = !list.descending;
                refresh(model);
            }
        }
        Action::Yank => pick_copy(model),
        Action::NewVm => {
            let form = NewVmForm::new(None, &model.snapshot);
            open(model, Overlay::NewVm(Box::new(form)));
        }
        Action::BootImage => {
            let image = selected_name(model);
            let form = NewVmForm::new(image.as_deref(), &model.snapshot);
            open(model, Overlay::NewVm(Box::new(form)));
        }
        Action::StartVm => {
            let startable =
                |vm: &Vm| matches!(vm.state, VmState::Created | VmState::Stopped | VmState::Failed);
            for name in vm_names(model, startable) {
                effects.push(Effect::Run(Command::StartVm { name }));
            }
            unmark(model);
        }
        Action::StopVm => {
            for name in vm_names(model, |vm| vm.state.has_process()) {
                effects.push(Effect::Run(Command::StopVm { name, force: false }));
            }
            unmark(model);
        }
        Action::ForceOffVm => {
            let names = vm_names(model, |vm| vm.state.has_process());
            let effects =
                names.iter().map(|name| Effect::Run(Command::StopVm { name: name.clone(), force: true }));
            let confirm = Confirm {
                title: format!("Force {} off?", machines(names.len())),
                effects: effects.collect(),
                consequences: vec![
                    "What the guest has not written to its disks yet is lost, as when the plug is pulled."
                        .into(),
                    "The machine, its disks and its settings stay.".into(),
                ],
                targets: names,
                verb: "Force off",
                on_verb: false,
            };
            open(model, Overlay::Confirm(confirm));
        }
        Action::RestartVm => {
            let names = vm_names(model, |vm| vm.state.has_process());
            let effects = names.iter().map(|name| Effect::Run(Command::RestartVm { name: name.clone() }));
            let confirm = Confirm {
                title: format!("Restart {}?", machines(names.len())),
                effects: effects.collect(),
                consequences: vec![
                    "Everything that runs in the guest ends; the guest is shut down in good order first."
                        .into(),
                    "Disks and settings stay.".into(),
                ],
                targets: names,
                verb: "Restart",
                on_verb: false,
            };
            open(model, Overlay::Confirm(confirm));
        }
        Action::DeleteVm => delete_vms(model),
        Action::Shell => {
            if let Some(name) = selected_name(model) {
                effects.push(Effect::Shell(name));
            }
        }
        Action::PullImage => prompt(model, PromptKind::PullImage),
        Action::PullKernel => prompt(model, PromptKind::PullKernel),
        Action::DeleteImage => delete_images(model),
        Action::DeleteKernel => delete_kernels(model),
        Action::CancelOperation => {
            let targets = model.operations.targets::<OperationView>(&model.snapshot);
            for view in targets.iter().filter(|view| view.record.state == OperationState::Running) {
                effects.push(Effect::Run(Command::CancelOperation { id: view.record.id.clone() }));
            }
            unmark(model);
        }
        Action::Follow => {
            model.log.follow = !model.log.follow;
        }
        Action::Wrap => model.log.wrap = !model.log.wrap,
    }
}

fn machines(count: usize) -> String {
    if count == 1 { "this machine".into() } else { format!("{count} machines") }
}

fn go(model: &mut Model, view: View) {
    if model.view != view {
        model.view = view;
        model.pane = Pane::List;
        model.detail_offset = 0;
    }
}

fn unmark(model: &mut Model) {
    if let Some(list) = model.list_mut() {
        list.marks.clear();
        list.range_from = None;
    }
}

/// One layer per press: number, marks, filter, pane. (Inputs and windows come before this.)
fn back(model: &mut Model) {
    let now = model.now;
    if model.messages.dismiss(now) {
        return;
    }
    if let Some(list) = model.list_mut() {
        if !list.marks.is_empty() || list.range_from.is_some() {
            unmark(model);
            return;
        }
        if model.pane == Pane::Detail {
            model.pane = Pane::List;
            return;
        }
        if let Some(list) = model.list_mut()
            && !list.filter.is_empty()
        {
            list.filter = crate::model::filter::Filter::default();
            refresh(model);
        }
    }
}

fn quit(model: &mut Model, effects: &mut Vec<Effect>) {
    let running = model.snapshot.operations.iter();
    let running = running.filter(|view| view.local && view.record.state == OperationState::Running);
    let targets: Vec<_> =
        running.map(|view| format!("{} {}", view.record.kind.as_str(), view.record.target)).collect();
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
        verb: "Cancel them and quit",
        effects: vec![Effect::Quit],
        on_verb: false,
    };
    open(model, Overlay::Confirm(confirm));
}

fn scroll(model: &mut Model, action: Action, count: Option<u32>) {
    let places = layout(model);
    if model.view == View::Log {
        windows::scroll_log(model, action, count, usize::from(places.lines.height));
        return;
    }
    if model.pane == Pane::Detail {
        let page = usize::from(places.lines.height);
        model.detail_offset = windows::scrolled(model.detail_offset, usize::MAX / 2, page, action, count);
        return;
    }
    let page = usize::from(places.rows.height);
    let Some(list) = model.list() else { return };
    let at = windows::scrolled(list.cursor, list.rows.len(), page, action, count);
    select(model, at);
}

/// Puts the cursor on a row of the view's list.
pub(super) fn select(model: &mut Model, at: usize) {
    let Model { snapshot, vms, images, kernels, operations, view, .. } = model;
    match view {
        View::Vms => vms.move_to::<Vm>(snapshot, at),
        View::Images => images.move_to::<Image>(snapshot, at),
        View::Kernels => kernels.move_to::<Kernel>(snapshot, at),
        View::Operations => operations.move_to::<OperationView>(snapshot, at),
        View::Log => {}
    }
    model.detail_offset = 0;
}

fn tab(model: &mut Model, by: usize) {
    let at = VmTab::ALL.iter().position(|tab| *tab == model.vm_tab).unwrap_or(0);
    model.vm_tab = VmTab::ALL[(at + by) % VmTab::ALL.len()];
    model.detail_offset = 0;
}

fn vm_names(model: &Model, wanted: impl Fn(&Vm) -> bool) -> Vec<String> {
    let targets = model.vms.targets::<Vm>(&model.snapshot);
    targets.into_iter().filter(|vm| wanted(vm)).map(|vm| vm.name.clone()).collect()
}

fn prompt(model: &mut Model, kind: PromptKind) {
    let input = match kind {
        PromptKind::PullImage => TextInput::default(),
        PromptKind::PullKernel => TextInput::new(vmdeck_engine::kernel::DEFAULT_SOURCE),
    };
    let name = (kind == PromptKind::PullImage).then(TextInput::default);
    open(model, Overlay::Prompt(Prompt { kind, input, name, on_name: false, error: None }));
}

fn delete_vms(model: &mut Model) {
    let targets = model.vms.targets::<Vm>(&model.snapshot);
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

/// Names of what uses one of the targets, for a message: what is in use cannot be deleted.
fn in_use<'a>(names: impl Iterator<Item = (&'a str, Vec<&'a str>)>) -> Option<String> {
    names
        .into_iter()
        .find(|(_, users)| !users.is_empty())
        .map(|(name, users)| format!("{name} is used by {}", users.join(", ")))
}

fn delete_images(model: &mut Model) {
    let targets = model.images.targets::<Image>(&model.snapshot);
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

fn delete_kernels(model: &mut Model) {
    let targets = model.kernels.targets::<Kernel>(&model.snapshot);
    let users = |kernel: &Kernel| {
        let users = model.snapshot.vms.iter().filter(|vm| vm.kernel == kernel.name);
        users.map(|vm| vm.name.as_str()).collect::<Vec<_>>()
    };
    if let Some(why) = in_use(targets.iter().map(|kernel| (kernel.name.as_str(), users(kernel)))) {
        say(model, Level::Warning, format!("delete: {why}"), Some("delete those machines first".into()));
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

fn pick_theme(model: &mut Model) {
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

fn pick_sort(model: &mut Model) {
    fn names<T: Listed>() -> Vec<&'static str> {
        T::SORTS.iter().map(|sort| sort.name).collect()
    }
    let names = match model.view {
        View::Vms => names::<Vm>(),
        View::Images => names::<Image>(),
        View::Kernels => names::<Kernel>(),
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

fn pick_copy(model: &mut Model) {
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
            let Some(kernel) = model.kernels.current::<Kernel>(snapshot) else { return };
            texts.push(('n', "name", kernel.name.clone()));
            texts.push(('r', "release", kernel.release.clone()));
            texts.push(('p', "path of vmlinux", kernel.vmlinux.display().to_string()));
            texts.extend(serde_json::to_string_pretty(kernel).ok().map(|json| ('o', "JSON", json)));
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
