//! The accept loop: TCP connections in, HTTP/1.1 and HTTP/2 (prior knowledge) out.
//!
//! Our own on hyper-util, because `axum::serve` has no time-out for headers and no way to end
//! connections politely while others go on.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::clock::Clock;
use crate::config::Edge;
use crate::shutdown::Tasks;

use super::patience::{Limits, OpenRequest, Patient, Phase, Requests};
use super::places::{Full, Place, Places};

/// How long a client may take to send its request's head.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may be silent between two requests: longer than the minute of usual proxies, so
/// that it is they who close it.
const IDLE: Duration = Duration::from_secs(75);
/// The largest head, path included; larger ones are answered 431 by hyper.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// How long open connections have to finish when the server stops.
const GOODBYE: Duration = Duration::from_secs(5);
/// A pause after the system had no socket for us (out of file descriptors, for example).
const OUT_OF_SOCKETS: Duration = Duration::from_millis(100);

/// Connections that may wait to be accepted. The usual 128 overflow when a few hundred clients come
/// back at once, and each of those then waits a second for its second try.
const BACKLOG: u32 = 4_096;

/// Bytes that the system keeps for a client which reads slowly (it doubles the number). Left to itself
/// it would take up to 4 MiB for each, of its own memory. On a network with a round trip of 100 ms this
/// still carries a megabyte a second.
const SEND_BUFFER: u32 = 64 * 1024;

/// Clients that are told at the same time that there is no place for them; more are just cut off.
const MAX_REFUSALS: usize = 256;
/// How long telling it may take.
const REFUSAL: Duration = Duration::from_secs(1);

/// Requests that an HTTP/2 connection may have at the same time.
const MAX_STREAMS: u32 = 250;
/// How an HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A pause before bytes are looked at again of which there were too few.
const BYTE_BY_BYTE: Duration = Duration::from_millis(10);

/// Listens at an address.
///
/// # Errors
/// When the address is taken or not ours.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Handed down to every connection.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves `router` on `listener` until `tasks` stop; then lets open requests finish for a moment.
pub async fn serve(listener: TcpListener, router: Router, edge: Edge, tasks: &Tasks) {
    let protocols = Arc::new(Protocols::new());
    let connections = Tasks::new();
    let places = Places::new(edge.max_connections, edge.max_connections_per_address);
    let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause_after(&error).await;
                    continue;
                }
            },
            () = tasks.stopped() => break,
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection came without TCP_NODELAY");
        }
        match places.take(address.ip()) {
            Ok(place) => {
                let limits = Limits { head: HEAD, stall: edge.stall };
                let client = Client { stream, limits, place };
                let stop = connections.token();
                connections.spawn(connection(protocols.clone(), client, router.clone(), stop));
            }
            Err(full) => {
                if let Ok(permit) = refusals.clone().try_acquire_owned() {
                    connections.spawn(refuse(stream, full, permit));
                }
            }
        }
    }
    drop(listener);
    connections.stop();
    if tokio::time::timeout(GOODBYE, connections.finish()).await.is_err() {
        tracing::info!("some connections were still open when the server stopped");
    }
}

/// How each of the two protocols is spoken.
struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl Protocols {
    fn new() -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            // It runs through the silence before a head, too; a head alone is `Patient`'s affair.
            .header_read_timeout(IDLE)
            .max_buf_size(MAX_HEAD_BYTES);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2.timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS);
        Self { http1, http2 }
    }
}

async fn connection(
    protocols: Arc<Protocols>,
    client: Client,
    router: Router,
    stop: CancellationToken,
) {
    let Client { stream, limits, place: _place } = client;
    let http2 = tokio::select! {
        http2 = tokio::time::timeout(HEAD, speaks_http2(&stream)) => http2,
        () = stop.cancelled() => return,
    };
    // Nobody there, or nobody who says anything.
    let Ok(Ok(http2)) = http2 else { return };
    let phase = Phase::default();
    let requests = Requests::default();
    let stream = TokioIo::new(Patient::new(stream, limits, phase.clone()));
    let begun = requests.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let router = router.clone();
        phase.busy();
        // HTTP/2 has many requests at a time, and heads that are frames, which `phase` knows nothing of.
        let answered = if request.version() < Version::HTTP_2 {
            Answered::Alone(OnlyRequest(phase.clone()))
        } else {
            Answered::AmongOthers(begun.begin())
        };
        async move {
            let answer = router.oneshot(request.map(Body::new)).await;
            let answer = answer.unwrap_or_else(|never| match never {});
            Ok::<_, Infallible>(answer.map(|body| Whole { body, _answered: answered }))
        }
    });
    let ended = if http2 {
        let connection = protocols.http2.serve_connection(stream, service);
        // On the heap, for it is much larger than the other, and rare.
        Box::pin(to_its_end(connection, &requests, &stop)).await
    } else {
        to_its_end(protocols.http1.serve_connection(stream, service), &requests, &stop).await
    };
    // Clients that go away, or talk no HTTP, are no news.
    if let Err(error) = ended {
        tracing::trace!(error = %error, "a connection ended early");
    }
}

async fn to_its_end<C: GracefulConnection>(
    connection: C,
    requests: &Requests,
    stop: &CancellationToken,
) -> Result<(), C::Error> {
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended,
        // What is being answered ends as it should.
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = requests.none_for(IDLE) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(GOODBYE, connection).await.unwrap_or(Ok(()))
        }
    }
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

/// Tells a client in the documented shape that there is no place for it, before it has asked anything.
async fn refuse(mut stream: TcpStream, full: Full, _permit: OwnedSemaphorePermit) {
    let message = match full {
        Full::All => "The server has as many connections as it may have.",
        Full::Address => "Your address has as many connections as it may have.",
    };
    let request_id = format!("req_{}", Clock::system().uuid().simple());
    let body = format!(
        "{{\"error\":\"overloaded\",\"message\":\"{message}\",\"details\":{{}},\
         \"suggested_action\":\"Close connections that you do not need, wait \
         retry_after_seconds, then send the same request.\",\
         \"retry\":true,\"retry_after_seconds\":1,\"request_id\":\"{request_id}\"}}"
    );
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nretry-after: 1\r\nx-request-id: {request_id}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    let tell = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // What it sends must be read, or it would be reset before it has read the answer.
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _ = tokio::time::timeout(REFUSAL, tell).await;
}

/// Somebody who came.
struct Client {
    stream: TcpStream,
    limits: Limits,
    place: Place,
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
struct Whole {
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

async fn pause_after(error: &io::Error) {
    match error.kind() {
        // The client's affair.
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionReset => {}
        _ => {
            tracing::error!(%error, "no connection can be accepted at the moment");
            tokio::time::sleep(OUT_OF_SOCKETS).await;
        }
    }
}
