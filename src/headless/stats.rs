//! `vmdeck vm stats`

use std::time::Duration;

use serde::Serialize;
use vmdeck_engine::vm::record::VmState;
use vmdeck_engine::vm::{VmRates, VmStats};
use vmdeck_engine::{Error, Result};

use super::output::{Table, bytes, human};
use super::{Context, Outcome, interrupt};
use crate::cli::OutputFormat;

/// Between the two readings that a single set of rates takes.
const APART: Duration = Duration::from_millis(500);

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    stats: &'a VmStats,
    rates: VmRates,
}

pub(super) async fn run(context: &Context, names: Vec<String>, watch: Option<u64>) -> Outcome {
    let mut before = read(context, &names).await?;
    let mut interrupt = interrupt::Interrupt::new()?;
    let pause = watch.map_or(APART, Duration::from_secs);
    // The first rates of a watch come as soon as those of a single reading.
    let mut wait = APART;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // Watching has no other end.
            _ = interrupt.next() => return if watch.is_some() { Ok(0) } else { Err(Error::cancelled()) },
        }
        let now = tokio::select! {
            now = read(context, &names) => now?,
            _ = interrupt.next() => return if watch.is_some() { Ok(0) } else { Err(Error::cancelled()) },
        };
        show(context, &before, &now)?;
        if watch.is_none() {
            return Ok(0);
        }
        (before, wait) = (now, pause);
    }
}

async fn read(context: &Context, names: &[String]) -> Result<Vec<VmStats>> {
    let vms = context.engine.vms();
    if !names.is_empty() {
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            all.push(vms.stats(name).await?);
        }
        return Ok(all);
    }
    let mut all = Vec::new();
    for vm in vms.list().await?.into_iter().filter(|vm| vm.state == VmState::Running) {
        match vms.stats(&vm.name).await {
            Ok(stats) => all.push(stats),
            // One that stopped meanwhile, or is paused, must not hide the others.
            Err(error) => context.output.error(&error),
        }
    }
    Ok(all)
}

fn show(context: &Context, before: &[VmStats], now: &[VmStats]) -> Result<()> {
    let shown: Vec<Shown<'_>> = now
        .iter()
        .map(|stats| {
            let earlier = before.iter().find(|earlier| earlier.name == stats.name);
            let rates = earlier.and_then(|earlier| stats.since(earlier)).unwrap_or_default();
            Shown { stats, rates }
        })
        .collect();
    match context.output.format() {
        OutputFormat::Table => {}
        _ => return context.output.json(&shown).map(drop),
    }
    let mut table =
        Table::new(["NAME", "CPU", "HOST CPU", "MEMORY", "HOST MEMORY", "ROOT DISK", "DISK I/O", "NETWORK"]);
    for Shown { stats, rates } in &shown {
        let memory = &stats.guest.memory;
        let root = stats.guest.file_systems.iter().find(|system| system.mount_point == "/");
        table.row([
            human(&stats.name).into_owned(),
            format!("{:.1}%", rates.guest_processor_percent),
            format!("{:.1}%", rates.host_processor_percent),
            format!("{} / {}", bytes(memory.total.saturating_sub(memory.available)), bytes(memory.total)),
            bytes(stats.host.resident_bytes),
            root.map_or_else(
                || "-".to_owned(),
                |root| {
                    format!("{} / {}", bytes(root.total.saturating_sub(root.available)), bytes(root.total))
                },
            ),
            format!("{}/s in, {}/s out", bytes(rates.disk_read), bytes(rates.disk_written)),
            format!("{}/s in, {}/s out", bytes(rates.network_received), bytes(rates.network_sent)),
        ]);
    }
    context.output.text(&table.render())
}
