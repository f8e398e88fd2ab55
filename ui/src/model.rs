//! Everything the console knows. Changed by [`crate::update`] alone, read by [`crate::view`].

pub mod ask;
pub mod console;
pub mod deck;
pub mod filter;
pub mod form;
pub mod guest;
pub mod input;
pub mod list;
pub mod log;
pub mod overlay;
pub mod rates;
pub mod rows;
pub mod toast;
pub mod usage;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::tz::TimeZone;
use vmdeck_engine::clock::Milliseconds;
use vmdeck_engine::disk_usage::{DiskSpace, DiskUsage};
use vmdeck_engine::doctor;
use vmdeck_engine::error::ErrorReport;
use vmdeck_engine::identifier::{OperationId, VmId};
use vmdeck_engine::image::CatalogEntry;
use vmdeck_engine::image::record::Image;
use vmdeck_engine::operation::record::OperationState;
use vmdeck_engine::snapshot::OperationView;
use vmdeck_engine::vm::VmFile;
use vmdeck_engine::vm::record::{Boot, Vm, VmState};

use crate::action::Scope;
use crate::keymap::{Key, Keymap};
use crate::layout::layout;
use crate::message::HostFacts;
use crate::options::ThemeChoice;
use crate::theme::{Glyphs, Theme};
use console::ConsolePane;
use deck::{Deck, KernelRow};
use guest::GuestReadings;
use list::{ListCommand, ListState, Listed};
use log::Log;
use overlay::Overlay;
use rates::Rates;
use toast::Messages;
use usage::Usages;

/// The five views.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum View {
    #[default]
    Vms,
    Images,
    Kernels,
    Operations,
    Log,
}

impl View {
    pub const ALL: [Self; 5] = [Self::Vms, Self::Images, Self::Kernels, Self::Operations, Self::Log];

    pub fn title(self) -> &'static str {
        match self {
            Self::Vms => "VMs",
            Self::Images => "Images",
            Self::Kernels => "Kernels",
            Self::Operations => "Operations",
            Self::Log => "Log",
        }
    }

    pub fn index(self) -> usize {
        self as usize
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pane {
    #[default]
    List,
    Detail,
}

/// Tabs of a machine's details.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmTab {
    #[default]
    Boot,
    Console,
    Stats,
    Ports,
    Disks,
    Events,
    Config,
}

impl VmTab {
    pub const ALL: [Self; 7] =
        [Self::Boot, Self::Console, Self::Stats, Self::Ports, Self::Disks, Self::Events, Self::Config];

    pub fn title(self) -> &'static str {
        match self {
            Self::Boot => "Boot",
            Self::Console => "Console",
            Self::Stats => "Stats",
            Self::Ports => "Ports",
            Self::Disks => "Disks",
            Self::Events => "Events",
            Self::Config => "Config",
        }
    }
}

/// The whole state of the console.
#[derive(Clone, Debug)]
pub struct Model {
    pub now: Milliseconds,
    pub time_zone: TimeZone,
    pub width: u16,
    pub height: u16,
    pub theme: Theme,
    pub glyphs: Glyphs,
    pub keymap: Arc<Keymap>,
    pub read_only: bool,
    pub mouse: bool,
    pub data_label: String,
    /// Whether the engine has opened; before that nothing can be asked of it.
    pub engine_open: bool,
    pub snapshot: Deck,
    pub host: HostFacts,
    pub doctor: Option<Result<doctor::Report, ErrorReport>>,
    pub view: View,
    pub pane: Pane,
    pub vm_tab: VmTab,
    /// Whether the details have the whole screen.
    pub zoom: bool,
    /// The console in sight.
    pub console: Option<ConsolePane>,
    /// What hypervisors use, by machine.
    pub usage: Usages,
    /// What the guest of the machine in sight tells.
    pub guest: GuestReadings,
    /// Files of the machine whose disks are shown.
    pub files: Option<(VmId, Vec<VmFile>)>,
    /// Room on the disk and what the data directory takes.
    pub space: Option<(DiskSpace, DiskUsage)>,
    /// When that was asked for last.
    pub space_asked_at: Milliseconds,
    /// First line of the details in sight.
    pub detail_offset: usize,
    pub vms: ListState,
    pub images: ListState,
    pub kernels: ListState,
    pub operations: ListState,
    pub log: Log,
    pub overlays: Vec<Overlay>,
    /// Keys of a sequence typed so far.
    pub pending: Vec<Key>,
    pub count: Option<u32>,
    pub messages: Messages,
    pub rates: Rates,
    /// Log lines of the operation whose details are shown.
    pub operation_log: Option<(OperationId, Vec<(Milliseconds, String)>)>,
    /// Earlier boots of the machine whose details are shown, newest first.
    pub boots: Option<(VmId, Vec<Boot>)>,
    /// Short names of images that can be pulled.
    pub catalog: Vec<CatalogEntry>,
    /// Whether the engine was asked for the catalog of kernels since those here changed.
    pub kernel_catalog_asked: bool,
    /// Whether its answer is still to come: the package archive may take a while.
    pub kernel_catalog_sought: bool,
    /// The user's home, for paths that begin with `~`.
    pub home: Option<PathBuf>,
    /// Palette lines run before, newest first.
    pub palette_history: VecDeque<String>,
}

