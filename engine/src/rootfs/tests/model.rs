//! Random stacks of layers, against a model that keeps a flat map of names, and against what the
//! layers were made from.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use proptest::prelude::*;

use super::super::torture::archive::{Item, archive};
use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Folder,
    File(u8),
    Symlink(String),
}

#[derive(Clone, Debug)]
enum Change {
    Add(String, Kind, u32),
    Link(String, String),
    Whiteout(String),
    Opaque(String),
}

impl Change {
    fn item(&self) -> Item {
        match self {
            Self::Add(path, Kind::Folder, mode) => Item::folder(path.clone()).mode(*mode),
            Self::Add(path, Kind::File(byte), mode) => Item::file(path.clone(), vec![*byte; 10]).mode(*mode),
            Self::Add(path, Kind::Symlink(target), _) => Item::symlink(path.clone(), target.clone()),
            Self::Link(path, target) => Item::hard_link(path.clone(), target.clone()),
            Self::Whiteout(path) => {
                let (folder, name) =
                    path.rsplit_once('/').map_or(("", path.as_str()), |(folder, name)| (folder, name));
                Item::file(
                    if folder.is_empty() { format!(".wh.{name}") } else { format!("{folder}/.wh.{name}") },
                    "",
                )
            }
            Self::Opaque(path) => Item::file(format!("{path}/.wh..wh..opq"), ""),
        }
    }
}

/// The naive one: names are strings, every look-up starts over.
#[derive(Clone, Debug, Default)]
struct Model {
    names: BTreeMap<String, usize>,
    inodes: Vec<(Kind, u32)>,
}

#[derive(Debug)]
struct Refused;

impl Model {
    fn kind(&self, path: &str) -> Option<&Kind> {
        if path.is_empty() {
            return Some(&Kind::Folder);
        }
        self.names.get(path).map(|inode| &self.inodes[*inode].0)
    }

