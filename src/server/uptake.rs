//! HTTP/2: whether a client takes what it asked for.
//!
//! Many answers share a socket there, and each has a window that its client opens as it reads. A client
//! that stops reading one of them leaves the socket in order, so [`super::patience`] sees nothing, and hyper
//! would wait for the window as long as the connection lives.
//!
//! So the bytes of an answer are counted as they leave: each [`Piece`] of it tells its [`Uptake`], on its way
//! out of h2, how much of it has gone. The task with which hyper sends the answer runs under a watch
//! ([`Executor`]); when something has waited for too long and not a byte of it has left meanwhile, the task
//! is dropped. h2 resets the stream then (`RST_STREAM`, `CANCEL`), the body lets go of all that it holds, and
//! the other answers on the connection go on.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::body::Bytes;
use bytes::Buf;
use hyper::body::{Body, Frame, SizeHint};
use hyper_util::rt::TokioExecutor;
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes that the end of an answer need not wait for: its last frame says that it is the last, and its
/// task is gone before they have left. All others are watched to their end, which costs them a frame.
const LEFT_BEHIND: usize = 4 * 1024;

tokio::task_local! {
    /// What is taken of the answer that this task sends.
    static UPTAKE: Uptake;
}

/// What is taken of an answer. Shared by its body, its pieces and its watch.
#[derive(Clone, Default)]
struct Uptake(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Bytes that hyper was given and that have not left.
    waiting: usize,
    /// When some of them left, or the first of them came; `None` while none wait.
    moved_at: Option<Instant>,
    /// The task, if it waits for the last of them to leave.
    task: Option<Waker>,
}

impl Uptake {
    fn gave(&self, count: usize) {
        let mut state = self.state();
        state.waiting += count;
        if state.waiting > 0 {
            state.moved_at.get_or_insert_with(Instant::now);
        }
    }

    fn took(&self, count: usize) {
        if count == 0 {
            return;
        }
        let mut state = self.state();
        state.waiting = state.waiting.saturating_sub(count);
        let is_empty = state.waiting == 0;
        state.moved_at = if is_empty { None } else { Some(Instant::now()) };
        let task = if is_empty { state.task.take() } else { None };
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Ready when nothing waits.
    fn poll_empty(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.waiting == 0 {
            return Poll::Ready(());
        }
        state.task = Some(context.waker().clone());
        Poll::Pending
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic is done with it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs what hyper does for each answer: until it is sent, or its client has taken nothing for so long.
#[derive(Clone)]
pub(super) struct Executor {
    tasks: TokioExecutor,
    stall: Duration,
}

impl Executor {
    /// With the patience for a client that takes nothing.
    pub(super) fn new(stall: Duration) -> Self {
        Self { tasks: TokioExecutor::new(), stall }
    }
}

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, sending: F) {
        self.tasks.execute(Watched::new(sending, self.stall));
    }
}

/// The sending of an answer, under watch.
struct Watched<F> {
    sending: Pin<Box<F>>,
    uptake: Uptake,
    stall: Duration,
    /// Runs since something waited; not moved with every byte, but looked at when it has run out.
    clock: Option<Pin<Box<Sleep>>>,
}

impl<F> Watched<F> {
    fn new(sending: F, stall: Duration) -> Self {
        Self { sending: Box::pin(sending), uptake: Uptake::default(), stall, clock: None }
    }

    /// Ready when the client has taken nothing for too long.
    fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let until = self.uptake.state().moved_at.map(|moved_at| moved_at + self.stall);
            let clock = match (&mut self.clock, until) {
                (None, None) => return Poll::Pending,
                (Some(clock), _) => clock,
                (None, Some(until)) => self.clock.insert(Box::pin(sleep_until(until))),
            };
            ready!(clock.as_mut().poll(context));
            match until {
                Some(until) if until <= Instant::now() => return Poll::Ready(()),
                Some(until) => clock.as_mut().reset(until),
                None => self.clock = None,
            }
        }
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let watched = &mut *self;
        let uptake = watched.uptake.clone();
        let sent = UPTAKE.sync_scope(uptake, || watched.sending.as_mut().poll(context));
        if sent.is_ready() {
            return Poll::Ready(());
        }
        watched.poll_stalled(context)
    }
}

/// A body whose bytes are counted as they leave. It ends when all of them have.
pub(super) struct Counted<B> {
    body: B,
    /// Whether it has ended: it is asked for its end again when all has left.
    is_over: bool,
    uptake: Uptake,
}

impl<B> Counted<B> {
    /// The body of the answer that this task sends.
    pub(super) fn new(body: B) -> Self {
        // Outside of an answer's task nobody watches.
        Self { body, is_over: false, uptake: UPTAKE.try_with(Clone::clone).unwrap_or_default() }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Counted<B> {
    type Data = Piece;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, B::Error>>> {
        if self.is_over {
            return self.uptake.poll_empty(context).map(|()| None);
        }
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else {
            self.is_over = true;
            return self.uptake.poll_empty(context).map(|()| None);
        };
        let piece = |bytes: Bytes| {
            self.uptake.gave(bytes.len());
            Piece { bytes, uptake: self.uptake.clone() }
        };
        Poll::Ready(Some(frame.map(|frame| frame.map_data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.uptake.state().waiting <= LEFT_BEHIND
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes that say so when they leave.
pub(super) struct Piece {
    bytes: Bytes,
    uptake: Uptake,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.uptake.took(count);
    }
}

impl Drop for Piece {
    /// What is thrown away does not wait any more.
    fn drop(&mut self) {
        self.uptake.took(self.bytes.len());
    }
}