impl Model {
    pub fn new(
        theme: ThemeChoice,
        ascii: bool,
        keymap: Keymap,
        now: Milliseconds,
        time_zone: TimeZone,
    ) -> Self {
        Self {
            now,
            time_zone,
            width: 80,
            height: 24,
            theme: Theme::new(theme),
            glyphs: Glyphs::new(ascii),
            keymap: Arc::new(keymap),
            read_only: false,
            mouse: true,
            data_label: String::new(),
            engine_open: false,
            snapshot: Deck::default(),
            host: HostFacts::default(),
            doctor: None,
            view: View::Vms,
            pane: Pane::List,
            vm_tab: VmTab::Boot,
            zoom: false,
            console: None,
            usage: Usages::default(),
            guest: GuestReadings::default(),
            files: None,
            space: None,
            space_asked_at: 0,
            detail_offset: 0,
            vms: ListState::default(),
            images: ListState::default(),
            kernels: ListState::default(),
            operations: ListState::default(),
            log: Log::default(),
            overlays: Vec::new(),
            pending: Vec::new(),
            count: None,
            messages: Messages::default(),
            rates: Rates::default(),
            operation_log: None,
            boots: None,
            catalog: Vec::new(),
            kernel_catalog_asked: false,
            kernel_catalog_sought: false,
            home: None,
            palette_history: VecDeque::new(),
        }
    }

    /// A path as a user types it: `~` is the home.
    pub fn path(&self, typed: &str) -> PathBuf {
        match (&self.home, typed.strip_prefix("~/")) {
            (Some(home), Some(rest)) => home.join(rest),
            _ => PathBuf::from(typed),
        }
    }

    /// The state of the list of the view, if it has one.
    pub fn list(&self) -> Option<&ListState> {
        match self.view {
            View::Vms => Some(&self.vms),
            View::Images => Some(&self.images),
            View::Kernels => Some(&self.kernels),
            View::Operations => Some(&self.operations),
            View::Log => None,
        }
    }

    pub fn list_mut(&mut self) -> Option<&mut ListState> {
        match self.view {
            View::Vms => Some(&mut self.vms),
            View::Images => Some(&mut self.images),
            View::Kernels => Some(&mut self.kernels),
            View::Operations => Some(&mut self.operations),
            View::Log => None,
        }
    }

    /// Does the same to the list of the view, whatever its rows are.
    pub fn with_list(&mut self, command: ListCommand) {
        let Self { snapshot, vms, images, kernels, operations, view, .. } = self;
        match view {
            View::Vms => vms.obey::<Vm>(snapshot, command),
            View::Images => images.obey::<Image>(snapshot, command),
            View::Kernels => kernels.obey::<KernelRow>(snapshot, command),
            View::Operations => operations.obey::<OperationView>(snapshot, command),
            View::Log => {}
        }
    }

