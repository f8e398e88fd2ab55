//! Reads what the kernel counts (proc(5), kernel documentation `admin-guide/iostats.rst`).
//!
//! What cannot be read is left at zero: a machine without a network has no interfaces, and none of
//! this is worth failing for.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use nix::time::{ClockId, clock_gettime};
use vmdeck_protocol::stats::{Disk, FileSystem, Interface, Memory, Processor, Stats};

/// Entries of one kind that are told: a machine can have any number of mounts and interfaces, a
/// message cannot.
const MAX_ENTRIES: usize = 32;

/// Longest name that is told.
const MAX_NAME: usize = 200;

/// Milliseconds in one tick of `/proc/stat`: `USER_HZ` is 100 on every architecture of ours.
const TICK_MILLISECONDS: u64 = 10;

/// Bytes in one sector of `/proc/diskstats`, whatever the disk's own are.
const SECTOR: u64 = 512;

/// Reads everything.
pub(crate) fn read() -> Stats {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (load_thousandths, threads) = load(&text("/proc/loadavg"));
    Stats {
        uptime_nanoseconds: clock_gettime(ClockId::CLOCK_BOOTTIME)
            .ok()
            .and_then(|time| u64::try_from(Duration::from(time).as_nanos()).ok())
            .unwrap_or_default(),
        load_thousandths,
        threads,
        processor: processor(&text("/proc/stat")),
        memory: memory(&text("/proc/meminfo")),
        file_systems: file_systems(&text("/proc/self/mounts")),
        disks: disks(&text("/proc/diskstats")),
        interfaces: interfaces(&text("/proc/self/net/dev")),
    }
}

fn load(text: &str) -> ([u64; 3], u32) {
    let mut fields = text.split_whitespace();
    let mut averages = [0; 3];
    for average in &mut averages {
        // Always with two digits after the point.
        let hundredths = fields.next().map(|field| field.replace('.', ""));
        *average =
            hundredths.and_then(|field| field.parse::<u64>().ok()).unwrap_or_default().saturating_mul(10);
    }
    let threads = fields.next().and_then(|field| field.split_once('/')?.1.parse().ok());
    (averages, threads.unwrap_or_default())
}

fn processor(text: &str) -> Processor {
    let mut processor = Processor::default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        match fields.next() {
            Some("cpu") => {
                let ticks: Vec<u64> = fields.map(|field| field.parse().unwrap_or_default()).collect();
                let milliseconds = |numbers: &[usize]| {
                    numbers.iter().filter_map(|n| ticks.get(*n)).sum::<u64>() * TICK_MILLISECONDS
                };
                // user nice system idle iowait irq softirq steal
                processor.user_milliseconds = milliseconds(&[0, 1]);
                processor.system_milliseconds = milliseconds(&[2, 5, 6]);
                processor.idle_milliseconds = milliseconds(&[3]);
                processor.waiting_milliseconds = milliseconds(&[4]);
                processor.stolen_milliseconds = milliseconds(&[7]);
            }
            Some(name) if name.starts_with("cpu") => processor.count += 1,
            _ => {}
        }
    }
    processor
}

fn memory(text: &str) -> Memory {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.unwrap_or_default().saturating_mul(1024)
    };
    Memory {
        total: value("MemTotal"),
        available: value("MemAvailable"),
        swap_total: value("SwapTotal"),
        swap_free: value("SwapFree"),
    }
}

/// Those on disks, each disk once, where it was mounted first.
fn file_systems(mounts: &str) -> Vec<FileSystem> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(mount_point)) = (fields.next(), fields.next()) else { continue };
        if !device.starts_with("/dev/") || !seen.insert(device) {
            continue;
        }
        let Ok(status) = statvfs(mount_point) else { continue };
        let unit = status.fragment_size();
        found.push(FileSystem {
            mount_point: cut(mount_point),
            total: status.blocks().saturating_mul(unit),
            available: status.blocks_available().saturating_mul(unit),
        });
    }
    found.truncate(MAX_ENTRIES);
    found
}

/// Whole disks: a partition's bytes are counted in its disk's already.
fn disks(text: &str) -> Vec<Disk> {
    let disks = text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(2);
        let name = fields.next()?;
        let read: u64 = fields.nth(2)?.parse().ok()?;
        let written: u64 = fields.nth(3)?.parse().ok()?;
        let pseudo = ["loop", "ram", "zram"].iter().any(|prefix| name.starts_with(prefix));
        let whole = fs::exists(format!("/sys/block/{name}")).unwrap_or(false);
        (!pseudo && whole).then(|| Disk {
            name: cut(name),
            read: read.saturating_mul(SECTOR),
            written: written.saturating_mul(SECTOR),
        })
    });
    disks.take(MAX_ENTRIES).collect()
}

fn interfaces(text: &str) -> Vec<Interface> {
    let interfaces = text.lines().filter_map(|line| {
        let (name, fields) = line.split_once(':')?;
        let mut fields = fields.split_whitespace();
        let received = fields.next()?.parse().ok()?;
        let sent = fields.nth(7)?.parse().ok()?;
        let name = name.trim();
        (name != "lo").then(|| Interface { name: cut(name), received, sent })
    });
    interfaces.take(MAX_ENTRIES).collect()
}

fn cut(name: &str) -> String {
    name.chars().take(MAX_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_understood() {
        assert_eq!(load("0.52 0.58 0.59 3/811 12345\n"), ([520, 580, 590], 811));
        let text =
            "cpu  10 1 5 100 7 2 3 4 0 0\ncpu0 5 1 2 50 3 1 1 2 0 0\ncpu1 5 0 3 50 4 1 2 2 0 0\nintr 1\n";
        assert_eq!(
            processor(text),
            Processor {
                count: 2,
                user_milliseconds: 110,
                system_milliseconds: 100,
                idle_milliseconds: 1000,
                waiting_milliseconds: 70,
                stolen_milliseconds: 40,
            }
        );
        let memory = memory("MemTotal:  1000 kB\nMemFree: 10 kB\nMemAvailable:  600 kB\n");
        assert_eq!((memory.total, memory.available, memory.swap_total), (1_024_000, 614_400, 0));
        let text = "Inter-|   Receive\n face |bytes\n  lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n\
                    eth0:  100 2 0 0 0 0 0 0  200 3 0 0 0 0 0 0\n";
        let expected = Interface { name: "eth0".to_owned(), received: 100, sent: 200 };
        assert_eq!(interfaces(text), [expected]);
    }

    #[test]
    fn nonsense_is_zero() {
        for text in ["", "\n", "cpu", "MemTotal", "x:", ": : :", "1 2 3"] {
            assert_eq!(load(text).1, 0, "{text}");
            assert_eq!(processor(text).idle_milliseconds, 0, "{text}");
            assert_eq!(memory(text), Memory::default(), "{text}");
            assert!(disks(text).is_empty() && interfaces(text).is_empty() && file_systems(text).is_empty());
        }
    }
}
