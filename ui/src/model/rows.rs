//! What the four lists are made of.

use std::borrow::Cow;
use std::cmp::Ordering;

use vmdeck_engine::image::record::Image;
use vmdeck_engine::operation::record::OperationState;
use vmdeck_engine::snapshot::OperationView;
use vmdeck_engine::vm::record::{NetworkMode, Vm, VmState};

use super::deck::Deck;
use super::list::{Listed, SortColumn};

impl Listed for Vm {
    const SORTS: &'static [SortColumn<Self>] = &[
        SortColumn { name: "name", compare: |left, right| natural(&left.name, &right.name) },
        SortColumn {
            name: "state",
            compare: |left, right| {
                state_rank(left.state)
                    .cmp(&state_rank(right.state))
                    .then_with(|| natural(&left.name, &right.name))
            },
        },
        SortColumn { name: "address", compare: |left, right| left.address.cmp(&right.address) },
        SortColumn { name: "cpus", compare: |left, right| right.settings.cpus.cmp(&left.settings.cpus) },
        SortColumn {
            name: "memory",
            compare: |left, right| right.settings.memory_mib.cmp(&left.settings.memory_mib),
        },
        SortColumn { name: "uptime", compare: |left, right| started_at(left).cmp(&started_at(right)) },
        SortColumn { name: "image", compare: |left, right| natural(&left.image, &right.image) },
        SortColumn { name: "created", compare: |left, right| right.created_at.cmp(&left.created_at) },
    ];

    fn rows(deck: &Deck) -> &[Self] {
        &deck.vms
    }

    fn key(&self) -> &str {
        self.id.as_str()
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        [self.image.as_str(), self.state.as_str()].into_iter()
    }

    fn term(&self, key: &str) -> Option<Cow<'_, str>> {
        Some(match key {
            "name" => self.name.as_str().into(),
            "state" => self.state.as_str().into(),
            "image" => self.image.as_str().into(),
            "kernel" => self.kernel.as_str().into(),
            "id" => self.id.as_str().into(),
            "address" => self.address.map(|address| address.to_string()).unwrap_or_default().into(),
            "network" => network(self.settings.network).into(),
            _ => return None,
        })
    }
}

impl Listed for Image {
    const SORTS: &'static [SortColumn<Self>] = &[
        SortColumn { name: "name", compare: |left, right| natural(&left.name, &right.name) },
        SortColumn { name: "size", compare: |left, right| right.used_bytes.cmp(&left.used_bytes) },
        SortColumn { name: "created", compare: |left, right| right.created_at.cmp(&left.created_at) },
        SortColumn { name: "reference", compare: |left, right| left.reference.cmp(&right.reference) },
    ];

    fn rows(deck: &Deck) -> &[Self] {
        &deck.images
    }

    fn key(&self) -> &str {
        self.id.as_str()
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        self.reference.as_deref().into_iter().chain(self.digest.as_deref())
    }

    fn term(&self, key: &str) -> Option<Cow<'_, str>> {
        Some(match key {
            "name" => self.name.as_str().into(),
            "reference" => self.reference.as_deref().unwrap_or_default().into(),
            "digest" => self.digest.as_deref().unwrap_or_default().into(),
            "arch" => self.architecture.as_deref().unwrap_or_default().into(),
            "id" => self.id.as_str().into(),
            "managed" => if self.managed { "yes" } else { "no" }.into(),
            _ => return None,
        })
    }
}

impl Listed for OperationView {
    const GROWS_AT_HEAD: bool = true;

    const SORTS: &'static [SortColumn<Self>] = &[
        SortColumn {
            name: "running, newest",
            compare: |left, right| {
                let ended = |view: &Self| view.record.state != OperationState::Running;
                ended(left).cmp(&ended(right)).then(right.record.started_at.cmp(&left.record.started_at))
            },
        },
        SortColumn {
            name: "began",
            compare: |left, right| right.record.started_at.cmp(&left.record.started_at),
        },
        SortColumn {
            name: "kind",
            compare: |left, right| left.record.kind.as_str().cmp(right.record.kind.as_str()),
        },
        SortColumn {
            name: "target",
            compare: |left, right| natural(&left.record.target, &right.record.target),
        },
        SortColumn {
            name: "state",
            compare: |left, right| left.record.state.as_str().cmp(right.record.state.as_str()),
        },
    ];

    fn rows(deck: &Deck) -> &[Self] {
        &deck.operations
    }

    fn key(&self) -> &str {
        self.record.id.as_str()
    }

    fn name(&self) -> &str {
        &self.record.target
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        [self.record.kind.as_str(), self.record.state.as_str()].into_iter()
    }

    fn term(&self, key: &str) -> Option<Cow<'_, str>> {
        Some(match key {
            "kind" => self.record.kind.as_str().into(),
            "state" => self.record.state.as_str().into(),
            "target" => self.record.target.as_str().into(),
            "id" => self.record.id.as_str().into(),
            "pid" => self.record.owner.pid.to_string().into(),
            _ => return None,
        })
    }
}

pub fn network(mode: NetworkMode) -> &'static str {
    match mode {
        NetworkMode::User => "user",
        NetworkMode::Isolated => "isolated",
        NetworkMode::Lan => "lan",
        NetworkMode::Bridge => "bridge",
        NetworkMode::None => "none",
    }
}

fn state_rank(state: VmState) -> u8 {
    match state {
        VmState::Starting => 0,
        VmState::Running => 1,
        VmState::Paused => 2,
        VmState::Stopping => 3,
        VmState::Failed => 4,
        VmState::Created => 5,
        VmState::Stopped => 6,
    }
}

/// Running machines first, the one that runs longest at their head.
fn started_at(vm: &Vm) -> i64 {
    vm.run.as_ref().filter(|_| vm.state.has_process()).map_or(i64::MAX, |run| run.started_at)
}

/// Order of names as people expect it: numbers in them by their value, `vm-9` before `vm-10`.
pub(super) fn natural(left: &str, right: &str) -> Ordering {
    let (mut left_rest, mut right_rest) = (left.as_bytes(), right.as_bytes());
    loop {
        match (left_rest.first(), right_rest.first()) {
            (None, None) => return left.cmp(right),
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(a), Some(b)) if a.is_ascii_digit() && b.is_ascii_digit() => {
                let (number_left, after_left) = digits(left_rest);
                let (number_right, after_right) = digits(right_rest);
                let order =
                    number_left.len().cmp(&number_right.len()).then_with(|| number_left.cmp(number_right));
                if order != Ordering::Equal {
                    return order;
                }
                (left_rest, right_rest) = (after_left, after_right);
            }
            (Some(a), Some(b)) => {
                let order = a.to_ascii_lowercase().cmp(&b.to_ascii_lowercase());
                if order != Ordering::Equal {
                    return order;
                }
                (left_rest, right_rest) = (&left_rest[1..], &right_rest[1..]);
            }
        }
    }
}

/// The digits at the beginning without leading zeros, and the rest.
fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let start = text[..end].iter().position(|byte| *byte != b'0').unwrap_or(end);
    (&text[start..end], &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count_by_value() {
        let mut names = ["vm-10", "vm-9", "Vm-2", "vm", "vm-009a", "vm-9a"];
        names.sort_by(|left, right| natural(left, right));
        assert_eq!(names, ["vm", "Vm-2", "vm-9", "vm-009a", "vm-9a", "vm-10"]);
    }
}
