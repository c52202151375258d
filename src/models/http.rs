//! The HTTP client for model providers, and the time and the bytes that an answer may take.
//!
//! Provider addresses are the operator's, so they pass no address gate. HTTP/1.1 only: each call has
//! a socket of its own, so that a run whose output waits to be stored cannot slow its neighbours
//! down, and dropping a call closes its socket.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Response, Url};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::fault::{self, Fault, Told};
use super::{ModelsError, ProviderSettings, Timeouts};
use crate::domain::retry::FailureKind;

/// Bytes that the body of an answer may have: the longest answers of today, at 300 bytes a token,
/// have a half of it.
const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;
/// Bytes that are read of a body that explains an error.
const MAX_ERROR_BYTES: usize = 64 * 1024;
/// Bytes of an answer that comes as one JSON text instead of a stream.
const MAX_WHOLE_BYTES: usize = 8 * 1024 * 1024;
/// How long a server may take to end a stream after its end marker, so that its socket can be used
/// again; and how long one may take to explain an error.
const END_GRACE: Duration = Duration::from_millis(50);
const ERROR_GRACE: Duration = Duration::from_secs(5);
/// Idle sockets to a host: as many as runs have answers open at once by default.
const MAX_IDLE_SOCKETS: usize = 1000;
/// How long a socket stays warm; most load balancers close theirs after a minute or more.
const IDLE_SOCKET: Duration = Duration::from_secs(55);

/// The clients: one for each connect time-out, which is all that providers can differ in.
#[derive(Debug, Default)]
pub(super) struct Clients {
    by_connect: BTreeMap<(Duration, bool), Client>,
}

impl Clients {
    /// The client for a provider.
    ///
    /// # Errors
    /// No TLS root certificate is found on this machine.
    fn client(&mut self, timeouts: Timeouts, url: &Url) -> Result<Client, reqwest::Error> {
        let is_tls = url.scheme() == "https";
        if let Some(client) = self.by_connect.get(&(timeouts.connect, is_tls)) {
            return Ok(client.clone());
        }
        let mut builder = Client::builder()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(15))
            .connect_timeout(timeouts.connect)
            .pool_max_idle_per_host(MAX_IDLE_SOCKETS)
            .pool_idle_timeout(IDLE_SOCKET)
            .user_agent(concat!("stepwell/", env!("CARGO_PKG_VERSION")));
        if !is_tls {
            // Without redirects this client never speaks TLS, so it needs no certificates: reading
            // them takes milliseconds, and a bare container has none.
            builder = builder.tls_certs_only([]);
        }
        // Another part of the process may have installed it before: then there is nothing to do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = builder.build()?;
        self.by_connect.insert((timeouts.connect, is_tls), client.clone());
        Ok(client)
    }
}

/// Where a provider takes requests.
#[derive(Debug)]
pub(super) struct Endpoint {
    client: Client,
    url: Url,
    headers: HeaderMap,
    timeouts: Timeouts,
}

impl Endpoint {
    /// The endpoint at `path` under a provider's base URL, whose query is kept.
    ///
    /// # Errors
    /// The base URL or the client is of no use.
    pub fn new(
        clients: &mut Clients,
        settings: &ProviderSettings,
        path: &str,
        headers: HeaderMap,
    ) -> Result<Self, ModelsError> {
        let provider = || settings.name.clone();
        let mut url = Url::parse(&settings.base_url).map_err(|source| ModelsError::BaseUrl {
            provider: provider(),
            why: source.to_string(),
        })?;
        if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
            let why = "must begin with http:// or https://".to_owned();
            return Err(ModelsError::BaseUrl { provider: provider(), why });
        }
        url.set_path(&format!("{}{path}", url.path().trim_end_matches('/')));
        url.set_fragment(None);
        let client = clients
            .client(settings.timeouts, &url)
            .map_err(|source| ModelsError::Client { provider: provider(), source })?;
        Ok(Self { client, url, headers, timeouts: settings.timeouts })
    }

    /// The host, as the operator wrote it.
    pub fn host(&self) -> Option<&str> {
        self.url.host_str()
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// No connection, no answer in time, or a status that is no success.
    pub async fn post(&self, body: &Value) -> Result<Incoming, Fault> {
        let bytes = serde_json::to_vec(body)
            .map_err(|_| Fault::broken("could not be sent the request: it is no JSON"))?;
        let first_token = Instant::now() + self.timeouts.first_token;
        let send = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(bytes)
            .send();
        let response = timeout_at(first_token, send)
            .await
            .map_err(|_| silent())?
            .map_err(|error| not_sent(&error))?;
        let incoming = Incoming {
            timer: Box::pin(sleep_until(first_token)),
            deadline: first_token,
            idle: self.timeouts.idle,
            speaks: false,
            left: MAX_BODY_BYTES,
            response,
        };
        if incoming.response.status().is_success() {
            Ok(incoming)
        } else {
            Err(incoming.refusal().await)
        }
    }
}

