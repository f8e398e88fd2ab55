//! The console's end of the engine: services are called on the worker runtime, what comes of it is
//! told as messages.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use vmdeck_engine::disk_usage::{DiskSpace, DiskUsage};
use vmdeck_engine::image::{PruneImages, PullImage};
use vmdeck_engine::operation::Operation;
use vmdeck_engine::vm::record::{Boot, Vm};
use vmdeck_engine::vm::{Changed, StopOutcome, TakesEffect};
use vmdeck_engine::{Engine, Error, Result, doctor};

use super::console::Watcher;
use crate::format::Bytes;
use crate::message::{Command, Effect, Msg};
use crate::options::WriteNew;

/// A way to the engine and back.
pub(super) struct Link {
    runtime: Handle,
    /// Bounded: tasks wait for the loop, never the loop for them.
    messages: mpsc::Sender<Msg>,
    /// Guards the result of opening between the task that opens and the loop; held to put or take it.
    opening: Arc<Mutex<Option<Result<Engine>>>>,
    engine: Option<Engine>,
    write_new: Option<WriteNew>,
    /// Guards the commands that have not ended, by number; held to add, take out or copy them.
    commands: Arc<Mutex<BTreeMap<u64, Command>>>,
    /// Number of the next command.
    next: u64,
    /// The console in sight.
    console: Option<Watcher>,
}

impl Link {
    pub(super) fn open<F>(
        runtime: Handle,
        messages: mpsc::Sender<Msg>,
        write_new: Option<WriteNew>,
        engine: F,
    ) -> Self
    where
        F: Future<Output = Result<Engine>> + Send + 'static,
    {
        let opening = Arc::new(Mutex::new(None));
        let (result, sender) = (Arc::clone(&opening), messages.clone());
        // Boxed: the future of opening is large, and moved into the task.
        let engine = Box::pin(engine);
        runtime.spawn(async move {
            let opened = engine.await;
            *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
            let _ = sender.send(Msg::EngineOpened).await;
        });
        let commands = Arc::default();
        Self { runtime, messages, opening, engine: None, write_new, commands, next: 0, console: None }
    }

