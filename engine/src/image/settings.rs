//! What the image service is made with: real parts by default, others where a test needs a seam.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::bundle::{self, FetchBundle, FetchedBundle};
use super::catalog;
use super::flatten::{self, Flatten};
use super::manifest::Platform;
use super::publish;
use super::record::Image;
use super::registry::Patience;
use super::registry::credentials::CredentialFiles;
use crate::error::Result;
use crate::rootfs::Rootfs;

/// Fetches an image's layers and writes its root file system into a folder.
pub type PullAndFlatten = Arc<dyn Fn(Flatten) -> BoxFuture<'static, Result<Rootfs>> + Send + Sync>;
/// Makes the folder of an image complete and durable, the last step before it is published.
pub type FinalizePulledRootfs = Arc<dyn Fn(PathBuf, Image) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// Gets a bundle and unpacks it into a folder, verified.
pub type BundleFetch = Arc<dyn Fn(FetchBundle) -> BoxFuture<'static, Result<FetchedBundle>> + Send + Sync>;

#[derive(Clone)]
pub struct Seams {
    pub pull_and_flatten: PullAndFlatten,
    pub finalize_pulled_rootfs: FinalizePulledRootfs,
    pub bundle_fetch: BundleFetch,
}

impl Default for Seams {
    fn default() -> Self {
        Self {
            pull_and_flatten: Arc::new(|request| Box::pin(flatten::pull_and_flatten(request))),
            finalize_pulled_rootfs: Arc::new(|folder, image| {
                Box::pin(flatten::blocking(move || publish::finalize_pulled_rootfs(&folder, &image)))
            }),
            bundle_fetch: Arc::new(|request| Box::pin(bundle::fetch(request))),
        }
    }
}

impl fmt::Debug for Seams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seams").finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub patience: Patience,
    pub credentials: CredentialFiles,
    /// What images must be made for.
    pub platform: Platform,
    /// The user's own catalog, which need not exist.
    pub catalog: Option<PathBuf>,
    pub seams: Seams,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            patience: Patience::default(),
            credentials: CredentialFiles::of_user(),
            platform: Platform::host(),
            catalog: catalog::user_catalog(),
            seams: Seams::default(),
        }
    }
}
