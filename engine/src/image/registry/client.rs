//! One repository of one registry: requests that find their way in, and answers sorted into what may
//! be tried again and what may not.
//!
//! Protocol: OCI distribution-spec 1.1, "Pulling manifests" and "Pulling blobs"; tokens as in the
//! distribution project's `spec/auth/token.md` and `spec/auth/oauth.md`.

use std::error::Error as StdError;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use oci_client::errors::{OciEnvelope, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::token_cache::RegistryToken;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Response, StatusCode, Url};

use super::Patience;
use super::challenge::{self, Challenge};
use super::credentials::{Credential, CredentialFiles};
use super::http::{self, PlainHttp, Tls};
use crate::error::{Error, ErrorKind, Result};
use crate::image::reference::RegistryReference;
use crate::image::source::SourceError;
use crate::image::text::printable;

/// Longest answer of a token service, and longest error text of a registry.
const LONGEST_TOKEN: u64 = 1 << 20;
const LONGEST_ERROR: u64 = 16 << 10;

/// A client for one repository.
#[derive(Debug)]
pub(crate) struct RegistryClient {
    reference: RegistryReference,
    base: Url,
    http: reqwest::Client,
    /// Set once a registry on this host was asked in plain HTTP and turned out to want TLS.
    secure: OnceLock<(reqwest::Client, Url)>,
    credentials: CredentialFiles,
    patience: Patience,
    /// Guards what is sent with each request; held to copy or replace it.
    authorization: Mutex<Authorization>,
    /// Held by the one task that asks for a new token, while others wait for it.
    renewal: tokio::sync::Mutex<()>,
}

/// What was agreed on, and how often: tells a waiter that somebody else has renewed it.
#[derive(Clone, Debug)]
struct Authorization {
    generation: u64,
    auth: RegistryAuth,
}

