//! Lines for people: on the console for those who watch it, in the kernel's log for those who come
//! later. Both begin with `vmdeck: `.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Warnings that wait to be told to the engine; more are only in the kernel's log.
const MAX_PENDING: usize = 32;

/// Guards the warnings that wait; held to add or take them.
static PENDING: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Whether information goes to the console too, not only to the kernel's log. True until the
/// machine is handed over to the image's init, whose console it is then.
static ON_CONSOLE: AtomicBool = AtomicBool::new(true);

/// From now on only errors are written to the console.
pub fn leave_console() {
    ON_CONSOLE.store(false, Ordering::Relaxed);
}

/// Something that happened.
pub fn info(line: &str) {
    // Severities are those of syslog(2); `quiet` on the kernel's command line hides 6.
    kernel(6, line);
    if ON_CONSOLE.load(Ordering::Relaxed) {
        console(line);
    }
}

/// Something that went wrong. The machine goes on; the engine will be told.
pub fn warning(line: &str) {
    kernel(4, line);
    let mut pending = PENDING.lock().unwrap_or_else(PoisonError::into_inner);
    if pending.len() < MAX_PENDING {
        pending.push(line.to_owned());
    }
    drop(pending);
    if ON_CONSOLE.load(Ordering::Relaxed) {
        console(line);
    }
}

/// Takes the warnings that no engine has been told yet.
pub(crate) fn take_warnings() -> Vec<String> {
    std::mem::take(&mut *PENDING.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Something that should not have been.
pub fn error(line: &str) {
    kernel(6, line);
    console(line);
}

fn kernel(severity: u8, line: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // One write is one record. A log that takes nothing is no reason to stop.
        let _ = log.write_all(format!("<{severity}>vmdeck: {line}\n").as_bytes());
    }
}

fn console(line: &str) {
    if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        let _ = console.write_all(format!("vmdeck: {line}\r\n").as_bytes());
    }
}
