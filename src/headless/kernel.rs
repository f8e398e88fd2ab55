//! `vmdeck kernel …`

use vmdeck_engine::kernel::record::Kernel;
use vmdeck_engine::kernel::{CatalogItem, ExportKernel, ImportKernel, ImportSource, PullKernel};
use vmdeck_engine::{Error, Result};

use super::output::{Fields, Table, ago, time};
use super::several::Ended;
use super::{Context, Outcome};
use crate::cli::kernel::{ImportArguments, KernelCommand};

pub(super) async fn run(context: &Context, command: KernelCommand) -> Outcome {
    let kernels = context.engine.kernels();
    match command {
        KernelCommand::List => {
            let kernels = kernels.list().await?;
            if !context.output.json(&kernels)? {
                context.output.text(&table(&kernels))?;
            }
        }
        KernelCommand::Show { name } => {
            let kernel = kernels.find(&name).await?;
            if !context.output.json(&kernel)? {
                context.output.text(&fields(&kernel))?;
            }
        }
        KernelCommand::Pull { source, name, plain_http } => {
            let kernel = context.follow(kernels.pull(PullKernel { source, name, plain_http }, None)).await?;
            got(context, &kernel)?;
        }
        KernelCommand::Catalog => {
            let items = kernels.catalog().await?;
            if !context.output.json(&items)? {
                context.output.text(&catalog_table(&items))?;
            }
        }
        KernelCommand::Export { name, to } => {
            let exported = context.follow(kernels.export(ExportKernel { name, to }, None)).await?;
            if !context.output.json(&exported)? {
                context.output.text(&format!("{}\n", exported.path.display()))?;
            }
        }
        KernelCommand::Import(arguments) => {
            let request = ImportKernel { name: arguments.name.clone(), from: source(arguments)? };
            let kernel = context.follow(kernels.import(request, None)).await?;
            got(context, &kernel)?;
        }
        KernelCommand::Delete { names } => {
            let mut ended = Ended::new(context);
            for name in names {
                ended.add(kernels.delete(&name).await);
            }
            if !context.output.json(&ended.done)? {
                ended
                    .done
                    .iter()
                    .try_for_each(|kernel| context.output.text(&format!("{}\n", kernel.name)))?;
            }
            return ended.outcome();
        }
    }
    Ok(0)
}

fn source(arguments: ImportArguments) -> Result<ImportSource> {
    match (arguments.deb, arguments.vmlinuz, arguments.host) {
        (Some(deb), ..) => Ok(ImportSource::Deb(deb)),
        (None, Some(vmlinuz), _) => Ok(ImportSource::Files { vmlinuz, modules: arguments.modules }),
        (None, None, true) => Ok(ImportSource::Host),
        (None, None, false) => {
            Err(Error::usage("nothing to import").with_hint("give --deb, --vmlinuz or --host"))
        }
    }
}

fn got(context: &Context, kernel: &Kernel) -> Result<()> {
    for warning in &kernel.warnings {
        context.output.message(&format!("warning: {warning}"));
    }
    if !context.output.json(kernel)? {
        context.output.text(&format!("{}\n", kernel.name))?;
    }
    Ok(())
}

fn table(kernels: &[Kernel]) -> String {
    let mut table = Table::new(["NAME", "RELEASE", "ARCH", "CREATED", "SOURCE"]);
    for kernel in kernels {
        table.row([
            kernel.name.clone(),
            kernel.release.clone(),
            kernel.architecture.clone(),
            ago(kernel.created_at),
            kernel.source.clone(),
        ]);
    }
    table.render()
}

fn catalog_table(items: &[CatalogItem]) -> String {
    let mut table = Table::new(["NAME", "ARCH", "VERSION", "STATE", "INSTALLED", "NOTE"]);
    for item in items {
        let exact =
            item.available.as_deref().and_then(|exact| exact.rsplit_once('=')).map(|(_, version)| version);
        table.row([
            item.entry.name.clone(),
            item.entry.architecture.clone(),
            item.entry.version.as_deref().or(exact).unwrap_or("-").to_owned(),
            item.state.as_str().to_owned(),
            if item.installed.is_empty() { "-".to_owned() } else { item.installed.join(" ") },
            item.entry.note.clone(),
        ]);
    }
    table.render()
}

fn fields(kernel: &Kernel) -> String {
    let mut fields = Fields::default();
    fields
        .add("name", &kernel.name)
        .add("release", &kernel.release)
        .add("architecture", &kernel.architecture)
        .add("source", &kernel.source)
        .add_some("asked for", kernel.requested.clone())
        .add("created", time(kernel.created_at))
        .add("vmlinux", kernel.vmlinux.display().to_string())
        .add("initrd", kernel.initrd.display().to_string())
        .add_some("modules", kernel.modules.as_ref().map(|path| path.display().to_string()))
        .add("loaded first", kernel.initrd_modules.join(" "));
    for warning in &kernel.warnings {
        fields.add("warning", warning);
    }
    fields.render()
}
