//! One file over HTTP, streamed, gone on with where it broke.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE};
use reqwest::{Response, StatusCode, Url};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Patience;
use super::http::{self, PlainHttp, Tls};
use crate::error::{Error, Result};
use crate::image::source::SourceError;
use crate::image::source::registry::content_range;
use crate::image::text::printable;
use crate::operation::progress::{ProgressPart, ProgressState};

/// New bytes after which failures are counted anew.
const PROGRESS: u64 = 64 << 10;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Download<'a> {
    pub(crate) url: &'a str,
    /// Bytes of it that are here already; whether they are the right ones is for its digest to tell.
    pub(crate) known: u64,
    /// Allow plain HTTP also when the host is not this one.
    pub(crate) plain_http: bool,
    pub(crate) patience: &'a Patience,
    pub(crate) part: &'a Arc<ProgressPart>,
    pub(crate) cancel: &'a CancellationToken,
}

/// Sends the file's bytes behind those that are known, in order. Ends early and well when nobody takes them any more.
pub(crate) async fn stream(download: Download<'_>, sender: mpsc::Sender<Bytes>) -> Result<()> {
    let url = Url::parse(download.url)
        .map_err(|error| Error::usage(format!("`{}` is no URL", download.shown())).with_source(error))?;
    let host = url.host_str().unwrap_or_default();
    let loopback = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    let plain = if loopback || download.plain_http { PlainHttp::Allowed } else { PlainHttp::Refused };
    if url.scheme() == "http" && plain == PlainHttp::Refused {
        return Err(Error::usage(format!("`{}` is plain HTTP", download.shown()))
            .with_hint("use https, or add --plain-http when you trust the network to it"));
    }
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let tls = if url.scheme() == "http" && loopback { Tls::Unlikely } else { Tls::Needed };
    let client = http::client(&authority, loopback, plain, tls, download.patience)?;
    download.part.set_state(ProgressState::Active);

    let (mut position, mut failures, mut counted_at) = (download.known, 0, download.known);
    let mut validator: Option<HeaderValue> = None;
    loop {
        let mut request = client.get(url.clone());
        if position > 0 {
            request = request.header(RANGE, format!("bytes={position}-"));
            // Otherwise the rest of another file might be appended (RFC 9110, section 13.1.5).
            if let Some(validator) = &validator {
                request = request.header(IF_RANGE, validator.clone());
            }
        }
        let answered = download.until_cancelled(download.open(request, position > 0)).await?;
        let failed = match answered {
            // All of it was known.
            Ok(response) if response.status() == StatusCode::RANGE_NOT_SATISFIABLE => return Ok(()),
            Ok(response) => {
                if position == download.known {
                    validator =
                        response.headers().get(ETAG).or(response.headers().get(LAST_MODIFIED)).cloned();
                    let is_rest = response.status() == StatusCode::PARTIAL_CONTENT;
                    let before = if is_rest { position } else { 0 };
                    download.part.set_total(response.content_length().map_or(0, |length| before + length));
                }
                match download.read(response, &mut position, &sender).await? {
                    None => return Ok(()),
                    Some(failed) => failed,
                }
            }
            Err(failed) => failed,
        };
        let (error, retry_after) = match failed {
            SourceError::Permanent(error) => return Err(error),
            SourceError::Transient { error, retry_after } => (error, retry_after),
        };
        if position >= counted_at.saturating_add(PROGRESS) {
            (failures, counted_at) = (0, position);
        }
        failures += 1;
        let Some(pause) = download.patience.pause(failures, retry_after) else { return Err(error) };
        tracing::info!(
            url = download.shown(),
            position,
            ?pause,
            error = error.full_message(),
            "trying again"
        );
        download.part.add_retry();
        download.until_cancelled(tokio::time::sleep(pause)).await?;
    }
}

impl Download<'_> {
    /// Without the query, which may hold a signature.
    fn shown(&self) -> String {
        printable(self.url.split('?').next().unwrap_or_default(), 200)
    }

    async fn open(
        self,
        request: reqwest::RequestBuilder,
        from_within: bool,
    ) -> Result<Response, SourceError> {
        let wait = self.patience.connect + self.patience.stall;
        let response = match tokio::time::timeout(wait, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                let refused = error.is_redirect() || error.is_builder();
                let error = Error::failed(format!("cannot download `{}`", self.shown()))
                    .with_source(error.without_url())
                    .with_hint("check the URL, and whether its host can be reached from here");
                return Err(if refused { error.into() } else { SourceError::transient(error) });
            }
            Err(_) => return Err(self.stalled()),
        };
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::RANGE_NOT_SATISFIABLE if from_within => Ok(response),
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                Err(Error::not_found(format!("there is nothing at `{}`", self.shown()))
                    .with_hint("check the URL")
                    .into())
            }
            status => {
                let retry_after = super::client::retry_after(response.headers());
                let error = Error::failed(format!("`{}` answers {}", self.shown(), status.as_u16()));
                let passing = status.is_server_error()
                    || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
                Err(if passing { SourceError::Transient { error, retry_after } } else { error.into() })
            }
        }
    }

    /// Reads one answer. `None`: the file is complete, or nobody takes it.
    async fn read(
        self,
        mut response: Response,
        position: &mut u64,
        sender: &mpsc::Sender<Bytes>,
    ) -> Result<Option<SourceError>> {
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                content_range(range.unwrap_or_default()).map_or(u64::MAX, |(start, _)| start)
            }
            _ => 0,
        };
        if start > *position {
            return Err(Error::failed(format!(
                "`{}` answers with another range than asked for",
                self.shown()
            )));
        }
        // From the start once more: what is known already is dropped. Whether it is still the same is
        // for the digest to tell.
        let mut skip = *position - start;
        loop {
            let next = tokio::time::timeout(self.patience.stall, response.chunk());
            let mut piece = match self.until_cancelled(next).await? {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(error)) => {
                    let error = Error::failed(format!("the download of `{}` broke", self.shown()))
                        .with_source(error.without_url());
                    return Ok(Some(SourceError::transient(error)));
                }
                Err(_) => return Ok(Some(self.stalled())),
            };
            let known = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            piece = piece.split_off(known);
            skip -= known as u64;
            if piece.is_empty() {
                continue;
            }
            let length = piece.len() as u64;
            if self.until_cancelled(sender.send(piece)).await?.is_err() {
                return Ok(None);
            }
            *position += length;
        }
    }

    fn stalled(self) -> SourceError {
        SourceError::transient(Error::failed(format!(
            "`{}` has sent nothing for {} s",
            self.shown(),
            self.patience.stall.as_secs_f32()
        )))
    }

    async fn until_cancelled<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        self.cancel.run_until_cancelled(future).await.ok_or_else(Error::cancelled)
    }
}
