//! Sockets that wait for another request.
//!
//! A request is sent once. What is taken from here was silent and open a moment ago; if the server
//! closes it in that moment, nobody can say whether the request was served, and model calls cost
//! money: it is the engine who decides about another attempt (RFC 9110, 9.2.2).

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::dial::{Address, Socket};

/// Idle sockets to a host: as many as runs have answers open at once by default.
const MAX_IDLE_SOCKETS: usize = 1000;
/// How long a socket stays warm; most load balancers close theirs after a minute or more.
const IDLE_SOCKET: Duration = Duration::from_secs(55);

/// An address, and the idle sockets to it.
pub(super) struct Pool {
    pub address: Address,
    /// The oldest in front. Held for a few instructions, never across an await.
    idle: Mutex<VecDeque<Idle>>,
}

struct Idle {
    socket: Socket,
    since: Instant,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("idle", &self.idle().len()).finish_non_exhaustive()
    }
}

impl Pool {
    /// No sockets to this address.
    pub fn new(address: Address) -> Self {
        Self { address, idle: Mutex::default() }
    }

    /// The socket that became idle last, if it is still good. Those that are not are closed.
    pub fn take(&self, now: Instant) -> Option<Socket> {
        loop {
            let Idle { mut socket, since } = self.idle().pop_back()?;
            if now.saturating_duration_since(since) < IDLE_SOCKET && socket.is_quiet() {
                return Some(socket);
            }
        }
    }

    /// Keeps a socket on which an answer was read to its end.
    pub fn keep(&self, socket: Socket, now: Instant) {
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE_SOCKETS {
            idle.push_back(Idle { socket, since: now });
        }
    }

    /// Closes the sockets that were idle for too long.
    pub fn close_idle(&self, now: Instant) {
        let old = {
            let mut idle = self.idle();
            let is_old = |idle: &Idle| now.saturating_duration_since(idle.since) >= IDLE_SOCKET;
            let old = idle.partition_point(is_old);
            let old: Vec<Idle> = idle.drain(..old).collect();
            if idle.is_empty() {
                idle.shrink_to_fit();
            }
            old
        };
        drop(old);
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use url::Url;

    async fn pool() -> (Pool, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let address = Address::new(&Url::parse(&url).unwrap(), None).unwrap();
        (Pool::new(address), listener)
    }

    /// A new socket of the pool's, its port, and the server's end of it.
    async fn dial((pool, listener): &(Pool, TcpListener)) -> (Socket, u16, TcpStream) {
        let socket = pool.address.dial().await.unwrap();
        let (theirs, peer) = listener.accept().await.unwrap();
        (socket, peer.port(), theirs)
    }

    fn port(socket: Option<Socket>) -> Option<u16> {
        let Socket::Plain(tcp) = socket? else { panic!("no TLS was asked for") };
        Some(tcp.local_addr().unwrap().port())
    }

    #[tokio::test]
    async fn the_socket_that_became_idle_last_is_used_first_and_none_twice() {
        let pool = pool().await;
        let now = Instant::now();
        let (first, first_port, _theirs) = dial(&pool).await;
        let (second, second_port, _theirs) = dial(&pool).await;
        pool.0.keep(first, now);
        pool.0.keep(second, now);
        assert_eq!(port(pool.0.take(now)), Some(second_port));
        assert_eq!(port(pool.0.take(now)), Some(first_port));
        assert_eq!(port(pool.0.take(now)), None);
    }

    #[tokio::test]
    async fn a_socket_that_was_closed_or_spoken_on_is_not_used_again() {
        let pool = pool().await;
        let now = Instant::now();
        let (good, good_port, _theirs) = dial(&pool).await;
        let (closed, _, theirs) = dial(&pool).await;
        drop(theirs);
        let (spoken_on, _, mut theirs) = dial(&pool).await;
        theirs.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
        for socket in [&closed, &spoken_on] {
            let Socket::Plain(tcp) = socket else { panic!("no TLS was asked for") };
            tcp.readable().await.unwrap();
        }
        for socket in [good, closed, spoken_on] {
            pool.0.keep(socket, now);
        }
        assert_eq!(port(pool.0.take(now)), Some(good_port));
        assert_eq!(port(pool.0.take(now)), None);
    }

    #[tokio::test]
    async fn old_sockets_are_closed_and_not_used_again() {
        let pool = pool().await;
        let now = Instant::now();
        let (old, _, mut theirs) = dial(&pool).await;
        let (young, young_port, _theirs) = dial(&pool).await;
        pool.0.keep(old, now);
        pool.0.keep(young, now + IDLE_SOCKET / 2);
        pool.0.close_idle(now + IDLE_SOCKET);
        assert_eq!(theirs.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(port(pool.0.take(now + IDLE_SOCKET)), Some(young_port));
        let (old, ..) = dial(&pool).await;
        pool.0.keep(old, now);
        assert_eq!(port(pool.0.take(now + IDLE_SOCKET)), None);
    }
}