/// A header value with a key in it, which never shows in a log.
///
/// # Errors
/// The key holds characters that a header cannot carry.
pub(super) fn secret_header(
    prefix: &str,
    key: &SecretString,
    provider: &str,
) -> Result<HeaderValue, ModelsError> {
    let text = format!("{prefix}{}", key.expose_secret().trim());
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| ModelsError::ApiKey { provider: provider.to_owned() })?;
    value.set_sensitive(true);
    Ok(value)
}

fn silent() -> Fault {
    Fault::new(FailureKind::Timeout, "did not begin to answer in time")
}

fn not_sent(error: &reqwest::Error) -> Fault {
    if error.is_timeout() {
        Fault::new(FailureKind::Timeout, "did not take a connection in time")
    } else if error.is_connect() {
        Fault::new(FailureKind::Connect, "could not be reached")
    } else {
        Fault::broken("closed the connection instead of answering")
    }
}

/// The body of an answer, while it comes.
#[derive(Debug)]
pub(super) struct Incoming {
    response: Response,
    /// Fires at `deadline` or earlier: moving a deadline away costs nothing until then.
    timer: Pin<Box<Sleep>>,
    deadline: Instant,
    idle: Duration,
    /// Whether the first token has come, from when on only silence is limited.
    speaks: bool,
    left: usize,
}

impl Incoming {
    /// Whether it is one JSON text instead of a stream.
    pub fn is_json(&self) -> bool {
        let kind = self.response.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|value| value.to_str().ok()).unwrap_or_default();
        kind.trim_start().to_ascii_lowercase().starts_with("application/json")
    }

    /// The next bytes; `None` at a clean end. May be dropped without a loss.
    ///
    /// # Errors
    /// Nothing came in time, the connection broke, or there are too many bytes.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        let bytes = match self.read().await {
            None if self.speaks => {
                let said = "fell silent in the middle of its answer";
                return Err(Fault::new(FailureKind::Timeout, said));
            }
            None => return Err(silent()),
            Some(Err(_)) => {
                return Err(Fault::broken("broke the connection in the middle of its answer"));
            }
            Some(Ok(None)) => return Ok(None),
            Some(Ok(Some(bytes))) => bytes,
        };
        self.left = self
            .left
            .checked_sub(bytes.len())
            .ok_or_else(|| Fault::broken("sent an answer that is too long"))?;
        self.touch();
        Ok(Some(bytes))
    }

    /// The next bytes, or `None` when the deadline has passed.
    async fn read(&mut self) -> Option<reqwest::Result<Option<Bytes>>> {
        let Self { response, timer, deadline, .. } = self;
        let mut read = pin!(response.chunk());
        poll_fn(|context| {
            if let Poll::Ready(read) = read.as_mut().poll(context) {
                return Poll::Ready(Some(read));
            }
            while timer.as_mut().poll(context).is_ready() {
                if timer.deadline() >= *deadline {
                    return Poll::Ready(None);
                }
                timer.as_mut().reset(*deadline);
            }
            Poll::Pending
        })
        .await
    }

    /// The first token has come: from now on only silence is limited.
    pub fn begin(&mut self) {
        if !self.speaks {
            self.speaks = true;
            self.touch();
        }
    }

    /// Counts the silence from now on.
    fn touch(&mut self) {
        if self.speaks {
            self.due(Instant::now() + self.idle);
        }
    }

    /// We did not listen for so long: that is not the server's time.
    pub fn forgive(&mut self, time: Duration) {
        self.due(self.deadline + time);
    }

    /// Whatever comes, there is no more waiting than this, nor than the idle time-out.
    pub fn end_within(&mut self, time: Duration) {
        self.speaks = false;
        self.due(Instant::now() + time.min(self.idle));
    }

    fn due(&mut self, deadline: Instant) {
        self.deadline = deadline;
        if deadline < self.timer.deadline() {
            self.timer.as_mut().reset(deadline);
        }
    }

    /// Reads the rest of a stream whose end marker has come: a socket whose answer was read to its
    /// end stays warm for the next call. A server that does not end in time loses its socket.
    pub async fn drain(mut self) {
        self.end_within(END_GRACE);
        self.left = self.left.min(MAX_ERROR_BYTES);
        while let Ok(Some(_)) = self.chunk().await {}
    }

    /// The whole body, if it is not a stream.
    ///
    /// # Errors
    /// As for [`Incoming::chunk`].
    pub async fn whole(mut self) -> Result<Vec<u8>, Fault> {
        self.left = MAX_WHOLE_BYTES;
        let mut body = Vec::new();
        while let Some(bytes) = self.chunk().await? {
            self.begin();
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }

    /// What an answer says that is no success.
    async fn refusal(mut self) -> Fault {
        let status = self.response.status().as_u16();
        let retry_after = fault::retry_after(self.response.headers());
        self.end_within(ERROR_GRACE);
        let mut body = Vec::new();
        while body.len() < MAX_ERROR_BYTES
            && let Ok(Some(bytes)) = self.chunk().await
        {
            body.extend_from_slice(&bytes);
        }
        body.truncate(MAX_ERROR_BYTES);
        Fault::of_status(status, retry_after, &Told::read(&body))
    }
}
