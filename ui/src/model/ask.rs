//! Forms that ask for a few lines: what to pull, where to export to, what to call it.

use std::fmt;

use vmdeck_engine::identifier::VmId;
use vmdeck_engine::image::CatalogEntry;
use vmdeck_engine::kernel::CatalogItem;
use vmdeck_engine::vm::record::Vm;

use super::form::ports_text;
use super::input::TextInput;
use crate::fuzzy;

/// Suggestions shown at once.
const SUGGESTIONS: usize = 6;

/// What a form is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskKind {
    PullImage,
    RegisterImage,
    /// Of a registered image with this name.
    PromoteImage(String),
    /// Of the disks of a machine with this name.
    PromoteVm(String),
    /// Of the image with this name.
    ExportImage(String),
    PullKernel,
    ImportKernel,
    /// Settings of a machine.
    EditVm {
        id: VmId,
        name: String,
    },
    /// The log's lines into a file.
    SaveLog,
}

/// One line of a form.
#[derive(Clone, Debug)]
pub struct AskField {
    pub label: &'static str,
    /// What stands in the field while it is empty.
    pub placeholder: String,
    pub entry: Entry,
}

#[derive(Clone, Debug)]
pub enum Entry {
    Text(TextInput),
    /// One of a few, each with a word on it.
    Choice {
        options: &'static [(&'static str, &'static str)],
        at: usize,
    },
}

/// The form.
#[derive(Clone, Debug)]
pub struct Ask {
    pub kind: AskKind,
    pub fields: Vec<AskField>,
    pub focus: usize,
    /// What is wrong, at its field.
    pub error: Option<(usize, String)>,
    /// The suggestion under the cursor, if one was moved to.
    pub suggestion: Option<usize>,
}

impl AskField {
    fn text(label: &'static str, value: impl Into<String>, placeholder: impl Into<String>) -> Self {
        Self { label, placeholder: placeholder.into(), entry: Entry::Text(TextInput::offer(value)) }
    }

    /// With a text that is more often added to than replaced.
    fn list(label: &'static str, value: impl Into<String>, placeholder: impl Into<String>) -> Self {
        Self { label, placeholder: placeholder.into(), entry: Entry::Text(TextInput::new(value)) }
    }

    pub fn value(&self) -> &str {
        match &self.entry {
            Entry::Text(input) => input.text().trim(),
            Entry::Choice { options, at } => options.get(*at).map_or("", |(name, _)| name),
        }
    }
}

impl Ask {
    fn new(kind: AskKind, fields: Vec<AskField>) -> Self {
        Self { kind, fields, focus: 0, error: None, suggestion: None }
    }

    pub fn pull_image() -> Self {
        let fields = vec![
            AskField::text("Reference", "", "debian:12, a name of the catalog, oci:DIR …"),
            AskField::text("Name", "", "the last part of the reference"),
        ];
        Self::new(AskKind::PullImage, fields)
    }

    pub fn register_image() -> Self {
        let fields = vec![
            AskField::text("Name", "", "what to call it here"),
            AskField::text("Root", "", "path of a raw ext4 file system"),
            AskField::text("Work seed", "", "none; a raw ext4 file system for /root"),
            AskField::text("Kernel", "", "none: one of vmdeck's own"),
            AskField::text("Initrd", "", "none; only with a kernel of your own"),
            AskField::text("Modules", "", "none; a raw ext4 file system of /lib/modules/RELEASE"),
        ];
        Self::new(AskKind::RegisterImage, fields)
    }

    pub fn promote_image(image: &str) -> Self {
        let placeholder = format!("{image}: it takes the registered image's place");
        Self::new(AskKind::PromoteImage(image.to_owned()), vec![AskField::text("Name", "", placeholder)])
    }

    /// `free` says whether a name of an image is not taken yet.
    pub fn promote_vm(vm: &str, free: impl Fn(&str) -> bool) -> Self {
        let numbered = (2..).map(|number| format!("{vm}-{number}"));
        let name = std::iter::once(vm.to_owned()).chain(numbered).find(|name| free(name)).unwrap_or_default();
        Self::new(AskKind::PromoteVm(vm.to_owned()), vec![AskField::text("Name", name, "of the new image")])
    }

