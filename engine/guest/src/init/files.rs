//! What a machine has of its own in the image's root: its name, resolver and keys.
//!
//! The root is the machine's overlay, so these are ordinary files there; the image is not touched.

use std::fmt::Write;
use std::io;
use std::path::Path;

use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown, sethostname};
use vmdeck_protocol::settings::{Lan, Settings};

use crate::accounts::Accounts;
use crate::jail::Jail;
use crate::log;

/// Most links followed from `/etc/resolv.conf`.
const MAX_LINKS: usize = 8;

/// The home of root, as the image has it.
pub(super) fn home(jail: &Jail) -> String {
    let passwd = jail.read("/etc/passwd").unwrap_or_default();
    match Accounts::new(&passwd, b"").find("root") {
        // A home at the root itself would hide the image under the work disk.
        Ok(root) if root.home.starts_with('/') && !root.home.trim_matches('/').is_empty() => root.home,
        _ => "/root".to_owned(),
    }
}

/// Writes them. None is needed for a machine to run, so what fails is a warning.
pub(super) fn write(jail: &Jail, settings: &Settings, home: &str) {
    if !settings.hostname.is_empty() {
        warn("the host name", sethostname(&settings.hostname).map_err(io::Error::from));
        let line = format!("{}\n", settings.hostname);
        warn("`/etc/hostname`", jail.write("/etc/hostname", line.as_bytes(), 0o644));
    }
    warn("`/etc/hosts`", hosts(jail, settings));
    if settings.network.is_some() {
        warn("`/etc/resolv.conf`", resolver(jail, settings));
    }
    if !settings.authorized_keys.is_empty() {
        warn("the authorized keys", authorized_keys(jail, &settings.authorized_keys, home));
    }
}

/// Keeps the lines of the image that do not speak of this machine.
fn hosts(jail: &Jail, settings: &Settings) -> io::Result<()> {
    let image = jail.read("/etc/hosts").unwrap_or_default();
    jail.write("/etc/hosts", hosts_text(&String::from_utf8_lossy(&image), settings).as_bytes(), 0o644)
}

fn hosts_text(image: &str, settings: &Settings) -> String {
    let name = &settings.hostname;
    let mut text = String::new();
    let mut has_localhost = false;
    for line in image.lines() {
        let mut words = line.split('#').next().unwrap_or("").split_whitespace();
        let address = words.next();
        if address.is_some() && words.clone().any(|word| word == name) {
            continue;
        }
        has_localhost |= address == Some("127.0.0.1") && words.any(|word| word == "localhost");
        text.push_str(line);
        text.push('\n');
    }
    if !has_localhost {
        text.insert_str(0, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    }
    if !name.is_empty() {
        // Without a network the name still has to lead somewhere (Debian policy: 127.0.1.1).
        let alone = settings.network.as_ref().map(|network| network.address);
        let address = settings.lan.as_ref().map(|lan| lan.address).or(alone);
        let address = address.map_or("127.0.1.1".to_owned(), |address| address.to_string());
        let full = settings.lan.as_ref().map(|lan| format!("\t{name}.{}", lan.domain)).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{address}\t{name}{full}");
    }
    text
}

fn resolver(jail: &Jail, settings: &Settings) -> io::Result<()> {
    let mut text = String::new();
    if let Some(Lan { resolver, domain, .. }) = &settings.lan {
        // Its answers come at once or, while the network between machines is started anew, not at all.
        let _ = writeln!(text, "search {domain}\noptions timeout:2\nnameserver {resolver}");
    }
    for resolver in settings.network.iter().flat_map(|network| &network.resolvers) {
        let _ = writeln!(text, "nameserver {resolver}");
    }
    // systemd-resolved's own file is a link to below `/run`, which is empty yet: the folders are made
    // so that the link leads somewhere and stays.
    let mut path = Path::new("/etc/resolv.conf").to_path_buf();
    for _ in 0..MAX_LINKS {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let directory = match jail.open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()) {
            Ok(directory) => directory,
            Err(_) => break,
        };
        let Some(Ok(target)) = path.file_name().map(|name| readlinkat(&directory, name)) else { break };
        path = parent.join(target);
        if let Some(parent) = path.parent() {
            // Where this fails the link is replaced by a file.
            let _ = jail.create_directories(parent, 0o755);
        }
    }
    jail.write("/etc/resolv.conf", text.as_bytes(), 0o644)
}

