//! The loop, and all input and output of the console.
//!
//! The main thread drives the loop on a runtime of its own, so that neither its timers nor its input
//! wait for the engine's workers. It sleeps until something happens: there is no tick when nothing
//! moves. What happened is painted after a delay that depends on what it was ([`Urgency`]): a key at
//! once, a change of the store with the others of the same thirtieth of a second.

mod attach;
mod console;
mod engine;
mod signals;

use std::future::Future;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossterm::event::{Event, EventStream, KeyEventKind};
use futures_util::StreamExt as _;
use jiff::tz::TimeZone;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use vmdeck_engine::snapshot::Snapshot;
use vmdeck_engine::{Engine, Error, Result, clock};

use crate::events::EventRing;
use crate::keymap::{Key, Keymap};
use crate::message::{Effect, Handover, HostFacts, Msg};
use crate::model::{Model, View};
use crate::options::{ConsoleOptions, KeysFile};
use crate::screen::Screen;
use crate::terminal::{self, TerminalGuard, Typed, watch_for_hangup};
use crate::update::update;
use crate::view::view;
use engine::Link;
use signals::{Signal, Signals};

/// Shortest time between two frames.
const AFTER_INPUT: Duration = Duration::from_millis(8);
const AFTER_CHANGE: Duration = Duration::from_millis(33);

/// Messages taken in before a frame is due, at most.
const DRAIN: usize = 64;

/// How long the end of the console waits for the engine when the terminal is gone.
const AFTER_HANGUP: Duration = Duration::from_millis(900);

/// How long it waits for operations that are cancelled by the end of the console.
const AFTER_QUIT: Duration = Duration::from_secs(20);
const AFTER_SIGNAL: Duration = Duration::from_secs(5);

/// Why the console ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The user left.
    Quit,
    /// By this signal (Linux number): SIGHUP also when the terminal disappeared.
    Signal(i32),
}

impl Ending {
    /// The exit status a shell expects: 128 and the signal's number, for one that ended by it.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Quit => 0,
            Self::Signal(number) => u8::try_from(128 + number).unwrap_or(u8::MAX),
        }
    }
}

/// Opens the console on the terminal and returns when the user leaves it.
///
/// The first frame is painted before `engine` has opened; `engine` runs on `runtime`, as everything
/// the console asks of it does. Blocks the calling thread, which must be the main one and not within
/// a runtime. The terminal is given back before this returns, whatever the result.
///
/// # Errors
/// What opening the engine failed with; a mistake in the file of key bindings; a terminal that cannot
/// be driven.
pub fn run<F>(options: ConsoleOptions, runtime: &Handle, engine: F) -> Result<Ending>
where
    F: Future<Output = Result<Engine>> + Send + 'static,
{
    let keymap = keymap(options.keys.as_ref())?;
    let local = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::io("cannot start the console's loop", error))?;
    // Colours are the theme's business: the library's own idea of NO_COLOR also drops bold and reverse.
    crossterm::style::force_color_output(true);
    terminal::install_panic_hook();
    let mut model = Model::new(options.theme, options.ascii, keymap, clock::now(), TimeZone::system());
    model.read_only = options.read_only;
    model.mouse = !options.no_mouse;
    model.data_label = options.data_label;
    model.home = options.home;
    let (sender, inbox) = mpsc::channel(256);
    let link = Link::open(runtime.clone(), sender.clone(), options.write_new, engine);
    let outcome = local.block_on(async {
        let guard = TerminalGuard::take(model.mouse)
            .map_err(|error| Error::io("cannot drive the terminal", error))?;
        let mut console = Console::new(model, guard, link, inbox, options.events)?;
        let ending = console.run().await;
        drop(console.guard);
        let patience = match ending {
            Ok(Ending::Quit) => AFTER_QUIT,
            Ok(Ending::Signal(nix::libc::SIGHUP)) => AFTER_HANGUP,
            Ok(Ending::Signal(_)) | Err(_) => AFTER_SIGNAL,
        };
        console.link.shut_down(patience).await;
        ending
    });
    // Tasks that still run, such as the wait for a hang-up, must not keep the program.
    local.shutdown_background();
    outcome
}

