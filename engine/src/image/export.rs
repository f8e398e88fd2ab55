//! Export: an image as one file, for another host.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::flatten::{WORK_SEED, blocking};
use super::output::Output;
use super::{ImageService, bundle, oci_archive, seed};
use crate::error::{Error, Result};
use crate::keys::installation_key;
use crate::operation::progress::ProgressUnit;
use crate::operation::record::OperationKind;
use crate::operation::{Operation, Task};
use crate::staging::Staging;

/// What to export.
#[derive(Clone, Debug)]
pub struct ExportImage {
    pub name: String,
    /// The file to write; it must not be there yet.
    pub output: PathBuf,
    pub format: ExportFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportFormat {
    /// The file systems as they are ([`super::bundle`]).
    #[default]
    Bundle,
    /// An OCI image layout in a tar file, with one layer: for docker, podman and registries.
    OciArchive,
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedImage {
    pub name: String,
    pub format: ExportFormat,
    pub path: PathBuf,
    /// Length of the file in bytes.
    pub bytes: u64,
}

impl ImageService {
    /// Writes an image to a file.
    pub fn export(&self, request: ExportImage, parent: Option<&Operation>) -> Task<ExportedImage> {
        let (this, target) = (self.clone(), request.name.clone());
        self.shared.operations.spawn(OperationKind::ImageExport, target, parent, |operation| {
            this.run_export(request, operation)
        })
    }

    async fn run_export(self, request: ExportImage, operation: Operation) -> Result<ExportedImage> {
        let mut image = self.find(&request.name).await?;
        image.require_files()?;
        operation.phase("write").await;
        let part = operation.progress().add(image.name.clone(), ProgressUnit::Bytes, 0);
        let cancel = operation.cancelled().clone();
        let staging = Staging::create(&self.shared.data, operation.id()).await?;
        let platform = self.shared.settings.platform.clone();
        let data = self.shared.data.clone();
        blocking(move || {
            let mut output = Output::create(&request.output)?;
            // Whoever takes it in authorizes a key of their own; ours is not to log in there.
            if let Some(seed) = &mut image.files.work_seed {
                let copy = staging.path().join(WORK_SEED);
                seed::without_key(seed, &copy, &installation_key(&data)?.public_line, &cancel)?;
                *seed = copy;
            }
            let mut buffered = BufWriter::with_capacity(1 << 20, output.file());
            match request.format {
                ExportFormat::Bundle => bundle::write(&image, &mut buffered, &part, &cancel).map(|_| ())?,
                ExportFormat::OciArchive => {
                    oci_archive::write(&image, &platform, &mut buffered, staging.path(), &part, &cancel)?;
                }
            }
            let fail = |error| Error::io(format!("cannot write `{}`", request.output.display()), error);
            buffered.flush().map_err(fail)?;
            drop(buffered);
            let bytes = output.file().metadata().map_err(fail)?.len();
            let path = output.publish()?;
            Ok(ExportedImage { name: image.name, format: request.format, path, bytes })
        })
        .await
    }
}
