//! Kernels that images bring along: made into kernels of vmdeck's when the first machine needs them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::record::Kernel;
use super::{ImportKernel, ImportSource, KernelService};
use crate::error::{Error, ErrorKind, Result};
use crate::operation::Operation;

/// The files of a kernel, and whose they are.
#[derive(Clone, Debug)]
pub struct OwnKernel {
    /// Name of the image; the kernel's begins with it.
    pub image: String,
    /// A bzImage or vmlinux.
    pub kernel: PathBuf,
    /// A folder `lib/modules/<release>`, or an ext4 image of one.
    pub modules: Option<PathBuf>,
}

impl KernelService {
    /// The kernel that these files make. Imported once; files that have changed make another one.
    pub async fn ensure_own(&self, own: OwnKernel, parent: &Operation) -> Result<Kernel> {
        let OwnKernel { image, kernel, modules } = own;
        let name = format!("{image}-{}", fingerprint(&kernel, modules.as_deref())?);
        // One at a time: the second finds what the first has made.
        let _one_at_a_time = self.shared.pulls.acquire(&name, parent.cancelled()).await?;
        match self.find(&name).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            found => return found,
        }
        let from = ImportSource::Files { vmlinuz: kernel, modules };
        let request = ImportKernel { from, name: Some(name) };
        let service = Self { shared: Arc::clone(&self.shared) };
        service.import(request, Some(parent)).wait().await
    }
}

/// Tells one state of the files from another.
fn fingerprint(kernel: &Path, modules: Option<&Path>) -> Result<String> {
    let mut digest = Sha256::new();
    for path in std::iter::once(kernel).chain(modules) {
        let metadata = fs::metadata(path).map_err(|error| {
            Error::io(format!("the image's kernel cannot be read: `{}`", path.display()), error)
                .with_hint("put the registered file back, or name another kernel with --kernel")
        })?;
        let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
        digest.update(format!("{}\0{}\0{seconds}.{nanoseconds}\0", path.display(), metadata.len()));
    }
    Ok(digest.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect())
}