/// The key bindings in force; what `vmdeck keys` prints is their [`Keymap::table`].
pub fn keymap(file: Option<&KeysFile>) -> Result<Keymap> {
    let Some(file) = file else { return Ok(Keymap::default()) };
    Keymap::with_overrides(&file.text).map_err(|error| {
        Error::usage(format!("the key bindings in `{}` cannot be used: {error}", file.label))
            .with_hint("`vmdeck keys` prints every action and its keys")
    })
}

/// How soon something has to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    Change,
    Input,
}

struct Console {
    model: Model,
    screen: Screen,
    guard: TerminalGuard,
    link: Link,
    inbox: mpsc::Receiver<Msg>,
    events: Option<EventStream>,
    signals: Signals,
    snapshots: Option<watch::Receiver<Arc<Snapshot>>>,
    /// The program's own log.
    log: Option<EventRing>,
    painted_at: Option<Instant>,
    /// When the next frame is due.
    due: Option<Instant>,
    ending: Option<Ending>,
    /// Whom the terminal is to be handed to.
    handover: Option<Handover>,
}

impl Console {
    fn new(
        model: Model,
        guard: TerminalGuard,
        link: Link,
        inbox: mpsc::Receiver<Msg>,
        log: Option<EventRing>,
    ) -> Result<Self> {
        let signals = Signals::new().map_err(|error| Error::io("cannot listen to signals", error))?;
        let hangup = signals.sender();
        let watch = watch_for_hangup(move || hangup.tell(Signal::End(nix::libc::SIGHUP)), AFTER_HANGUP)
            .map_err(|error| Error::io("cannot watch the terminal", error))?;
        // The watch ends with the process; dropping its handle says that the end is in good order,
        // and only the end of `main` is that.
        std::mem::forget(watch);
        let mut console = Self {
            model,
            screen: Screen::new(0, 0),
            guard,
            link,
            inbox,
            events: None,
            signals,
            snapshots: None,
            log,
            painted_at: None,
            due: None,
            ending: None,
            handover: None,
        };
        console.measure();
        console.take_in(Msg::Host(host_facts()));
        console.due = Some(Instant::now());
        Ok(console)
    }

    async fn run(&mut self) -> Result<Ending> {
        self.paint()?;
        self.events = Some(EventStream::new());
        loop {
            if let Some(ending) = self.ending.take() {
                return Ok(ending);
            }
            if let Some(handover) = self.handover.take() {
                self.hand_over(handover).await;
            }
            if self.due.is_some_and(|due| due <= Instant::now()) {
                self.paint()?;
            }
            self.wait().await?;
        }
    }

