//! What comes in ([`Msg`]) and what goes out ([`Effect`]): the whole of the console's dealings with the
//! world, as data.

use std::path::PathBuf;
use std::sync::Arc;

use crossterm::event::MouseEvent;
use vmdeck_engine::clock::Milliseconds;
use vmdeck_engine::disk_usage::{DiskSpace, DiskUsage};
use vmdeck_engine::doctor;
use vmdeck_engine::error::ErrorReport;
use vmdeck_engine::identifier::{OperationId, VmId};
use vmdeck_engine::image::{CatalogEntry, ExportImage, PromoteImage, PruneReport, RegisterImage};
use vmdeck_engine::kernel::{CatalogItem, ImportKernel, PullKernel};
use vmdeck_engine::snapshot::Snapshot;
use vmdeck_engine::vm::record::Boot;
use vmdeck_engine::vm::record::Vm;
use vmdeck_engine::vm::{ChangeVm, CreateVm, HostUsage, VmFile, VmStats};

use crate::keymap::Key;
use crate::model::log::LogLine;
use crate::options::ThemeChoice;

/// Everything that can happen to the console.
#[derive(Clone, Debug)]
pub enum Msg {
    Key(Key),
    /// Pasted text: never keys.
    Paste(String),
    Mouse(MouseEvent),
    Resize(u16, u16),
    /// A deadline of the model's clock has come.
    Tick,
    /// The engine has opened.
    EngineOpened,
    Snapshot(Arc<Snapshot>),
    Host(HostFacts),
    Doctor(Result<doctor::Report, ErrorReport>),
    OperationLog(OperationId, Vec<(Milliseconds, String)>),
    Boots(VmId, Vec<Boot>),
    /// A command has ended.
    Outcome(Command, Result<String, ErrorReport>),
    /// What would be cut short if the console ended now; asked for by [`Effect::AskToQuit`].
    WouldEnd(Vec<String>),
    /// A machine has given the terminal back.
    HandoverEnded(Handover, Result<(), ErrorReport>),
    /// Short names of images that can be pulled.
    Catalog(Vec<CatalogEntry>),
    /// Kernels there are to be had, and how they stand.
    KernelCatalog(Result<Vec<CatalogItem>, ErrorReport>),
    /// What freeing would free, to be asked about.
    PrunePreview {
        all: bool,
        report: Result<PruneReport, ErrorReport>,
    },
    /// The log was written into a file, or not.
    Saved(PathBuf, Result<(), ErrorReport>),
    /// What a machine's console printed, in pieces; `anew` when it does not follow what came before.
    ConsoleOutput {
        vm: VmId,
        anew: bool,
        bytes: Vec<u8>,
    },
    /// What is typed reaches the machine's console now, or does not.
    ConsoleAttached {
        vm: VmId,
        result: Result<(), ErrorReport>,
    },
    /// The console's other end is gone.
    ConsoleDetached(VmId),
    /// What hypervisors use of the host.
    Usage(Vec<(VmId, HostUsage)>),
    /// What a guest tells of itself.
    Guest(VmId, Box<Result<VmStats, ErrorReport>>),
    Files(VmId, Vec<VmFile>),
    Space(DiskSpace, DiskUsage),
    /// Lines of the program's own log.
    Events(Vec<LogLine>),
    /// Something that the program's own log tells and the user should see.
    Notice(ErrorReport),
}

/// Who gets the terminal for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handover {
    /// A shell in the machine of this name.
    Shell(String),
    /// Its serial console.
    Console(String),
}

/// What the host has, told once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    pub cpus: u32,
    pub memory_bytes: u64,
}