    fn resolve(&self, path: &str) -> Result<String, Refused> {
        let mut done: Vec<String> = Vec::new();
        let mut todo: VecDeque<String> = path.split('/').map(str::to_owned).collect();
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            match part.as_str() {
                "" | "." => {}
                ".." => {
                    done.pop();
                }
                _ => {
                    done.push(part);
                    if let Some(Kind::Symlink(target)) = self.kind(&done.join("/")) {
                        links += 1;
                        if links > 255 {
                            return Err(Refused);
                        }
                        done.pop();
                        if target.starts_with('/') {
                            done.clear();
                        }
                        for part in target.split('/').rev() {
                            todo.push_front(part.to_owned());
                        }
                    }
                }
            }
        }
        Ok(done.join("/"))
    }

    /// Where the name really is: its parents resolved, the last part not.
    fn place(&self, path: &str) -> Result<String, Refused> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = self.resolve(folder)?;
        Ok(if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") })
    }

    fn lookup(&self, path: &str) -> Option<usize> {
        let place = self.place(path).ok()?;
        self.names.get(&place).copied()
    }

    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.names.retain(|name, _| name != path && !name.starts_with(&below));
    }

    fn make_parents(&mut self, place: &str) -> Result<(), Refused> {
        for (slash, _) in place.match_indices('/') {
            match self.kind(&place[..slash]) {
                Some(Kind::Folder) => {}
                Some(_) => return Err(Refused),
                None => {
                    self.inodes.push((Kind::Folder, 0o755));
                    self.names.insert(place[..slash].to_owned(), self.inodes.len() - 1);
                }
            }
        }
        Ok(())
    }

    /// Whether a whiteout below `path` means what the lower layers have there.
    fn is_lower(&self, path: &str, brought: &BTreeSet<&str>) -> bool {
        let prefixes = path.match_indices('/').map(|(slash, _)| &path[..slash]).chain([path]);
        for prefix in prefixes {
            if matches!(self.kind(prefix), Some(Kind::Symlink(_))) {
                return !brought.contains(prefix);
            }
        }
        true
    }

    fn apply(&mut self, layer: &[Change]) -> Result<(), Refused> {
        let before: HashMap<usize, usize> = layer
            .iter()
            .enumerate()
            .filter_map(|(at, change)| match change {
                Change::Link(_, target) => Some((at, self.lookup(target)?)),
                _ => None,
            })
            .collect();
        let has_whiteouts =
            layer.iter().any(|change| matches!(change, Change::Whiteout(_) | Change::Opaque(_)));
        let brought: BTreeSet<&str> = layer
            .iter()
            .filter_map(|change| match change {
                Change::Add(path, ..) | Change::Link(path, _) => Some(path.as_str()),
                _ => None,
            })
            .collect();
        for change in layer {
            match change {
                Change::Whiteout(path) => {
                    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                    if self.is_lower(folder, &brought)
                        && let Ok(place) = self.place(path)
                    {
                        self.remove(&place);
                    }
                }
                Change::Opaque(path) => {
                    if self.is_lower(path, &brought)
                        && let Ok(folder) = self.resolve(path)
                    {
                        // The name may lead to the root, below which everything is.
                        let below = if folder.is_empty() { folder } else { format!("{folder}/") };
                        self.names.retain(|name, _| !name.starts_with(&below));
                    }
                }
                _ => {}
            }
        }
        for (at, change) in layer.iter().enumerate() {
            match change {
                Change::Add(path, kind, mode) => {
                    let place = self.place(path)?;
                    self.make_parents(&place)?;
                    if matches!((self.kind(&place), kind), (Some(Kind::Folder), Kind::Folder)) {
                        let inode = self.names[&place];
                        self.inodes[inode].1 = *mode;
                        continue;
                    }
                    self.remove(&place);
                    self.inodes.push((kind.clone(), *mode));
                    self.names.insert(place, self.inodes.len() - 1);
                }
                Change::Link(path, target) => {
                    let place = self.place(path)?;
                    self.make_parents(&place)?;
                    let found = self.lookup(target);
                    let inode =
                        found.or(before.get(&at).copied().filter(|_| has_whiteouts)).ok_or(Refused)?;
                    if self.inodes[inode].0 == Kind::Folder {
                        return Err(Refused);
                    }
                    if self.names.get(&place) == Some(&inode) {
                        continue;
                    }
                    self.remove(&place);
                    if found.is_some() && !self.names.values().any(|other| *other == inode) {
                        return Err(Refused);
                    }
                    self.names.insert(place, inode);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn dump(&self) -> BTreeMap<String, (Kind, u32, usize)> {
        let mut first = HashMap::new();
        let mut dump = BTreeMap::new();
        for (at, (name, inode)) in self.names.iter().enumerate() {
            let same = *first.entry(*inode).or_insert(at);
            let (kind, mode) = &self.inodes[*inode];
            let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { *mode };
            dump.insert(name.clone(), (kind.clone(), mode, same));
        }
        dump
    }
}

/// What was built, in the model's terms.
fn found(dump: &Dump) -> BTreeMap<String, (Kind, u32, usize)> {
    let names: Vec<String> =
        dump.keys().skip(1).map(|name| String::from_utf8(name.clone()).unwrap()).collect();
    let mut sorted = names.clone();
    sorted.sort();
    let inode = |node: &Node| String::from_utf8(node.same_as.clone()).unwrap();
    let mut first: HashMap<String, usize> = HashMap::new();
    let mut result = BTreeMap::new();
    for (at, name) in sorted.into_iter().enumerate() {
        let node = &dump[name.as_bytes()];
        let same = *first.entry(inode(node)).or_insert(at);
        let kind = match node.kind {
            "folder" => Kind::Folder,
            "symlink" => Kind::Symlink(String::from_utf8(node.target.clone()).unwrap()),
            _ => Kind::File((0..=255).find(|byte| hex(&[*byte; 10]) == node.content).unwrap()),
        };
        result.insert(name, (kind, node.mode, same));
    }
    result
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d"]), 1..4)
        .prop_map(|parts| parts.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c", "..", "."]);
    (any::<bool>(), prop::collection::vec(part, 1..4))
        .prop_map(|(absolute, parts)| format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")))
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        3 => Just(Kind::Folder),
        3 => any::<u8>().prop_map(Kind::File),
        2 => target().prop_map(Kind::Symlink),
    ]
}

fn mode() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![0o600, 0o644, 0o700, 0o755, 0o4755])
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (path(), kind(), mode()).prop_map(|(path, kind, mode)| Change::Add(path, kind, mode)),
        1 => (path(), path()).prop_map(|(path, target)| Change::Link(path, target)),
        2 => path().prop_map(Change::Whiteout),
        1 => path().prop_map(Change::Opaque),
    ]
}

/// A tree as a map of names whose parents are folders.
fn tree() -> impl Strategy<Value = BTreeMap<String, (Kind, u32)>> {
    prop::collection::vec((path(), kind(), mode()), 0..14).prop_map(|entries| {
        let mut tree: BTreeMap<String, (Kind, u32)> = BTreeMap::new();
        for (path, kind, mode) in entries {
            let mut parents = path.match_indices('/').map(|(slash, _)| &path[..slash]);
            if parents.clone().any(|parent| tree.get(parent).is_some_and(|(kind, _)| *kind != Kind::Folder)) {
                continue;
            }
            if tree.get(&path).is_some_and(|(old, _)| *old == Kind::Folder) && kind != Kind::Folder {
                continue;
            }
            for parent in parents.by_ref() {
                tree.entry(parent.to_owned()).or_insert((Kind::Folder, 0o755));
            }
            tree.insert(path, (kind, mode));
        }
        tree
    })
}

/// The layer that turns one tree into another, as container engines write it. With `opaque`, a
/// folder that is new in the place of something is marked, as overlayfs does.
fn difference(
    old: &BTreeMap<String, (Kind, u32)>,
    new: &BTreeMap<String, (Kind, u32)>,
    opaque: bool,
) -> Vec<Change> {
    let mut layer = Vec::new();
    for path in old.keys().filter(|path| !new.contains_key(*path)) {
        // What lies in a folder that goes, or is replaced, goes with it.
        let parent = path.rsplit_once('/').map(|(parent, _)| parent);
        let parent_stays = parent.is_none_or(|parent| matches!(new.get(parent), Some((Kind::Folder, _))));
        if parent_stays {
            layer.push(Change::Whiteout(path.clone()));
        }
    }
    let mut changed = BTreeSet::new();
    for (path, _) in new.iter().filter(|(path, node)| old.get(*path) != Some(node)) {
        changed.insert(path.as_str());
        changed.extend(path.match_indices('/').map(|(slash, _)| &path[..slash]));
    }
    for path in changed {
        let (kind, mode) = &new[path];
        layer.push(Change::Add(path.to_owned(), kind.clone(), *mode));
        let replaces = old.get(path).is_some_and(|(old, _)| *old != Kind::Folder);
        if opaque && *kind == Kind::Folder && replaces {
            layer.push(Change::Opaque(path.to_owned()));
        }
    }
    layer
}

fn run(layers: &[Vec<Change>]) -> Result<Dump> {
    let folder = scratch();
    let archives: Vec<_> =
        layers.iter().map(|layer| archive(&layer.iter().map(Change::item).collect::<Vec<_>>())).collect();
    merged(folder.path(), &archives)
}

/// As many as `PROPTEST_CASES` says, if it does.
fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Layers that turn each tree into the next.
fn stack(trees: &[BTreeMap<String, (Kind, u32)>], opaque: bool) -> Vec<Vec<Change>> {
    let nothing = BTreeMap::new();
    let before = std::iter::once(&nothing).chain(trees);
    before.zip(trees).map(|(old, new)| difference(old, new, opaque)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(24), ..ProptestConfig::default() })]

    #[test]
    fn layers_made_of_differences_mean_the_same_to_umoci(
        trees in prop::collection::vec(tree(), 1..5),
        opaque in any::<bool>(),
    ) {
        let layers = stack(&trees, opaque);
        let archives: Vec<_> =
            layers.iter().map(|layer| archive(&layer.iter().map(Change::item).collect::<Vec<_>>())).collect();
        let folder = scratch();
        if let Some(expected) = super::umoci::unpack(folder.path(), &archives) {
            let dump = merged(folder.path(), &archives).unwrap();
            // `umoci` leaves the time of its own run on folders in which it removes something.
            let lines = differences(&dump, &expected, |_, node| node.modified = (0, 0));
            prop_assert!(lines.is_empty(), "{}", lines.join("\n"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(400), ..ProptestConfig::default() })]

    #[test]
    fn any_layers_give_what_the_model_gives(
        layers in prop::collection::vec(prop::collection::vec(change(), 0..12), 1..4),
    ) {
        let mut model = Model::default();
        let expected: Result<(), Refused> = layers.iter().try_for_each(|layer| model.apply(layer));
        match (run(&layers), expected) {
            (Ok(dump), Ok(())) => prop_assert_eq!(found(&dump), model.dump()),
            (Err(_), Err(Refused)) => {}
            (found, expected) => prop_assert!(false, "found {:?}, the model says {:?}", found.map(|_| ()), expected),
        }
    }

    #[test]
    fn layers_made_of_differences_give_the_last_tree(trees in prop::collection::vec(tree(), 1..5), opaque in any::<bool>()) {
        let dump = found(&run(&stack(&trees, opaque)).unwrap());
        let dump: BTreeMap<_, _> = dump.into_iter().map(|(name, (kind, mode, _))| (name, (kind, mode))).collect();
        let expected: BTreeMap<_, _> = trees
            .last()
            .cloned()
            .unwrap_or_default()
            .into_iter()
            .map(|(name, (kind, mode))| {
                let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { mode };
                (name, (kind, mode))
            })
            .collect();
        prop_assert_eq!(dump, expected);
    }
}
