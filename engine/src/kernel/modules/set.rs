//! All modules of a kernel, and what must be loaded before what.

use std::collections::{HashMap, HashSet};

use super::module::{Module, name_of_path, normalize};

/// The modules of one kernel, in the order in which its build listed them.
#[derive(Debug, Default)]
pub(in crate::kernel) struct ModuleSet {
    modules: Vec<Module>,
    by_name: HashMap<String, usize>,
    /// What each module needs, by position; in the order it names them.
    needs: Vec<Vec<usize>>,
    /// Names of what is compiled into the kernel.
    builtin: HashSet<String>,
}

/// What has to be loaded to get something, and what there is not.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::kernel) struct LoadPlan {
    /// Positions of modules in the order they have to be loaded in.
    pub order: Vec<usize>,
    /// Wanted, and neither a module nor known to be compiled in.
    pub missing: Vec<String>,
}

impl ModuleSet {
    /// `order` and `builtin` are the texts of `modules.order` and `modules.builtin`.
    pub(in crate::kernel) fn new(mut modules: Vec<Module>, order: &str, builtin: &str) -> Self {
        let rank: HashMap<&str, usize> =
            order.lines().enumerate().map(|(rank, line)| (without_suffix(line), rank)).collect();
        let rank = |module: &Module| rank.get(without_suffix(&module.path)).copied().unwrap_or(usize::MAX);
        modules
            .sort_by(|left, right| (rank(left), left.path.as_str()).cmp(&(rank(right), right.path.as_str())));
        // Of two modules with one name, the one in `updates/` is meant (depmod.d(5), "search").
        let mut chosen: HashMap<String, (bool, String)> = HashMap::new();
        for module in &modules {
            let update = module.path.starts_with("updates/");
            match chosen.get(&module.name) {
                Some((known_update, _)) if *known_update || !update => {}
                _ => {
                    chosen.insert(module.name.clone(), (update, module.path.clone()));
                }
            }
        }
        modules.retain(|module| chosen.get(&module.name).is_some_and(|(_, path)| *path == module.path));

        let by_name: HashMap<String, usize> =
            modules.iter().enumerate().map(|(position, module)| (module.name.clone(), position)).collect();
        let needs = modules
            .iter()
            .map(|module| module.depends.iter().filter_map(|name| by_name.get(name).copied()).collect())
            .collect();
        let builtin = builtin
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| normalize(name_of_path(line)))
            .collect();
        Self { modules, by_name, needs, builtin }
    }

    pub(in crate::kernel) fn modules(&self) -> &[Module] {
        &self.modules
    }

    pub(super) fn builtin(&self) -> &HashSet<String> {
        &self.builtin
    }

    /// Whether it is known what is compiled in.
    pub(in crate::kernel) fn knows_builtin(&self) -> bool {
        !self.builtin.is_empty()
    }

    /// What to load so that all of `wanted` are there, with what they need and softly need.
    pub(in crate::kernel) fn plan(&self, wanted: &[&str]) -> LoadPlan {
        let mut plan = LoadPlan::default();
        let mut done = HashSet::new();
        for name in wanted {
            match self.by_name.get(*name) {
                Some(&position) => self.visit(position, true, &mut done, &mut plan.order),
                None if self.builtin.contains(*name) => {}
                None => plan.missing.push((*name).to_owned()),
            }
        }
        plan
    }

    /// What a module needs, directly or not, in the order in which modules.dep lists it: the last
    /// is loaded first.
    pub(super) fn dependencies(&self, position: usize) -> Vec<usize> {
        let mut order = Vec::new();
        self.visit(position, false, &mut HashSet::new(), &mut order);
        order.pop(); // the module itself
        order.reverse();
        order
    }

    /// Adds a module to `order`, behind all that it needs. Circles, which the kernel could not load
    /// anyway, are cut. Not recursive: the chain may be as long as the set.
    fn visit(&self, position: usize, softly: bool, done: &mut HashSet<usize>, order: &mut Vec<usize>) {
        if !done.insert(position) {
            return;
        }
        let mut path = vec![(position, self.before(position, softly).into_iter())];
        while let Some((current, rest)) = path.last_mut() {
            match rest.next() {
                Some(next) if done.insert(next) => {
                    path.push((next, self.before(next, softly).into_iter()));
                }
                Some(_) => {}
                None => {
                    order.push(*current);
                    path.pop();
                }
            }
        }
    }

    fn before(&self, position: usize, softly: bool) -> Vec<usize> {
        let mut before = Vec::new();
        if softly {
            let module = &self.modules[position];
            before.extend(module.soft_before().flat_map(|name| self.providers(&name)));
        }
        before.extend(&self.needs[position]);
        before
    }

    /// Modules that go by a name or have it as an alias (`crc32c`); none when it is compiled in.
    ///
    /// Where a portable implementation is among several, that one: the others may refuse this CPU.
    fn providers(&self, name: &str) -> Vec<usize> {
        if let Some(&position) = self.by_name.get(name) {
            return vec![position];
        }
        let generic = format!("{name}_generic");
        if self.builtin.contains(name) || self.builtin.contains(&generic) {
            return Vec::new();
        }
        if let Some(&position) = self.by_name.get(&generic) {
            return vec![position];
        }
        let offers = |module: &Module| module.aliases.iter().any(|alias| normalize(alias) == name);
        (0..self.modules.len()).filter(|&position| offers(&self.modules[position])).collect()
    }
}

