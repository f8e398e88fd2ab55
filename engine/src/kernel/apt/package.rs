//! Packages as the archive describes them (deb-control(5)).

use std::fmt;

use super::command::CommandError;
use crate::error::{Error, Result};

/// Beginnings of the names of packages that hold parts of a kernel.
const PARTS: [&str; 3] = ["linux-image-", "linux-modules-", "linux-binary-"];

#[derive(Debug, thiserror::Error)]
pub(super) enum PackageError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("the package archive of this host has no package `{0}`")]
    Unknown(String),
    #[error("neither `{0}` nor what it depends on holds a kernel")]
    NoImage(String),
    #[error("`{0}` depends on too many other packages")]
    TooMany(String),
}

impl PackageError {
    pub(super) fn is_cancelled(&self) -> bool {
        matches!(self, Self::Command(CommandError::Cancelled))
    }
}

/// What to get: `NAME`, `NAME=VERSION` or `NAME/SUITE`, as apt-get(8) has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::kernel) struct PackageSpec(String);

impl PackageSpec {
    /// Checks the form: what passes is safe as an argument of apt.
    pub(in crate::kernel) fn parse(text: &str) -> Result<Self> {
        let (name, rest) = text.find(['=', '/']).map_or((text, ""), |at| text.split_at(at));
        // Debian policy 5.6.1 and 5.6.12; apt itself takes patterns (`?`, `~`, `*`), which are not meant.
        let good_name = name.len() >= 2
            && name.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
        let good_rest = rest.is_empty()
            || rest.len() >= 2
                && rest[1..].bytes().all(|b| b.is_ascii_alphanumeric() || b".+-~:_".contains(&b));
        if good_name && good_rest && text.len() <= 200 {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::usage(format!("`apt:{}` names no package", text.escape_default()))
            .with_hint("write `apt:NAME`, `apt:NAME=VERSION` or `apt:NAME/SUITE`"))
    }

    pub(in crate::kernel) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PackageSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One package of the archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// Length of the file in bytes.
    pub(super) size: u64,
    depends: String,
}

impl Package {
    /// Reads the first paragraph that `apt-cache show` prints.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let paragraph = text.split("\n\n").next()?;
        let field = |wanted: &str| {
            paragraph.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                (name == wanted).then(|| value.trim())
            })
        };
        Some(Self {
            name: field("Package")?.to_owned(),
            version: field("Version")?.to_owned(),
            size: field("Size").and_then(|size| size.parse().ok()).unwrap_or_default(),
            depends: field("Depends").unwrap_or_default().to_owned(),
        })
    }

    pub(super) fn spec(&self) -> String {
        format!("{}={}", self.name, self.version)
    }

    /// Whether it only stands for other kernels.
    pub(super) fn is_meta(&self) -> bool {
        self.kernel_dependencies().iter().any(|spec| spec.as_str().starts_with("linux-image-"))
    }

    /// The parts of a kernel it depends on. Of alternatives the first is taken, as apt does.
    ///
    /// Ubuntu's `linux-modules-extra-*` are for real hardware, and larger than all the rest.
    pub(super) fn kernel_dependencies(&self) -> Vec<PackageSpec> {
        self.depends
            .split(',')
            .filter_map(|dependency| {
                let first = dependency.split('|').next()?.trim();
                let (name, relation) = first.split_once(' ').unwrap_or((first, ""));
                let name = name.split(':').next()?;
                if !PARTS.iter().any(|part| name.starts_with(part))
                    || name.starts_with("linux-modules-extra-")
                {
                    return None;
                }
                let version = relation.trim().strip_prefix("(=").and_then(|rest| rest.strip_suffix(')'));
                let spec =
                    version.map_or_else(|| name.to_owned(), |version| format!("{name}={}", version.trim()));
                PackageSpec::parse(&spec).ok()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_packages_pass() {
        for good in [
            "linux-image-cloud-amd64",
            "linux-image-6.12.1+deb12-amd64=6.12.1-1~deb12u1",
            "linux-image-amd64/bookworm-backports",
        ] {
            assert!(PackageSpec::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-o",
            "--help",
            "a",
            "./x.deb",
            "x*",
            "linux image",
            "Linux",
            "a?b",
            "ab=",
            "ab/",
            "ab=1/2",
            "ab=1 2",
        ] {
            assert!(PackageSpec::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_meta_package_leads_to_the_image() {
        let meta = Package::parse(
            "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nSize: 1504\nDescription: x\n y\n\nPackage: linux-image-cloud-amd64\nVersion: 6.1.176-1\n",
        )
        .unwrap();
        assert!(meta.is_meta());
        assert_eq!(meta.size, 1504);
        let names: Vec<_> = meta.kernel_dependencies().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["linux-image-6.1.0-56-cloud-amd64=6.1.192-2"]);
    }

    #[test]
    fn an_image_with_its_modules_apart_is_no_meta_package() {
        let image = Package::parse(
            "Package: linux-image-6.8.0-31-generic\nVersion: 6.8.0-31.31\nDepends: kmod, linux-base (>= 4.5), linux-modules-6.8.0-31-generic\nSize: 1\n",
        )
        .unwrap();
        assert!(!image.is_meta());
        assert_eq!(image.kernel_dependencies()[0].as_str(), "linux-modules-6.8.0-31-generic");
    }
}
