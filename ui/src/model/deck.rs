//! What the lists are made of: the engine's picture of the deck, and rows of more than it has.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

use vmdeck_engine::clock::Milliseconds;
use vmdeck_engine::kernel::record::Kernel;
use vmdeck_engine::kernel::{CatalogItem, CatalogState};
use vmdeck_engine::snapshot::Snapshot;

use super::list::{Listed, SortColumn};
use super::rows::natural;

/// The newest picture, and what is listed beside it.
#[derive(Clone, Debug, Default)]
pub struct Deck {
    picture: Arc<Snapshot>,
    /// Kernels there are to be had; `None` until the engine was asked.
    kernel_catalog: Option<Vec<CatalogItem>>,
    /// Kernels that are here and those that can be had, made of the two above.
    kernel_rows: Vec<KernelRow>,
}

impl Deref for Deck {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.picture
    }
}

impl Deck {
    /// Takes a new picture; returns the one before.
    pub fn take(&mut self, picture: Arc<Snapshot>) -> Arc<Snapshot> {
        let before = std::mem::replace(&mut self.picture, picture);
        if !Arc::ptr_eq(&before.kernels, &self.picture.kernels) {
            self.list_kernels();
        }
        before
    }

    pub fn take_kernel_catalog(&mut self, catalog: Vec<CatalogItem>) {
        self.kernel_catalog = Some(catalog);
        self.list_kernels();
    }

    /// Empty before the engine was asked.
    pub fn kernel_catalog(&self) -> &[CatalogItem] {
        self.kernel_catalog.as_deref().unwrap_or_default()
    }

    fn list_kernels(&mut self) {
        let here = self.picture.kernels.iter().cloned().map(KernelRow::Here);
        // What is here and as new as can be has its row already.
        let offered = self.kernel_catalog.iter().flatten().filter(|item| match item.state {
            CatalogState::Available | CatalogState::NewerAvailable | CatalogState::Unavailable => true,
            // As of when the catalog was read: that kernel may have gone since.
            CatalogState::Installed => {
                !self.picture.kernels.iter().any(|kernel| item.installed.contains(&kernel.name))
            }
        });
        let offered = offered.map(|item| KernelRow::Offered {
            key: format!("catalog {}", item.entry.name),
            item: item.clone(),
        });
        self.kernel_rows = here.chain(offered).collect();
    }
}

/// A row of the list of kernels.
#[derive(Clone, Debug)]
pub enum KernelRow {
    Here(Kernel),
    /// An entry of the catalog that is not here, or not as new.
    Offered {
        key: String,
        item: CatalogItem,
    },
}

impl KernelRow {
    pub fn here(&self) -> Option<&Kernel> {
        match self {
            Self::Here(kernel) => Some(kernel),
            Self::Offered { .. } => None,
        }
    }

    /// What is not here, as far as this host can get it.
    pub fn to_be_had(&self) -> Option<&CatalogItem> {
        match self {
            Self::Offered { item, .. } if item.state != CatalogState::Unavailable => Some(item),
            _ => None,
        }
    }

    /// How it stands, in a word or two.
    pub fn state(&self) -> &'static str {
        match self {
            Self::Here(_) => "here",
            Self::Offered { item, .. } => match item.state {
                CatalogState::NewerAvailable => "newer to pull",
                CatalogState::Unavailable => "not for this host",
                CatalogState::Available | CatalogState::Installed => "to pull",
            },
        }
    }

    pub fn created_at(&self) -> Option<Milliseconds> {
        self.here().map(|kernel| kernel.created_at)
    }

    pub fn source(&self) -> &str {
        match self {
            Self::Here(kernel) => &kernel.source,
            Self::Offered { item, .. } => item.available.as_deref().unwrap_or(&item.entry.source),
        }
    }

    /// Its release, or what the catalog says of it.
    pub fn release(&self) -> &str {
        match self {
            Self::Here(kernel) => &kernel.release,
            Self::Offered { item, .. } => item.entry.version.as_deref().unwrap_or_default(),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Here(_) => 0,
            Self::Offered { item, .. } if item.state != CatalogState::Unavailable => 1,
            Self::Offered { .. } => 2,
        }
    }
}

impl Listed for KernelRow {
    const SORTS: &'static [SortColumn<Self>] = &[
        SortColumn {
            name: "here, newest",
            compare: |left, right| {
                let newest = right.created_at().cmp(&left.created_at());
                left.rank().cmp(&right.rank()).then(newest)
            },
        },
        SortColumn { name: "name", compare: |left, right| natural(left.name(), right.name()) },
        SortColumn { name: "release", compare: |left, right| natural(left.release(), right.release()) },
    ];

    fn rows(deck: &Deck) -> &[Self] {
        &deck.kernel_rows
    }

    fn key(&self) -> &str {
        match self {
            Self::Here(kernel) => &kernel.name,
            Self::Offered { key, .. } => key,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Here(kernel) => &kernel.name,
            Self::Offered { item, .. } => &item.entry.name,
        }
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        [self.release(), self.source(), self.state()].into_iter()
    }

    fn term(&self, key: &str) -> Option<Cow<'_, str>> {
        Some(match key {
            "name" => self.name().into(),
            "release" => self.release().into(),
            "source" => self.source().into(),
            "state" => self.state().into(),
            "arch" => match self {
                Self::Here(kernel) => kernel.architecture.as_str().into(),
                Self::Offered { item, .. } => item.entry.architecture.as_str().into(),
            },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use vmdeck_engine::kernel::CatalogEntry;

    use super::*;

    fn item(name: &str, state: CatalogState, installed: &[&str]) -> CatalogItem {
        CatalogItem {
            entry: CatalogEntry {
                name: name.into(),
                architecture: "amd64".into(),
                version: None,
                source: format!("apt:{name}"),
                sha256: None,
                note: String::new(),
                origin: "built in".into(),
            },
            available: None,
            installed: installed.iter().map(|name| (*name).to_owned()).collect(),
            state,
        }
    }

    #[test]
    fn what_is_here_is_not_offered_again_until_it_has_gone() {
        let mut deck = Deck::default();
        deck.take_kernel_catalog(vec![
            item("cloud", CatalogState::Installed, &["6.1"]),
            item("rt", CatalogState::Available, &[]),
            item("ubuntu", CatalogState::Unavailable, &[]),
        ]);
        let names = |deck: &Deck| -> Vec<String> {
            KernelRow::rows(deck).iter().map(|row| format!("{} {}", row.name(), row.state())).collect()
        };
        assert_eq!(names(&deck), ["cloud to pull", "rt to pull", "ubuntu not for this host"]);
        let kernel = Kernel {
            name: "6.1".into(),
            release: "6.1".into(),
            architecture: "amd64".into(),
            source: "apt:x".into(),
            requested: None,
            created_at: 0,
            vmlinux: "/k".into(),
            initrd: "/i".into(),
            modules: None,
            guest_digest: String::new(),
            initrd_modules: Vec::new(),
            warnings: Vec::new(),
        };
        let picture = Snapshot { kernels: Arc::new(vec![kernel]), ..Snapshot::default() };
        deck.take(Arc::new(picture));
        assert_eq!(names(&deck), ["6.1 here", "rt to pull", "ubuntu not for this host"]);
        assert!(KernelRow::rows(&deck)[2].to_be_had().is_none());
    }
}
