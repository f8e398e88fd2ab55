//! Credentials that the user gave to docker, podman or skopeo before: their config files and
//! credential helpers (containers-auth.json(5); docker's `config.json`; the helper protocol of
//! github.com/docker/docker-credential-helpers).
//!
//! Own code instead of a crate: a helper is a program that may hang, and is bounded and killed here.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::error::{Error, Result};
use crate::image::reference::RegistryReference;
use crate::image::text::printable;

/// Longest config file or helper's answer taken.
const LONGEST: u64 = 4 << 20;
/// A helper may ask the user's desktop to unlock a keyring; then there is somebody to do it.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// What to show a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    Password {
        username: String,
        password: String,
    },
    /// An OAuth2 refresh token, to be exchanged at the token service.
    IdentityToken(String),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { username, .. } => {
                f.debug_struct("Password").field("username", username).finish_non_exhaustive()
            }
            Self::IdentityToken(_) => f.write_str("IdentityToken(…)"),
        }
    }
}

/// Where credentials are looked for, in order.
#[derive(Clone, Debug, Default)]
pub struct CredentialFiles(pub Vec<PathBuf>);

impl CredentialFiles {
    /// The files that podman, skopeo and docker read, in podman's order.
    pub fn of_user() -> Self {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = variable("HOME");
        let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
        // containers-auth.json(5): the second is for who has no runtime directory, as root mostly.
        let runtime = match variable("XDG_RUNTIME_DIR") {
            Some(folder) => folder.join("containers"),
            None => format!("/run/containers/{}", nix::unistd::geteuid()).into(),
        };
        let files = [
            variable("REGISTRY_AUTH_FILE"),
            Some(runtime.join("auth.json")),
            variable("XDG_CONFIG_HOME")
                .or_else(|| in_home(".config"))
                .map(|folder| folder.join("containers/auth.json")),
            variable("DOCKER_CONFIG").or_else(|| in_home(".docker")).map(|folder| folder.join("config.json")),
        ];
        Self(files.into_iter().flatten().collect())
    }

    /// The credential for a repository; `None` means to be anonymous. A file that is not there is no
    /// error, one that cannot be understood is.
    pub async fn find(&self, reference: &RegistryReference) -> Result<Option<Credential>> {
        for path in &self.0 {
            let Some(file) = read(path).await? else { continue };
            for key in keys(reference) {
                if let Some(credential) = file.look_up(&key, path).await? {
                    return Ok(Some(credential));
                }
            }
            if let Some(helper) = &file.store {
                let server = keys(reference).pop().unwrap_or_default();
                if let Some(credential) = ask_helper(helper, &server).await? {
                    return Ok(Some(credential));
                }
            }
        }
        Ok(None)
    }
}

/// Keys under which a registry's credential may stand, the most special first: repository, its
/// namespaces, host; last the one that is shown to helpers.
fn keys(reference: &RegistryReference) -> Vec<String> {
    let host = &reference.registry;
    let mut path = format!("{host}/{}", reference.repository);
    let mut keys = Vec::new();
    while path.len() > host.len() {
        keys.push(path.clone());
        path.truncate(path.rfind('/').unwrap_or(0));
    }
    if host == "docker.io" {
        keys.extend(["docker.io", "index.docker.io", "https://index.docker.io/v1/"].map(str::to_owned));
    } else {
        keys.extend([format!("https://{host}"), format!("http://{host}"), host.clone()]);
    }
    keys
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AuthFile {
    auths: HashMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

async fn read(path: &Path) -> Result<Option<AuthFile>> {
    let fail = |error| Error::io(format!("cannot read the credentials in `{}`", path.display()), error);
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        // Another user's file, as after `sudo`: podman and docker ignore it too.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            tracing::warn!(path = %path.display(), %error, "credentials cannot be read");
            return Ok(None);
        }
        Err(error) => return Err(fail(error)),
    };
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text).await.map_err(fail)?;
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        Error::failed(format!("the credentials in `{}` are malformed", path.display())).with_source(error)
    })
}

impl AuthFile {
    async fn look_up(&self, key: &str, path: &Path) -> Result<Option<Credential>> {
        if let Some(helper) = self.helpers.get(key) {
            return ask_helper(helper, key).await;
        }
        // Docker writes keys with and without a scheme and a path of the API's version.
        let bare = |text: &str| {
            let text = text.trim_start_matches("https://").trim_start_matches("http://");
            text.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2").to_owned()
        };
        let entry = self.auths.get(key).or_else(|| {
            self.auths.iter().find(|(written, _)| bare(written) == bare(key)).map(|(_, entry)| entry)
        });
        entry.map_or(Ok(None), |entry| entry.credential(key, path))
    }
}

impl Entry {
    fn credential(&self, key: &str, path: &Path) -> Result<Option<Credential>> {
        if let Some(token) = self.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Some(Credential::IdentityToken(token.clone())));
        }
        if let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) {
            let (username, password) = decode(auth).ok_or_else(|| {
                Error::failed(format!(
                    "the credential for `{}` in `{}` is malformed",
                    printable(key, 200),
                    path.display()
                ))
                .with_hint("log in again with `docker login` or `podman login`")
            })?;
            return Ok(Some(Credential::Password { username, password }));
        }
        Ok(self
            .username
            .clone()
            .zip(self.password.clone())
            .map(|(username, password)| Credential::Password { username, password }))
    }
}

