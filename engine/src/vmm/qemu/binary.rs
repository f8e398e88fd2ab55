//! The QEMU of this host: where it is and what it was built with.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The system emulator for this host's architecture.
const PROGRAM: &str = concat!("qemu-system-", "x86_64");
/// Where distributions put it outside of `PATH`; Red Hat's has another name.
const ELSEWHERE: [&str; 4] = [
    "/usr/bin/qemu-system-x86_64",
    "/usr/local/bin/qemu-system-x86_64",
    "/usr/libexec/qemu-kvm",
    "/usr/bin/qemu-kvm",
];

/// How long QEMU may take to print its version: it reads a hundred libraries, perhaps from a slow disk.
const ASK_TIMEOUT: Duration = Duration::from_secs(20);

/// A file that a verdict or a feature was found with: another version of it has another size or
/// time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Binary {
    pub(crate) path: PathBuf,
    size: u64,
    modified_ns: i64,
    inode: u64,
}

impl Binary {
    /// `$VMDECK_QEMU`, else the one in `PATH`, else where distributions hide it.
    pub(crate) fn find() -> Result<Self> {
        if let Some(path) = std::env::var_os("VMDECK_QEMU").filter(|path| !path.is_empty()) {
            let path = PathBuf::from(path);
            return Self::at(&path).ok_or_else(|| {
                Error::host_cannot(format!("VMDECK_QEMU names `{}`, which is no program", path.display()))
                    .with_hint("set it to the path of a qemu-system-x86_64, or unset it")
            });
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|folder| folder.join(PROGRAM))
            .chain(ELSEWHERE.map(PathBuf::from))
            .find_map(|path| Self::at(&path))
            .ok_or_else(|| {
                Error::host_cannot(format!("`{PROGRAM}` is not installed")).with_hint(install_hint())
            })
    }

    /// Runs it for what it prints.
    async fn ask(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments).await?;
        if !output.status.success() {
            let said = super::failure::last_words(&String::from_utf8_lossy(&output.stderr));
            return Err(Error::host_cannot(format!("{}: {said}", self.failed(arguments)))
                .with_hint("is the package of QEMU whole? Install it anew"));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether it takes these arguments. One that does not answer in time, on a host that is too busy, has
    /// said neither yes nor no.
    async fn takes(&self, arguments: &[&str]) -> Result<bool> {
        Ok(self.run(arguments).await?.status.success())
    }

    fn failed(&self, arguments: &[&str]) -> String {
        format!("`{} {}` failed", self.path.display(), arguments.join(" "))
    }

    async fn run(&self, arguments: &[&str]) -> Result<Output> {
        let fail = || self.failed(arguments);
        let output = tokio::process::Command::new(&self.path)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(ASK_TIMEOUT, output)
            .await
            .map_err(|_| Error::host_cannot(fail() + ": it does not end"))?
            .map_err(|error| Error::host_cannot(fail()).with_source(error))?;
        Ok(output)
    }

    fn at(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        let executable = metadata.is_file() && metadata.permissions().mode() & 0o111 != 0;
        executable.then(|| Self {
            path: path.to_owned(),
            size: metadata.size(),
            modified_ns: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
            inode: metadata.ino(),
        })
    }
}

/// What a QEMU was built with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Features {
    binary: Binary,
    /// `7.2.22 (Debian …)`.
    pub(crate) version: String,
    /// The filter of system calls.
    pub(crate) sandbox: bool,
    /// The user-mode network (libslirp).
    pub(crate) user_network: bool,
}

impl Features {
    pub(crate) fn path(&self) -> &Path {
        &self.binary.path
    }

    /// Asks QEMU, or takes what it said before, which is kept in `cache`.
    pub(crate) async fn of(binary: &Binary, cache: &Path) -> Result<Self> {
        let path = cache.join("qemu.json");
        let known = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        if let Some(known) = known.filter(|known| known.binary == *binary) {
            return Ok(known);
        }
        let version = binary.ask(&["--version"]).await?;
        let version = version
            .lines()
            .find_map(|line| line.strip_prefix("QEMU emulator version "))
            .ok_or_else(|| Error::host_cannot(format!("`{}` is no QEMU", binary.path.display())))?
            .to_owned();
        let quiet = ["-nodefaults", "-display", "none", "-machine", "none"];
        let backends = binary.ask(&[&quiet[..], &["-netdev", "help"]].concat()).await?;
        let sandbox = [&quiet[..], &["-sandbox", "on", "-netdev", "help"]].concat();
        let features = Self {
            binary: binary.clone(),
            version,
            sandbox: binary.takes(&sandbox).await?,
            user_network: backends.lines().any(|line| line.trim() == "user"),
        };
        super::write_json(&path, &features)?;
        Ok(features)
    }
}

/// How QEMU is installed on this distribution.
pub(crate) fn install_hint() -> String {
    install_command(&std::fs::read_to_string("/etc/os-release").unwrap_or_default()).map_or_else(
        || "install QEMU's system emulator for x86-64 with this host's package manager".to_owned(),
        |command| format!("`{command}` installs it"),
    )
}

/// The command for a distribution, by its `os-release` (os-release(5)).
fn install_command(os_release: &str) -> Option<&'static str> {
    let field = |name: &str| {
        os_release
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim_matches('"').to_owned())
    };
    let mut families = field("ID=").into_iter().chain(field("ID_LIKE="));
    families.find_map(|families| {
        families.split_ascii_whitespace().find_map(|family| match family {
            "debian" | "ubuntu" => Some("sudo apt-get install --no-install-recommends qemu-system-x86"),
            "fedora" => Some("sudo dnf install qemu-system-x86-core"),
            "rhel" | "centos" => Some("sudo dnf install qemu-kvm"),
            "arch" => Some("sudo pacman -S qemu-system-x86"),
            "suse" | "opensuse" => Some("sudo zypper install qemu-x86"),
            "alpine" => Some("sudo apk add qemu-system-x86_64"),
            "nixos" => Some("nix-env -iA nixos.qemu_kvm"),
            _ => None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_distribution_has_its_command() {
        let check = |text, expected: Option<&str>| {
            assert_eq!(install_command(text).and_then(|command| command.split(' ').nth(1)), expected);
        };
        check("NAME=\"Debian GNU/Linux\"\nID=debian\n", Some("apt-get"));
        check("ID=pop\nID_LIKE=\"ubuntu debian\"\n", Some("apt-get"));
        check("ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"\n", Some("zypper"));
        check("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", Some("dnf"));
        check("ID=plan9\n", None);
        check("", None);
    }
}
