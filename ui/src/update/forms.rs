//! Forms: keys in them, and what is asked of the engine when they are sent.

use crossterm::event::KeyCode;
use vmdeck_engine::identifier::check_name;
use vmdeck_engine::image::{ExportFormat, ExportImage, ImageReference, PromoteImage, RegisterImage};
use vmdeck_engine::kernel::{ImportKernel, ImportSource, PullKernel};
use vmdeck_engine::vm::ChangeVm;
use vmdeck_engine::vm::record::{PortForward, Vm};

use super::windows::Next;
use crate::keymap::Key;
use crate::message::{Command, Effect, HostFacts};
use crate::model::Model;
use crate::model::ask::{Ask, AskKind, Suggestion, of_catalog, of_kernels, suggestions};
use crate::model::form::{Field, NewVmForm, cpus, disk_gib, memory_mib, ports};

/// The first mistake: its field and what is wrong.
type Mistake = (usize, String);

/// What a key asks of a form, whichever it is.
enum Asked {
    Close,
    /// Another of the suggestions, or none of them.
    Suggestion(Option<usize>),
    /// The next field, or the one before.
    Field(isize),
    Send,
    /// Another of the few that a field offers.
    Choice(isize),
    /// The text of the field.
    Text,
}

/// `chosen` is the suggestion under the cursor, of so many `offered`; `few` says that the field offers
/// a few to choose from.
fn asked(key: Key, chosen: Option<usize>, offered: usize, few: bool) -> Asked {
    match (key.code, chosen) {
        (KeyCode::Esc, _) => Asked::Close,
        (KeyCode::Down, None) if offered > 0 => Asked::Suggestion(Some(0)),
        (KeyCode::Down, Some(at)) => Asked::Suggestion(Some((at + 1).min(offered.saturating_sub(1)))),
        (KeyCode::Up, Some(at)) => Asked::Suggestion(at.checked_sub(1)),
        (KeyCode::Tab | KeyCode::Down, _) => Asked::Field(1),
        (KeyCode::BackTab | KeyCode::Up, _) => Asked::Field(-1),
        (KeyCode::Enter, _) => Asked::Send,
        (KeyCode::Left, _) if few => Asked::Choice(-1),
        (KeyCode::Right | KeyCode::Char(' '), _) if few => Asked::Choice(1),
        _ => Asked::Text,
    }
}

pub(super) fn ask_key(model: &Model, ask: &mut Ask, key: Key) -> Next {
    let asked = asked(key, ask.suggestion, ask_suggestions(model, ask).len(), ask.offers_few());
    if matches!(asked, Asked::Field(1) | Asked::Send) {
        accept(model, ask);
    }
    match asked {
        Asked::Close => return Next::Close,
        Asked::Suggestion(at) => ask.suggestion = at,
        Asked::Field(by) => ask.move_focus(by),
        Asked::Send => match submit(model, ask) {
            Ok(effect) => return Next::Then(vec![effect]),
            Err((field, problem)) => (ask.focus, ask.error) = (field, Some((field, problem))),
        },
        Asked::Choice(by) => ask.step(by),
        Asked::Text => {
            if ask.input_mut().is_some_and(|input| input.key(key)) {
                (ask.error, ask.suggestion) = (None, None);
            }
        }
    }
    Next::Stay
}

/// What the field with the focus may mean.
pub fn ask_suggestions<'a>(model: &'a Model, ask: &Ask) -> Vec<Suggestion<'a>> {
    match (&ask.kind, ask.focus) {
        (AskKind::PullImage, 0) => suggestions(of_catalog(&model.catalog), ask.value(0)),
        (AskKind::PullKernel, 0) => suggestions(of_kernels(model.snapshot.kernel_catalog()), ask.value(0)),
        _ => Vec::new(),
    }
}

fn accept(model: &Model, ask: &mut Ask) {
    let name =
        ask.suggestion.take().and_then(|at| Some(ask_suggestions(model, ask).get(at)?.name.to_owned()));
    if let (Some(name), Some(input)) = (name, ask.input_mut()) {
        input.set(name);
    }
}

