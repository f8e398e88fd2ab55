//! `/init` of the initramfs. It has no use as an ordinary command.

use std::process::ExitCode;

use vmdeck_protocol::service::SERVICE_ARGUMENT;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        vmdeck_guest::init::run();
    }
    // What the agent starts itself as.
    let mut arguments = std::env::args().skip(1);
    if let (Some(SERVICE_ARGUMENT), Some(request)) = (arguments.next().as_deref(), arguments.next()) {
        return vmdeck_guest::serve::run(&request);
    }
    vmdeck_guest::log::error("this is the init of a vmdeck machine; it only runs as the first process");
    ExitCode::from(2)
}
