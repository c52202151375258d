//! The accept loop: TCP connections in, HTTP/1.1 and HTTP/2 (prior knowledge) out.
//!
//! Our own on hyper-util, because `axum::serve` has no time-out for headers and no way to end
//! connections politely while others go on.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tower::ServiceExt as _;

use crate::shutdown::Tasks;

/// How long a client may take to send its request's head.
const HEADERS: Duration = Duration::from_secs(10);
/// The largest head, path included; larger ones are answered 431 by hyper.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// How long open connections have to finish when the server stops.
const GOODBYE: Duration = Duration::from_secs(5);
/// A pause after the system had no socket for us (out of file descriptors, for example).
const OUT_OF_SOCKETS: Duration = Duration::from_millis(100);

/// Connections that may wait to be accepted. The usual 128 overflow when a few hundred clients come
/// back at once, and each of those then waits a second for its second try.
const BACKLOG: u32 = 4_096;

/// Listens at an address.
///
/// # Errors
/// When the address is taken or not ours.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves `router` on `listener` until `tasks` stop; then lets open requests finish for a moment.
pub async fn serve(listener: TcpListener, router: Router, tasks: &Tasks) {
    let graceful = GracefulShutdown::new();
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .pipeline_flush(true);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(250);
    let connections = Tasks::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
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
        connections.spawn(connection(&builder, stream, router.clone(), &graceful));
    }
    drop(listener);
    if tokio::time::timeout(GOODBYE, graceful.shutdown()).await.is_err() {
        tracing::info!("some connections were still open when the server stopped");
    }
}

fn connection(
    builder: &Builder<TokioExecutor>,
    stream: TcpStream,
    router: Router,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + Send + 'static {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let router = router.clone();
        async move {
            let answer = router.oneshot(request.map(Body::new)).await;
            Ok::<_, Infallible>(answer.unwrap_or_else(|never| match never {}))
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    let watched = graceful.watch(connection);
    async move {
        // Clients that go away, or talk no HTTP, are no news.
        if let Err(error) = watched.await {
            tracing::trace!(error = %error, "a connection ended early");
        }
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