    /// The name of the row under the cursor of the list of the view.
    pub fn selected_name(&self) -> Option<&str> {
        match self.view {
            View::Vms => self.selected_vm().map(Listed::name),
            View::Images => self.selected_image().map(Listed::name),
            View::Kernels => self.selected_kernel().map(Listed::name),
            View::Operations => self.operations.current::<OperationView>(&self.snapshot).map(Listed::name),
            View::Log => None,
        }
    }

    pub fn selected_vm(&self) -> Option<&Vm> {
        self.vms.current(&self.snapshot)
    }

    pub fn selected_image(&self) -> Option<&Image> {
        self.images.current(&self.snapshot)
    }

    pub fn selected_kernel(&self) -> Option<&KernelRow> {
        self.kernels.current(&self.snapshot)
    }

    /// Where a key is looked up, the most specific scope first.
    pub fn scopes(&self) -> &'static [Scope] {
        match self.view {
            View::Vms if self.in_console() => &[Scope::Console, Scope::Global, Scope::Vms],
            View::Vms => &[Scope::Vms, Scope::List, Scope::Global],
            View::Images => &[Scope::Images, Scope::List, Scope::Global],
            View::Kernels => &[Scope::Kernels, Scope::List, Scope::Global],
            View::Operations => &[Scope::Operations, Scope::List, Scope::Global],
            View::Log => &[Scope::Text, Scope::Global],
        }
    }

    /// Whether the focus is on a machine's console.
    pub fn in_console(&self) -> bool {
        self.view == View::Vms && self.pane == Pane::Detail && self.vm_tab == VmTab::Console
    }

    /// The machine whose console is or would be in sight.
    pub fn console_vm(&self) -> Option<&Vm> {
        let shown = self.view == View::Vms && self.vm_tab == VmTab::Console;
        self.selected_vm().filter(|_| shown && layout(self).detail.is_some())
    }

    pub fn running_operations(&self) -> usize {
        let running = |view: &&OperationView| view.record.state == OperationState::Running;
        self.snapshot.operations.iter().filter(running).count()
    }

    /// What running machines have been promised: CPUs and MiB of memory.
    pub fn reserved(&self) -> (u32, u64) {
        let running = self.snapshot.vms.iter().filter(|vm| vm.state.has_process());
        running.fold((0, 0), |(cpus, memory), vm| {
            (cpus + vm.settings.cpus, memory.saturating_add(vm.settings.memory_mib))
        })
    }

    /// Whether this host has nothing to show yet: the first start.
    pub fn is_empty(&self) -> bool {
        self.snapshot.generation > 0 && self.snapshot.vms.is_empty()
    }

    /// Index of the spinner's glyph at this moment.
    pub fn spinner(&self) -> char {
        let step = usize::try_from(self.now / 125).unwrap_or(0);
        self.glyphs.spinner[step % self.glyphs.spinner.len()]
    }

    /// When the screen changes by itself next, though nothing happens: in milliseconds from now.
    pub fn next_tick(&self) -> Option<Milliseconds> {
        let mut next: Option<Milliseconds> = None;
        let mut earliest = |delay: Milliseconds| next = Some(next.map_or(delay, |other| other.min(delay)));
        if !self.engine_open {
            earliest(125);
        }
        if self.running_operations() > 0 {
            earliest(if self.view == View::Operations { 100 } else { 125 });
        }
        for vm in self.snapshot.vms.iter() {
            match (vm.state, &vm.run) {
                (VmState::Starting | VmState::Stopping, _) => earliest(125),
                (VmState::Running, Some(_)) if self.view == View::Vms && self.usage.is_wanted() => {
                    earliest(self.usage.due(self.now));
                }
                (VmState::Running, Some(run)) if self.view == View::Vms => {
                    // To the moment its text changes: each second in the first minute, then each minute.
                    let up = (self.now - run.started_at).max(0);
                    let unit = if up < 60_000 { 1000 } else { 60_000 };
                    earliest(unit - up % unit);
                }
                _ => {}
            }
        }
        if let Some(end) = self.messages.next_end(self.now) {
            earliest(end - self.now);
        }
        next
    }
}