/// `auth` is the Base64 of `username:password`, padded or not.
fn decode(auth: &str) -> Option<(String, String)> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let bytes = GeneralPurpose::new(&alphabet::STANDARD, config).decode(auth.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    // Docker once padded the text with zero bytes.
    let (username, password) = text.trim_end_matches('\0').split_once(':')?;
    Some((username.to_owned(), password.to_owned()))
}

/// Asks `docker-credential-<helper>`. One that has nothing, or is not there, means anonymous, as with
/// docker.
async fn ask_helper(helper: &str, server: &str) -> Result<Option<Credential>> {
    if helper.is_empty() || helper.contains('/') {
        return Err(Error::failed(format!("`{}` is no name of a credential helper", printable(helper, 100))));
    }
    let program = format!("docker-credential-{helper}");
    tokio::time::timeout(HELPER_TIMEOUT, run_helper(&program, server)).await.unwrap_or_else(|_| {
        Err(Error::failed(format!(
            "the credential helper `{}` did not answer within {} s",
            printable(&program, 100),
            HELPER_TIMEOUT.as_secs()
        )))
    })
}

/// Runs a helper's `get`; kills it when dropped.
async fn run_helper(program: &str, server: &str) -> Result<Option<Credential>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let fail =
        |error| Error::io(format!("the credential helper `{}` failed", printable(program, 100)), error);
    let spawned = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::warn!(program, "a credential helper is configured and not installed");
            return Ok(None);
        }
        Err(error) => return Err(fail(error)),
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input ends by itself with an error of its own.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(LONGEST).read_to_end(&mut output).await.map_err(fail)?;
    }
    let status = child.wait().await.map_err(fail)?;
    if !status.success() {
        tracing::info!(program, server, "the credential helper has nothing");
        return Ok(None);
    }
    let answer: Answer = serde_json::from_slice(&output).map_err(|error| fail(error.into()))?;
    Ok(match answer.username.as_str() {
        "" if answer.secret.is_empty() => None,
        "<token>" => Some(Credential::IdentityToken(answer.secret)),
        _ => Some(Credential::Password { username: answer.username, password: answer.secret }),
    })
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::image::reference::ImageReference;

    fn reference(text: &str) -> RegistryReference {
        match text.parse().unwrap() {
            ImageReference::Registry(reference) => reference,
            other => panic!("{other}"),
        }
    }

    fn password(username: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password { username: username.into(), password: password.into() })
    }

    async fn find(text: &str, image: &str) -> Result<Option<Credential>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.json");
        std::fs::write(&path, text).unwrap();
        CredentialFiles(vec![folder.path().join("none.json"), path]).find(&reference(image)).await
    }

    #[tokio::test]
    async fn the_most_special_entry_is_taken() {
        let text = r#"{"auths": {
            "q.io": {"auth": "YTpi"}, "q.io/team": {"auth": "Yzpk"}, "https://other.io/v2/": {"auth": "ZTpmOmc="},
            "https://index.docker.io/v1/": {"username": "u", "password": "p"}, "t.io": {"identitytoken": "tok"}}}"#;
        assert_eq!(find(text, "q.io/x").await.unwrap(), password("a", "b"));
        assert_eq!(find(text, "q.io/team/x/y").await.unwrap(), password("c", "d"));
        assert_eq!(find(text, "other.io/x").await.unwrap(), password("e", "f:g"));
        assert_eq!(find(text, "debian").await.unwrap(), password("u", "p"));
        assert_eq!(find(text, "t.io/x").await.unwrap(), Some(Credential::IdentityToken("tok".into())));
        assert_eq!(find(text, "none.io/x").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_malformed_file_or_entry_is_an_error_that_names_it() {
        let error = find("{", "q.io/x").await.unwrap_err();
        assert!(error.to_string().contains("auth.json"), "{error}");
        let error = find(r#"{"auths": {"q.io": {"auth": "***"}}}"#, "q.io/x").await.unwrap_err();
        assert!(error.to_string().contains("q.io`") && error.hint().is_some(), "{error}");
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_the_host_and_its_failure_means_anonymous() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("docker-credential-test");
        let script = r#"#!/bin/sh
            read -r server
            case $1.$server in
            get.q.io) echo '{"ServerURL":"q.io","Username":"u","Secret":"s"}' ;;
            get.t.io) echo '{"Username":"<token>","Secret":"tok"}' ;;
            get.bad.io) echo 'not json' ;;
            *) echo 'credentials not found in native keychain'; exit 1 ;;
            esac"#;
        crate::test_support::write_program(&program, script);
        let program = program.to_str().unwrap();
        assert_eq!(run_helper(program, "q.io").await.unwrap(), password("u", "s"));
        let token = Some(Credential::IdentityToken("tok".into()));
        assert_eq!(run_helper(program, "t.io").await.unwrap(), token);
        assert_eq!(run_helper(program, "other.io").await.unwrap(), None);
        assert!(run_helper(program, "bad.io").await.is_err());
        assert_eq!(ask_helper("vmdeck-test-that-is-not-there", "q.io").await.unwrap(), None);
        let error = ask_helper("../x", "q.io").await.unwrap_err();
        assert!(error.to_string().contains("no name of a credential helper"), "{error}");
    }

    #[test]
    fn a_credential_does_not_show_its_secret() {
        let shown = format!("{:?} {:?}", password("u", "secret"), Credential::IdentityToken("secret".into()));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
