//! One request and its answer, on one socket.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;
use tokio::time::{Instant, Sleep, sleep_until};

use super::dial::Socket;
use super::pool::Pool;

/// Bytes that are read at once: a TLS record. They are on the stack, and only while there are any: a
/// thousand silent models have no buffers.
const READ_BYTES: usize = 16 * 1024;

/// A request on its way, and the socket on which its answer comes.
#[derive(Debug)]
pub(super) struct Exchange {
    socket: Socket,
    pool: Arc<Pool>,
    /// Let go of as soon as it is sent.
    unsent: Option<Unsent>,
    /// Whether the server took all that it was sent, as far as we know.
    is_sound: bool,
}

struct Unsent {
    head: Vec<u8>,
    body: Vec<u8>,
    /// Bytes of both that were sent.
    sent: usize,
}

impl std::fmt::Debug for Unsent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The head holds a key, the body a prompt.
        f.debug_struct("Unsent").field("sent", &self.sent).finish_non_exhaustive()
    }
}

impl Unsent {
    fn rest(&self) -> [IoSlice<'_>; 2] {
        let head = self.head.get(self.sent..).unwrap_or_default();
        let body = self.body.get(self.sent.saturating_sub(self.head.len())..).unwrap_or_default();
        [IoSlice::new(head), IoSlice::new(body)]
    }

    fn is_empty(&self) -> bool {
        self.sent >= self.head.len() + self.body.len()
    }
}

/// Why there is nothing more to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// Nothing came in time.
    Late,
    /// The connection broke, or what came on it is no HTTP.
    Broken,
}

impl Exchange {
    /// A request that is sent while its answer is waited for.
    pub fn new(socket: Socket, pool: Arc<Pool>, head: Vec<u8>, body: Vec<u8>) -> Self {
        let unsent = Some(Unsent { head, body, sent: 0 });
        Self { socket, pool, unsent, is_sound: true }
    }

    /// Gives the next bytes to `take`; none, if the server has closed the connection.
    ///
    /// # Errors
    /// None came until the patience was over, or the connection broke.
    pub async fn receive<T>(
        &mut self,
        patience: &mut Patience,
        mut take: impl FnMut(&[u8]) -> T,
    ) -> Result<T, Lost> {
        std::future::poll_fn(|context| {
            if let Poll::Ready(received) = self.poll_receive(context, &mut take) {
                return Poll::Ready(received.map_err(|_| Lost::Broken));
            }
            patience.poll_over(context).map(|()| Err(Lost::Late))
        })
        .await
    }

    /// Keeps the socket for another request, if the whole of this one was taken. The answer must have
    /// been read to its end.
    pub fn keep(self) {
        if self.is_sound && self.unsent.is_none() {
            self.pool.keep(self.socket, Instant::now());
        }
    }

    fn poll_receive<T>(
        &mut self,
        context: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        // A server may answer a request that it does not want to read to its end, and stop reading:
        // what counts then is what it said, so the answer is read whatever became of the request.
        if let Poll::Ready(Err(_)) = self.poll_send(context) {
            self.unsent = None;
            self.is_sound = false;
        }
        let mut space = [MaybeUninit::uninit(); READ_BYTES];
        let mut space = ReadBuf::uninit(&mut space);
        ready!(self.socket.poll_read(context, &mut space))?;
        Poll::Ready(Ok(take(space.filled())))
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(unsent) = &mut self.unsent else { return Poll::Ready(Ok(())) };
        while !unsent.is_empty() {
            let sent = ready!(self.socket.poll_write(context, &unsent.rest()))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            unsent.sent += sent;
        }
        // TLS may still have some of it.
        ready!(self.socket.poll_flush(context))?;
        self.unsent = None;
        Poll::Ready(Ok(()))
    }
}

/// How long is still waited.
#[derive(Debug)]
pub(super) struct Patience {
    /// Fires at `until` or earlier: moving it away costs nothing until then.
    timer: Pin<Box<Sleep>>,
    until: Instant,
}

impl Patience {
    /// Waits until then.
    pub fn until(until: Instant) -> Self {
        Self { timer: Box::pin(sleep_until(until)), until }
    }

    /// When it is over.
    pub fn end(&self) -> Instant {
        self.until
    }

    /// Waits until then instead.
    pub fn set(&mut self, until: Instant) {
        self.until = until;
        if until < self.timer.deadline() {
            self.timer.as_mut().reset(until);
        }
    }

    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(context).is_ready() {
            if self.timer.deadline() >= self.until {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(self.until);
        }
        Poll::Pending
    }
}
