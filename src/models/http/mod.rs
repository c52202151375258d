//! The HTTP client for model providers.
//!
//! It does what a model call needs and nothing else: one POST over HTTP/1.1 on a socket of its own, so
//! that a run whose output waits to be stored cannot slow its neighbours down, and dropping a call
//! closes its socket. A call that waits costs that socket and a few hundred bytes: there are as many
//! of them as runs, and models are slow. Provider addresses are the operator's, so they pass no
//! address gate; there are no redirects and no proxies.
//!
//! Reading order: this file has the [`Endpoint`]; `head` writes and reads heads, `body` knows where a
//! body ends; `dial` connects, `pool` keeps sockets; `exchange` is one request and its answer on a
//! socket, `incoming` the body with its limits of time and bytes.
//!
//! What it must never do: send a request twice, take a body for whole that is not, hold a buffer while
//! nothing comes, use a socket again of which it does not know that it is quiet, or keep what was sent.

mod body;
mod dial;
mod exchange;
mod head;
mod incoming;
mod pool;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::ClientConfig;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use url::Url;

use self::body::Malformed;
use self::dial::{Address, Socket};
use self::exchange::{Exchange, Lost, Patience};
pub(super) use self::head::Header;
use self::head::{Head, HeadReader, RequestHead};
pub(super) use self::incoming::Incoming;
use self::pool::Pool;
use super::fault::Fault;
use super::{ModelsError, ProviderSettings, Timeouts};
use crate::domain::retry::FailureKind;

/// The sockets to all providers: two of them at one address share theirs.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    /// By scheme, host and port.
    pools: BTreeMap<String, Arc<Pool>>,
    /// Made when the first provider needs it: reading root certificates takes milliseconds, and a
    /// bare container has none.
    tls: Option<Arc<ClientConfig>>,
}

impl Sockets {
    fn pool(&mut self, url: &Url, provider: &str) -> Result<Arc<Pool>, ModelsError> {
        let origin = url.origin().ascii_serialization();
        if let Some(pool) = self.pools.get(&origin) {
            return Ok(pool.clone());
        }
        let tls = match (&self.tls, url.scheme()) {
            (_, "http") => None,
            (Some(tls), _) => Some(tls.clone()),
            (None, _) => {
                let tls = dial::tls()
                    .map_err(|source| ModelsError::Tls { provider: provider.to_owned(), source })?;
                self.tls = Some(tls.clone());
                Some(tls)
            }
        };
        let address = Address::new(url, tls).ok_or_else(|| ModelsError::BaseUrl {
            provider: provider.to_owned(),
            why: "has a host that cannot be connected to".to_owned(),
        })?;
        let pool = Arc::new(Pool::new(address));
        self.pools.insert(origin, pool.clone());
        Ok(pool)
    }

    /// Closes sockets that no call has used for a while.
    pub fn close_idle(&self) {
        let now = Instant::now();
        for pool in self.pools.values() {
            pool.close_idle(now);
        }
    }
}

/// Where a provider takes requests.
#[derive(Debug)]
pub(super) struct Endpoint {
    pool: Arc<Pool>,
    head: RequestHead,
    host: String,
    timeouts: Timeouts,
}

impl Endpoint {
    /// The endpoint at `path` under a provider's base URL, whose query is kept.
    ///
    /// # Errors
    /// The base URL is of no use, or TLS is needed and cannot be spoken.
    pub fn new(
        sockets: &mut Sockets,
        settings: &ProviderSettings,
        path: &str,
        headers: &[Header],
    ) -> Result<Self, ModelsError> {
        let wrong = |why: String| ModelsError::BaseUrl { provider: settings.name.clone(), why };
        let mut url = Url::parse(&settings.base_url).map_err(|source| wrong(source.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
            return Err(wrong("must begin with http:// or https://".to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("must not hold a user or a password".to_owned()));
        }
        url.set_path(&format!("{}{path}", url.path().trim_end_matches('/')));
        Ok(Self {
            pool: sockets.pool(&url, &settings.name)?,
            head: RequestHead::new(&url, headers),
            host: url.host_str().unwrap_or_default().to_owned(),
            timeouts: settings.timeouts,
        })
    }

    /// The host, as the operator wrote it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// No connection, no answer in time, or a status that is no success.
    pub async fn post(&self, body: Value) -> Result<Incoming, Fault> {
        let bytes = serde_json::to_vec(&body)
            .map_err(|_| Fault::broken("could not be sent the request: it is no JSON"))?;
        drop(body);
        let now = Instant::now();
        let mut patience = Patience::until(now + self.timeouts.first_token);
        let socket = match self.pool.take(now) {
            Some(socket) => socket,
            // It is large, and done before the long wait.
            None => Box::pin(self.connect(patience.end())).await?,
        };
        let head = self.head.with_length(bytes.len());
        let mut exchange = Exchange::new(socket, self.pool.clone(), head, bytes);
        let answer = answer(&mut exchange, &mut patience).await?;
        let incoming = Incoming::new(exchange, answer, patience, self.timeouts.idle);
        if incoming.is_success() { Ok(incoming) } else { Err(Box::pin(incoming.refusal()).await) }
    }

    async fn connect(&self, first_token: Instant) -> Result<Socket, Fault> {
        let connect = Instant::now() + self.timeouts.connect;
        match timeout_at(connect.min(first_token), self.pool.address.dial()).await {
            Ok(Ok(socket)) => Ok(socket),
            Ok(Err(_)) => Err(Fault::new(FailureKind::Connect, "could not be reached")),
            Err(_) if connect < first_token => {
                Err(Fault::new(FailureKind::Timeout, "did not take a connection in time"))
            }
            Err(_) => Err(silent()),
        }
    }
}

/// The head of an answer, and what came behind it.
async fn answer(
    exchange: &mut Exchange,
    patience: &mut Patience,
) -> Result<(Head, Vec<u8>), Fault> {
    let mut reader = HeadReader::default();
    loop {
        let read = |bytes: &[u8]| match bytes {
            [] => Err(Fault::broken("closed the connection instead of answering")),
            [_, ..] => reader.take(bytes).map_err(|Malformed| {
                Fault::broken("answered with something that is no HTTP answer")
            }),
        };
        match exchange.receive(patience, read).await {
            Ok(Ok(Some(answer))) => return Ok(answer),
            Ok(Ok(None)) => {}
            Ok(Err(fault)) => return Err(fault),
            Err(Lost::Late) => return Err(silent()),
            Err(Lost::Broken) => {
                return Err(Fault::broken("closed the connection instead of answering"));
            }
        }
    }
}

fn silent() -> Fault {
    Fault::new(FailureKind::Timeout, "did not begin to answer in time")
}
