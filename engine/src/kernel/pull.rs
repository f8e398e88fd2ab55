//! Pull: a kernel from elsewhere.
//!
//! ```text
//! name of the catalog ─▶ apt:PACKAGE            ─▶ packages ─┐
//!                        https://…@sha256:…     ─▶ file     ─┼─▶ assemble ─▶ publish
//!                        docker://…, oci…:…     ─▶ layers   ─┘
//! ```
//!
//! What exactly a request means is found out first: it is the kernel's `source`. A pull of what is
//! here already ends there, and of two at once the second waits for the first.

mod image;
mod url;

use sha2::{Digest, Sha256};

use super::apt::{self, PackageSpec};
use super::create::{Wanted, make};
use super::publish::NameTaken;
use super::record::Kernel;
use super::source::Source;
use super::{PullKernel, Shared, catalog};
use crate::error::{Error, Result};
use crate::identifier::check_name;
use crate::image::ImageReference;
use crate::image::flatten::blocking;
use crate::lock::KeyedGuard;
use crate::operation::Operation;
use crate::staging::Staging;
use crate::store;
use url::PinnedUrl;

/// What `kernel pull` takes, for help and for messages.
pub const SOURCES: &str = "apt:PACKAGE[=VERSION], https://…@sha256:DIGEST, docker://NAME[:TAG][@DIGEST], \
                           oci:DIR[:TAG], oci-archive:FILE[:TAG], or a name that `vmdeck kernel catalog` shows";

/// A source that is understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PullSource {
    Apt(PackageSpec),
    Url(PinnedUrl),
    Image(ImageReference),
}

impl PullSource {
    pub(super) fn parse(text: &str) -> Result<Self> {
        if let Some(package) = text.strip_prefix("apt:") {
            return Ok(Self::Apt(PackageSpec::parse(package)?));
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            return Ok(Self::Url(PinnedUrl::parse(text)?));
        }
        if ["docker://", "oci:", "oci-archive:", "docker-archive:"].iter().any(|form| text.starts_with(form))
        {
            return Ok(Self::Image(text.parse()?));
        }
        Err(Error::usage(format!("`{}` is no source of kernels", crate::image::text::printable(text, 200)))
            .with_hint(format!("write {SOURCES}")))
    }
}

/// What was asked for, and how to get it.
struct Request {
    /// As it was written.
    text: String,
    /// The same, or what the catalog has for it.
    source_text: String,
    source: PullSource,
    name: Option<String>,
    plain_http: bool,
}

/// Gets a kernel. One that is already here from the same source is the result.
pub(super) async fn pull(shared: &Shared, request: PullKernel, operation: &Operation) -> Result<Kernel> {
    if let Some(name) = &request.name {
        check_name("a kernel", name)?;
    }
    let source_text = look_up(shared, &request.source).await?;
    let request = Request {
        source: PullSource::parse(&source_text)?,
        source_text,
        text: request.source,
        name: request.name,
        plain_http: request.plain_http,
    };
    let staging = Staging::create(&shared.data, operation.id()).await?;
    operation.phase("resolve").await;
    match &request.source {
        PullSource::Apt(spec) => pull_packages(shared, &request, spec, &staging, operation).await,
        PullSource::Url(url) => url::pull(shared, &request, url, &staging, operation).await,
        PullSource::Image(reference) => image::pull(shared, &request, reference, &staging, operation).await,
    }
}

/// The source behind a name of the catalog; anything else is a source itself.
async fn look_up(shared: &Shared, text: &str) -> Result<String> {
    if check_name("a kernel", text).is_err() {
        return Ok(text.to_owned());
    }
    let file = shared.settings.catalog.clone();
    let entries = blocking(move || catalog::read(file.as_deref())).await?;
    match entries.into_iter().find(|entry| entry.name == text) {
        Some(entry) => Ok(entry.pinned_source()),
        None => Err(Error::not_found(format!("the catalog has no kernel `{text}`"))
            .with_hint(format!("write {SOURCES}"))),
    }
}

async fn pull_packages(
    shared: &Shared,
    request: &Request,
    spec: &PackageSpec,
    staging: &Staging,
    operation: &Operation,
) -> Result<Kernel> {
    let resolved = apt::resolve(spec, staging.path(), operation).await?;
    let source = format!("apt:{}", resolved.exact_name());
    let _one_at_a_time = match claim(shared, request, &source, operation).await? {
        Claim::Here(kernel) => return Ok(*kernel),
        Claim::Ours(guard) => guard,
    };
    operation.phase("download").await;
    let (resolved, packages) = apt::download(resolved, spec, staging.path(), operation).await?;
    let wanted = request.wanted(format!("apt:{}", resolved.exact_name()));
    make(shared, Source::Debs(packages), wanted, staging, operation).await
}

impl Request {
    fn wanted(&self, source: String) -> Wanted {
        Wanted {
            name: self.name.clone(),
            source,
            requested: Some(self.text.clone()),
            taken: NameTaken::SameSourceIsFine,
        }
    }
}

enum Claim {
    Here(Box<Kernel>),
    /// Held until the kernel is published: a second pull of the same waits for it.
    Ours(KeyedGuard),
}

/// Waits until nobody else pulls the same, and looks whether it is here.
async fn claim(shared: &Shared, request: &Request, source: &str, operation: &Operation) -> Result<Claim> {
    operation.log(format!("the kernel is {source}")).await;
    let key = lock_key(request.name.as_deref().unwrap_or(source));
    let guard = shared.pulls.acquire(&key, operation.cancelled()).await?;
    let Some(kernel) = already_here(shared, request.name.as_deref(), source).await? else {
        return Ok(Claim::Ours(guard));
    };
    operation.log(format!("`{}` is already here", kernel.name)).await;
    Ok(Claim::Here(Box::new(kernel)))
}

/// The kernel that a pull would make again: of the same source, under the wanted name, or under its
/// own. A wanted name that another kernel has is an error.
async fn already_here(shared: &Shared, name: Option<&str>, source: &str) -> Result<Option<Kernel>> {
    let root = shared.data.root().to_owned();
    let known = shared.store.read(move |connection| store::kernels::list(connection, &root)).await?;
    let found = known.into_iter().find(|kernel| match name {
        Some(name) => kernel.name == name,
        None => kernel.source == source && kernel.name == kernel.release,
    });
    match found {
        Some(kernel) if kernel.source != source => Err(store::kernels::name_taken(&kernel.name)),
        found => Ok(found),
    }
}

/// A lock's key is part of a file name.
fn lock_key(text: &str) -> String {
    Sha256::digest(text).iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_source_is_told() {
        let digest = "ab".repeat(32);
        assert!(matches!(PullSource::parse("apt:linux-image-amd64"), Ok(PullSource::Apt(_))));
        let url = format!("https://k.example/vmlinuz@sha256:{digest}");
        assert!(matches!(PullSource::parse(&url), Ok(PullSource::Url(_))));
        for image in ["docker://r.example/kernel:6", "oci:/tmp/x:6", "oci-archive:k.tar"] {
            assert!(matches!(PullSource::parse(image), Ok(PullSource::Image(_))), "{image}");
        }
        for bad in ["", "ftp://x", "https://k.example/vmlinuz", "deb:x", "bundle:x", "r.example/kernel:6"] {
            let error = PullSource::parse(bad).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Usage, "{bad}");
            assert!(error.hint().is_some(), "{bad}");
        }
    }
}
