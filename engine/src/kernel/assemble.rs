//! From a source to the files of a kernel, in one pass.
//!
//! ```text
//! source ──parts──▶ queue ──▶ workers: decompress, read the module, write it into modules.ext4
//!                                      take the vmlinux out of the bzImage, write it
//!        then: what needs what ──▶ initrd, modules.* files, the tree of modules.ext4
//! ```
//!
//! Modules are kept uncompressed: modprobe in an emulated guest is spared the decompression, and any
//! modprobe can load them, also one that knows no xz.

mod drivers;
mod tree;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use vmdeck_ext4::{DataWriter, FileData, Formatter, Options, Timestamp};

use super::boot_image::{self, BootContent};
use super::configuration::Configuration;
use super::decompress::{Compression, decompress_into};
use super::initrd::{self, InitrdModule};
use super::modules::depmod;
use super::modules::module::Module;
use super::modules::set::ModuleSet;
use super::source::{ModuleFile, Part, Reading, Sink, Source};
use crate::error::{Error, ErrorReport, Result};

/// Name of the build configuration in a kernel's folder; not every kernel has one.
pub(super) const CONFIGURATION: &str = "config";
/// The largest module, uncompressed, in bytes.
const LARGEST_MODULE: u64 = 512 << 20;
/// Parts that wait for a worker. Each is one file in memory.
const QUEUE: usize = 8;

/// A kernel in its staging folder.
#[derive(Debug)]
pub(super) struct Assembled {
    pub release: String,
    /// Names of the files in the folder.
    pub vmlinux: &'static str,
    pub initrd: &'static str,
    pub modules: Option<&'static str>,
    pub initrd_modules: Vec<String>,
    pub warnings: Vec<String>,
}

/// What the workers have gathered.
#[derive(Debug, Default)]
struct Gathered {
    image: Option<Image>,
    configuration: Option<Configuration>,
    /// The text of a `config-*` file.
    configuration_text: Option<Vec<u8>>,
    /// Release that the name of the modules' folder tells.
    folder_release: Option<String>,
    modules: Vec<Module>,
    files: Vec<StoredFile>,
    /// Modules that could not be read, with the reason of the first.
    unreadable: (usize, String),
    lists: Lists,
}

#[derive(Debug)]
struct Image {
    file: &'static str,
    release: Option<String>,
    warning: Option<String>,
}

/// A file whose content is in `modules.ext4`.
#[derive(Debug)]
struct StoredFile {
    path: String,
    modified: Timestamp,
    data: FileData,
}

/// Lists that come with the modules.
#[derive(Debug, Default)]
struct Lists {
    order: Vec<u8>,
    builtin: Vec<u8>,
    builtin_modinfo: Vec<u8>,
}

/// Makes the files of a kernel in `folder`. Blocks; obeys the cancel token of `reading`.
pub(super) fn assemble(source: Source, folder: &Path, reading: Reading<'_>) -> Result<Assembled> {
    let modules_path = folder.join("modules.ext4");
    let fail = |error| Error::io(format!("cannot create `{}`", modules_path.display()), error);
    let file = File::options().read(true).write(true).create_new(true).open(&modules_path).map_err(fail)?;
    let created = now();
    let mut uuid = [0; 16];
    getrandom::fill(&mut uuid).map_err(|error| fail(std::io::Error::other(error)))?;
    let options = Options { size: 0, free: 0, journal: 0, uuid, label: "vmdeck-modules".to_owned(), created };
    let formatter = Formatter::create(file, options).map_err(image_error)?;

    let mut gathered = gather(source, folder, &formatter, reading)?;
    if reading.cancel.is_cancelled() {
        return Err(Error::cancelled());
    }
    let image = gathered.image.take().ok_or_else(|| {
        Error::failed("there is no kernel image (boot/vmlinuz-…) in it").with_hint(
            "take the package, or the image made by `vmdeck kernel export`, that holds the kernel itself: \
             no meta package, no headers, no debug symbols, no root file system",
        )
    })?;
    let set = ModuleSet::new(
        std::mem::take(&mut gathered.modules),
        &String::from_utf8_lossy(&gathered.lists.order),
        &String::from_utf8_lossy(&gathered.lists.builtin),
    );
    let release = release(&image, gathered.folder_release.as_deref(), &set)?;
    let drivers = drivers::choose(&set, gathered.configuration.as_ref());

    let initrd_modules = read_back(&formatter, &set, &drivers.load, &gathered.files)?;
    let names = initrd_modules.iter().map(|module| module.file.clone()).collect();
    let initrd = initrd::build(&initrd_modules)
        .map_err(|error| Error::failed("cannot make the initrd").with_source(error))?;
    write(&folder.join("initrd"), &initrd)?;
    if let Some(text) = &gathered.configuration_text {
        write(&folder.join(CONFIGURATION), text)?;
    }

    let mut warnings: Vec<String> = image.warning.into_iter().collect();
    warnings.extend(drivers.warnings);
    warnings.extend(gathered.configuration.iter().flat_map(Configuration::warnings));
    if gathered.unreadable.0 > 0 {
        let (count, first) = &gathered.unreadable;
        warnings.push(format!("{count} of its modules cannot be read, for example {first}"));
    }

    let modules = if set.modules().is_empty() {
        fs::remove_file(&modules_path)
            .map_err(|error| Error::io(format!("cannot remove `{}`", modules_path.display()), error))?;
        None
    } else {
        let indices = depmod::files(&set, &gathered.lists.builtin_modinfo)
            .map_err(|error| Error::failed("cannot index the modules").with_source(error))?;
        tree::finish(formatter, gathered.files, indices, created)?;
        Some("modules.ext4")
    };
    Ok(Assembled { release, vmlinux: image.file, initrd: "initrd", modules, initrd_modules: names, warnings })
}