    /// Sleeps until something happens, and takes it in.
    async fn wait(&mut self) -> Result<()> {
        let deadline = self.due.or_else(|| {
            // Nothing is waiting to be painted: the next moment at which the screen changes by itself.
            let delay = u64::try_from(self.model.next_tick()?).unwrap_or(0);
            let since = self.painted_at.unwrap_or_else(Instant::now);
            Some(since + Duration::from_millis(delay.max(1)))
        });
        let ticks = self.due.is_none();
        let event = async {
            match &mut self.events {
                Some(events) => events.next().await,
                None => std::future::pending().await,
            }
        };
        let snapshot = async {
            match &mut self.snapshots {
                Some(snapshots) => snapshots.changed().await.ok(),
                None => std::future::pending().await,
            }
        };
        let events = async {
            match &self.log {
                Some(events) => events.filled().await,
                None => std::future::pending().await,
            }
        };
        let deadline = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            signal = self.signals.next() => self.signal(signal)?,
            event = event => match event {
                Some(Ok(event)) => self.event(event),
                // The watch for hang-ups tells what this means; reading on would spin.
                Some(Err(_)) | None => self.events = None,
            },
            () = deadline => if ticks {
                self.take_in(Msg::Tick);
                self.paint()?;
            },
            changed = snapshot => match (changed, &mut self.snapshots) {
                (Some(()), Some(snapshots)) => {
                    let snapshot = Arc::clone(&snapshots.borrow_and_update());
                    self.take_snapshot(snapshot)?;
                }
                _ => self.snapshots = None,
            },
            () = events => if let Some(events) = &self.log {
                let lines = events.take();
                self.take_in(Msg::Events(lines));
                if self.model.view == View::Log {
                    self.want(Urgency::Change);
                }
            },
            message = self.inbox.recv() => {
                let mut message = message;
                for _ in 0..DRAIN {
                    let Some(msg) = message else { break };
                    self.hear(msg)?;
                    message = self.inbox.try_recv().ok();
                }
            }
        }
        Ok(())
    }

    /// Takes in what the engine's side tells.
    fn hear(&mut self, msg: Msg) -> Result<()> {
        if matches!(msg, Msg::EngineOpened) {
            match self.link.opened() {
                Some(Ok(engine)) => self.snapshots = Some(engine.subscribe()),
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            }
        }
        self.take_in(msg);
        self.want(Urgency::Change);
        Ok(())
    }

    fn event(&mut self, event: Event) {
        let msg = match event {
            Event::Key(key) if key.kind == KeyEventKind::Release => return,
            Event::Key(key) => Msg::Key(Key::from(key)),
            Event::Paste(text) => Msg::Paste(text),
            Event::Mouse(mouse) => Msg::Mouse(mouse),
            Event::Resize(..) => {
                self.measure();
                self.want(Urgency::Input);
                return;
            }
            Event::FocusGained | Event::FocusLost => return,
        };
        self.take_in(msg);
        self.want(Urgency::Input);
    }

    /// Asks the terminal for its size.
    fn measure(&mut self) {
        let (width, height) = crossterm::terminal::size().unwrap_or((80, 24));
        // More cells than any screen has are a mistake of the terminal's.
        let (width, height) = (width.min(1000), height.min(500));
        self.screen.resize(width, height);
        self.take_in(Msg::Resize(width, height));
    }

    fn want(&mut self, urgency: Urgency) {
        let pause = match urgency {
            Urgency::Change => AFTER_CHANGE,
            Urgency::Input => AFTER_INPUT,
        };
        let now = Instant::now();
        let due = self.painted_at.map_or(now, |painted| (painted + pause).max(now));
        self.due = Some(self.due.map_or(due, |other| other.min(due)));
    }

    fn take_in(&mut self, msg: Msg) {
        for effect in update(&mut self.model, clock::now(), msg) {
            self.perform(effect);
        }
    }

    /// The first picture is what the user waits for: it is painted before anything else is asked of
    /// the engine, which would have the processors first.
    fn take_snapshot(&mut self, snapshot: Arc<Snapshot>) -> Result<()> {
        if self.model.snapshot.generation > 0 {
            self.take_in(Msg::Snapshot(snapshot));
            self.want(Urgency::Change);
            return Ok(());
        }
        let effects = update(&mut self.model, clock::now(), Msg::Snapshot(snapshot));
        self.paint()?;
        effects.into_iter().for_each(|effect| self.perform(effect));
        Ok(())
    }

    fn paint(&mut self) -> Result<()> {
        self.model.now = clock::now();
        view(&self.model, self.screen.next_frame());
        let bytes = self.screen.encode();
        if !bytes.is_empty() {
            write_out(bytes)?;
        }
        self.painted_at = Some(Instant::now());
        self.due = None;
        Ok(())
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Quit => self.ending = Some(Ending::Quit),
            Effect::AskToQuit => self.take_in(Msg::WouldEnd(self.link.running())),
            Effect::Suspend => self.suspend(),
            Effect::Redraw => {
                self.screen.invalidate();
                self.want(Urgency::Input);
            }
            Effect::Mouse(on) => drop(self.guard.set_mouse(on)),
            Effect::Copy(text) => drop(write_out(&osc52(&text))),
            Effect::Shell(name) => self.handover = Some(Handover::Shell(name)),
            Effect::FullConsole(name) => self.handover = Some(Handover::Console(name)),
            other => self.link.perform(other),
        }
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        match signal {
            Signal::End(number) => {
                // At once: whatever hangs afterwards, the user has the terminal back.
                terminal::restore();
                self.ending = Some(Ending::Signal(number));
            }
            Signal::Stop => self.suspend(),
            Signal::Continue => {
                // Stopped by SIGSTOP, which no program sees: the shell has set the terminal its own way.
                self.guard.release();
                self.guard
                    .retake(Typed::ThrownAway)
                    .map_err(|error| Error::io("cannot take the terminal again", error))?;
                self.screen.invalidate();
                self.measure();
                self.want(Urgency::Input);
            }
        }
        Ok(())
    }

    /// To the shell, until it brings this job to the foreground again.
    fn suspend(&mut self) {
        self.events = None;
        self.guard.release();
        // SIGTSTP itself is caught, so it would not stop anything. Returns when continued.
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
        self.resume(Typed::ThrownAway);
    }

    /// Takes the terminal again after somebody else had it.
    fn resume(&mut self, typed: Typed) {
        let _ = self.guard.retake(typed);
        self.signals.forget_continue();
        self.events = Some(EventStream::new());
        self.screen.invalidate();
        self.measure();
        self.want(Urgency::Input);
    }

    /// Hands the terminal to a machine until its shell ends or the user comes back.
    async fn hand_over(&mut self, handover: Handover) {
        let engine = match self.link.engine() {
            Ok(engine) => engine.clone(),
            Err(error) => return self.take_in(Msg::HandoverEnded(handover, Err(error.report()))),
        };
        self.events = None;
        // What was typed after the key that asked for this is the machine's already.
        let typed = attach::typed_ahead();
        self.guard.lend();
        let size = (self.model.width, self.model.height);
        // On the engine's runtime, as all that the engine is asked for.
        let mut task = self.link.runtime().spawn(attach::hand_over(engine, handover.clone(), size, typed));
        let result = loop {
            tokio::select! {
                result = &mut task => break result.unwrap_or_else(|error| {
                    Err(Error::failed("the shell ended by an internal error").with_source(error))
                }),
                signal = self.signals.next() => if let Signal::End(number) = signal {
                    terminal::restore();
                    self.ending = Some(Ending::Signal(number));
                    task.abort();
                    let _ = task.await;
                    return;
                }
            }
        };
        // What is typed from here on is for the console: nothing of it is thrown away.
        self.resume(Typed::Kept);
        let result = result.map_err(|error| error.report());
        self.take_in(Msg::HandoverEnded(handover, result));
    }
}

