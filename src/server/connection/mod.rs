//! A connection: HTTP/1.1 or HTTP/2 (prior knowledge), and who writes what on it.
//!
//! hyper speaks both, with one exception: event streams on HTTP/1 are written by us
//! ([`super::handover`] says why and how).

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::clock::Clock;

use super::handover::{Slot, Streamed};
use super::patience::{Limits, OpenRequest, Patient, Phase, Requests};
use super::places::Place;
use super::stream::{self, End, Stream};
use super::uptake::{Counted, Executor};

/// How long a client may take to send its request's head.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may be silent between two requests: longer than the minute of usual proxies, so
/// that it is they who close it.
const IDLE: Duration = Duration::from_secs(75);
/// The largest head, path included; larger ones are answered 431 by hyper.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// How long an HTTP/2 connection on which nothing is asked any more has to finish.
const GOODBYE: Duration = Duration::from_secs(5);
/// How long a client has to take the end of a stream, and close, when its connection is closed.
const LINGER: Duration = Duration::from_secs(1);

/// Requests that an HTTP/2 connection may have at the same time.
const MAX_STREAMS: u32 = 250;
/// How an HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A pause before bytes are looked at again of which there were too few.
const BYTE_BY_BYTE: Duration = Duration::from_millis(10);

/// Somebody who came.
pub(super) struct Client {
    pub(super) socket: TcpStream,
    /// How long something may wait to be written.
    pub(super) stall: Duration,
    pub(super) place: Place,
}

/// How each of the two protocols is spoken.
pub(super) struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<Executor>,
}

impl Protocols {
    /// With our bounds, and the patience for a client that takes nothing.
    pub(super) fn new(stall: Duration) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            // It runs through the silence before a head, too; a head alone is `Patient`'s affair.
            .header_read_timeout(IDLE)
            .max_buf_size(MAX_HEAD_BYTES);
        let mut http2 = http2::Builder::new(Executor::new(stall));
        http2.timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS);
        Self { http1, http2 }
    }
}

/// On the heap, for it goes from hand to hand, and a future has room for all that it ever held.
type Socket = Box<Patient<TcpStream>>;

/// A client's connection, from its first byte to its end. What is being answered when it is time to
/// stop is answered.
pub(super) async fn connection(
    protocols: Arc<Protocols>,
    client: Client,
    router: Router,
    stop: CancellationToken,
) {
    let Client { socket, stall, place: _place } = client;
    let http2 = tokio::select! {
        http2 = tokio::time::timeout(HEAD, speaks_http2(&socket)) => http2,
        () = stop.cancelled() => return,
    };
    // Nobody there, or nobody who says anything.
    let Ok(Ok(http2)) = http2 else { return };
    let phase = Phase::default();
    let socket = Box::new(Patient::new(socket, Limits { head: HEAD, stall }, phase.clone()));
    if http2 {
        // On the heap, for it is much larger than the other, and rare.
        Box::pin(many_at_a_time(&protocols.http2, socket, router, phase, &stop)).await;
    } else {
        one_at_a_time(&protocols.http1, socket, router, phase, &stop).await;
    }
}

/// HTTP/1: hyper has the socket until a stream is to be written, and gets it back after that.
async fn one_at_a_time(
    http1: &http1::Builder,
    mut socket: Socket,
    router: Router,
    phase: Phase,
    stop: &CancellationToken,
) {
    let slot = Slot::default();
    let (left, seen) = (slot.clone(), phase.clone());
    let mut service = service_fn(move |request: Request<Incoming>| {
        seen.busy();
        let answered = Answered::Alone(OnlyRequest(seen.clone()));
        let (request, framing) = left.receive(request);
        let (router, left) = (router.clone(), left.clone());
        async move {
            match left.leave(answer(router, request, answered).await, framing) {
                Some(answer) => Ok(answer),
                // The connection finds it in the slot, and this is never polled again.
                None => pending().await,
            }
        }
    });
    loop {
        let asked = until_streamed(http1, socket, service, &slot, &phase, stop).await;
        let Some((taken_over, same)) = asked else { return };
        let mut stream = taken_over.into_stream(stop.is_cancelled());
        let end = stream.write().await;
        (socket, service) = (stream.into_socket(), same);
        match end {
            End::Whole { reusable: true } if !stop.is_cancelled() => {}
            End::Whole { .. } => return say_goodbye(socket).await,
            End::BrokenOff => return,
        }
    }
}

/// What is left of hyper when a stream is to be written.
struct TakenOver {
    streamed: Streamed,
    socket: Socket,
    /// Bytes of the client behind its request, which are lost.
    sent_ahead: usize,
}

