//! Makes a rootfs of packed layers and tells what it took. Its floor is unpacking them to nowhere:
//! `for layer in …; do igzip -dc "$layer" > /dev/null & done; wait`.
//!
//! ```text
//! cargo run --release -p vmdeck-engine --example rootfs -- IMAGE LAYER[=sha256:DIFF_ID]…
//! ```
//!
//! Layers are given bottom first and stream all at once, in pieces of 64 KiB, as a download would.

#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use vmdeck_engine::rootfs::{Compression, LayerSink, RootfsBuilder, RootfsLimits, RootfsOptions};
use vmdeck_engine::{Error, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = || Error::usage("usage: rootfs IMAGE LAYER[=sha256:DIFF_ID]…");
    let path = PathBuf::from(arguments.next().ok_or_else(usage)?);
    let layers: Vec<String> = arguments.collect();
    if layers.is_empty() {
        return Err(usage());
    }
    let begun = Instant::now();
    let options = RootfsOptions {
        path: path.clone(),
        layers: layers.len(),
        size: 0,
        uuid: [1; 16],
        limits: RootfsLimits::default(),
    };
    let builder = RootfsBuilder::create(options, CancellationToken::new())?;
    let mut tasks = JoinSet::new();
    for (index, layer) in layers.iter().enumerate() {
        let (file, diff_id) = match layer.split_once("=sha256:") {
            Some((file, digest)) => (file, Some(format!("sha256:{digest}"))),
            None => (layer.as_str(), None),
        };
        let sink = builder.layer(index, Compression::Detect, diff_id)?;
        tasks.spawn(send(PathBuf::from(file), sink));
    }
    while let Some(task) = tasks.join_next().await {
        task.map_err(|error| Error::failed("a sender ended").with_source(error))??;
    }
    let streamed = begun.elapsed();
    let rootfs = tokio::task::spawn_blocking(move || builder.finish(&[], None))
        .await
        .map_err(|error| Error::failed("finishing ended").with_source(error))??;
    let wall = begun.elapsed();
    let usage = getrusage(UsageWho::RUSAGE_SELF).map_err(|error| Error::io("getrusage", error.into()))?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    println!(
        "wall {:.3} s (layers {:.3}, finish {:.3}), cpu {:.3} user {:.3} system, peak {} MiB, {} inodes, {} MiB used, {} MiB allocated, {} MiB written",
        wall.as_secs_f64(),
        streamed.as_secs_f64(),
        (wall - streamed).as_secs_f64(),
        seconds(usage.user_time()),
        seconds(usage.system_time()),
        usage.max_rss() / 1024,
        rootfs.inodes,
        rootfs.used >> 20,
        allocated(&path) >> 20,
        written() >> 20,
    );
    Ok(())
}

async fn send(path: PathBuf, sink: LayerSink) -> Result<()> {
    let doing = format!("cannot read `{}`", path.display());
    let mut file = tokio::fs::File::open(&path).await.map_err(|error| Error::io(doing.clone(), error))?;
    loop {
        let mut piece = bytes::BytesMut::with_capacity(64 << 10);
        let count = file.read_buf(&mut piece).await.map_err(|error| Error::io(doing.clone(), error))?;
        if count == 0 || sink.bytes.send(piece.freeze()).await.is_err() {
            return sink.finish().await;
        }
    }
}

fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    path.metadata().map_or(0, |metadata| metadata.blocks() * 512)
}

/// Bytes this process handed to write calls.
fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok()).unwrap_or(0)
}
