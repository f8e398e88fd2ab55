//! A real registry (CNCF distribution) on a loopback port of its own.

use std::path::Path;
use std::process::Command;

use super::test_support::DockerRegistry;

pub(crate) struct Registry {
    server: DockerRegistry,
    /// `user:password` that it asks for.
    login: Option<String>,
    /// Of its passwords.
    _folder: tempfile::TempDir,
}

impl Registry {
    /// Starts one; `None`, and a line that says so, where the host has none.
    pub(crate) fn start() -> Option<Self> {
        Self::launch(None, None)
    }

    /// Starts one that speaks TLS.
    pub(crate) fn start_with_tls(tls: &Tls) -> Option<Self> {
        Self::launch(None, Some(tls))
    }

    /// Starts one that lets in nobody else than this user.
    pub(crate) fn start_with_password(user: &str, password: &str) -> Option<Self> {
        if !super::have("htpasswd") {
            return None;
        }
        Self::launch(Some((user, password)), None)
    }

    fn launch(login: Option<(&str, &str)>, tls: Option<&Tls>) -> Option<Self> {
        if !super::have("skopeo") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let auth = login.map_or_else(String::new, |(user, password)| {
            let file = folder.path().join("htpasswd");
            let line = super::run(Command::new("htpasswd").args(["-Bbn", user, password]));
            std::fs::write(&file, line).unwrap();
            format!("auth:\n  htpasswd:\n    realm: vmdeck\n    path: {}\n", file.display())
        });
        let tls = tls.map_or_else(String::new, |tls| {
            format!("  tls:\n    certificate: {}\n    key: {}\n", tls.file(CERTIFICATE), tls.file(KEY))
        });
        let server = DockerRegistry::start(&format!("{tls}{auth}"))?;
        let login = login.map(|(user, password)| format!("{user}:{password}"));
        Some(Self { server, login, _folder: folder })
    }

    pub(crate) fn port(&self) -> u16 {
        self.server.port()
    }

    /// `127.0.0.1:PORT/NAME`
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port())
    }

    /// Pushes an image layout under a name.
    pub(crate) fn push(&self, layout: &Path, name: &str) {
        super::run(
            Command::new("skopeo")
                .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
                .args(self.login.iter().flat_map(|login| ["--dest-creds", login]))
                .arg(format!("oci:{}:latest", layout.display()))
                .arg(format!("docker://{}", self.reference(name))),
        );
    }
}

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "key.pem";

/// A certificate that signs itself.
pub(crate) struct Tls {
    folder: tempfile::TempDir,
}

impl Tls {
    pub(crate) fn for_host(name: &str) -> Option<Self> {
        if !super::have("openssl") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        super::run(
            Command::new("openssl")
                .current_dir(folder.path())
                .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
                .args(["-days", "2", "-subj", &format!("/CN={name}")])
                .args(["-addext", &format!("subjectAltName=DNS:{name}")])
                .args(["-addext", "basicConstraints=critical,CA:FALSE"])
                .args(["-keyout", KEY, "-out", CERTIFICATE]),
        );
        Some(Self { folder })
    }

    /// As PEM.
    pub(crate) fn certificate(&self) -> String {
        std::fs::read_to_string(self.folder.path().join(CERTIFICATE)).unwrap()
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}