impl RegistryClient {
    pub(crate) fn new(
        reference: RegistryReference,
        plain_http: bool,
        credentials: CredentialFiles,
        patience: Patience,
    ) -> Result<Self> {
        let loopback = reference.is_loopback();
        let plain = if plain_http || loopback { PlainHttp::Allowed } else { PlainHttp::Refused };
        let scheme = if plain == PlainHttp::Allowed { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{}/v2/{}/", reference.endpoint(), reference.repository))
            .map_err(|error| {
            Error::usage(format!("`{}` is no host", reference.registry)).with_source(error)
        })?;
        let tls = if loopback { Tls::Unlikely } else { Tls::Needed };
        let http = http::client(&reference.registry, loopback, plain, tls, &patience)?;
        Ok(Self {
            reference,
            base,
            http,
            secure: OnceLock::new(),
            credentials,
            patience,
            authorization: Mutex::new(Authorization { generation: 0, auth: RegistryAuth::Anonymous }),
            renewal: tokio::sync::Mutex::default(),
        })
    }

    pub(crate) fn reference(&self) -> &RegistryReference {
        &self.reference
    }

    pub(crate) fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Asks for `path` below the repository; answers 200, 206 and 416 are handed back.
    pub(crate) async fn get(
        &self,
        path: &str,
        accept: Option<&'static str>,
        from: Option<u64>,
    ) -> Result<Response, SourceError> {
        let mut renewed = false;
        loop {
            let (http, base) = self.endpoint();
            let url = base.join(path).map_err(|error| {
                Error::failed(format!("`{}` makes no URL", printable(path, 200))).with_source(error)
            })?;
            let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut request = http.get(url.clone());
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(from) = from {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            request = match &authorization.auth {
                RegistryAuth::Anonymous => request,
                RegistryAuth::Basic(username, password) => request.basic_auth(username, Some(password)),
                RegistryAuth::Bearer(token) => request.bearer_auth(token),
            };
            let response = self.send(request).await?;
            // A redirect may have led elsewhere; that place's 401 is none of our registry's.
            let own = response.url().host_str() == url.host_str();
            if response.status() == StatusCode::UNAUTHORIZED && own && !renewed {
                self.renew(response.headers(), authorization.generation).await?;
                renewed = true;
                continue;
            }
            if response.status() == StatusCode::BAD_REQUEST && url.scheme() == "http" {
                self.step_up(response).await?;
                continue;
            }
            return self.sort(response, path).await;
        }
    }

    /// Client and address for the next request.
    fn endpoint(&self) -> (&reqwest::Client, &Url) {
        self.secure.get().map_or((&self.http, &self.base), |(http, base)| (http, base))
    }

    /// Goes on with TLS when that is what the registry says it wants: registries on this host are
    /// asked in plain HTTP first, and are what the user makes of them.
    async fn step_up(&self, response: Response) -> Result<(), SourceError> {
        let body = self.read(response, LONGEST_ERROR).await.unwrap_or_default();
        let said = String::from_utf8_lossy(&body);
        // Go's net/http and nginx, which all registries are made of.
        let wants_tls = said.contains("HTTPS server") || said.contains("HTTPS port");
        if !wants_tls || !self.reference.is_loopback() {
            let said = printable(said.trim(), 200);
            let error =
                Error::failed(format!("the registry {} answers 400: {said}", self.reference.registry));
            let hint = "it may want TLS: leave out --plain-http";
            return Err(if wants_tls { error.with_hint(hint) } else { error }.into());
        }
        let mut base = self.base.clone();
        if base.set_scheme("https").is_err() {
            return Err(Error::failed("a registry's address takes no TLS").into());
        }
        let http =
            http::client(&self.reference.registry, true, PlainHttp::Refused, Tls::Needed, &self.patience)?;
        // Somebody else's is as good.
        let _ = self.secure.set((http, base));
        Ok(())
    }

    /// Reads an answer to its end, at most `limit` bytes.
    pub(crate) async fn read(&self, mut response: Response, limit: u64) -> Result<Vec<u8>, SourceError> {
        let too_long = || {
            SourceError::Permanent(
                Error::failed(format!(
                    "the registry {} answers with more than the {limit} bytes that are taken",
                    self.reference.registry
                ))
                .with_hint("no sane registry does that: check its address, and whom it belongs to"),
            )
        };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_long());
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            if body.len() as u64 + chunk.len() as u64 > limit {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The next piece of an answer's body.
    pub(crate) async fn chunk(&self, response: &mut Response) -> Result<Option<bytes::Bytes>, SourceError> {
        match tokio::time::timeout(self.patience.stall, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(self.broken(error)),
            Err(_) => Err(self.stalled()),
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, SourceError> {
        match tokio::time::timeout(self.patience.connect + self.patience.stall, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.broken(error)),
            Err(_) => Err(self.stalled()),
        }
    }

    fn stalled(&self) -> SourceError {
        SourceError::transient(Error::failed(format!(
            "the registry {} has sent nothing for {} s",
            self.reference.registry,
            self.patience.stall.as_secs_f32()
        )))
    }

    /// Sorts an error of the HTTP library.
    fn broken(&self, error: reqwest::Error) -> SourceError {
        let registry = &self.reference.registry;
        // URLs may hold signatures of a storage service: not for logs.
        let error = error.without_url();
        if error.is_redirect() {
            return Error::failed(format!("the registry {registry} redirects in a way that is refused"))
                .with_source(error)
                .with_hint("check its address; for one that speaks plain HTTP behind TLS, add --plain-http")
                .into();
        }
        if let Some(tls) = cause::<rustls::Error>(&error) {
            let speaks_http = matches!(tls, rustls::Error::InvalidMessage(_));
            let hint = if speaks_http {
                "if it speaks plain HTTP and you trust the network to it, add --plain-http".to_owned()
            } else {
                format!(
                    "for a certificate authority of your own, put its certificate into \
                     ~/.config/containers/certs.d/{registry}/ca.crt"
                )
            };
            return Error::failed(format!("no secure connection to the registry {registry}"))
                .with_source(error)
                .with_hint(hint)
                .into();
        }
        let message = if error.is_connect() {
            format!("cannot connect to the registry {registry}")
        } else {
            format!("the connection to the registry {registry} broke")
        };
        SourceError::transient(Error::failed(message).with_source(error).with_hint(
            "check the host name, the port and the network; pulling again goes on where it stopped",
        ))
    }

    /// Turns a status that is no success into an error.
    async fn sort(&self, response: Response, path: &str) -> Result<Response, SourceError> {
        let status = response.status();
        if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE)
        {
            return Ok(response);
        }
        let registry = &self.reference.registry;
        let retry_after = retry_after(response.headers());
        let said = self.error_text(response).await;
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        let (repository, login) = (
            &self.reference.repository,
            format!("log in with `podman login {registry}` or `docker login {registry}`, and check the name"),
        );
        let error = match status {
            StatusCode::NOT_FOUND if path.starts_with("manifests/") => Error::not_found(format!(
                "the registry {registry} has no image `{repository}` with the tag or digest `{}`{said}",
                self.reference.manifest_name()
            ))
            .with_hint("check the name and the tag"),
            StatusCode::NOT_FOUND => {
                Error::failed(format!("the registry {registry} lacks a part of the image: {path}{said}"))
            }
            StatusCode::UNAUTHORIZED => {
                let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let hint = match authorization.auth {
                    RegistryAuth::Basic(user, _) => format!(
                        "the password on record for `{}` is not taken, or does not allow this: {login}",
                        printable(&user, 80)
                    ),
                    _ => login,
                };
                Error::failed(format!("the registry {registry} refuses access to `{repository}`{said}"))
                    .with_hint(hint)
            }
            StatusCode::FORBIDDEN => {
                Error::failed(format!("the registry {registry} forbids access to `{repository}`{said}"))
                    .with_hint(login)
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let error = Error::failed(format!("the registry {registry} is asked too often{said}"))
                    .with_hint("log in for a higher limit, or wait and pull again");
                return Err(SourceError::Transient { error, retry_after });
            }
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                let error =
                    Error::failed(format!("the registry {registry} answers {}{said}", status.as_u16()));
                return Err(SourceError::Transient { error, retry_after });
            }
            status => Error::failed(format!("the registry {registry} answers {}{said}", status.as_u16())),
        };
        Err(error.into())
    }

    /// What the registry has to say about an error (distribution-spec, "Error codes").
    async fn error_text(&self, response: Response) -> String {
        let Ok(body) = self.read(response, LONGEST_ERROR).await else { return String::new() };
        let Ok(envelope) = serde_json::from_slice::<OciEnvelope>(&body) else { return String::new() };
        let items = envelope.errors.iter().take(3).map(|item| match item.message.as_str() {
            "" => printable(&code(&item.code), 80),
            message => printable(message, 200),
        });
        items.collect::<Vec<_>>().join("; ")
    }

    /// Agrees on an authorization as a 401 answer asks for it, unless somebody has since
    /// `generation`.
    async fn renew(&self, headers: &HeaderMap, generation: u64) -> Result<(), SourceError> {
        let _renewal = self.renewal.lock().await;
        {
            let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
            if authorization.generation != generation {
                return Ok(());
            }
        }
        let challenges: Vec<Challenge> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        let credential = self.credentials.find(&self.reference).await?;
        let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let auth = match (bearer.or(challenges.first()), credential) {
            (Some(Challenge::Bearer { realm, service, scope }), credential) => {
                let token = self.token(realm, service.as_deref(), scope.as_deref(), credential).await?;
                if HeaderValue::try_from(&token).is_err() {
                    return Err(Error::failed(format!(
                        "the token service of {} gave a token with characters that no header can hold",
                        self.reference.registry
                    ))
                    .into());
                }
                RegistryAuth::Bearer(token)
            }
            (Some(Challenge::Basic), Some(Credential::Password { username, password })) => {
                RegistryAuth::Basic(username, password)
            }
            // The same request without anything new brings the 401 that the user gets to see.
            _ => RegistryAuth::Anonymous,
        };
        let mut authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        *authorization = Authorization { generation: generation + 1, auth };
        Ok(())
    }

    /// Gets a token from the service the registry names.
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        credential: Option<Credential>,
    ) -> Result<String, SourceError> {
        let registry = &self.reference.registry;
        let url = Url::parse(realm).map_err(|error| {
            Error::failed(format!("the registry {registry} names a malformed token service"))
                .with_source(error)
        })?;
        let (http, base) = self.endpoint();
        if url.scheme() != "https" && base.scheme() == "https" {
            return Err(Error::failed(format!(
                "the registry {registry} names a token service without TLS: {}",
                printable(realm, 200)
            ))
            .into());
        }
        let default_scope = format!("repository:{}:pull", self.reference.repository);
        let scope = scope.unwrap_or(&default_scope);
        let mut parameters = vec![("scope", scope)];
        parameters.extend(service.map(|service| ("service", service)));
        let with_query = |mut url: Url, parameters: &[(&str, &str)]| {
            url.query_pairs_mut().extend_pairs(parameters);
            url
        };
        let request = match &credential {
            Some(Credential::IdentityToken(token)) => {
                parameters.extend([
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token.as_str()),
                    ("client_id", "vmdeck"),
                ]);
                // A form is what follows the `?` of a URL made of the same pairs.
                let form = with_query(Url::parse("form:").map_err(bug)?, &parameters);
                http.post(url)
                    .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form.query().unwrap_or_default().to_owned())
            }
            Some(Credential::Password { username, password }) => {
                let account = [("account", username.as_str())];
                parameters.extend(account);
                http.get(with_query(url, &parameters)).basic_auth(username, Some(password))
            }
            None => http.get(with_query(url, &parameters)),
        };
        let response = self.send(request).await?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            let retry_after = retry_after(response.headers());
            let error = Error::failed(format!("the token service of {registry} answers {}", status.as_u16()));
            return Err(SourceError::Transient { error, retry_after });
        }
        if !status.is_success() {
            let what =
                if credential.is_some() { "does not take the credentials" } else { "wants credentials" };
            return Err(Error::failed(format!(
                "the token service of {registry} {what} for `{}` (status {})",
                self.reference.repository,
                status.as_u16()
            ))
            .with_hint(format!("log in with `podman login {registry}` or `docker login {registry}`"))
            .into());
        }
        let body = self.read(response, LONGEST_TOKEN).await?;
        let answer: Option<RegistryToken> = serde_json::from_slice(&body).ok();
        answer
            .map(|answer| answer.token().to_owned())
            .filter(|token| !token.is_empty())
            .ok_or_else(|| Error::failed(format!("the token service of {registry} gave no token")).into())
    }
}

