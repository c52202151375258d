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
    pub fn take(&self) -> Option<Socket> {
        loop {
            let Idle { mut socket, since } = self.idle().pop_back()?;
            if since.elapsed() < IDLE_SOCKET && socket.is_quiet() {
                return Some(socket);
            }
        }
    }

    /// Keeps a socket on which an answer was read to its end.
    pub fn keep(&self, socket: Socket) {
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE_SOCKETS {
            idle.push_back(Idle { socket, since: Instant::now() });
        }
    }

    /// Closes the sockets that were idle for too long.
    pub fn close_idle(&self) {
        let old = {
            let mut idle = self.idle();
            let old = idle.partition_point(|idle| idle.since.elapsed() >= IDLE_SOCKET);
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
