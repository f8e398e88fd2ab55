//! Builds `vmdeck-guest` (crate `guest/`) as a static binary, so that the engine can embed it.
//!
//! The inner cargo has a target directory of its own below `OUT_DIR`: it never waits for the lock that
//! the outer cargo holds on the workspace's, and its flags (static, small, `panic = abort`) never mix
//! with those of the workspace. It shares the outer cargo's job server, which is inherited.

// A build script talks to cargo through its standard output.
#![allow(clippy::print_stdout)]

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the guest binary is made of, relative to the engine's folder. Folders stand for all in them.
const SOURCES: [&str; 8] = [
    "guest/src",
    "guest/Cargo.toml",
    "protocol/src",
    "protocol/Cargo.toml",
    "transfer/src",
    "transfer/Cargo.toml",
    "../Cargo.toml",
    "../Cargo.lock",
];

fn main() -> Result<(), Box<dyn Error>> {
    let engine = PathBuf::from(required("CARGO_MANIFEST_DIR")?);
    println!("cargo::rerun-if-changed=build.rs");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }

    let built = build_guest(&engine)?;
    let embedded = PathBuf::from(required("OUT_DIR")?).join("vmdeck-guest");
    replace_if_different(&built, &embedded)?;
    println!("cargo::rustc-env=VMDECK_GUEST_BINARY={}", embedded.display());
    Ok(())
}

/// Runs the inner cargo; returns the path of the binary.
fn build_guest(engine: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let target = required("TARGET")?;
    let directory = PathBuf::from(required("OUT_DIR")?).join("guest-target");
    let mut cargo = Command::new(required("CARGO")?);
    forget_outer_build(&mut cargo);
    let status = cargo
        .current_dir(engine.join("guest"))
        // The outer cargo has just settled the lock file; the inner one must not touch it.
        .args(["build", "--release", "--locked", "--package", "vmdeck-guest", "--target", &target])
        .env("CARGO_TARGET_DIR", &directory)
        .env("CARGO_ENCODED_RUSTFLAGS", "-C\u{1f}target-feature=+crt-static")
        // It is part of every initrd: small is fast. PID 1 has nobody to unwind to.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .stdin(Stdio::null())
        // Standard output is the build script's channel to the outer cargo.
        .stdout(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(format!("the guest binary could not be built: cargo ended with {status}").into());
    }
    Ok(directory.join(target).join("release").join("vmdeck-guest"))
}

/// Removes what the outer cargo, clippy, coverage or a user's shell set for *their* build.
fn forget_outer_build(cargo: &mut Command) {
    const KEPT: [&str; 5] =
        ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_INCREMENTAL", "CARGO_TERM_COLOR", "CARGO_LOG"];
    const KEPT_PREFIXES: [&str; 4] = ["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_"];
    const REMOVED: [&str; 9] = [
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CLIPPY_ARGS",
        "CLIPPY_CONF_DIR",
        "LLVM_PROFILE_FILE",
        "TARGET",
        "OUT_DIR",
    ];
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let kept = KEPT.contains(&name)
            || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            // A linker chosen for a target is needed for the same target here.
            || (name.starts_with("CARGO_TARGET_") && name.ends_with("_LINKER"));
        if REMOVED.contains(&name) || (name.starts_with("CARGO_") && !kept) {
            cargo.env_remove(name);
        }
    }
}

/// Copies only what changed: an unchanged file keeps its time, and nothing is compiled for it again.
fn replace_if_different(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    let new = fs::read(from).map_err(|error| format!("{}: {error}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let temporary = to.with_extension("new");
    fs::write(&temporary, new)?;
    fs::rename(&temporary, to)?;
    Ok(())
}

fn required(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|error| format!("{name}: {error}: run this through cargo").into())
}