fn bug(error: impl StdError + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Failed, "a request could not be made").with_source(error)
}

/// An error code as the registry wrote it.
fn code(code: &OciErrorCode) -> String {
    match serde_json::to_value(code) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

/// The first cause of this type.
fn cause<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        // An I/O error keeps what it wraps to itself unless asked.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = inner.map(|inner| inner as &'a (dyn StdError + 'static)).or_else(|| error.source());
    }
    None
}

/// `Retry-After`: seconds or a date (RFC 9110, section 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let check = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            retry_after(&headers)
        };
        assert_eq!(check(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(check("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        assert!(check(&soon).unwrap() > Duration::from_secs(50));
        assert_eq!(check("soon"), None);
        assert_eq!(check("-1"), None);
    }

    #[test]
    fn plain_http_is_for_loopback_or_on_request() {
        let base = |text: &str, plain_http| {
            let Ok(crate::image::reference::ImageReference::Registry(reference)) = text.parse() else {
                panic!("{text}")
            };
            let client =
                RegistryClient::new(reference, plain_http, CredentialFiles::default(), Patience::default());
            client.unwrap().base.to_string()
        };
        assert_eq!(base("127.0.0.1:5000/a", false), "http://127.0.0.1:5000/v2/a/");
        assert_eq!(base("10.0.0.1:5000/a/b", false), "https://10.0.0.1:5000/v2/a/b/");
        assert_eq!(base("10.0.0.1:5000/a", true), "http://10.0.0.1:5000/v2/a/");
        assert_eq!(base("debian", false), "https://registry-1.docker.io/v2/library/debian/");
    }
}
