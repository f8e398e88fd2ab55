//! Loads the kernel modules that the initramfs brings.

use std::fs::{self, File};
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use vmdeck_protocol::settings::MODULES_PATH;

use crate::log;

/// Loads what the list names, in its order. A module that does not load is a warning: whether it
/// was needed shows soon enough.
pub(super) fn load() {
    let list = Path::new("/").join(MODULES_PATH);
    let Ok(list) = fs::read_to_string(&list) else {
        return log::info("no modules to load");
    };
    for path in list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        // A line may name the parameters after the path.
        let (path, parameters) = path.split_once(' ').unwrap_or((path, ""));
        let loaded =
            File::open(Path::new("/").join(path)).map_err(|error| error.to_string()).and_then(|file| {
                let parameters = std::ffi::CString::new(parameters).unwrap_or_default();
                match finit_module(file, &parameters, ModuleInitFlags::empty()) {
                    Ok(()) | Err(Errno::EEXIST) => Ok(()),
                    Err(Errno::ENOENT) => Err("a module that it needs is not loaded".to_owned()),
                    Err(error) => Err(error.to_string()),
                }
            });
        if let Err(error) = loaded {
            log::warning(&format!("module `{path}` was not loaded: {error}"));
        }
    }
}
