//! The body of an answer, and the time and the bytes that it may take.

use std::time::Duration;

use tokio::time::Instant;

use super::super::fault::{Fault, Told};
use super::body::Body;
use super::exchange::{Exchange, Lost, Patience};
use super::head::Head;
use super::silent;
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

/// The body of an answer, while it comes.
#[derive(Debug)]
pub(in super::super) struct Incoming {
    /// None, when the body is whole: the socket may have another request by then.
    exchange: Option<Exchange>,
    head: Head,
    body: Body,
    /// What came behind the head, until it is read.
    early: Vec<u8>,
    patience: Patience,
    idle: Duration,
    /// Whether the first token has come, from when on only silence is limited.
    speaks: bool,
    left: usize,
}

impl Incoming {
    /// The body behind this head, of which `early` has come.
    pub(super) fn new(
        exchange: Exchange,
        (head, early): (Head, Vec<u8>),
        patience: Patience,
        idle: Duration,
    ) -> Self {
        let mut incoming = Self {
            exchange: Some(exchange),
            body: head.body,
            head,
            early,
            patience,
            idle,
            speaks: false,
            left: MAX_BODY_BYTES,
        };
        incoming.settle(incoming.early.is_empty());
        incoming
    }

    /// Whether the provider takes the request.
    pub(super) fn is_success(&self) -> bool {
        matches!(self.head.status, 200..=299)
    }

    /// Whether it is one JSON text instead of a stream.
    pub fn is_json(&self) -> bool {
        self.head.is_json
    }

    /// The next bytes; `None` at a clean end. May be dropped without a loss.
    ///
    /// # Errors
    /// Nothing came in time, the connection broke, or there are too many bytes.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        let bytes = self.read().await.map_err(|lost| match lost {
            Lost::Late if self.speaks => {
                Fault::new(FailureKind::Timeout, "fell silent in the middle of its answer")
            }
            Lost::Late => silent(),
            Lost::Broken => Fault::broken("broke the connection in the middle of its answer"),
        })?;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.left = self
            .left
            .checked_sub(bytes.len())
            .ok_or_else(|| Fault::broken("sent an answer that is too long"))?;
        self.touch();
        Ok(Some(bytes))
    }

    /// The next bytes of the body; none at its end.
    async fn read(&mut self) -> Result<Vec<u8>, Lost> {
        let mut read = Vec::new();
        while read.is_empty()
            && let Some(exchange) = &mut self.exchange
        {
            let body = &mut self.body;
            let mut take =
                |bytes: &[u8]| Some((bytes.len(), body.take(bytes, &mut read).ok()?.len()));
            let taken = match std::mem::take(&mut self.early) {
                early if early.is_empty() => exchange.receive(&mut self.patience, take).await?,
                early => take(&early),
            };
            match taken {
                Some((0, _)) if self.body.may_end() => self.exchange = None,
                Some((0, _)) | None => return Err(Lost::Broken),
                Some((_, behind)) => self.settle(behind == 0),
            }
        }
        Ok(read)
    }

    /// Lets go of the socket if the body is whole. It is kept for another request, unless the server
    /// wants to close it or has sent more than it was asked for.
    fn settle(&mut self, is_all: bool) {
        if self.body.is_whole()
            && let Some(exchange) = self.exchange.take()
            && self.head.stays_open
            && is_all
        {
            exchange.keep();
        }
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
            self.patience.set(Instant::now() + self.idle);
        }
    }

    /// We did not listen for so long: that is not the server's time.
    pub fn forgive(&mut self, time: Duration) {
        self.patience.set(self.patience.end() + time);
    }

    /// Whatever comes, there is no more waiting than this, nor than the idle time-out.
    pub fn end_within(&mut self, time: Duration) {
        self.speaks = false;
        self.patience.set(Instant::now() + time.min(self.idle));
    }

    /// Reads the rest of a stream whose end marker has come: a socket whose answer was read to its
    /// end stays warm for the next call. A server that does not end in time loses its socket.
    pub async fn drain(&mut self) {
        self.end_within(END_GRACE);
        self.left = self.left.min(MAX_ERROR_BYTES);
        while let Ok(Some(_)) = self.chunk().await {}
    }

    /// The whole body, if it is not a stream.
    ///
    /// # Errors
    /// As for [`Incoming::chunk`].
    pub async fn whole(&mut self) -> Result<Vec<u8>, Fault> {
        self.left = MAX_WHOLE_BYTES;
        let mut body = Vec::new();
        while let Some(bytes) = self.chunk().await? {
            self.begin();
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }

    /// What an answer says that is no success.
    pub(super) async fn refusal(mut self) -> Fault {
        self.end_within(ERROR_GRACE);
        let mut body = Vec::new();
        while body.len() < MAX_ERROR_BYTES
            && let Ok(Some(bytes)) = self.chunk().await
        {
            body.extend_from_slice(&bytes);
        }
        body.truncate(MAX_ERROR_BYTES);
        Fault::of_status(self.head.status, self.head.retry_after, &Told::read(&body))
    }
}