/// Reads the source, with workers that take its parts apart.
fn gather(source: Source, folder: &Path, formatter: &Formatter, reading: Reading<'_>) -> Result<Gathered> {
    let gathered = Mutex::new(Gathered::default());
    let failed = Mutex::new(None);
    let (sender, receiver) = sync_channel(QUEUE);
    let receiver = Mutex::new(receiver);
    let threads = thread::available_parallelism().map_or(2, |count| count.get().clamp(1, 4));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let worker = Worker {
                    folder,
                    gathered: &gathered,
                    writer: formatter.data_writer(),
                    buffer: Vec::new(),
                };
                let (receiver, failed) = (&receiver, &failed);
                scope.spawn(move || worker.run(receiver, failed))
            })
            .collect();
        let mut queue = Queue { sender, failed: &failed, reading };
        let mut result = source.read(reading, &mut queue);
        drop(queue);
        for worker in workers {
            let ended =
                worker.join().unwrap_or_else(|_| Err(Error::failed("a thread of the import panicked")));
            result = result.and(ended);
        }
        result
    })?;
    Ok(gathered.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// The sending end of the queue.
struct Queue<'a> {
    sender: SyncSender<Part>,
    /// Guards what went wrong in a worker, for the reader of the source to end with.
    failed: &'a Mutex<Option<ErrorReport>>,
    reading: Reading<'a>,
}

impl Sink for Queue<'_> {
    fn take(&mut self, part: Part) -> Result<()> {
        if self.reading.cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        if let Some(report) = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Err(report.into());
        }
        self.sender.send(part).map_err(|_| Error::failed("the threads of the import ended"))
    }
}

struct Worker<'a> {
    folder: &'a Path,
    /// Guards what all workers add to; held to add one item.
    gathered: &'a Mutex<Gathered>,
    writer: DataWriter<'a>,
    buffer: Vec<u8>,
}

