//! `vmdeck image …`

use std::path::{Path, PathBuf};

use serde::Serialize;
use vmdeck_engine::image::record::{Image, ImageConfig};
use vmdeck_engine::image::{
    ExportFormat, ExportImage, PromoteImage, PruneImages, PrunedKind, PullImage, RegisterImage,
};
use vmdeck_engine::{Error, Result};

use super::output::{Fields, Table, ago, bytes, short_digest, time};
use super::several::Ended;
use super::{Context, Outcome};
use crate::cli::image::{ExportForm, ImageCommand};

pub(super) async fn run(context: &Context, command: ImageCommand) -> Outcome {
    let images = context.engine.images();
    match command {
        ImageCommand::List => {
            let images: Vec<Shown> = images.list().await?.into_iter().map(Shown::new).collect();
            if !context.output.json(&images)? {
                context.output.text(&table(&images))?;
            }
        }
        ImageCommand::Show { name } => {
            let image = images.find(&name).await?;
            let vms = context.engine.vms().list().await?;
            let vms = vms.into_iter().filter(|vm| vm.image_id == image.id).map(|vm| vm.name).collect();
            let image = Described { shown: Shown::new(image), vms };
            if !context.output.json(&image)? {
                context.output.text(&fields(&image))?;
            }
        }
        ImageCommand::Pull(arguments) => {
            let request = PullImage {
                reference: arguments.reference,
                name: arguments.name,
                replace: arguments.replace,
                plain_http: arguments.plain_http,
            };
            let before = if request.replace { Some(images.list().await?) } else { None };
            let image = context.follow(images.pull(request, None)).await?;
            if let Some(before) = before {
                for kept in images.list().await? {
                    if before.iter().any(|image| image.id == kept.id && image.name != kept.name) {
                        let text =
                            format!("the image before is `{}` now: machines are made of it", kept.name);
                        context.output.message(&text);
                    }
                }
            }
            print(context, image)?;
        }
        ImageCommand::Register(arguments) => {
            let request = RegisterImage {
                name: arguments.name,
                rootfs: arguments.rootfs,
                work_seed: arguments.work_seed,
                kernel: arguments.kernel,
                initrd: arguments.initrd,
                modules: arguments.modules,
                config: ImageConfig::default(),
            };
            print(context, context.follow(images.register(request, None)).await?)?;
        }
        ImageCommand::Promote(arguments) => {
            let task = match (arguments.name, arguments.from_vm.as_deref()) {
                (Some(name), _) => images.promote(PromoteImage { name, new_name: arguments.new_name }, None),
                (None, Some([machine, new_name])) => context.engine.vms().promote(machine, new_name, None),
                (None, _) => return Err(Error::usage("nothing to promote")),
            };
            print(context, context.follow(task).await?)?;
        }
        ImageCommand::Export(arguments) => {
            let format = match arguments.form {
                ExportForm::Bundle => ExportFormat::Bundle,
                ExportForm::OciArchive => ExportFormat::OciArchive,
            };
            if arguments.file == Path::new("-") {
                return Err(Error::usage("an image is exported to a file, not to standard output")
                    .with_hint("name a file that is not there yet"));
            }
            let request = ExportImage { name: arguments.name, output: arguments.file, format };
            let exported = context.follow(images.export(request, None)).await?;
            if !context.output.json(&exported)? {
                context.output.text(&format!("{}\n", exported.path.display()))?;
            }
        }
        ImageCommand::Catalog => {
            let entries = images.catalog().await?;
            if !context.output.json(&entries)? {
                let mut table = Table::new(["NAME", "DESCRIPTION", "REFERENCE", "FROM"]);
                for entry in entries {
                    table.row([entry.name, entry.description, entry.reference, entry.origin]);
                }
                context.output.text(&table.render())?;
            }
        }
        ImageCommand::Prune { dry_run, all } => {
            let report = context.follow(images.prune(PruneImages { dry_run, all }, None)).await?;
            if !context.output.json(&report)? {
                let mut table = Table::new(["WHAT", "NAME", "SIZE"]);
                for item in &report.items {
                    let kind = match item.kind {
                        PrunedKind::Image => "image",
                        PrunedKind::Blob => "layer",
                        PrunedKind::PartialBlob => "partial layer",
                    };
                    table.row([kind.into(), item.name.clone(), bytes(item.bytes)]);
                }
                let verb = if dry_run { "would free" } else { "freed" };
                context.output.text(&format!("{}{verb} {}\n", table.render(), bytes(report.bytes)))?;
            }
        }
        ImageCommand::Delete { names } => {
            let mut ended = Ended::new(context);
            for name in names {
                // Its files are not missing: they are gone as they should be.
                ended.add(images.delete(&name).await.map(|image| Shown { image, missing: Vec::new() }));
            }
            if !context.output.json(&ended.done)? {
                ended
                    .done
                    .iter()
                    .try_for_each(|shown| context.output.text(&format!("{}\n", shown.image.name)))?;
            }
            return ended.outcome();
        }
    }
    Ok(0)
}

