//! Everything a user can ask of the console, in one table.
//!
//! Key bindings, help, palette, command bar and the printed key table are all made from [`ACTIONS`].

use crate::model::View;

/// What a user can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    Quit,
    Help,
    Palette,
    ViewVms,
    ViewImages,
    ViewKernels,
    ViewOperations,
    ViewLog,
    NextPane,
    PreviousPane,
    Back,
    Messages,
    Theme,
    Mouse,
    Doctor,
    Redraw,
    Suspend,
    Zoom,
    Down,
    Up,
    HalfPageDown,
    HalfPageUp,
    PageDown,
    PageUp,
    Top,
    Bottom,
    Open,
    NextTab,
    PreviousTab,
    Filter,
    Mark,
    MarkRange,
    MarkInvert,
    Sort,
    SortReverse,
    Yank,
    NewVm,
    StartVm,
    StopVm,
    ForceOffVm,
    RestartVm,
    DeleteVm,
    EditVm,
    PauseVm,
    PromoteVm,
    Console,
    FullConsole,
    Shell,
    PullImage,
    UpdateImage,
    RegisterImage,
    PromoteImage,
    ExportImage,
    PruneImages,
    BootImage,
    DeleteImage,
    PullKernel,
    ImportKernel,
    DeleteKernel,
    CancelOperation,
    RetryOperation,
    LogFilter,
    LogLevel,
    SaveLog,
    ConsoleType,
    ConsoleSearch,
    ConsoleNext,
    ConsolePrevious,
    Follow,
    Wrap,
}

/// Where an action can be bound. A key is looked up in the scope of the view first, then in `list` or
/// `text`, then in `global`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    Global,
    List,
    Vms,
    Images,
    Kernels,
    Operations,
    Console,
    Text,
}

impl Scope {
    pub const ALL: [Self; 8] = [
        Self::Vms,
        Self::Images,
        Self::Kernels,
        Self::Operations,
        Self::Console,
        Self::Text,
        Self::List,
        Self::Global,
    ];

    /// The one view that it is about, where there is one.
    pub fn view(self) -> Option<View> {
        match self {
            Self::Vms => Some(View::Vms),
            Self::Images => Some(View::Images),
            Self::Kernels => Some(View::Kernels),
            Self::Operations => Some(View::Operations),
            Self::Global | Self::List | Self::Console | Self::Text => None,
        }
    }

    /// Name of its table in the file of key bindings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::List => "list",
            Self::Vms => "vms",
            Self::Images => "images",
            Self::Kernels => "kernels",
            Self::Operations => "operations",
            Self::Console => "console",
            Self::Text => "text",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Global => "everywhere",
            Self::List => "in lists",
            Self::Vms => "machines",
            Self::Images => "images",
            Self::Kernels => "kernels",
            Self::Operations => "operations",
            Self::Console => "in a console",
            Self::Text => "in texts",
        }
    }
}

/// What an action does to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Impact {
    /// Only to the screen.
    Looks,
    /// Changes something; left out of a read-only console.
    Changes,
    /// Takes something away; asks first.
    Destroys,
}

/// One row of the table.
#[derive(Debug)]
pub struct ActionInfo {
    pub action: Action,
    pub scope: Scope,
    /// Name in the file of key bindings and in the palette.
    pub name: &'static str,
    /// A word or two for the command bar.
    pub title: &'static str,
    /// One sentence for help.
    pub help: &'static str,
    pub impact: Impact,
    /// Place in the command bar, lowest first and last to be dropped; 0: not shown there.
    pub rank: u8,
}

const fn row(
    scope: Scope,
    action: Action,
    name: &'static str,
    title: &'static str,
    help: &'static str,
    impact: Impact,
    rank: u8,
) -> ActionInfo {
    ActionInfo { action, scope, name, title, help, impact, rank }
}

use Impact::{Changes, Destroys, Looks};
use Scope::{Console, Global, Images, Kernels, List, Operations, Text, Vms};