    pub fn export_image(image: &str) -> Self {
        const FORMATS: &[(&str, &str)] = &[
            ("bundle", "the file systems as they are, for another vmdeck"),
            ("oci-archive", "for docker, podman and registries"),
        ];
        let format = AskField {
            label: "Format",
            placeholder: String::new(),
            entry: Entry::Choice { options: FORMATS, at: 0 },
        };
        let file = AskField::text("File", format!("{image}.tar.zst"), "the file to write");
        Self::new(AskKind::ExportImage(image.to_owned()), vec![file, format])
    }

    /// `source`: a name of the catalog, or whatever a pull takes.
    pub fn pull_kernel(source: &str) -> Self {
        let source = AskField::text("Source", source, "a name of the catalog, apt:PACKAGE, a URL …");
        Self::new(AskKind::PullKernel, vec![source, AskField::text("Name", "", "its release")])
    }

    pub fn import_kernel() -> Self {
        let fields = vec![
            AskField::text("From", "", "this host's own; a .deb, a bzImage, a vmlinux or a folder"),
            AskField::text("Modules", "", "none; lib/modules/RELEASE of a bare kernel"),
            AskField::text("Name", "", "its release"),
        ];
        Self::new(AskKind::ImportKernel, fields)
    }

    pub fn edit_vm(vm: &Vm) -> Self {
        let settings = vm.next_settings();
        let fields = vec![
            AskField::text("CPUs", settings.cpus.to_string(), ""),
            AskField::text("Memory", format!("{}M", settings.memory_mib), "such as 512M or 2G"),
            AskField::text("Disk", format!("{}G", settings.disk_bytes.div_ceil(1 << 30)), "it only grows"),
            AskField::list("Ports", ports_text(&settings.ports), "none; such as 8080:80, 5353:53/udp"),
        ];
        Self::new(AskKind::EditVm { id: vm.id.clone(), name: vm.name.clone() }, fields)
    }

    pub fn save_log() -> Self {
        Self::new(AskKind::SaveLog, vec![AskField::text("File", "vmdeck.log", "the file to write")])
    }

    pub fn title(&self) -> String {
        match &self.kind {
            AskKind::PullImage => "Pull an image".into(),
            AskKind::RegisterImage => "Register files of this host as an image".into(),
            AskKind::PromoteImage(image) => format!("Promote {image} to an image of vmdeck's own"),
            AskKind::PromoteVm(vm) => format!("Make an image of {vm}"),
            AskKind::ExportImage(image) => format!("Export {image}"),
            AskKind::PullKernel => "Pull a kernel".into(),
            AskKind::ImportKernel => "Import a kernel of this host".into(),
            AskKind::EditVm { name, .. } => format!("Settings of {name}"),
            AskKind::SaveLog => "Save the log".into(),
        }
    }