fn submit(model: &Model, ask: &Ask) -> Result<Effect, Mistake> {
    let needed = |at: usize| {
        let label = ask.fields.get(at).map_or("", |field| field.label).to_lowercase();
        ask.given(at).ok_or_else(|| (at, format!("{label}: nothing was typed")))
    };
    let path = |at: usize| ask.given(at).map(|text| model.path(&text));
    let new_image = |at: usize, name: Option<String>| match name {
        Some(name) => image_name(model, &name).map(|()| Some(name)).map_err(|problem| (at, problem)),
        None => Ok(None),
    };
    Ok(Effect::Run(match &ask.kind {
        AskKind::PullImage => {
            let reference = needed(0)?;
            // What is wrong with it on its face is said where it was typed.
            if !model.catalog.iter().any(|entry| entry.name == reference) {
                let why = |error: vmdeck_engine::Error| match std::error::Error::source(&error) {
                    Some(cause) => cause.to_string(),
                    None => error.to_string(),
                };
                reference.parse::<ImageReference>().map_err(|error| (0, why(error)))?;
            }
            Command::PullImage { reference, name: new_image(1, ask.given(1))? }
        }
        AskKind::RegisterImage => Command::RegisterImage(Box::new(RegisterImage {
            name: new_image(0, Some(needed(0)?))?.unwrap_or_default(),
            rootfs: model.path(&needed(1)?),
            work_seed: path(2),
            kernel: path(3),
            initrd: path(4),
            modules: path(5),
            ..RegisterImage::default()
        })),
        AskKind::PromoteImage(image) => {
            let name = ask.given(0).filter(|name| name != image);
            Command::PromoteImage(PromoteImage { name: image.clone(), new_name: new_image(0, name)? })
        }
        AskKind::PromoteVm(vm) => {
            let name = new_image(0, Some(needed(0)?))?.unwrap_or_default();
            Command::PromoteVm { name: vm.clone(), new_name: name }
        }
        AskKind::ExportImage(image) => {
            let format =
                if ask.value(1) == "bundle" { ExportFormat::Bundle } else { ExportFormat::OciArchive };
            let output = model.path(&needed(0)?);
            Command::ExportImage(ExportImage { name: image.clone(), output, format })
        }
        AskKind::PullKernel => {
            Command::PullKernel(PullKernel { source: needed(0)?, name: ask.given(1), plain_http: false })
        }
        AskKind::ImportKernel => {
            let from = match (ask.given(0), path(1)) {
                (None, None) => ImportSource::Host,
                (None, Some(_)) => return Err((0, "modules of which kernel?".into())),
                (Some(deb), None) if deb.ends_with(".deb") => ImportSource::Deb(model.path(&deb)),
                (Some(file), modules) => ImportSource::Files { vmlinuz: model.path(&file), modules },
            };
            Command::ImportKernel(ImportKernel { from, name: ask.given(2) })
        }
        AskKind::EditVm { id, .. } => {
            let vm = model.snapshot.vms.iter().find(|vm| vm.id == *id);
            let vm = vm.ok_or_else(|| (0, "the machine is gone".to_owned()))?;
            Command::ChangeVm { name: vm.name.clone(), change: Box::new(change(vm, ask, model.host)?) }
        }
        AskKind::SaveLog => {
            return Ok(Effect::SaveLog(model.path(&needed(0)?), model.log.text(&model.time_zone)));
        }
    }))
}

fn image_name(model: &Model, name: &str) -> Result<(), String> {
    check_name("an image", name)
        .map_err(|error| error.hint().map_or_else(|| error.to_string(), str::to_owned))?;
    if model.snapshot.images.iter().any(|image| image.name == name) {
        return Err(format!("there is already an image named `{name}`"));
    }
    Ok(())
}

/// What differs from the machine's settings.
fn change(vm: &Vm, ask: &Ask, host: HostFacts) -> Result<ChangeVm, Mistake> {
    let settings = vm.next_settings();
    let cpus = cpus(ask.value(0), host).map_err(|problem| (0, problem))?;
    let memory = memory_mib(ask.value(1), host).map_err(|problem| (1, problem))?;
    let disk = disk_gib(ask.value(2)).map_err(|problem| (2, problem))?;
    let wanted = ports(ask.value(3)).map_err(|problem| (3, problem))?;
    let has = settings.disk_bytes.div_ceil(1 << 30);
    if disk.is_some_and(|disk| disk < has) {
        return Err((2, format!("it is {has}G already, and disks only grow")));
    }
    let without = |from: &[PortForward], other: &[PortForward]| {
        from.iter().filter(|port| !other.contains(port)).cloned().collect()
    };
    let change = ChangeVm {
        cpus: cpus.filter(|cpus| *cpus != settings.cpus),
        memory_mib: memory.filter(|memory| *memory != settings.memory_mib),
        disk_gib: disk.filter(|disk| *disk != has),
        add_ports: without(&wanted, &settings.ports),
        remove_ports: without(&settings.ports, &wanted),
        ..ChangeVm::default()
    };
    let nothing = change.cpus.is_none()
        && change.memory_mib.is_none()
        && change.disk_gib.is_none()
        && change.add_ports.is_empty()
        && change.remove_ports.is_empty();
    if nothing { Err((ask.focus, "nothing was changed".into())) } else { Ok(change) }
}

pub(super) fn new_vm_key(model: &Model, form: &mut NewVmForm, key: Key) -> Next {
    let offered = new_vm_suggestions(model, form).len();
    let asked = asked(key, form.suggestion, offered, form.focus.is_choice());
    if matches!(asked, Asked::Field(1) | Asked::Send) {
        accept_image(model, form);
    }
    match asked {
        Asked::Close => return Next::Close,
        Asked::Suggestion(at) => form.suggestion = at,
        Asked::Field(by) => form.move_focus(by),
        Asked::Send => match form.request(&model.snapshot, model.host) {
            Ok(request) => {
                let command = Command::CreateVm { request: Box::new(request), start: form.start };
                return Next::Then(vec![Effect::Run(command)]);
            }
            Err((field, problem)) => (form.focus, form.error) = (field, Some((field, problem))),
        },
        Asked::Choice(by) => form.step(by, model.snapshot.kernels.len()),
        Asked::Text => {
            let focus = form.focus;
            if form.input_mut(focus).is_some_and(|input| input.key(key)) {
                (form.error, form.suggestion) = (None, None);
            }
        }
    }
    Next::Stay
}

/// What the image field may mean: images that are here, then the catalog.
pub fn new_vm_suggestions<'a>(model: &'a Model, form: &NewVmForm) -> Vec<Suggestion<'a>> {
    if form.focus != Field::Image || form.local_image(&model.snapshot).is_some() {
        return Vec::new();
    }
    let images = model.snapshot.images.iter();
    let local = images
        .map(|image| Suggestion { name: &image.name, detail: image.reference.as_deref().unwrap_or("") });
    let local_name = |name: &str| model.snapshot.images.iter().any(|image| image.name == name);
    let catalog = of_catalog(&model.catalog).filter(|entry| !local_name(entry.name));
    suggestions(local.chain(catalog), form.image.text())
}

fn accept_image(model: &Model, form: &mut NewVmForm) {
    let name =
        form.suggestion.take().and_then(|at| Some(new_vm_suggestions(model, form).get(at)?.name.to_owned()));
    if let Some(name) = name {
        form.image.set(name);
    }
}
