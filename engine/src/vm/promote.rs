//! A stopped machine's disks as a new image.

use super::Shared;
use super::layer;
use super::lock::VmGuard;
use super::record::Vm;
use crate::error::{Error, Result};
use crate::image::PromoteDisks;
use crate::image::record::Image;
use crate::operation::Operation;

/// Makes the image; the caller holds the machine's lock and has seen that it does not run.
pub(super) async fn promote(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    new_name: String,
    operation: &Operation,
) -> Result<Image> {
    let base = shared.images.find(vm.image_id.as_str()).await?;
    let bases = layer::bases(shared, &vm.id).await?;
    // What a clone did not write to yet is what it lies on.
    let file = |disk| {
        let base = bases.iter().find(|base| base.disk == disk)?;
        let (path, format) = base.backing()?;
        Some((guard.directory().join(path), format))
    };
    let present = match layer::present(shared, guard, vm, &bases).await? {
        Some((root, work)) => Some((root, work.or_else(|| file(layer::Disk::Work)))),
        None => file(layer::Disk::Root).map(|root| (root, file(layer::Disk::Work))),
    };
    let Some((root, work)) = present else {
        return Err(Error::conflict(format!("machine `{}` was never started: it has no disks yet", vm.name))
            .with_hint(format!("its content is that of the image `{}`", vm.image)));
    };
    shared.images.promote_disks(PromoteDisks { name: new_name, base, root, work }, operation).await
}
