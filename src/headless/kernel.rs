//! `vmdeck kernel …`

use vmdeck_engine::kernel::record::Kernel;
use vmdeck_engine::kernel::{ImportKernel, ImportSource, PullKernel};
use vmdeck_engine::{Error, Result};

use super::output::{Fields, Table, ago, time};
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
        KernelCommand::Pull { source, name } => {
            let kernel = context.follow(kernels.pull(PullKernel { source, name }, None)).await?;
            got(context, &kernel)?;
        }
        KernelCommand::Import(arguments) => {
            let request = ImportKernel { name: arguments.name.clone(), from: source(arguments)? };
            let kernel = context.follow(kernels.import(request, None)).await?;
            got(context, &kernel)?;
        }
        KernelCommand::Delete { names } => {
            let mut deleted = Vec::new();
            for name in names {
                deleted.push(kernels.delete(&name).await?);
            }
            if !context.output.json(&deleted)? {
                for kernel in deleted {
                    context.output.text(&format!("{}\n", kernel.name))?;
                }
            }
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

fn fields(kernel: &Kernel) -> String {
    let mut fields = Fields::default();
    fields
        .add("name", &kernel.name)
        .add("release", &kernel.release)
        .add("architecture", &kernel.architecture)
        .add("source", &kernel.source)
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