/// Adds the keys that are not there yet.
fn authorized_keys(jail: &Jail, keys: &[String], home: &str) -> io::Result<()> {
    let folder = Path::new(home).join(".ssh");
    let path = folder.join("authorized_keys");
    let present = jail.read(&path).unwrap_or_default();
    let present = String::from_utf8_lossy(&present);
    let missing: Vec<&str> = keys
        .iter()
        .map(|key| key.trim())
        .filter(|key| !key.is_empty() && !present.lines().any(|line| line.trim() == *key))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut text = present.into_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for key in missing {
        text.push_str(key);
        text.push('\n');
    }
    jail.create_directories(home, 0o700)?;
    jail.create_directories(&folder, 0o700)?;
    jail.write(&path, text.as_bytes(), 0o600)?;
    // sshd refuses keys that others could have written (`StrictModes`).
    let folder = jail.open(&folder, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
    fchmod(&folder, Mode::from_bits_truncate(0o700))?;
    fchown(&folder, Some(Uid::from_raw(0)), Some(Gid::from_raw(0)))?;
    Ok(())
}

fn warn(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        log::warning(&format!("{what} cannot be written: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use vmdeck_protocol::settings::Network;

    fn settings() -> Settings {
        Settings {
            hostname: "dev".to_owned(),
            network: Some(Network {
                mac: "52:54:00:00:00:01".to_owned(),
                address: [10, 1, 2, 3].into(),
                prefix: 24,
                gateway: [10, 1, 2, 2].into(),
                resolvers: vec![[10, 1, 2, 4].into()],
            }),
            authorized_keys: vec!["ssh-ed25519 AAAA me".to_owned()],
            ..Settings::default()
        }
    }

    fn with_lan() -> Settings {
        let lan = Lan {
            mac: "5e:00:00:00:00:01".to_owned(),
            address: [10, 2, 0, 5].into(),
            prefix: 24,
            resolver: [10, 2, 0, 1].into(),
            domain: "vmdeck".to_owned(),
        };
        Settings { lan: Some(lan), ..settings() }
    }

    #[test]
    fn hosts_keep_what_the_image_says_of_others() {
        let image = "127.0.0.1 localhost\n10.9.9.9 dev other # old\n10.0.0.1 registry\n";
        assert_eq!(hosts_text(image, &settings()), "127.0.0.1 localhost\n10.0.0.1 registry\n10.1.2.3\tdev\n");
        let text = hosts_text("", &Settings { network: None, ..settings() });
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("127.0.1.1\tdev\n"));
        assert!(hosts_text("", &with_lan()).ends_with("10.2.0.5\tdev\tdev.vmdeck\n"));
    }

    #[test]
    fn the_resolver_of_the_machines_is_asked_first() {
        let folder = tempfile::tempdir().unwrap();
        resolver(&Jail::new(folder.path()).unwrap(), &with_lan()).unwrap();
        let written = fs::read_to_string(folder.path().join("etc/resolv.conf")).unwrap();
        assert_eq!(written, "search vmdeck\noptions timeout:2\nnameserver 10.2.0.1\nnameserver 10.1.2.4\n");
    }

    #[test]
    fn a_resolver_link_below_run_stays() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("etc")).unwrap();
        fs::create_dir_all(folder.path().join("run")).unwrap();
        let link = folder.path().join("etc/resolv.conf");
        symlink("../run/systemd/resolve/stub-resolv.conf", &link).unwrap();
        resolver(&Jail::new(folder.path()).unwrap(), &settings()).unwrap();
        assert!(link.is_symlink());
        let written = fs::read_to_string(folder.path().join("run/systemd/resolve/stub-resolv.conf")).unwrap();
        assert_eq!(written, "nameserver 10.1.2.4\n");
    }

    #[test]
    fn keys_are_added_once_and_are_private() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("root/.ssh")).unwrap();
        fs::write(folder.path().join("root/.ssh/authorized_keys"), "ssh-rsa BBBB other").unwrap();
        let jail = Jail::new(folder.path()).unwrap();
        for _ in 0..2 {
            authorized_keys(&jail, &settings().authorized_keys, "/root").unwrap();
        }
        let path = folder.path().join("root/.ssh/authorized_keys");
        assert_eq!(fs::read_to_string(&path).unwrap(), "ssh-rsa BBBB other\nssh-ed25519 AAAA me\n");
        let mode = fs::metadata(folder.path().join("root/.ssh")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn the_home_of_root_is_that_of_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let jail = Jail::new(folder.path()).unwrap();
        assert_eq!(home(&jail), "/root");
        fs::create_dir_all(folder.path().join("etc")).unwrap();
        for (line, expected) in
            [("root:x:0:0::/var/root:/bin/sh", "/var/root"), ("root:x:0:0::/:/bin/sh", "/root")]
        {
            fs::write(folder.path().join("etc/passwd"), line).unwrap();
            assert_eq!(home(&jail), expected);
        }
    }
}