/// All actions, in the order help shows them.
#[rustfmt::skip]
pub const ACTIONS: &[ActionInfo] = &[
    row(Vms, Action::NewVm, "new-vm", "new", "Make a machine from an image or a reference", Changes, 1),
    row(Vms, Action::StartVm, "start", "start", "Boot the selected or marked machines", Changes, 2),
    row(Vms, Action::Shell, "shell", "shell", "Open a shell in the machine; ctrl-] comes back", Changes, 3),
    row(Vms, Action::Console, "console", "console", "The machine's serial console beside the list; ctrl-] leaves it", Looks, 5),
    row(Vms, Action::FullConsole, "full-console", "full console", "Hand the terminal to the serial console; ctrl-] comes back", Changes, 12),
    row(Vms, Action::StopVm, "stop", "stop", "Shut the machines down in good order", Changes, 4),
    row(Vms, Action::EditVm, "edit", "edit", "Change CPUs, memory, disk and ports", Changes, 9),
    row(Vms, Action::PauseVm, "pause", "pause", "Let the machines stand still in memory, or go on", Changes, 11),
    row(Vms, Action::PromoteVm, "promote-vm", "to image", "Make an image of a stopped machine's disks", Changes, 10),
    row(Vms, Action::ForceOffVm, "force-off", "force off", "Switch the machines off at once, as by pulling the plug", Destroys, 8),
    row(Vms, Action::RestartVm, "restart", "restart", "Shut the machines down and boot them again", Destroys, 7),
    row(Vms, Action::DeleteVm, "delete-vm", "delete", "Delete the machines with their disks", Destroys, 6),

    row(Images, Action::PullImage, "pull-image", "pull", "Get an image from a registry, a folder or an archive", Changes, 1),
    row(Images, Action::UpdateImage, "update-image", "update", "Pull the images again from where they came, and replace what has changed there", Changes, 8),
    row(Images, Action::BootImage, "boot-image", "boot", "Make a machine from the selected image", Changes, 2),
    row(Images, Action::PromoteImage, "promote-image", "promote", "Copy a registered image into vmdeck's own data", Changes, 3),
    row(Images, Action::RegisterImage, "register-image", "register", "Record files of this host as an image, untouched", Changes, 4),
    row(Images, Action::ExportImage, "export-image", "export", "Write the image into a file: a bundle or an OCI archive", Changes, 5),
    row(Images, Action::PruneImages, "prune-images", "prune", "See what can be freed, and free it", Destroys, 7),
    row(Images, Action::DeleteImage, "delete-image", "delete", "Delete the images that no machine uses", Destroys, 6),

    row(Kernels, Action::PullKernel, "pull-kernel", "pull", "Get a kernel from a package archive", Changes, 1),
    row(Kernels, Action::ImportKernel, "import-kernel", "import", "Make a kernel of files of this host", Changes, 2),
    row(Kernels, Action::DeleteKernel, "delete-kernel", "delete", "Delete the kernels that no machine uses", Destroys, 6),

    row(Operations, Action::CancelOperation, "cancel", "cancel", "Cancel the selected or marked operations", Changes, 1),

    row(Operations, Action::RetryOperation, "retry", "retry", "Do again what failed or was cancelled", Changes, 2),

    row(Console, Action::ConsoleType, "type", "type into it", "Give the keys to the machine; ctrl-] takes them back", Changes, 1),
    row(Console, Action::ConsoleSearch, "console-search", "search", "Search what the console printed, upwards", Looks, 2),
    row(Console, Action::ConsolePrevious, "console-previous", "next match", "The next match further up", Looks, 3),
    row(Console, Action::ConsoleNext, "console-next", "match below", "The next match further down", Looks, 0),

    row(Text, Action::LogFilter, "log-filter", "filter", "Show only the lines with these words, !word for those without", Looks, 3),
    row(Text, Action::LogLevel, "log-level", "level", "Only warnings, only errors, every detail, or as usual", Looks, 4),
    row(Text, Action::SaveLog, "save-log", "save", "Write the lines that filter and level let through into a file", Looks, 5),
    row(Text, Action::Follow, "follow", "follow", "Keep the newest lines in sight", Looks, 1),
    row(Text, Action::Wrap, "wrap", "wrap", "Break long lines instead of cutting them", Looks, 2),

    row(List, Action::Open, "open", "open", "Show the details", Looks, 20),
    row(List, Action::Filter, "filter", "filter", "Show only what matches: words, !word, key:value", Looks, 21),
    row(List, Action::Mark, "mark", "mark", "Mark the row for actions on several", Looks, 22),
    row(List, Action::MarkRange, "mark-range", "mark range", "Mark from here to where it is pressed again", Looks, 0),
    row(List, Action::MarkInvert, "mark-invert", "invert marks", "Mark what is not marked, and the other way round", Looks, 0),
    row(List, Action::Sort, "sort", "sort", "Choose the column to sort by", Looks, 23),
    row(List, Action::SortReverse, "sort-reverse", "reverse", "Sort the other way round", Looks, 0),
    row(List, Action::Yank, "yank", "copy", "Copy the name, id, address … to the clipboard", Looks, 24),

    row(Global, Action::Down, "down", "down", "One row down; a number before it repeats it, 0 before one that a view has: 012j", Looks, 0),
    row(Global, Action::Up, "up", "up", "One row up", Looks, 0),
    row(Global, Action::HalfPageDown, "half-page-down", "half page down", "Half a page down", Looks, 0),
    row(Global, Action::HalfPageUp, "half-page-up", "half page up", "Half a page up", Looks, 0),
    row(Global, Action::PageDown, "page-down", "page down", "A page down", Looks, 0),
    row(Global, Action::PageUp, "page-up", "page up", "A page up", Looks, 0),
    row(Global, Action::Top, "top", "top", "To the first row, or to the row of the number before it", Looks, 0),
    row(Global, Action::Bottom, "bottom", "bottom", "To the last row", Looks, 0),
    row(Global, Action::NextTab, "next-tab", "next tab", "To the next tab of the details", Looks, 0),
    row(Global, Action::PreviousTab, "previous-tab", "previous tab", "To the previous tab of the details", Looks, 0),
    row(Global, Action::NextPane, "next-pane", "pane", "To the next pane", Looks, 30),
    row(Global, Action::PreviousPane, "previous-pane", "previous pane", "To the previous pane", Looks, 0),
    row(Global, Action::Back, "back", "back", "Back by one step: input, window, number, marks, filter, pane", Looks, 0),
    row(Global, Action::ViewVms, "view-vms", "machines", "Machines", Looks, 0),
    row(Global, Action::ViewImages, "view-images", "images", "Images", Looks, 0),
    row(Global, Action::ViewKernels, "view-kernels", "kernels", "Kernels", Looks, 0),
    row(Global, Action::ViewOperations, "view-operations", "operations", "Operations, running and past, of every vmdeck here", Looks, 0),
    row(Global, Action::ViewLog, "view-log", "log", "What happened since this console opened, and what the engine says of it", Looks, 0),
    row(Global, Action::Palette, "palette", "commands", "Run any action by its name", Looks, 32),
    row(Global, Action::Messages, "messages", "messages", "All messages since this console opened", Looks, 0),
    row(Global, Action::Doctor, "doctor", "host", "What this host can and cannot do, and the fix", Looks, 0),
    row(Global, Action::Theme, "theme", "theme", "Choose the colours", Looks, 0),
    row(Global, Action::Mouse, "mouse", "mouse", "Give the mouse to the terminal, or take it back", Looks, 0),
    row(Global, Action::Redraw, "redraw", "redraw", "Draw the screen anew", Looks, 0),
    row(Global, Action::Zoom, "zoom", "full screen", "The details on the whole screen, and back", Looks, 31),
    row(Global, Action::Suspend, "suspend", "suspend", "To the shell; `fg` comes back", Looks, 0),
    row(Global, Action::Help, "help", "help", "The keys that work here", Looks, 33),
    row(Global, Action::Quit, "quit", "quit", "Leave the console; machines go on running", Looks, 34),
];

impl Action {
    /// Whether it asks for all that it needs: it is about no row of its list.
    pub fn opens_form(self) -> bool {
        matches!(
            self,
            Self::NewVm
                | Self::PullImage
                | Self::RegisterImage
                | Self::PruneImages
                | Self::PullKernel
                | Self::ImportKernel
        )
    }

    pub fn info(self) -> &'static ActionInfo {
        ACTIONS.iter().find(|info| info.action == self).expect("a test checks that every action has a row")
    }

    pub fn parse(name: &str) -> Option<Self> {
        ACTIONS.iter().find(|info| info.name == name).map(|info| info.action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_action_has_a_row() {
        let mut names: Vec<_> = ACTIONS.iter().map(|info| info.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ACTIONS.len());
        // `Wrap` is the last variant: as many rows as variants, each different.
        assert_eq!(ACTIONS.len(), Action::Wrap as usize + 1);
        let mut actions: Vec<_> = ACTIONS.iter().map(|info| info.action).collect();
        actions.sort_unstable();
        actions.dedup();
        assert_eq!(actions.len(), ACTIONS.len());
    }
}
