//! One request and its bounded answer.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, LOCATION};
use rustls::CertificateError;
use tokio::time::timeout;
use url::Url;

use super::departure::Withheld;
use super::{Departure, Gate, Left};
use crate::domain::egress::Refused;
use crate::domain::retry;
use crate::domain::tool::HttpMethod;

/// How long a server may take over the body of an answer that is no success: its status says enough.
const REFUSAL_BODY: Duration = Duration::from_secs(5);

/// A request to a host that somebody named.
#[derive(Debug)]
pub struct Request {
    /// The method.
    pub method: HttpMethod,
    /// Where.
    pub url: Url,
    /// All headers but those of the connection.
    pub headers: HeaderMap,
    /// The body.
    pub body: Option<Vec<u8>>,
    /// Bytes of the answer's body that are read; the connection is closed behind them.
    pub most_bytes: usize,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, or its beginning.
    pub body: Vec<u8>,
    /// Whether that is all of it.
    pub is_whole: bool,
    /// What it is: `content-type`.
    pub content_type: Option<String>,
    /// Whether it is packed, though nobody asked for it: a `content-encoding` other than `identity`.
    pub is_packed: bool,
    /// Where a redirect leads. It is never followed.
    pub location: Option<String>,
    /// How long the server asks to be left alone.
    pub retry_after: Option<Duration>,
}

impl Answer {
    /// An answer without its body, by its head.
    fn new(status: u16, headers: &HeaderMap) -> Self {
        // Some servers write them in UTF-8, which is no mistake of the model's.
        let any = |name: HeaderName| {
            headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Self {
            status,
            body: Vec::new(),
            is_whole: false,
            content_type: any(CONTENT_TYPE),
            is_packed: any(CONTENT_ENCODING)
                .is_some_and(|way| !way.trim().eq_ignore_ascii_case("identity")),
            location: any(LOCATION),
            retry_after: retry_after(headers),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The gate does not let it through. Nothing left.
    #[error("the URL {0}")]
    Refused(#[from] Refused),
    /// The permit was not given. Nothing left.
    #[error(transparent)]
    Withheld(#[from] Withheld),
    /// This machine has no TLS root certificates. Nothing left.
    #[error("this server cannot use https: it has no root certificates")]
    NoClient,
    /// There was no connection. Nothing left.
    #[error(transparent)]
    NoConnection(#[from] Unreached),
    /// The request may have arrived, and its answer did not, or not whole.
    #[error("the connection broke before the answer was there")]
    NoAnswer,
}

/// What stood in the way of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreached {
    /// Nobody knows the name, or whoever knows does not answer.
    #[error("the host's name could not be resolved")]
    Name,
    /// Refused, reset, or no way there.
    #[error("the host could not be reached")]
    Host,
    /// No connection within the time that one may take.
    #[error("the host could not be reached within {} s", super::CONNECT.as_secs())]
    Slow,
    /// It speaks TLS otherwise than we do, or not at all.
    #[error("there is no secure connection to the host: the TLS handshake failed")]
    Tls,
    /// It may be anybody.
    #[error("the host's certificate was issued by nobody whom this server trusts")]
    UnknownIssuer,
    /// It is somebody else.
    #[error("the host's certificate is for another name")]
    OtherName,
    /// It was once right.
    #[error("the host's certificate has expired")]
    Expired,
    /// Anything else that is wrong with it.
    #[error("the host's certificate is not valid")]
    BadCertificate,
}

impl Unreached {
    /// Whether it may pass by itself in a moment.
    pub const fn may_pass(self) -> bool {
        match self {
            Self::Name | Self::Host | Self::Slow | Self::Tls => true,
            Self::UnknownIssuer | Self::OtherName | Self::Expired | Self::BadCertificate => false,
        }
    }
}

impl Gate {
    /// Sends one request and reads its answer, up to the bytes that it may have. Tells `departure` when
    /// it leaves. Has no time-out but the one for connecting: whoever waits decides how long.
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// Why there is no answer. A status is an answer, whichever it is.
    pub async fn send(
        &self,
        request: Request,
        departure: Arc<Departure>,
    ) -> Result<Answer, Failure> {
        departure.announce();
        let client = self.client(&request.url)?;
        let mut building = client.request(method(request.method), request.url);
        building = building.headers(request.headers);
        if let Some(body) = request.body {
            building = building.body(body);
        }
        let response = departure.clone().during(building.send()).await;
        let mut response = response.map_err(|error| match departure.left() {
            // Whatever it was, it was before the connection stood.
            Left::NotYet => no_connection(&error),
            Left::Unsaid | Left::Yes | Left::Refused(_) => Failure::NoAnswer,
        })?;
        let status = response.status().as_u16();
        let mut answer = Answer::new(status, response.headers());
        let reading = read(&mut response, &mut answer, request.most_bytes);
        if (200..300).contains(&status) {
            reading.await?;
        } else {
            departure.refused(status);
            // What can be read of it, and no more waiting than this.
            let _ = timeout(REFUSAL_BODY, reading).await;
        }
        Ok(answer)
    }
}

async fn read(
    response: &mut reqwest::Response,
    answer: &mut Answer,
    most_bytes: usize,
) -> Result<(), Failure> {
    while let Some(bytes) = response.chunk().await.map_err(|_| Failure::NoAnswer)? {
        let room = most_bytes - answer.body.len();
        if bytes.len() > room {
            answer.body.extend(bytes.iter().take(room));
            return Ok(());
        }
        answer.body.extend_from_slice(&bytes);
    }
    answer.is_whole = true;
    Ok(())
}

/// How long a server asks to be left alone.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    retry::retry_after(|name| headers.get(name)?.to_str().ok().map(str::trim))
}

impl Failure {
    /// What it means that a request of the gate's client failed like this.
    pub fn of(error: &reqwest::Error) -> Self {
        if error.is_connect() { no_connection(error) } else { Self::NoAnswer }
    }
}

/// Why there was no connection, by what lies at the bottom of the error.
fn no_connection(error: &reqwest::Error) -> Failure {
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return Failure::Refused(*refused);
        }
        if let Some(withheld) = error.downcast_ref::<Withheld>() {
            return Failure::Withheld(*withheld);
        }
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Failure::NoConnection(of_tls(tls));
        }
        source = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // Its own `source` is that of what it holds, and would skip that.
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    Failure::NoConnection(if error.is_timeout() {
        Unreached::Slow
    } else if error.is_dns() {
        Unreached::Name
    } else {
        Unreached::Host
    })
}

fn of_tls(error: &rustls::Error) -> Unreached {
    let rustls::Error::InvalidCertificate(why) = error else { return Unreached::Tls };
    match why {
        CertificateError::UnknownIssuer => Unreached::UnknownIssuer,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Unreached::OtherName
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Unreached::Expired,
        _ => Unreached::BadCertificate,
    }
}

const fn method(method: HttpMethod) -> reqwest::Method {
    match method {
        HttpMethod::Get => reqwest::Method::GET,
        HttpMethod::Post => reqwest::Method::POST,
        HttpMethod::Put => reqwest::Method::PUT,
        HttpMethod::Patch => reqwest::Method::PATCH,
        HttpMethod::Delete => reqwest::Method::DELETE,
    }
}