fn write_out(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    match written {
        Ok(()) => Ok(()),
        // The terminal is gone: the watch for hang-ups ends the console.
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EIO | nix::libc::EPIPE)) => Ok(()),
        Err(error) => Err(Error::io("cannot write to the terminal", error)),
    }
}

/// "Set the clipboard" (xterm, ctlseqs: OSC 52), its text in base64 (RFC 4648).
fn osc52(text: &str) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = b"\x1b]52;c;".to_vec();
    for group in text.as_bytes().chunks(3) {
        let bits =
            group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for index in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * index) & 0x3f) as usize];
            bytes.push(if index <= group.len() { letter } else { b'=' });
        }
    }
    bytes.extend_from_slice(b"\x1b\\");
    bytes
}

fn host_facts() -> HostFacts {
    let cpus = std::thread::available_parallelism().map_or(0, |cpus| u32::try_from(cpus.get()).unwrap_or(0));
    let memory = nix::sys::sysinfo::sysinfo().map_or(0, |information| information.ram_total());
    HostFacts { cpus, memory_bytes: memory }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clipboard_gets_base64() {
        let check = |text: &str, expected: &str| {
            assert_eq!(osc52(text), format!("\x1b]52;c;{expected}\x1b\\").into_bytes());
        };
        check("", "");
        check("f", "Zg==");
        check("fo", "Zm8=");
        check("foo", "Zm9v");
        check("foobar", "Zm9vYmFy");
    }
}
