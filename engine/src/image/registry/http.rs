//! The HTTP client: certificates, proxies, redirects.

use std::path::{Path, PathBuf};
use std::sync::Once;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client};

use super::Patience;
use crate::error::{Error, Result};

/// Redirects followed; registries use one or two.
const MOST_REDIRECTS: usize = 10;
/// Longest certificate file taken.
const LONGEST_CERTIFICATES: u64 = 4 << 20;

/// Chooses the implementation of TLS's cryptography for the whole process, once.
pub(crate) fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that somebody has chosen before; theirs is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// Whether a URL may be plain HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlainHttp {
    Refused,
    Allowed,
}

/// Whether a client will be asked to speak TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    /// Reading the system's certificates takes milliseconds: left out.
    Unlikely,
    Needed,
}

/// A client for one host. `loopback`: it is this very machine, which no proxy reaches.
///
/// Trusts the system's certificates (`SSL_CERT_FILE`, `SSL_CERT_DIR`) and those that docker and
/// podman keep for this host (containers-certs.d(5)). Obeys `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`
/// and `NO_PROXY`.
pub(crate) fn client(
    host: &str,
    loopback: bool,
    plain: PlainHttp,
    tls: Tls,
    patience: &Patience,
) -> Result<Client> {
    install_crypto();
    let certificates = certificates(host)?;
    let mut builder = Client::builder()
        .user_agent(concat!("vmdeck/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(patience.connect)
        .redirect(redirects(plain));
    if loopback {
        builder = builder.no_proxy();
    }
    if tls == Tls::Unlikely && certificates.is_empty() {
        builder = builder.tls_certs_only([]);
    } else {
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| {
        Error::host_cannot("cannot prepare TLS").with_source(error).with_hint(
            "install the package `ca-certificates`, or let SSL_CERT_FILE name a file of certificates",
        )
    })
}

/// The HTTP library drops `Authorization` when host, port or scheme change; here only the length of
/// the chain and a step down to plain HTTP are judged.
fn redirects(plain: PlainHttp) -> Policy {
    Policy::custom(move |attempt| {
        if attempt.previous().len() > MOST_REDIRECTS {
            return attempt.error(format!("more than {MOST_REDIRECTS} redirects"));
        }
        if attempt.url().scheme() != "https" && plain == PlainHttp::Refused {
            return attempt.error("a redirect to a URL that is not https");
        }
        attempt.follow()
    })
}

fn certificates(host: &str) -> Result<Vec<Certificate>> {
    let mut folders: Vec<PathBuf> =
        ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from).into();
    if let Some(home) = std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        folders.insert(0, Path::new(&home).join(".config/containers/certs.d"));
    }
    certificates_in(&folders, host)
}

fn certificates_in(folders: &[PathBuf], host: &str) -> Result<Vec<Certificate>> {
    let mut certificates = Vec::new();
    for folder in folders {
        let Ok(entries) = std::fs::read_dir(folder.join(host)) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != "crt") {
                continue;
            }
            let fail = |error: Box<dyn std::error::Error + Send + Sync>| {
                Error::failed(format!("cannot read the certificate `{}`", path.display())).with_source(error)
            };
            let length = std::fs::metadata(&path).map_err(|error| fail(error.into()))?.len();
            if length > LONGEST_CERTIFICATES {
                return Err(fail("it is too long".into()));
            }
            let bytes = std::fs::read(&path).map_err(|error| fail(error.into()))?;
            certificates.extend(Certificate::from_pem_bundle(&bytes).map_err(|error| fail(error.into()))?);
        }
    }
    Ok(certificates)
}