/// Everything the console asks its runtime to do.
#[derive(Clone, Debug)]
pub enum Effect {
    Quit,
    /// Tell what runs in this console and ends with it.
    AskToQuit,
    Suspend,
    /// Paint the whole screen anew.
    Redraw,
    Mouse(bool),
    Theme(ThemeChoice),
    /// To the clipboard, by the terminal (OSC 52).
    Copy(String),
    Examine,
    LoadOperationLog(OperationId),
    LoadBoots(String, VmId),
    LoadCatalog,
    LoadKernelCatalog,
    /// Tell what a machine's console prints until something else is asked for.
    WatchConsole(Box<Vm>),
    UnwatchConsole,
    /// Connect to the console that is watched, or let it go.
    AttachConsole(String),
    DetachConsole,
    /// To the console that is attached.
    TypeConsole(Vec<u8>),
    /// Hand the terminal to this machine's serial console.
    FullConsole(String),
    /// Look at what the hypervisors of these machines use.
    MeasureUsage(Vec<Vm>),
    /// Ask the guest of the machine of this name.
    MeasureGuest(String, VmId),
    LoadFiles(Box<Vm>),
    /// Look at what the data directory takes and what is free.
    MeasureSpace,
    /// Find out what freeing would free.
    PreviewPrune {
        all: bool,
    },
    /// Write a text into a file that must not be there yet.
    SaveLog(PathBuf, String),
    /// Hand the terminal to a shell in this machine.
    Shell(String),
    Run(Command),
}

/// What the engine is asked to do. Ends in a [`Msg::Outcome`].
#[derive(Clone, Debug)]
pub enum Command {
    PullImage {
        reference: String,
        name: Option<String>,
    },
    /// Pulls an image again, and takes what its reference leads to by now.
    UpdateImage {
        name: String,
        reference: String,
    },
    DeleteImage {
        name: String,
    },
    RegisterImage(Box<RegisterImage>),
    PromoteImage(PromoteImage),
    PromoteVm {
        name: String,
        new_name: String,
    },
    ExportImage(ExportImage),
    Prune {
        all: bool,
    },
    PullKernel(PullKernel),
    ImportKernel(ImportKernel),
    DeleteKernel {
        name: String,
    },
    CreateVm {
        request: Box<CreateVm>,
        start: bool,
    },
    StartVm {
        name: String,
    },
    StopVm {
        name: String,
        force: bool,
    },
    RestartVm {
        name: String,
    },
    DeleteVm {
        name: String,
        force: bool,
    },
    /// Let it stand still, or go on.
    PauseVm {
        name: String,
        pause: bool,
    },
    ChangeVm {
        name: String,
        change: Box<ChangeVm>,
    },
    CancelOperation {
        id: OperationId,
    },
}

impl Command {
    /// What it does, for a message: `start web`.
    pub fn describe(&self) -> String {
        match self {
            Self::PullImage { reference, .. } => format!("pull {reference}"),
            Self::UpdateImage { name, .. } => format!("update image {name}"),
            Self::DeleteImage { name } => format!("delete image {name}"),
            Self::RegisterImage(request) => format!("register {}", request.name),
            Self::PromoteImage(request) => match &request.new_name {
                Some(name) => format!("promote {} as {name}", request.name),
                None => format!("promote {}", request.name),
            },
            Self::PromoteVm { name, new_name } => format!("promote machine {name} as {new_name}"),
            Self::ExportImage(request) => format!("export {}", request.name),
            Self::Prune { .. } => "prune".into(),
            Self::PullKernel(request) => format!("pull kernel {}", request.source),
            Self::ImportKernel(request) => format!("import kernel {}", request.from),
            Self::DeleteKernel { name } => format!("delete kernel {name}"),
            Self::CreateVm { request, .. } => {
                format!("create {}", request.name.as_deref().unwrap_or(&request.image))
            }
            Self::StartVm { name } => format!("start {name}"),
            Self::StopVm { name, force: false } => format!("stop {name}"),
            Self::StopVm { name, force: true } => format!("force off {name}"),
            Self::RestartVm { name } => format!("restart {name}"),
            Self::DeleteVm { name, .. } => format!("delete {name}"),
            Self::PauseVm { name, pause: true } => format!("pause {name}"),
            Self::PauseVm { name, pause: false } => format!("resume {name}"),
            Self::ChangeVm { name, .. } => format!("change {name}"),
            Self::CancelOperation { id } => format!("cancel operation {id}"),
        }
    }
}
