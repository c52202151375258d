//! The accept loop: who may have a connection.
//!
//! Our own, because `axum::serve` has no time-out for headers and no way to end connections politely
//! while others go on.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock::Clock;
use crate::config::Edge;
use crate::shutdown::Tasks;

use super::connection::{Client, Protocols, connection};
use super::places::{Full, Places};

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
    let protocols = Arc::new(Protocols::new(edge.stall));
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
                let client = Client { socket: stream, stall: edge.stall, place };
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
