//! Keeps the guest binary in the initrds that of this vmdeck.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::record::Kernel;
use super::{Shared, initrd};
use crate::error::{Error, Result};
use crate::store;

/// Renews the initrd of a kernel that was made by another version of vmdeck.
pub(super) async fn ensure_current(shared: &Shared, kernel: &Kernel) -> Result<Kernel> {
    if kernel.guest_digest == initrd::guest_digest() {
        return Ok(kernel.clone());
    }
    let key: String =
        Sha256::digest(&kernel.name).iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    let _one_at_a_time = shared.renewals.acquire(&key, &CancellationToken::new()).await?;
    let current = find(shared, &kernel.name).await?;
    if current.guest_digest == initrd::guest_digest() {
        return Ok(current);
    }
    let path = current.initrd.clone();
    tokio::task::spawn_blocking(move || replace(&path))
        .await
        .map_err(|error| Error::failed("renewing an initrd failed").with_source(error))??;
    tracing::info!(kernel = current.name, "the initrd was renewed with this version's guest binary");

    let root = shared.data.root().to_owned();
    shared
        .store
        .transaction(move |transaction| {
            // Read again: it may have been deleted meanwhile.
            let mut kernel = store::kernels::by_name(transaction, &root, &current.name)?
                .ok_or_else(|| super::unknown(&current.name))?;
            kernel.guest_digest = initrd::guest_digest().to_owned();
            store::kernels::update(transaction, &root, &kernel)?;
            Ok(kernel)
        })
        .await
}

async fn find(shared: &Shared, name: &str) -> Result<Kernel> {
    let (root, wanted) = (shared.data.root().to_owned(), name.to_owned());
    let found =
        shared.store.read(move |connection| store::kernels::by_name(connection, &root, &wanted)).await?;
    found.ok_or_else(|| super::unknown(name))
}

/// Whoever opens the file sees the old initrd or the new one, whole.
fn replace(path: &Path) -> Result<()> {
    let fail = |error: io::Error| Error::io(format!("cannot renew the initrd `{}`", path.display()), error);
    let renewed = initrd::renew(&fs::read(path).map_err(fail)?).map_err(|error| {
        Error::failed(format!("cannot renew the initrd `{}`", path.display()))
            .with_source(error)
            .with_hint("delete this kernel and get it again")
    })?;
    let new = path.with_extension("new");
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(&renewed)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&new, path)).map_err(fail)
}
