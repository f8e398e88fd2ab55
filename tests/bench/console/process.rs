//! What the kernel tells of the program on a terminal.

use std::time::Duration;

use crate::terminal::Terminal;

/// Processor time of all its threads so far.
pub(crate) fn cpu(terminal: &Terminal) -> Duration {
    Duration::from_nanos(tasks(terminal, "schedstat", first_number))
}

/// The same of its main thread alone, which draws.
pub(crate) fn cpu_of_main(terminal: &Terminal) -> Duration {
    let pid = terminal.pid();
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat")).unwrap();
    Duration::from_nanos(first_number(&text).unwrap())
}

/// Context switches of all its threads so far.
pub(crate) fn switches(terminal: &Terminal) -> u64 {
    tasks(terminal, "status", |text| {
        let lines = text.lines().filter(|line| line.contains("ctxt_switches"));
        Some(lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum())
    })
}

/// Bytes of memory it holds.
pub(crate) fn resident(terminal: &Terminal) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", terminal.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// A sum over its threads.
fn tasks(terminal: &Terminal, file: &str, read: impl Fn(&str) -> Option<u64>) -> u64 {
    let folder = std::fs::read_dir(format!("/proc/{}/task", terminal.pid())).unwrap();
    let texts = folder.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join(file)).ok());
    texts.filter_map(|text| read(&text)).sum()
}
