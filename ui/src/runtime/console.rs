//! Watches the serial console of one machine, and types into it.
//!
//! What is shown is read from the log that the hypervisor writes, so that any number of consoles can
//! look at one machine; only who types takes the machine's one console connection.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use vmdeck_engine::vm::record::Vm;
use vmdeck_engine::vmm::Console;
use vmdeck_engine::{Engine, Error, Result};

use crate::message::Msg;

/// How often the log is looked at while the console is in sight.
const PERIOD: Duration = Duration::from_millis(100);

/// The hypervisor writes to its client first and to the log right after it.
const AFTER_WAKE: Duration = Duration::from_millis(3);

/// Things asked of a watcher that may wait for it: keys typed into a machine that does not read.
const WAITING: usize = 256;

#[derive(Debug)]
enum Ask {
    Attach(String),
    Detach,
    Type(Vec<u8>),
}

/// The task that watches; dropping this ends it.
#[derive(Debug)]
pub(super) struct Watcher {
    asks: mpsc::Sender<Ask>,
    task: tokio::task::AbortHandle,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watcher {
    pub(super) fn start(runtime: &Handle, engine: Engine, vm: Vm, messages: mpsc::Sender<Msg>) -> Self {
        let (asks, asked) = mpsc::channel(WAITING);
        let task = runtime.spawn(async move {
            let id = vm.id.clone();
            if let Err(error) = watch(&engine, vm, asked, &messages).await {
                let _ = messages.send(Msg::ConsoleDetached(id)).await;
                let _ = messages.send(Msg::Notice(error.report())).await;
            }
        });
        Self { asks, task: task.abort_handle() }
    }

    pub(super) fn attach(&self, name: String) {
        self.ask(Ask::Attach(name));
    }

    pub(super) fn detach(&self) {
        self.ask(Ask::Detach);
    }

    pub(super) fn type_in(&self, bytes: Vec<u8>) {
        self.ask(Ask::Type(bytes));
    }

    fn ask(&self, ask: Ask) {
        if self.asks.try_send(ask).is_err() {
            tracing::warn!("a machine does not take what is typed");
        }
    }
}

async fn watch(
    engine: &Engine,
    vm: Vm,
    mut asked: mpsc::Receiver<Ask>,
    messages: &mpsc::Sender<Msg>,
) -> Result<()> {
    let mut output = engine.vms().console_output(&vm);
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut console: Option<Console> = None;
    let mut buffer = [0; 4096];
    let mut first = true;
    loop {
        let chunk = output.read().await?;
        if !chunk.bytes.is_empty() || first {
            let (anew, bytes) = (chunk.anew || first, chunk.bytes);
            first = false;
            if messages.send(Msg::ConsoleOutput { vm: vm.id.clone(), anew, bytes }).await.is_err() {
                return Ok(());
            }
        }
        let heard = async {
            match &mut console {
                Some(console) => console.stream.read(&mut buffer).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = ticks.tick() => {}
            heard = heard => match heard {
                Ok(0) | Err(_) => {
                    console = None;
                    let _ = messages.send(Msg::ConsoleDetached(vm.id.clone())).await;
                }
                // The same bytes are in the log.
                Ok(_) => sleep(AFTER_WAKE).await,
            },
            ask = asked.recv() => match ask {
                None => return Ok(()),
                Some(Ask::Detach) => console = None,
                Some(Ask::Attach(name)) => {
                    let result = engine.vms().console(&name).await;
                    let told = match result {
                        Ok(connected) => {
                            console = Some(connected);
                            Ok(())
                        }
                        Err(error) => Err(error.report()),
                    };
                    let _ = messages.send(Msg::ConsoleAttached { vm: vm.id.clone(), result: told }).await;
                }
                Some(Ask::Type(bytes)) => {
                    if let Some(connected) = &mut console
                        && let Err(error) = connected.stream.write_all(&bytes).await
                    {
                        console = None;
                        let error = Error::io("the machine's console is gone", error);
                        tracing::info!(%error, "console");
                        let _ = messages.send(Msg::ConsoleDetached(vm.id.clone())).await;
                    }
                }
            },
        }
    }
}