    /// What became of opening, once.
    pub(super) fn opened(&mut self) -> Option<Result<Engine>> {
        let result = self.opening.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        if let Ok(engine) = &result {
            self.engine = Some(engine.clone());
        }
        Some(result)
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(super) fn engine(&self) -> Result<&Engine> {
        self.engine.as_ref().ok_or_else(|| Error::failed("the engine is still opening"))
    }

    /// What runs in this console now and would end with it, as the engine itself says; the picture
    /// that is painted is always a moment behind.
    pub(super) fn running(&self) -> Vec<String> {
        let Some(engine) = &self.engine else { return Vec::new() };
        let operations = engine.operations().running_here();
        if !operations.is_empty() {
            let name = |of: &Operation| format!("{} {}", of.kind().as_str(), of.target());
            return operations.iter().map(name).collect();
        }
        // Asked for a moment ago, and no operation yet.
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let long = commands.values().filter(|command| !matches!(command, Command::CancelOperation { .. }));
        long.map(Command::describe).collect()
    }

    /// Starts what an effect asks of the engine.
    pub(super) fn perform(&mut self, effect: Effect) {
        let Some(engine) = self.engine.clone() else { return };
        let (messages, write_new) = (self.messages.clone(), self.write_new);
        let effect = match effect {
            Effect::WatchConsole(vm) => {
                self.console = Some(Watcher::start(&self.runtime, engine, *vm, messages));
                return;
            }
            Effect::UnwatchConsole => {
                self.console = None;
                return;
            }
            Effect::AttachConsole(name) => {
                return self.console.iter().for_each(|console| console.attach(name.clone()));
            }
            Effect::DetachConsole => return self.console.iter().for_each(Watcher::detach),
            Effect::TypeConsole(bytes) => {
                return self.console.iter().for_each(|console| console.type_in(bytes.clone()));
            }
            other => other,
        };
        let command = match &effect {
            Effect::Run(command) => {
                self.next += 1;
                Some(Running::begin(&self.commands, self.next, command.clone()))
            }
            _ => None,
        };
        self.runtime.spawn(async move {
            let msg = match effect {
                Effect::Examine => {
                    Some(Msg::Doctor(doctor::examine(&engine).await.map_err(|error| error.report())))
                }
                Effect::LoadOperationLog(id) => match engine.operations().log_lines(&id).await {
                    Ok(lines) => Some(Msg::OperationLog(id, lines)),
                    Err(error) => Some(Msg::Notice(error.report())),
                },
                Effect::LoadBoots(name, id) => boots(&engine, &name).await.map(|boots| Msg::Boots(id, boots)),
                Effect::Run(command) => {
                    let result = Box::pin(run(&engine, command.clone())).await;
                    Some(Msg::Outcome(command, result.map_err(|error| error.report())))
                }
                Effect::MeasureUsage(vms) => Some(Msg::Usage(engine.vms().usage(vms).await)),
                Effect::MeasureGuest(name, id) => {
                    let reading = engine.vms().stats(&name).await.map_err(|error| error.report());
                    Some(Msg::Guest(id, Box::new(reading)))
                }
                Effect::LoadFiles(vm) => match engine.vms().files(&vm).await {
                    Ok(files) => Some(Msg::Files(vm.id, files)),
                    Err(error) => Some(Msg::Notice(error.report())),
                },
                Effect::MeasureSpace => match space(&engine).await {
                    Ok((space, usage)) => Some(Msg::Space(space, usage)),
                    Err(error) => {
                        tracing::warn!(%error, "the room on the disk is not known");
                        None
                    }
                },
                Effect::LoadCatalog => match engine.images().catalog().await {
                    Ok(catalog) => Some(Msg::Catalog(catalog)),
                    Err(error) => Some(Msg::Notice(error.report())),
                },
                Effect::LoadKernelCatalog => {
                    let catalog = engine.kernels().catalog().await;
                    Some(Msg::KernelCatalog(catalog.map_err(|error| error.report())))
                }
                Effect::SaveLog(path, text) => {
                    let result = save(write_new, path.clone(), text).await;
                    Some(Msg::Saved(path, result.map_err(|error| error.report())))
                }
                Effect::PreviewPrune { all } => {
                    let request = PruneImages { dry_run: true, all };
                    let report = engine.images().prune(request, None).wait().await;
                    Some(Msg::PrunePreview { all, report: report.map_err(|error| error.report()) })
                }
                _ => None,
            };
            drop(command);
            if let Some(msg) = msg {
                let _ = messages.send(msg).await;
            }
        });
    }

    /// Ends what the console started; machines go on running.
    pub(super) async fn shut_down(&self, patience: Duration) {
        if let Some(engine) = self.engine.clone() {
            let ended = self.runtime.spawn(async move { engine.shutdown().await });
            let _ = tokio::time::timeout(patience, ended).await;
        }
    }
}

/// A command while it runs; dropping it says that it has ended, however it did.
struct Running {
    commands: Arc<Mutex<BTreeMap<u64, Command>>>,
    number: u64,
}

impl Running {
    fn begin(commands: &Arc<Mutex<BTreeMap<u64, Command>>>, number: u64, command: Command) -> Self {
        commands.lock().unwrap_or_else(PoisonError::into_inner).insert(number, command);
        Self { commands: Arc::clone(commands), number }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

async fn space(engine: &Engine) -> Result<(DiskSpace, DiskUsage)> {
    let picture = Arc::clone(&engine.subscribe().borrow());
    Ok((engine.disk_space().await?, engine.disk_usage_in(&picture).await?))
}

async fn save(write_new: Option<WriteNew>, path: PathBuf, text: String) -> Result<()> {
    let Some(write_new) = write_new else {
        return Err(Error::failed("this console writes no files"));
    };
    let label = path.display().to_string();
    tokio::task::spawn_blocking(move || write_new(&path, &text))
        .await
        .map_err(|error| Error::failed("writing the file ended by an internal error").with_source(error))?
        .map_err(|error| Error::io(format!("cannot write `{label}`"), error))
}

/// Boots of a machine that may have gone in the meantime.
async fn boots(engine: &Engine, name: &str) -> Option<Vec<Boot>> {
    let vm = engine.vms().find(name).await.ok()?;
    engine.vms().boots(&vm).await.ok()
}

/// Runs a command to its end; returns what to tell the user.
async fn run(engine: &Engine, command: Command) -> Result<String> {
    match command {
        Command::PullImage { reference, name } => {
            let request = PullImage { reference, name, ..PullImage::default() };
            let image = engine.images().pull(request, None).wait().await?;
            Ok(format!("image {} is there", image.name))
        }
        Command::UpdateImage { name, reference } => {
            let before = engine.images().find(&name).await?;
            let request = PullImage { reference, name: Some(name), replace: true, ..PullImage::default() };
            let image = engine.images().pull(request, None).wait().await?;
            Ok(if image.id == before.id {
                format!("image {} is up to date", image.name)
            } else {
                format!("image {} is what {} is now", image.name, image.reference.unwrap_or_default())
            })
        }
        Command::DeleteImage { name } => {
            let image = engine.images().delete(&name).await?;
            Ok(format!("image {} is deleted", image.name))
        }
        Command::RegisterImage(request) => {
            let image = engine.images().register(*request, None).wait().await?;
            Ok(format!("image {} is registered", image.name))
        }
        Command::PromoteImage(request) => {
            let image = engine.images().promote(request, None).wait().await?;
            Ok(format!("image {} is vmdeck's own now", image.name))
        }
        Command::PromoteVm { name, new_name } => {
            let image = engine.vms().promote(&name, &new_name, None).wait().await?;
            Ok(format!("image {} is there, made of machine {name}", image.name))
        }
        Command::ExportImage(request) => {
            let exported = engine.images().export(request, None).wait().await?;
            Ok(format!(
                "image {} is in {}, {}",
                exported.name,
                exported.path.display(),
                Bytes(exported.bytes)
            ))
        }
        Command::Prune { all } => {
            let report = engine.images().prune(PruneImages { dry_run: false, all }, None).wait().await?;
            Ok(format!("{} freed", Bytes(report.bytes)))
        }
        Command::ImportKernel(request) => {
            let kernel = engine.kernels().import(request, None).wait().await?;
            Ok(format!("kernel {} is there", kernel.name))
        }
        Command::PullKernel(request) => {
            let kernel = engine.kernels().pull(request, None).wait().await?;
            Ok(format!("kernel {} is there", kernel.name))
        }
        Command::DeleteKernel { name } => {
            let kernel = engine.kernels().delete(&name).await?;
            Ok(format!("kernel {} is deleted", kernel.name))
        }
        Command::CreateVm { request, start } => {
            let vm = engine.vms().create(*request, None).wait().await?;
            if !start {
                return Ok(format!("machine {} is there", vm.name));
            }
            Ok(started(&engine.vms().start(&vm.name, None).wait().await?))
        }
        Command::StartVm { name } => Ok(started(&engine.vms().start(&name, None).wait().await?)),
        Command::StopVm { name, force } => {
            let outcome = engine.vms().stop(&name, force, None).wait().await?;
            Ok(stopped(&name, outcome))
        }
        Command::RestartVm { name } => Ok(started(&engine.vms().restart(&name, false, None).wait().await?)),
        Command::DeleteVm { name, force } => {
            engine.vms().delete(&name, force, None).wait().await?;
            Ok(format!("machine {name} is deleted"))
        }
        Command::PauseVm { name, pause: true } => {
            engine.vms().pause(&name, None).wait().await?;
            Ok(format!("machine {name} stands still"))
        }
        Command::PauseVm { name, pause: false } => {
            engine.vms().resume(&name, None).wait().await?;
            Ok(format!("machine {name} goes on"))
        }
        Command::ChangeVm { name, change } => {
            let changed = engine.vms().change(&name, *change, None).wait().await?;
            Ok(told(&name, &changed))
        }
        Command::CancelOperation { id } => {
            let record = engine.operations().cancel(id.as_str()).await?;
            Ok(format!("{} {} is being cancelled", record.kind.as_str(), record.target))
        }
    }
}

/// What of a change is in force, and what comes with the next start.
fn told(name: &str, changed: &Changed) -> String {
    let names = |wanted: TakesEffect| {
        let effects = changed.effects.iter().filter(|effect| effect.takes_effect == wanted);
        effects.map(|effect| effect.setting.term()).collect::<Vec<_>>().join(", ")
    };
    match (names(TakesEffect::Now), names(TakesEffect::NextStart)) {
        (now, later) if later.is_empty() => format!("machine {name}: {now} changed"),
        (now, later) if now.is_empty() => format!("machine {name}: {later} change at the next start"),
        (now, later) => format!("machine {name}: {now} changed, {later} at the next start"),
    }
}

/// A machine that is up without what its image was to run is not what its user expects.
fn started(vm: &Vm) -> String {
    match vm.boot.as_ref().and_then(Boot::command_not_run) {
        Some(why) => format!("machine {} is up, and {why}", vm.name),
        None => format!("machine {} is ready", vm.name),
    }
}

fn stopped(name: &str, outcome: StopOutcome) -> String {
    match outcome {
        StopOutcome::AlreadyStopped => format!("machine {name} was stopped already"),
        StopOutcome::Agent => format!("machine {name} has shut down"),
        StopOutcome::PowerButton => format!("machine {name} has shut down by its power button"),
        StopOutcome::Killed => format!("machine {name} was switched off"),
    }
}