impl TakenOver {
    fn into_stream(self, is_stopping: bool) -> Stream<Socket, Whole> {
        let Self { streamed: Streamed { answer, framing }, socket, sent_ahead } = self;
        let framing = framing.kept_if(sent_ahead == 0 && !is_stopping);
        let (parts, body) = answer.into_parts();
        let head = stream::head(&parts, framing, Clock::system().now());
        Stream::new(socket, head, body, framing, sent_ahead)
    }
}

/// Lets hyper answer requests until an answer is to be streamed; `None` when the connection has ended.
async fn until_streamed<S>(
    http1: &http1::Builder,
    socket: Socket,
    service: S,
    slot: &Slot,
    phase: &Phase,
    stop: &CancellationToken,
) -> Option<(TakenOver, S)>
where
    S: Service<Request<Incoming>, Response = Response<Whole>, Error = Infallible> + Unpin,
{
    // On the heap, so that there is no room for it in what is left when it is gone.
    let mut connection = Box::new(http1.serve_connection(TokioIo::new(socket), service));
    let mut stopped = pin!(stop.cancelled());
    let mut is_stopping = false;
    let streamed = poll_fn(|context| {
        if !is_stopping && stopped.as_mut().poll(context).is_ready() {
            is_stopping = true;
            Pin::new(&mut *connection).graceful_shutdown();
        }
        if let Poll::Ready(ended) = Pin::new(&mut *connection).poll(context) {
            if let Err(error) = ended {
                tell(&error);
            }
            return Poll::Ready(None);
        }
        // The answer before this one, if it is still being written, must not lose its end.
        if phase.is_stuck() {
            return Poll::Pending;
        }
        slot.take().map_or(Poll::Pending, |streamed| Poll::Ready(Some(streamed)))
    });
    let streamed = streamed.await?;
    let parts = connection.into_parts();
    let (socket, sent_ahead) = (parts.io.into_inner(), parts.read_buf.len());
    Some((TakenOver { streamed, socket, sent_ahead }, parts.service))
}

/// Closes so that the last bytes arrive: what the client has still sent is read, or the system would
/// reset the connection, and the client could lose what it has not read yet.
async fn say_goodbye(mut socket: Socket) {
    let close = async {
        socket.shutdown().await?;
        let mut rest = [0; 256];
        while socket.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // On the heap, for a stream is much longer than its end.
    let _ = Box::pin(tokio::time::timeout(LINGER, close)).await;
}

/// HTTP/2: all of it is hyper's, but for the patience with clients that take nothing.
async fn many_at_a_time(
    http2: &http2::Builder<Executor>,
    socket: Socket,
    router: Router,
    phase: Phase,
    stop: &CancellationToken,
) {
    let requests = Requests::default();
    let begun = requests.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        // Many requests at a time, and heads that are frames: the socket must not wait for a head.
        phase.busy();
        let (router, answered) = (router.clone(), Answered::AmongOthers(begun.begin()));
        async move {
            let answer = answer(router, request.map(Body::new), answered).await;
            Ok::<_, Infallible>(answer.map(Counted::new))
        }
    });
    let mut connection = pin!(http2.serve_connection(TokioIo::new(socket), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = requests.none_for(IDLE) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(GOODBYE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tell(&error);
    }
}

async fn answer(router: Router, request: Request<Body>, answered: Answered) -> Response<Whole> {
    let answer = router.oneshot(request).await.unwrap_or_else(|never| match never {});
    answer.map(|body| Whole { body, _answered: answered })
}

/// Clients that go away, or talk no HTTP, are no news.
fn tell(error: &hyper::Error) {
    tracing::trace!(%error, "a connection ended early");
}

/// Whether the client begins as HTTP/2 with prior knowledge does (RFC 9113, section 3.4): no method of
/// HTTP/1 begins so. hyper-util could tell, too, but its way costs every connection a second buffer.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut first).await?;
        let (seen, preface) = (first.get(..seen), PREFACE.get(..seen));
        if seen != preface || seen == Some(PREFACE) {
            return Ok(seen == Some(PREFACE));
        }
        // It closed.
        if seen.is_none_or(<[u8]>::is_empty) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Its first bytes come one by one.
        tokio::time::sleep(BYTE_BY_BYTE).await;
    }
}

/// Says that a request is answered, when it goes.
enum Answered {
    Alone(#[expect(dead_code, reason = "it is dropped")] OnlyRequest),
    AmongOthers(#[expect(dead_code, reason = "it is dropped")] OpenRequest),
}

/// The only request of its connection at this time.
struct OnlyRequest(Phase);

impl Drop for OnlyRequest {
    fn drop(&mut self) {
        self.0.idle();
    }
}

/// A body that says so when it is written or given up.
pub(super) struct Whole {
    body: Body,
    _answered: Answered,
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
