//! The kernels that are installed on this host, and unpacked trees, which look the same.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::boot_image::is_release;
use super::source::Source;
use crate::error::{Error, Result};

/// The newest kernel of the tree at `root` that can be read. Blocks.
pub(super) fn newest(root: &Path) -> Result<Source> {
    let mut candidates = candidates(root);
    candidates.sort_by(|left, right| compare_releases(&right.0, &left.0));
    let mut unreadable = None;
    for (release, image) in candidates {
        match File::open(&image) {
            Ok(_) => {
                let modules = ["lib/modules", "usr/lib/modules"]
                    .iter()
                    .map(|folder| root.join(folder).join(&release))
                    .find(|path| path.is_dir());
                let configuration = Some(root.join("boot").join(format!("config-{release}")));
                return Ok(Source::Files { image, configuration, modules });
            }
            Err(error) => {
                unreadable.get_or_insert((image, error));
            }
        }
    }
    Err(match unreadable {
        Some((image, error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            Error::host_cannot(format!("the kernel `{}` of this host may only be read by root", image.display()))
                .with_source(error)
                .with_hint(format!(
                    "allow it with `sudo chmod +r {}`, or get a kernel with `vmdeck kernel pull apt:linux-image-cloud-amd64`",
                    image.display()
                ))
        }
        Some((image, error)) => Error::io(format!("cannot read `{}`", image.display()), error),
        None => Error::host_cannot(format!("there is no kernel in `{}`", root.join("boot").display()))
            .with_hint("get one with `vmdeck kernel pull apt:linux-image-cloud-amd64`"),
    })
}

/// Releases and images: `boot/vmlinuz-RELEASE`, or `lib/modules/RELEASE/vmlinuz` as Fedora and Arch
/// have it.
fn candidates(root: &Path) -> Vec<(String, PathBuf)> {
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let boot = root.join("boot");
    let mut found: Vec<_> = names(&boot)
        .into_iter()
        .filter_map(|name| {
            let release = name.strip_prefix("vmlinuz-").filter(|release| is_release(release))?;
            Some((release.to_owned(), boot.join(&name)))
        })
        .collect();
    for folder in ["lib/modules", "usr/lib/modules"].map(|folder| root.join(folder)) {
        for release in names(&folder).into_iter().filter(|release| is_release(release)) {
            let image = folder.join(&release).join("vmlinuz");
            if image.is_file() && !found.iter().any(|(known, _)| *known == release) {
                found.push((release, image));
            }
        }
    }
    found
}

/// Compares numbers within releases as numbers: 6.1.9 is older than 6.1.10.
pub(super) fn compare_releases(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        let (left_number, left_rest) = leading_number(left);
        let (right_number, right_rest) = leading_number(right);
        let order = left_number.cmp(&right_number);
        match (order, left_rest, right_rest) {
            (Ordering::Equal, [left_first, left_more @ ..], [right_first, right_more @ ..])
                if left_first == right_first =>
            {
                (left, right) = (left_more, right_more);
            }
            (Ordering::Equal, _, _) => return left_rest.first().cmp(&right_rest.first()),
            _ => return order,
        }
    }
}

fn leading_number(text: &[u8]) -> (Option<u128>, &[u8]) {
    let end = text.iter().take(30).position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len().min(30));
    let (digits, rest) = text.split_at(end);
    (std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()), rest)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn releases_are_compared_by_their_numbers() {
        for (older, newer) in
            [("6.1.9", "6.1.10"), ("6.1.0-13-amd64", "6.1.0-21-amd64"), ("5.15.0", "6.1.0"), ("6.1", "6.1.1")]
        {
            assert_eq!(compare_releases(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare_releases(newer, older), Ordering::Greater);
        }
        assert_eq!(compare_releases("6.1.0-13-amd64", "6.1.0-13-amd64"), Ordering::Equal);
    }

    #[test]
    fn the_newest_kernel_is_taken_with_its_modules() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("boot")).unwrap();
        fs::create_dir_all(root.path().join("lib/modules/6.1.10")).unwrap();
        assert!(newest(root.path()).unwrap_err().hint().unwrap().contains("kernel pull"));
        for name in ["vmlinuz-6.1.9", "vmlinuz-6.1.10", "vmlinuz-.old", "initrd.img-7"] {
            fs::write(root.path().join("boot").join(name), "").unwrap();
        }
        let Source::Files { image, modules, .. } = newest(root.path()).unwrap() else { panic!() };
        assert!(image.ends_with("boot/vmlinuz-6.1.10"));
        assert!(modules.unwrap().ends_with("lib/modules/6.1.10"));
    }

    #[test]
    fn a_kernel_that_only_root_reads_says_how_to_allow_it() {
        if nix::unistd::geteuid().is_root() {
            eprintln!("skipped: root reads everything");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("boot")).unwrap();
        let image = root.path().join("boot/vmlinuz-6.8.0-31-generic");
        fs::write(&image, "").unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o000)).unwrap();
        let error = newest(root.path()).unwrap_err();
        assert!(error.hint().unwrap().contains("chmod +r"), "{error:?}");
    }
}
