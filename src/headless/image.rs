//! `vmdeck image …`

use vmdeck_engine::image::PullImage;
use vmdeck_engine::image::record::Image;

use super::output::{Fields, Table, ago, bytes, short_digest, time};
use super::{Context, Outcome};
use crate::cli::image::ImageCommand;

pub(super) async fn run(context: &Context, command: ImageCommand) -> Outcome {
    let images = context.engine.images();
    match command {
        ImageCommand::List => {
            let images = images.list().await?;
            if !context.output.json(&images)? {
                context.output.text(&table(&images))?;
            }
        }
        ImageCommand::Show { name } => {
            let image = images.find(&name).await?;
            if !context.output.json(&image)? {
                context.output.text(&fields(&image))?;
            }
        }
        ImageCommand::Pull(arguments) => {
            let request = PullImage {
                reference: arguments.reference,
                name: arguments.name,
                plain_http: arguments.plain_http,
            };
            let image = context.follow(images.pull(request, None)).await?;
            if !context.output.json(&image)? {
                context.output.text(&format!("{}\n", image.name))?;
            }
        }
        ImageCommand::Delete { names } => {
            let mut deleted = Vec::new();
            for name in names {
                deleted.push(images.delete(&name).await?);
            }
            if !context.output.json(&deleted)? {
                for image in deleted {
                    context.output.text(&format!("{}\n", image.name))?;
                }
            }
        }
    }
    Ok(0)
}

fn table(images: &[Image]) -> String {
    let mut table = Table::new(["NAME", "ID", "DIGEST", "ARCH", "SIZE", "CREATED", "REFERENCE"]);
    for image in images {
        table.row([
            image.name.clone(),
            image.id.to_string(),
            image.digest.as_deref().map_or_else(|| "-".into(), short_digest),
            image.architecture.clone().unwrap_or_else(|| "-".into()),
            bytes(image.used_bytes),
            ago(image.created_at),
            image.reference.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    table.render()
}

fn fields(image: &Image) -> String {
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
        .add_some("work seed", image.files.work_seed.as_ref().map(|path| path.display().to_string()))
        .add_some("kernel", image.files.kernel.as_ref().map(|path| path.display().to_string()));
    let config = &image.config;
    let words = |words: &[String]| (!words.is_empty()).then(|| words.join(" "));
    fields
        .add_some("entrypoint", words(&config.entrypoint))
        .add_some("command", words(&config.command))
        .add_some("user", config.user.as_ref())
        .add_some("directory", config.working_directory.as_ref())
        .add_some("ports", words(&config.exposed_ports));
    for variable in &config.environment {
        fields.add("environment", variable);
    }
    for layer in &image.layers {
        fields.add("layer", format!("{}  {}", layer.digest, bytes(layer.size)));
    }
    fields.render()
}