    /// What the enter key does.
    pub fn verb(&self) -> &'static str {
        match self.kind {
            AskKind::PullImage | AskKind::PullKernel => "pull",
            AskKind::RegisterImage => "register",
            AskKind::PromoteImage(_) | AskKind::PromoteVm(_) => "promote",
            AskKind::ExportImage(_) => "export",
            AskKind::ImportKernel => "import",
            AskKind::EditVm { .. } => "change",
            AskKind::SaveLog => "save",
        }
    }

    /// What there is to know, one line each.
    pub fn notes(&self) -> &'static [&'static str] {
        match self.kind {
            AskKind::PullImage => &[
                "debian:12                       from a registry, by default Docker Hub",
                "ghcr.io/owner/name@sha256:…     one exact image",
                "oci:DIR[:TAG]                   an OCI layout on this host",
                "oci-archive:FILE  docker-archive:FILE  bundle:FILE|URL",
            ],
            AskKind::RegisterImage => {
                &["The files stay where they are, never written; promote copies them in."]
            }
            AskKind::PromoteImage(_) => &["The files are copied into vmdeck's data; yours stay untouched."],
            AskKind::PromoteVm(_) => &["Its disks are copied into a new image; the machine stays as it is."],
            AskKind::ExportImage(_) => &["A file that is there already is never written over."],
            AskKind::PullKernel => &[
                "apt:PACKAGE    the newest of a package of this host's archive",
                "a name of the catalog, as the list of kernels shows it",
            ],
            AskKind::ImportKernel => &["Left empty, the newest kernel in this host's /boot is taken."],
            AskKind::EditVm { .. } => &["Ports change at once, the rest at the next start. Disks only grow."],
            AskKind::SaveLog => &["The lines that are in sight of the filter, the oldest first."],
        }
    }

    pub fn input_mut(&mut self) -> Option<&mut TextInput> {
        match self.fields.get_mut(self.focus).map(|field| &mut field.entry) {
            Some(Entry::Text(input)) => Some(input),
            _ => None,
        }
    }

    pub fn value(&self, at: usize) -> &str {
        self.fields.get(at).map_or("", AskField::value)
    }

    /// What was typed, if anything was.
    pub fn given(&self, at: usize) -> Option<String> {
        Some(self.value(at)).filter(|text| !text.is_empty()).map(str::to_owned)
    }

    pub fn move_focus(&mut self, by: isize) {
        let count = self.fields.len().max(1);
        self.focus = (self.focus + count).saturating_add_signed(by) % count;
        self.suggestion = None;
    }

    /// Whether the field with the focus offers a few to choose from.
    pub fn offers_few(&self) -> bool {
        self.fields.get(self.focus).is_some_and(|field| matches!(field.entry, Entry::Choice { .. }))
    }

    /// Steps through the choices of a field that has such.
    pub fn step(&mut self, by: isize) {
        let Some(Entry::Choice { options, at }) =
            self.fields.get_mut(self.focus).map(|field| &mut field.entry)
        else {
            return;
        };
        *at = (*at + options.len()).saturating_add_signed(by) % options.len().max(1);
        if let AskKind::ExportImage(image) = &self.kind {
            // The suffix follows the format, as long as the name is the one that was offered.
            let [bundle, archive] = [format!("{image}.tar.zst"), format!("{image}.tar")];
            let (from, to) = if *at == 0 { (archive, bundle) } else { (bundle, archive) };
            if let Some(Entry::Text(file)) = self.fields.first_mut().map(|field| &mut field.entry)
                && file.text() == from
            {
                *file = if file.is_offered() { TextInput::offer(to) } else { TextInput::new(to) };
            }
        }
    }
}

/// Something that a field may mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suggestion<'a> {
    pub name: &'a str,
    pub detail: &'a str,
}

impl fmt::Display for Suggestion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Which of `all` a text may mean, the best first; not what it says exactly already.
pub fn suggestions<'a>(all: impl Iterator<Item = Suggestion<'a>>, typed: &str) -> Vec<Suggestion<'a>> {
    let typed = typed.trim().to_lowercase();
    let mut found: Vec<_> =
        all.filter_map(|suggestion| Some((fuzzy::score(suggestion.name, &typed)?, suggestion))).collect();
    if found.iter().any(|(_, suggestion)| suggestion.name == typed) {
        return Vec::new();
    }
    found.sort_by(|left, right| right.0.cmp(&left.0).then_with(|| left.1.name.cmp(right.1.name)));
    let mut found: Vec<_> = found.into_iter().map(|(_, suggestion)| suggestion).collect();
    found.dedup_by_key(|suggestion| suggestion.name);
    found.truncate(SUGGESTIONS);
    found
}

/// The catalog's entries as suggestions.
pub fn of_catalog(catalog: &[CatalogEntry]) -> impl Iterator<Item = Suggestion<'_>> {
    catalog.iter().map(|entry| Suggestion { name: &entry.name, detail: &entry.description })
}

/// The kernel catalog's entries as suggestions.
pub fn of_kernels(catalog: &[CatalogItem]) -> impl Iterator<Item = Suggestion<'_>> {
    let entries = catalog.iter().map(|item| &item.entry);
    entries.map(|entry| Suggestion { name: &entry.name, detail: &entry.note })
}
