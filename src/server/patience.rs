//! A socket that waits for nobody for ever.
//!
//! - *A head that drips*: from the first byte of a request on (or from the connection on), its head has
//!   10 s. Between requests a connection may be silent for much longer: proxies keep theirs for a
//!   minute, and answer 502 when one that they use is closed under them.
//!   HTTP/2 has no such heads: there it is the silence between requests that is bounded ([`Requests`]).
//! - *A reader that has stopped reading* fills the system's buffer, and then holds its connection and
//!   whatever waits to be written to it. When nothing could be written for a while although something
//!   waits, the connection is closed. A client that reads slowly is another matter: every byte that it
//!   takes starts the clock anew.
//!
//! And one that has words of its own: a head that is too large hyper answers by itself, without a body.
//! Where it does, the documented error goes out instead.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::api::{ApiError, ErrorCode};

use super::refusal::refusal;

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The head of a request.
    pub(super) head: Duration,
    /// Something that waits to be written.
    pub(super) stall: Duration,
}

/// Where a connection is, as far as those know who see its requests. Shared by the socket and the
/// service behind it.
#[derive(Debug, Clone, Default)]
pub(super) struct Phase(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// One of the three below.
    stage: AtomicU8,
    /// Whether something waits to be written.
    is_stuck: AtomicBool,
}

/// A head is awaited, or comes in.
const HEAD: u8 = 0;
/// A request is being answered, or the protocol has no heads of that kind (HTTP/2).
const BUSY: u8 = 1;
/// Nothing is asked at the moment.
const IDLE: u8 = 2;

impl Phase {
    /// A head has come in.
    pub(super) fn busy(&self) {
        self.0.stage.store(BUSY, Ordering::Relaxed);
    }

    /// The answer is written, or given up.
    pub(super) fn idle(&self) {
        self.0.stage.store(IDLE, Ordering::Relaxed);
    }

    /// Whether the socket did not take all that it was last given.
    pub(super) fn is_stuck(&self) -> bool {
        self.0.is_stuck.load(Ordering::Relaxed)
    }

    fn get(&self) -> u8 {
        self.0.stage.load(Ordering::Relaxed)
    }