/// `a.ko.xz` → `a.ko`
fn without_suffix(path: &str) -> &str {
    path.rfind(".ko").map_or(path, |at| &path[..at + 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str, depends: &[&str], soft: &str, aliases: &[&str]) -> Module {
        Module {
            name: normalize(name_of_path(path)),
            path: path.into(),
            depends: depends.iter().map(ToString::to_string).collect(),
            soft_dependencies: if soft.is_empty() { vec![] } else { vec![soft.into()] },
            aliases: aliases.iter().map(ToString::to_string).collect(),
            ..Module::default()
        }
    }

    fn names(set: &ModuleSet, order: &[usize]) -> Vec<String> {
        order.iter().map(|&position| set.modules()[position].name.clone()).collect()
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let set = ModuleSet::new(
            vec![
                module("k/virtio-net.ko", &["net_failover", "virtio"], "", &[]),
                module("k/net_failover.ko", &["failover"], "", &[]),
                module("k/failover.ko", &[], "", &[]),
                module("k/virtio.ko", &[], "", &[]),
                module("k/virtio_blk.ko", &["virtio"], "", &[]),
            ],
            "",
            "kernel/fs/ext4/ext4.ko\n",
        );
        let plan = set.plan(&["virtio_blk", "virtio_net", "ext4", "nothing"]);
        assert_eq!(
            names(&set, &plan.order),
            ["virtio", "virtio_blk", "failover", "net_failover", "virtio_net"]
        );
        assert_eq!(plan.missing, ["nothing"]);
    }

    #[test]
    fn soft_dependencies_are_found_by_alias_and_the_portable_one_is_taken() {
        let modules = vec![
            module("k/ext4.ko", &["jbd2"], "pre: crc32c", &[]),
            module("k/jbd2.ko", &[], "", &[]),
            module("k/crc32c-intel.ko", &[], "", &["crc32c"]),
        ];
        let set = ModuleSet::new(modules.clone(), "", "");
        assert_eq!(names(&set, &set.plan(&["ext4"]).order), ["crc32c_intel", "jbd2", "ext4"]);
        let generic = module("k/crc32c_generic.ko", &[], "", &["crc32c"]);
        let set = ModuleSet::new([modules.clone(), vec![generic]].concat(), "", "");
        assert_eq!(names(&set, &set.plan(&["ext4"]).order), ["crc32c_generic", "jbd2", "ext4"]);
        let set = ModuleSet::new(modules, "", "kernel/crypto/crc32c_generic.ko\n");
        assert_eq!(names(&set, &set.plan(&["ext4"]).order), ["jbd2", "ext4"]);
    }

    #[test]
    fn circles_end_and_updates_win() {
        let set = ModuleSet::new(
            vec![
                module("kernel/a.ko", &["b"], "", &[]),
                module("kernel/b.ko", &["a"], "", &[]),
                module("updates/a.ko", &["b"], "", &[]),
            ],
            "kernel/b.ko\nkernel/a.ko\n",
            "",
        );
        assert_eq!(set.modules().len(), 2);
        assert_eq!(set.modules()[0].name, "b");
        assert_eq!(set.modules()[1].path, "updates/a.ko");
        assert_eq!(set.dependencies(1), [0]);
    }
}
