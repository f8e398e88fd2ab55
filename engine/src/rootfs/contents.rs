//! What a finished tree says of itself: how it can be started, and what it is.

use std::collections::BTreeMap;

use vmdeck_ext4::{Formatter, InodeKind};

use super::jail::Jail;

/// What is in an image, as far as starting it depends on that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Absolute name of the init the kernel would find (in the order in which it looks), when there
    /// is one that can be executed.
    pub init: Option<&'static str>,
    pub init_system: Option<InitSystem>,
    /// A udev daemon is there. Without one, systemd waits for devices that never appear.
    pub udev: bool,
    /// `/bin/sh` can be executed.
    pub shell: bool,
    /// `/etc/os-release`, else `/usr/lib/os-release`: `ID`, `VERSION_ID`, `PRETTY_NAME`, …
    /// (os-release(5)).
    pub os_release: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitSystem {
    Systemd,
    OpenRc,
    Busybox,
    Other,
}

/// Most bytes of an os-release file to look at.
const OS_RELEASE_LIMIT: usize = 64 << 10;

impl Contents {
    pub(super) fn of(jail: &Jail, formatter: &Formatter) -> Self {
        // `try_to_run_init_process` in the kernel's init/main.c; the shell, its last try, is no init.
        let init = ["/sbin/init", "/etc/init", "/bin/init"].into_iter().find(|path| executable(jail, path));
        let os_release = ["/etc/os-release", "/usr/lib/os-release"]
            .into_iter()
            .find_map(|path| read(jail, formatter, path, OS_RELEASE_LIMIT))
            .map(|text| parse_os_release(&String::from_utf8_lossy(&text)))
            .unwrap_or_default();
        let any = |paths: &[&str]| paths.iter().any(|path| executable(jail, path));
        Self {
            init,
            init_system: init.map(|path| init_system(jail, path)),
            udev: any(&[
                "/usr/lib/systemd/systemd-udevd",
                "/lib/systemd/systemd-udevd",
                "/sbin/udevd",
                "/usr/bin/udevadm",
            ]),
            shell: executable(jail, "/bin/sh"),
            os_release,
        }
    }
}

fn init_system(jail: &Jail, path: &str) -> InitSystem {
    let init = jail.follow(path.as_bytes());
    let is = |candidates: &[&str]| candidates.iter().any(|path| jail.follow(path.as_bytes()) == init);
    if is(&["/usr/lib/systemd/systemd", "/lib/systemd/systemd"]) {
        InitSystem::Systemd
    } else if executable(jail, "/sbin/openrc") || executable(jail, "/usr/bin/openrc") {
        // OpenRC is run by another init, often busybox'.
        InitSystem::OpenRc
    } else if is(&["/bin/busybox", "/usr/bin/busybox"]) {
        InitSystem::Busybox
    } else {
        InitSystem::Other
    }
}

/// Whether a name leads to a file with content that someone may execute.
fn executable(jail: &Jail, path: &str) -> bool {
    jail.follow(path.as_bytes()).is_some_and(|id| {
        let inode = jail.tree.inode(id);
        matches!(&inode.kind, InodeKind::File(data) if data.size > 0) && inode.metadata.mode & 0o111 != 0
    })
}

/// The first bytes of a file.
fn read(jail: &Jail, formatter: &Formatter, path: &str, limit: usize) -> Option<Vec<u8>> {
    let InodeKind::File(data) = &jail.tree.inode(jail.follow(path.as_bytes())?).kind else { return None };
    let mut content = vec![0; usize::try_from(data.size).unwrap_or(limit).min(limit)];
    let mut filled = 0;
    while filled < content.len() {
        match formatter.read_at(data, filled as u64, &mut content[filled..]) {
            Ok(0) | Err(_) => break,
            Ok(count) => filled += count,
        }
    }
    content.truncate(filled);
    Some(content)
}

/// Assignments as a shell would read them, without anything a shell would expand.
fn parse_os_release(text: &str) -> BTreeMap<String, String> {
    let assignments = text.lines().filter_map(|line| {
        let (name, value) = line.trim().split_once('=')?;
        let named = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
        let bare = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .or_else(|| value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')))
            .unwrap_or(value);
        // What these end in is shown on a terminal.
        let clean =
            bare.replace('\\', "").chars().filter(|character| !character.is_control()).take(256).collect();
        named.then(|| (name.to_owned(), clean))
    });
    assignments.take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_is_read_as_a_shell_would() {
        let found = parse_os_release(
            "# comment\nID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME='Debian GNU/Linux'\n\nlower=x\nBAD\nEVIL=\"\u{1b}[2J\"\n",
        );
        let expected =
            [("ID", "debian"), ("VERSION_ID", "12"), ("PRETTY_NAME", "Debian GNU/Linux"), ("EVIL", "[2J")];
        assert_eq!(found, expected.map(|(name, value)| (name.into(), value.into())).into());
    }
}