    /// The first bytes of the next request.
    fn woken(&self) {
        let stage = &self.0.stage;
        let _ = stage.compare_exchange(IDLE, HEAD, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// The requests of an HTTP/2 connection that are being answered.
#[derive(Debug, Clone, Default)]
pub(super) struct Requests(watch::Sender<usize>);

/// One of them, until this is dropped.
#[derive(Debug)]
pub(super) struct OpenRequest(Requests);

impl Requests {
    /// One more.
    pub(super) fn begin(&self) -> OpenRequest {
        self.0.send_modify(|open| *open += 1);
        OpenRequest(self.clone())
    }

    /// Resolves when there has been none for so long since the last; never before the first.
    /// Frames that ask for nothing, pings or half a head, do not count.
    pub(super) async fn none_for(&self, silence: Duration) {
        let mut open = self.0.subscribe();
        // The sender is here, so the channel is never closed.
        while open.changed().await.is_ok() {
            while *open.borrow_and_update() == 0 {
                if timeout(silence, open.changed()).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.0.send_modify(|open| *open -= 1);
    }
}

/// How hyper begins its own answer to a head that is too large.
const TOO_LARGE: &[u8] = b"HTTP/1.1 431 ";

/// A socket with patience.
pub(super) struct Patient<S> {
    socket: S,
    limits: Limits,
    phase: Phase,
    /// Runs while a head comes in.
    head: Option<Pin<Box<Sleep>>>,
    /// Runs while something waits to be written.
    stall: Option<Pin<Box<Sleep>>>,
    /// Whether only a part was taken of what was last given: what comes next is its rest.
    is_midway: bool,
    /// What is still to be written instead of hyper's own words.
    instead: Option<Vec<u8>>,
}

impl<S> Patient<S> {
    /// A socket whose first request is awaited.
    pub(super) const fn new(socket: S, limits: Limits, phase: Phase) -> Self {
        Self { socket, limits, phase, head: None, stall: None, is_midway: false, instead: None }
    }

    /// Starts the clock for a head, or looks at it.
    fn await_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.phase.get() != HEAD {
            self.head = None;
            return Poll::Pending;
        }
        wait(&mut self.head, self.limits.head, context)
    }

    fn wrote(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
        given: usize,
    ) -> Poll<io::Result<usize>> {
        self.phase.0.is_stuck.store(written.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(taken) = &written {
            self.is_midway = taken.as_ref().is_ok_and(|taken| *taken < given);
            self.stall = None;
            return written;
        }
        wait(&mut self.stall, self.limits.stall, context)
    }
}

impl<S: AsyncWrite + Unpin> Patient<S> {
    /// Writes ours if these are hyper's own words, and says then that they were written.
    fn poll_instead(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Option<Poll<io::Result<usize>>> {
        let count = slices.iter().map(|slice| slice.len()).sum();
        if self.instead.is_none() {
            // While a request is being answered, or the rest of an answer is written, they are no head.
            let is_ours = self.is_midway || self.phase.get() == BUSY;
            if is_ours || !slices.first()?.starts_with(TOO_LARGE) {
                return None;
            }
            let message = "The head of the request has more than 100 headers, or 32 KiB.";
            self.instead = Some(refusal(&ApiError::new(ErrorCode::HeadersTooLarge, message)));
        }
        while let Some(rest) = self.instead.as_mut().filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.socket).poll_write(context, rest) {
                Poll::Ready(Ok(written)) => drop(rest.drain(..written.min(rest.len()))),
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => return Some(Poll::Pending),
            }
        }
        self.instead = None;
        Some(Poll::Ready(Ok(count)))
    }
}

/// Starts a clock, or looks at it: an error once it has run out.
fn wait<T>(
    clock: &mut Option<Pin<Box<Sleep>>>,
    limit: Duration,
    context: &mut Context<'_>,
) -> Poll<io::Result<T>> {
    let clock = clock.get_or_insert_with(|| Box::pin(sleep(limit)));
    ready!(clock.as_mut().poll(context));
    // A clock that has run out must not be polled again.
    clock.as_mut().reset(Instant::now() + limit);
    Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.socket).poll_read(context, buffer) {
            Poll::Ready(read) => {
                self.phase.woken();
                Poll::Ready(read)
            }
            Poll::Pending => self.await_head(context),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match self.poll_instead(context, &[IoSlice::new(bytes)]) {
            Some(written) => written,
            None => Pin::new(&mut self.socket).poll_write(context, bytes),
        };
        self.wrote(context, written, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match self.poll_instead(context, slices) {
            Some(written) => written,
            None => Pin::new(&mut self.socket).poll_write_vectored(context, slices),
        };
        self.wrote(context, written, slices.iter().map(|slice| slice.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    /// A socket has nothing to flush: that it is ready says nothing about what waits.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(50);

    fn pair() -> (Patient<DuplexStream>, DuplexStream, Phase) {
        let (ours, theirs) = duplex(64);
        let phase = Phase::default();
        let limits = Limits { head: LIMIT, stall: LIMIT };
        (Patient::new(ours, limits, phase.clone()), theirs, phase)
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_given_up() {
        let (mut socket, _theirs, _) = pair();
        let error = socket.write_all(&[0; 1000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_reader_that_takes_a_little_now_and_then_is_not() {
        let (mut socket, mut theirs, _) = pair();
        let read = async {
            let mut taken = 0;
            let mut some = [0; 16];
            while taken < 1000 {
                // Well within the limit, and far longer than it in all.
                tokio::time::sleep(LIMIT / 5).await;
                taken += theirs.read(&mut some).await.unwrap();
            }
        };
        // The reader first: when both clocks have run out, for this test stood still, it takes something.
        let ((), written) = tokio::join!(biased; read, socket.write_all(&[0; 1000]));
        written.unwrap();
    }

    #[tokio::test]
    async fn many_requests_are_over_when_none_was_open_for_a_while() {
        let requests = Requests::default();
        let silence = requests.none_for(LIMIT);
        tokio::pin!(silence);
        let is_over = tokio::time::timeout(LIMIT * 3, silence.as_mut()).await;
        assert!(is_over.is_err(), "the first request has another clock");
        let (first, second) = (requests.begin(), requests.begin());
        drop(first);
        let is_over = tokio::time::timeout(LIMIT * 3, silence.as_mut()).await;
        assert!(is_over.is_err(), "one is still open");
        drop(second);
        silence.await;
    }

    #[tokio::test]
    async fn a_head_has_so_long_however_it_drips_and_the_silence_between_requests_longer() {
        let (mut socket, mut theirs, phase) = pair();
        let drip = async {
            while theirs.write_all(b"x").await.is_ok() {
                tokio::time::sleep(LIMIT / 5).await;
            }
        };
        let mut sink = Vec::new();
        tokio::select! {
            read = socket.read_to_end(&mut sink) => {
                assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
            }
            () = drip => panic!("the drip was taken for ever"),
        }

        let (mut socket, mut theirs, phase_of_silence) = pair();
        phase_of_silence.busy();
        phase_of_silence.idle();
        let mut byte = [0];
        let silence = tokio::time::timeout(LIMIT * 4, socket.read(&mut byte)).await;
        assert!(silence.is_err(), "an idle connection is left alone");
        theirs.write_all(b"G").await.unwrap();
        assert_eq!(socket.read(&mut byte).await.unwrap(), 1);
        let error = socket.read(&mut byte).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "the next head has begun");
        drop(phase);
    }
}