impl Worker<'_> {
    /// Works until the queue is closed. After an error it goes on taking parts, so that the reader
    /// never waits for a queue that nobody empties.
    fn run(mut self, queue: &Mutex<Receiver<Part>>, failed: &Mutex<Option<ErrorReport>>) -> Result<()> {
        let mut result = Ok(());
        loop {
            let part = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(part) = part else { break };
            if result.is_ok() {
                result = self.take(part);
                if let Err(error) = &result {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.report());
                }
            }
        }
        result?;
        self.writer.flush().map_err(image_error)
    }

    fn take(&mut self, part: Part) -> Result<()> {
        match part {
            Part::Image { release, content } => self.take_image(release, content),
            Part::Configuration(text) => {
                let configuration = Configuration::parse(&text);
                let mut gathered = self.gathered();
                if configuration.is_some() {
                    gathered.configuration = configuration;
                    gathered.configuration_text = Some(text);
                }
                Ok(())
            }
            Part::Module(file) => self.take_module_file(file),
        }
    }

    fn take_image(&self, named: Option<String>, content: Vec<u8>) -> Result<()> {
        let image = boot_image::read(content).map_err(|error| {
            Error::failed("the kernel image cannot be used")
                .with_source(error)
                .with_hint("give a bzImage (vmlinuz) or a vmlinux for x86-64")
        })?;
        let (file, bytes, warning) = match image.content {
            BootContent::Vmlinux(bytes) => ("vmlinux", bytes, None),
            BootContent::BzImage(bytes, reason) => {
                let reason = Error::failed("it boots slower than it could: no vmlinux could be extracted")
                    .with_source(reason);
                ("vmlinuz", bytes, Some(reason.full_message()))
            }
        };
        let carried = Configuration::in_vmlinux(&bytes);
        {
            let mut gathered = self.gathered();
            if gathered.image.is_some() {
                return Err(Error::failed("there is more than one kernel image in it"));
            }
            gathered.image = Some(Image { file, release: image.release.or(named), warning });
            gathered.configuration = gathered.configuration.take().or(carried);
        }
        write(&self.folder.join(file), &bytes)
    }

    fn take_module_file(&mut self, file: ModuleFile) -> Result<()> {
        if let Some(release) = &file.release {
            let mut gathered = self.gathered();
            let known = gathered.folder_release.get_or_insert_with(|| release.clone());
            if known != release {
                let message = format!("there are modules of two kernels in it, {known} and {release}");
                return Err(Error::failed(message));
            }
        }
        match file.path.as_str() {
            "modules.order" => self.gathered().lists.order.clone_from(&file.content),
            "modules.builtin" => self.gathered().lists.builtin.clone_from(&file.content),
            "modules.builtin.modinfo" => self.gathered().lists.builtin_modinfo.clone_from(&file.content),
            generated if depmod::GENERATED.contains(&generated) => return Ok(()),
            _ => {}
        }
        let Some(at) = file.path.rfind(".ko").filter(|_| !file.path.starts_with("modules.")) else {
            return self.store(file.path, file.modified, &file.content);
        };
        let path = file.path[..at + 3].to_owned();
        let mut buffer = std::mem::take(&mut self.buffer);
        let content = match Compression::detect(&file.content) {
            Some(compression) => decompress_into(compression, &file.content, LARGEST_MODULE, &mut buffer)
                .map(|()| buffer.as_slice())
                .map_err(|error| error.to_string()),
            None => Ok(file.content.as_slice()),
        };
        let module = content.and_then(|content| {
            Ok((Module::parse(&path, content).map_err(|error| error.to_string())?, content))
        });
        let result = match module {
            Ok((module, content)) => {
                self.gathered().modules.push(module);
                self.store(path, file.modified, content)
            }
            Err(reason) => {
                let mut gathered = self.gathered();
                if gathered.unreadable.0 == 0 {
                    gathered.unreadable.1 = format!("{}: {reason}", file.path.escape_debug());
                }
                gathered.unreadable.0 += 1;
                Ok(())
            }
        };
        self.buffer = buffer;
        result
    }

    fn store(&mut self, path: String, modified: Timestamp, content: &[u8]) -> Result<()> {
        let data = tree::write(&mut self.writer, content)?;
        self.gathered().files.push(StoredFile { path, modified, data });
        Ok(())
    }

    fn gathered(&self) -> std::sync::MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `uname -r` will say. The image knows best; modules for another kernel would not load.
fn release(image: &Image, folder: Option<&str>, set: &ModuleSet) -> Result<String> {
    let built_for = set.modules().iter().find_map(|module| module.release.as_deref());
    let release = image.release.as_deref().or(built_for).or(folder).ok_or_else(|| {
        Error::failed("the kernel's release cannot be told from its image, and it has no modules")
    })?;
    match built_for.filter(|built_for| *built_for != release) {
        Some(other) => {
            Err(Error::failed(format!("the modules are for kernel {other}, but the image is {release}"))
                .with_hint("give the modules of the same kernel, or none"))
        }
        None if boot_image::is_release(release) => Ok(release.to_owned()),
        None => Err(Error::failed(format!("`{}` is no kernel release", release.escape_debug()))),
    }
}

/// The modules for the initrd, out of the image they have just been written to.
fn read_back(
    formatter: &Formatter,
    set: &ModuleSet,
    load: &[usize],
    files: &[StoredFile],
) -> Result<Vec<InitrdModule>> {
    load.iter()
        .map(|&position| {
            let module = &set.modules()[position];
            let stored = files
                .iter()
                .find(|file| file.path == module.path)
                .ok_or_else(|| Error::failed(format!("the module `{}` was not stored", module.name)))?;
            let mut content = vec![0; usize::try_from(stored.data.size).unwrap_or_default()];
            let mut done = 0;
            while done < content.len() {
                match formatter
                    .read_at(&stored.data, done as u64, &mut content[done..])
                    .map_err(image_error)?
                {
                    0 => return Err(Error::failed(format!("the module `{}` was cut short", module.name))),
                    count => done += count,
                }
            }
            Ok(InitrdModule { file: format!("{}.ko", module.name), content })
        })
        .collect()
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let result = File::create_new(path).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    result.map_err(|error| Error::io(format!("cannot write `{}`", path.display()), error))
}

fn image_error(error: vmdeck_ext4::FormatError) -> Error {
    Error::failed("cannot write the image of the modules").with_source(error)
}

fn now() -> Timestamp {
    let milliseconds = crate::clock::now();
    let nanoseconds = milliseconds.rem_euclid(1000) * 1_000_000;
    Timestamp {
        seconds: milliseconds.div_euclid(1000),
        nanoseconds: u32::try_from(nanoseconds).unwrap_or_default(),
    }
}
