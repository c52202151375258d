//! One request and its bounded answer.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::timeout;
use url::Url;

use super::departure::{DEPARTURE, Withheld};
use super::{Departure, Gate};
use crate::domain::egress::Refused;
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
    /// How long the server asks to be left alone, where it says so in seconds.
    pub retry_after: Option<Duration>,
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
    #[error("the host could not be reached")]
    NoConnection,
    /// The request may have arrived, and its answer did not, or not whole.
    #[error("the connection broke before the answer was there")]
    NoAnswer,
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
        let response = DEPARTURE.scope(departure, building.send()).await;
        let mut response = response.map_err(|error| failure(&error))?;
        let status = response.status().as_u16();
        let mut answer = Answer { status, body: Vec::new(), is_whole: false, retry_after: None };
        answer.retry_after = retry_after(response.headers());
        let reading = read(&mut response, &mut answer, request.most_bytes);
        if (200..300).contains(&status) {
            reading.await?;
        } else {
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

/// How long a server asks to be left alone. A date instead of seconds is not worth a clock: it is as if
/// nothing was asked.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

impl Failure {
    /// What it means that a request of the gate's client failed like this.
    pub fn of(error: &reqwest::Error) -> Self {
        failure(error)
    }
}

fn failure(error: &reqwest::Error) -> Failure {
    if !error.is_connect() {
        return Failure::NoAnswer;
    }
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return Failure::Refused(*refused);
        }
        if let Some(withheld) = error.downcast_ref::<Withheld>() {
            return Failure::Withheld(*withheld);
        }
        source = error.source();
    }
    Failure::NoConnection
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
