//! The console with operations of the engine's own machinery that do nothing but tell of progress.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use vmdeck_engine::operation::Operation;
use vmdeck_engine::operation::progress::{ProgressPart, ProgressState, ProgressUnit};
use vmdeck_engine::operation::record::OperationKind;
use vmdeck_engine::{Engine, Error, clock};
use vmdeck_ui::ConsoleOptions;

/// Tells the program that it is the console under load.
pub(crate) const ASKED: &str = "VMDECK_BENCH_LOAD";

/// Pulls at once, and their progress events per second together.
const PULLS: u64 = 50;
const EVENTS: u64 = 75_000;

/// Label of the part whose counter is a clock, in the details of the pull under the cursor.
pub(crate) const CLOCK: &str = "clock";

/// The clock's milliseconds begin anew after so many.
const TURN: i64 = 1_000_000_000;

pub(crate) fn run(data: &Path) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let data = data.to_owned();
    let engine = async move {
        let engine = Engine::open(data).await?;
        for number in 0..PULLS {
            let target = format!("registry.example.org/team/load-{number}");
            engine.operations().spawn(OperationKind::ImagePull, target, None, pull);
            // One after the other, so that the last one is the newest.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(engine)
    };
    let result = vmdeck_ui::run(ConsoleOptions::default(), runtime.handle(), engine);
    runtime.shutdown_background();
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn pull(operation: Operation) -> Result<(), Error> {
    operation.phase("layers").await;
    let part = |label: String, unit, total| operation.progress().add(label, unit, total);
    let layers: Vec<Arc<ProgressPart>> =
        (0..3).map(|layer| part(format!("layer {layer}"), ProgressUnit::Bytes, 1 << 40)).collect();
    let clock = part(CLOCK.into(), ProgressUnit::Items, TURN.unsigned_abs());
    layers.iter().chain([&clock]).for_each(|part| part.set_state(ProgressState::Active));
    let mut done = 0;
    loop {
        for event in 0..EVENTS / PULLS / 100 {
            done += 64 << 10;
            layers[usize::try_from(event % 3).unwrap()].set_done(done / 3);
        }
        clock.set_done((clock::now() % TURN).unsigned_abs());
        tokio::select! {
            () = operation.cancelled().cancelled() => return Err(Error::cancelled()),
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
    }
}

/// How many milliseconds old the counter is that the details show.
pub(crate) fn age(screen: &vt100::Screen) -> Option<i64> {
    let now = clock::now() % TURN;
    let text = screen.contents();
    let line = text.lines().find(|line| line.contains(CLOCK) && line.contains(" / "))?;
    let shown = line.rsplit_once(" / ")?.0.rsplit(' ').next()?.parse::<i64>().ok()?;
    Some(now - shown)
}