fn print(context: &Context, image: Image) -> Result<()> {
    let shown = Shown::new(image);
    if !context.output.json(&shown)? {
        context.output.text(&format!("{}\n", shown.image.name))?;
    }
    Ok(())
}

/// An image, and which of its files are not where they were: a registered image's are the user's, who
/// may move them.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    image: Image,
    missing: Vec<PathBuf>,
}

impl Shown {
    fn new(image: Image) -> Self {
        Self { missing: image.files.missing(), image }
    }
}

/// Everything known of an image.
#[derive(Serialize)]
struct Described {
    #[serde(flatten)]
    shown: Shown,
    /// Names of the machines that were made of it.
    vms: Vec<String>,
}

fn table(images: &[Shown]) -> String {
    let mut table = Table::new(["NAME", "ID", "DIGEST", "ARCH", "SIZE", "CREATED", "REFERENCE"]);
    for Shown { image, missing } in images {
        let place = match &image.reference {
            _ if !missing.is_empty() => "(files missing)".to_owned(),
            Some(reference) => reference.clone(),
            None => "-".to_owned(),
        };
        table.row([
            image.name.clone(),
            image.id.to_string(),
            image.digest.as_deref().map_or_else(|| "-".into(), short_digest),
            image.architecture.clone().unwrap_or_else(|| "-".into()),
            bytes(image.used_bytes),
            ago(image.created_at),
            place,
        ]);
    }
    table.render()
}

fn fields(Described { shown: Shown { image, missing }, vms }: &Described) -> String {
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let mut fields = Fields::default();
    fields
        .add("name", &image.name)
        .add("id", image.id.to_string())
        .add("managed", if image.managed { "yes" } else { "no: the files are where they were" })
        .add_some("digest", image.digest.as_ref())
        .add_some("reference", image.reference.as_ref())
        .add_some("architecture", image.architecture.as_ref())
        .add("created", time(image.created_at))
        .add("used", bytes(image.used_bytes))
        .add("file system", bytes(image.rootfs_bytes))
        .add("root", image.files.rootfs.display().to_string())
        .add_some("work seed", path(&image.files.work_seed))
        .add_some("kernel", path(&image.files.kernel))
        .add_some("initrd", path(&image.files.initrd))
        .add_some("modules", path(&image.files.modules));
    for path in missing {
        fields.add("missing", path.display().to_string());
    }
    let config = &image.config;
    let words = |words: &[String]| (!words.is_empty()).then(|| words.join(" "));
    fields
        .add_some("entrypoint", words(&config.entrypoint))
        .add_some("command", words(&config.command))
        .add_some("user", config.user.as_ref())
        .add_some("directory", config.working_directory.as_ref())
        .add_some("ports", words(&config.exposed_ports))
        .add_some("stop signal", config.stop_signal.as_ref());
    for variable in &config.environment {
        fields.add("environment", variable);
    }
    for (name, value) in &config.labels {
        fields.add("label", format!("{name}={value}"));
    }
    for layer in &image.layers {
        fields.add("layer", format!("{}  {}", layer.digest, bytes(layer.size)));
    }
    for name in vms {
        fields.add("machine", name);
    }
    fields.render()
}
