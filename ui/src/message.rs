//! What comes in ([`Msg`]) and what goes out ([`Effect`]): the whole of the console's dealings with the
//! world, as data.

use std::sync::Arc;

use crossterm::event::MouseEvent;
use vmdeck_engine::clock::Milliseconds;
use vmdeck_engine::doctor;
use vmdeck_engine::error::ErrorReport;
use vmdeck_engine::identifier::{OperationId, VmId};
use vmdeck_engine::snapshot::Snapshot;
use vmdeck_engine::vm::CreateVm;
use vmdeck_engine::vm::record::Boot;

use crate::keymap::Key;
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
    /// A shell has given the terminal back.
    ShellEnded(String, Result<(), ErrorReport>),
    /// Something that the program's own log tells and the user should see.
    Notice(ErrorReport),
}

/// What the host has, told once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    pub cpus: u32,
    pub memory_bytes: u64,
}

/// Everything the console asks its runtime to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Quit,
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
    /// Hand the terminal to a shell in this machine.
    Shell(String),
    Run(Command),
}

/// What the engine is asked to do. Ends in a [`Msg::Outcome`].
#[derive(Clone, Debug)]
pub enum Command {
    PullImage { reference: String, name: Option<String> },
    DeleteImage { name: String },
    PullKernel { source: String },
    DeleteKernel { name: String },
    CreateVm { request: Box<CreateVm>, start: bool },
    StartVm { name: String },
    StopVm { name: String, force: bool },
    RestartVm { name: String },
    DeleteVm { name: String, force: bool },
    CancelOperation { id: OperationId },
}

impl Command {
    /// What it does, for a message: `start web`.
    pub fn describe(&self) -> String {
        match self {
            Self::PullImage { reference, .. } => format!("pull {reference}"),
            Self::DeleteImage { name } => format!("delete image {name}"),
            Self::PullKernel { source } => format!("pull kernel {source}"),
            Self::DeleteKernel { name } => format!("delete kernel {name}"),
            Self::CreateVm { request, .. } => {
                format!("create {}", request.name.as_deref().unwrap_or(&request.image))
            }
            Self::StartVm { name } => format!("start {name}"),
            Self::StopVm { name, force: false } => format!("stop {name}"),
            Self::StopVm { name, force: true } => format!("force off {name}"),
            Self::RestartVm { name } => format!("restart {name}"),
            Self::DeleteVm { name, .. } => format!("delete {name}"),
            Self::CancelOperation { id } => format!("cancel operation {id}"),
        }
    }
}

impl PartialEq for Command {
    fn eq(&self, other: &Self) -> bool {
        // Requests of the engine have no equality of their own; for tests, what is shown is enough.
        format!("{self:?}") == format!("{other:?}")
    }
}
