//! `/init` of the initramfs. It has no use as an ordinary command.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        vmdeck_guest::init::run();
    }
    vmdeck_guest::log::error("this is the init of a vmdeck machine; it only runs as the first process");
    ExitCode::from(2)
}
