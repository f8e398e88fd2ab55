//! Programs of the host that parts of vmdeck make use of, and the terminal.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::Check;

pub(super) fn checks() -> Vec<Check> {
    vec![kernel_source(), ssh(), terminal()]
}

/// The first program of this name in `PATH`.
fn program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| {
        std::fs::metadata(path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}

/// The default kernel is a package of the archive this host is configured for.
fn kernel_source() -> Check {
    let name = "kernel source";
    if program("apt-get").is_none() {
        return Check::warning(
            name,
            "this host has no apt, from which the default kernel comes",
            "`vmdeck kernel import --host` takes this host's own kernel, `--deb FILE` a package's",
        );
    }
    let lists = std::fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    });
    if lists {
        Check::ok(name, "apt has the lists of its archive, from which the default kernel comes")
    } else {
        Check::warning(name, "apt knows of no package yet", "`sudo apt-get update`")
    }
}

fn ssh() -> Check {
    match program("ssh") {
        Some(path) => Check::ok("ssh", format!("the SSH client is {}", path.display())),
        None => Check::warning(
            "ssh",
            "there is no SSH client: `vmdeck vm ssh` does not work, `vmdeck vm exec` does",
            "install OpenSSH's client (Debian: `sudo apt-get install openssh-client`)",
        ),
    }
}

fn terminal() -> Check {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    // The first of these that is set decides (locale(7)).
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(variable).unwrap_or_default();
    let colours = match variable("COLORTERM").as_deref() {
        Some("truecolor" | "24bit") => "all colours",
        _ => "its palette's colours",
    };
    judge_terminal(&variable("TERM").unwrap_or_default(), &locale, colours)
}

fn judge_terminal(term: &str, locale: &str, colours: &str) -> Check {
    let name = "terminal";
    if term.is_empty() || term == "dumb" {
        // Scripts have none, and need none.
        return Check::ok(
            name,
            "there is no terminal here: the console needs one, `vmdeck --headless` does not",
        );
    }
    let lower = locale.to_ascii_lowercase();
    if lower.contains("utf-8") || lower.contains("utf8") {
        Check::ok(name, format!("{term}, with {colours} and UTF-8"))
    } else {
        Check::warning(
            name,
            format!("the locale `{}` has no UTF-8: lines and marks may look wrong", locale.escape_default()),
            "`export LC_ALL=C.UTF-8`",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::CheckStatus;
    use super::*;

    #[test]
    fn terminals() {
        let check = |term, locale, status| {
            assert_eq!(judge_terminal(term, locale, "").status, status, "{term} {locale}")
        };
        check("xterm-256color", "en_GB.UTF-8", CheckStatus::Ok);
        check("linux", "C.utf8", CheckStatus::Ok);
        check("linux", "POSIX", CheckStatus::Warning);
        check("linux", "", CheckStatus::Warning);
        check("", "", CheckStatus::Ok);
    }

    #[test]
    fn programs_are_found_in_the_path() {
        assert!(program("sh").is_some());
        assert!(program("no-such-program-of-vmdeck").is_none());
    }
}
