//! The one HTTP client for hosts that a user or a model can name, and the gate that it goes through.
//!
//! [`Gate`] lets a request out only to `https` on the public internet, or to what the operator has
//! opened (`egress.allow`). The rules are `domain::egress`; here they are held against what really
//! happens:
//!
//! - The URL is checked as it was *parsed*, so that every spelling of an address is the same one.
//! - Names are resolved here ([`Lookup`]), each time anew. All addresses of an answer are checked, one
//!   that is refused spoils the answer, and the connection goes to what was checked: a name that has
//!   another address the next time is checked the next time.
//! - A redirect is an answer like any other, and never followed. No proxy is taken from the environment.
//! - Each request has a connection of its own. One that was used before may be closed by the other
//!   side at the moment of sending, and then nobody could say whether the request arrived.
//! - What comes back is bounded in bytes, and never decompressed.
//! - A secret of the operator goes to its own hosts only, and is taken out of what comes back ([`Secrets`]).
//!
//! What this room must never do: connect to what it did not check, follow a redirect, decide whether a
//! request may be repeated, or put a URL, a header or a body into a log or an error: they may hold secrets.
//!
//! To call such a host: [`Gate::send`] with a [`Departure`], which says whether the request left. To
//! hand the client to a library: [`Gate::client`], for the one URL that it was asked for.

mod departure;
mod resolve;
mod secrets;
mod send;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use url::Url;

use crate::domain::egress::{Destinations, Refused};

pub use departure::{Departure, Left, Permit, Withheld};
pub use reqwest::Client;
pub use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
pub use resolve::{Lookup, SystemLookup};
pub use secrets::{HeaderError, Secret, Secrets};
pub use send::{Answer, Failure, Request, retry_after};

use departure::AskBeforeSending;
use resolve::Vetted;

/// How long a connection may take, from the name to the end of the TLS handshake.
const CONNECT: Duration = Duration::from_secs(10);

/// The gate, with the clients behind it. Cheap to share behind an `Arc`.
pub struct Gate {
    destinations: Arc<Destinations>,
    lookup: Arc<dyn Lookup>,
    /// Made when they are first needed: reading certificates takes milliseconds, and a bare container
    /// has none.
    https: OnceLock<Option<Client>>,
    http: OnceLock<Option<Client>>,
}

impl Gate {
    /// A gate with these rules; names are resolved by the system.
    pub fn new(destinations: Destinations) -> Self {
        Self::with_lookup(destinations, Arc::new(SystemLookup::default()))
    }

    /// A gate with these rules that has names resolved by `lookup`.
    pub fn with_lookup(destinations: Destinations, lookup: Arc<dyn Lookup>) -> Self {
        let destinations = Arc::new(destinations);
        Self { destinations, lookup, https: OnceLock::new(), http: OnceLock::new() }
    }

    /// Whether a request to this URL may be tried. What a name resolves to is checked when it is sent.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, url: &Url) -> Result<(), Refused> {
        self.destinations.check(url)
    }

    /// The client for requests to this URL, and to no other: addresses in a URL are checked here, and
    /// only names are when it connects. It follows no redirects, knows no proxy, bounds the time for
    /// connecting, and nothing else.
    ///
    /// # Errors
    /// The URL is refused, or this machine has no TLS root certificates.
    pub fn client(&self, url: &Url) -> Result<Client, Failure> {
        self.check(url)?;
        let is_plain = url.scheme() == "http";
        let place = if is_plain { &self.http } else { &self.https };
        let client = place.get_or_init(|| {
            let made = self.make(is_plain);
            if let Err(error) = &made {
                tracing::error!(%error, "the client for tools cannot be made");
            }
            made.ok()
        });
        client.clone().ok_or(Failure::NoClient)
    }

    fn make(&self, is_plain: bool) -> reqwest::Result<Client> {
        let vetted = Vetted {
            destinations: self.destinations.clone(),
            lookup: self.lookup.clone(),
            is_plain,
        };
        let mut builder = Client::builder()
            .http1_only()
            .https_only(!is_plain)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .tcp_nodelay(true)
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT)
            .dns_resolver(Arc::new(vetted))
            .connector_layer(AskBeforeSending)
            .user_agent(concat!("stepwell/", env!("CARGO_PKG_VERSION")));
        if is_plain {
            // It never speaks TLS, so it needs no certificates.
            builder = builder.tls_certs_only([]);
        }
        // Another part of the process may have installed it before: then there is nothing to do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        builder.build()
    }
}
