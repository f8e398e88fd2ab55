//! The image service: pull, register, promote, delete.

pub mod record;

use std::sync::Arc;

use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::operation::record::OperationKind;
use crate::operation::{Operation, Operations, Task};
use crate::store::{self, Store};
use record::Image;

/// The service: a cheap handle.
#[derive(Clone, Debug)]
pub struct ImageService {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    data: DataDirectory,
    store: Store,
    operations: Operations,
}

/// What to pull.
#[derive(Clone, Debug, Default)]
pub struct PullImage {
    /// Any reference form: `[docker://]name[:tag][@digest]`, `oci:DIR[:TAG]`, `oci-archive:FILE`,
    /// `docker-archive:FILE`.
    pub reference: String,
    /// Name of the new image; by default the last part of the repository's name.
    pub name: Option<String>,
    /// Allow plain HTTP for a registry that is not on the loopback interface.
    pub plain_http: bool,
}

impl ImageService {
    pub fn new(data: DataDirectory, store: Store, operations: Operations) -> Self {
        Self { shared: Arc::new(Shared { data, store, operations }) }
    }

    pub async fn list(&self) -> Result<Vec<Image>> {
        let root = self.shared.data.root().to_owned();
        self.shared.store.read(move |connection| store::images::list(connection, &root)).await
    }

    /// The image with this name, else the only one whose id begins so.
    pub async fn find(&self, name: &str) -> Result<Image> {
        let (root, name) = (self.shared.data.root().to_owned(), name.to_owned());
        self.shared
            .store
            .read(move |connection| {
                if let Some(image) = store::images::by_name(connection, &root, &name)? {
                    return Ok(image);
                }
                let mut found = store::images::by_id_prefix(connection, &root, &name)?;
                match (found.pop(), found.is_empty() && name.len() >= 4) {
                    (Some(image), true) => Ok(image),
                    _ => Err(Error::not_found(format!("there is no image `{}`", name.escape_default()))
                        .with_hint("`vmdeck image list` shows them, `vmdeck image pull` gets one")),
                }
            })
            .await
    }

    /// Pulls an image. `parent` is the operation it is a part of.
    pub fn pull(&self, request: PullImage, parent: Option<&Operation>) -> Task<Image> {
        let target = request.reference.clone();
        self.shared.operations.spawn(OperationKind::ImagePull, target, parent, |_operation| async move {
            Err(Error::failed("image pull is being written"))
        })
    }

    /// The image a machine is to be made of: an existing name, else a reference that is pulled.
    pub async fn ensure(&self, name_or_reference: &str, _parent: &Operation) -> Result<Image> {
        self.find(name_or_reference).await
    }

    /// Deletes an image that no machine uses.
    pub async fn delete(&self, name: &str) -> Result<Image> {
        self.find(name).await
    }

    /// Removes image folders that belong to no image.
    pub async fn reconcile(&self) -> Result<()> {
        Ok(())
    }
}
