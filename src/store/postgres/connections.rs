//! Connections to Postgres, of which a broken one is thrown away and never used again.
//!
//! sqlx's own pool pings a connection whenever it comes back, which at hundreds of flushes a second
//! is a round trip for each, and on a black-holed connection waits without a bound. This one knows
//! what it needs to: a connection is *whole* when the server answered everything that was asked and
//! no transaction is open. Only a whole one comes back; every other is closed, by force, when its
//! lease ends, whatever ended it (an error, a time-out, or a caller that went away).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::query::Query;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, Postgres, Row};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

/// A connection that was idle for longer than this is asked whether it still lives before it is used.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// How long it has to answer.
const PING: Duration = Duration::from_secs(1);
/// How long making a connection may take.
const CONNECT: Duration = Duration::from_secs(3);

/// A statement with what was bound to it.
pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// A few connections of one kind.
pub(super) struct Connections {
    options: PgConnectOptions,
    /// Run on every new connection.
    settings: &'static str,
    /// For each lease, from the first statement to the last.
    deadline: Duration,
    size: u32,
    permits: Semaphore,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    open: Open,
    since: Instant,
}

struct Open {
    connection: PgConnection,
    backend: Backend,
}

/// A server process: its number, and when it started, for numbers are used again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Backend {
    pub(super) pid: i32,
    pub(super) started_at: f64,
}

/// A connection that is ours until this is dropped.
pub(super) struct Lease<'a> {
    home: &'a Connections,
    open: Option<Open>,
    deadline: Instant,
    whole: bool,
    _permit: SemaphorePermit<'a>,
}

impl Connections {
    /// At most `size` connections, made when they are needed.
    pub(super) fn new(
        options: &PgConnectOptions,
        settings: &'static str,
        size: u32,
        deadline: Duration,
    ) -> Self {
        Self {
            // A failure is logged once, where it is handled; and the logger costs time per statement.
            options: options.clone().disable_statement_logging(),
            settings,
            deadline,
            size,
            permits: Semaphore::new(size as usize),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// A connection, waiting for one if all are in use.
    ///
    /// # Errors
    /// None came free in time, or none could be made. Nothing was sent.
    pub(super) async fn lease(&self) -> Result<Lease<'_>, sqlx::Error> {
        let deadline = Instant::now() + self.deadline;
        let permit = self.permit(deadline).await?;
        while let Some(Idle { mut open, since }) = self.pop() {
            if since.elapsed() < TRUSTED_FOR
                || matches!(timeout(PING, open.connection.ping()).await, Ok(Ok(())))
            {
                return Ok(self.lend(open, deadline, permit));
            }
            // Whatever broke it broke its neighbours.
            self.idle().clear();
        }
        let open = self.connect().await?;
        Ok(self.lend(open, deadline, permit))
    }

    /// A connection that nobody used before.
    ///
    /// # Errors
    /// As [`Connections::lease`].
    pub(super) async fn fresh(&self) -> Result<Lease<'_>, sqlx::Error> {
        let deadline = Instant::now() + self.deadline;
        let permit = self.permit(deadline).await?;
        let open = self.connect().await?;
        Ok(self.lend(open, deadline, permit))
    }

    async fn permit(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, sqlx::Error> {
        match timeout_at(deadline, self.permits.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(sqlx::Error::PoolClosed),
            Err(_) => Err(sqlx::Error::PoolTimedOut),
        }
    }

    fn lend<'a>(&'a self, open: Open, deadline: Instant, permit: SemaphorePermit<'a>) -> Lease<'a> {
        Lease { home: self, open: Some(open), deadline, whole: true, _permit: permit }
    }

    async fn connect(&self) -> Result<Open, sqlx::Error> {
        let connect = async {
            let mut connection = self.options.connect().await?;
            connection.execute(self.settings).await?;
            let row = connection.fetch_one(BACKEND).await?;
            let backend = Backend { pid: row.try_get(0)?, started_at: row.try_get(1)? };
            Ok(Open { connection, backend })
        };
        timeout(CONNECT, connect).await.map_err(|_| too_late())?
    }

    /// Waits for all leases to end and closes everything.
    pub(super) async fn close(&self) {
        if let Ok(all) = self.permits.acquire_many(self.size).await {
            self.permits.close();
            drop(all);
        }
        while let Some(Idle { open, .. }) = self.pop() {
            let _ = timeout(PING, open.connection.close()).await;
        }
    }

    fn pop(&self) -> Option<Idle> {
        self.idle().pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const BACKEND: &str = "\
select pid, extract(epoch from backend_start)::float8
from pg_stat_activity
where pid = pg_backend_pid()";

impl Lease<'_> {
    /// The server process at the other end.
    pub(super) fn backend(&self) -> Option<Backend> {
        self.open.as_ref().map(|open| open.backend)
    }

    /// Runs one statement and reads all of its answer.
    ///
    /// # Errors
    /// [`sqlx::Error::Database`] when the server refused it; every other error means that the answer
    /// is not known, and that the connection will be thrown away.
    pub(super) async fn rows(&mut self, query: Statement<'_>) -> Result<Vec<PgRow>, sqlx::Error> {
        let whole = std::mem::replace(&mut self.whole, false);
        let open = self.open.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        let answer = timeout_at(self.deadline, query.fetch_all(&mut open.connection)).await;
        let answer = answer.unwrap_or_else(|_| Err(too_late()));
        self.whole = whole && answered(&answer);
        answer
    }

    /// Runs one statement and reads its first row.
    ///
    /// # Errors
    /// As [`Lease::rows`].
    pub(super) async fn row(&mut self, query: Statement<'_>) -> Result<Option<PgRow>, sqlx::Error> {
        // Read to the end: the commit of an autocommit statement comes after its rows.
        Ok(self.rows(query).await?.into_iter().next())
    }

    /// Runs one statement and counts what it changed.
    ///
    /// # Errors
    /// As [`Lease::rows`].
    pub(super) async fn change(&mut self, query: Statement<'_>) -> Result<u64, sqlx::Error> {
        let whole = std::mem::replace(&mut self.whole, false);
        let open = self.open.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        let answer = timeout_at(self.deadline, query.execute(&mut open.connection)).await;
        let answer = answer.unwrap_or_else(|_| Err(too_late()));
        self.whole = whole && answered(&answer);
        answer.map(|done| done.rows_affected())
    }

    /// Opens a transaction. The connection is not whole until its end.
    ///
    /// # Errors
    /// As [`Lease::rows`].
    pub(super) async fn begin(&mut self) -> Result<(), sqlx::Error> {
        self.plain("begin").await?;
        self.whole = false;
        Ok(())
    }

    /// Commits the transaction.
    ///
    /// # Errors
    /// As [`Lease::rows`]; without an answer it is committed or it is not.
    pub(super) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.plain("commit").await?;
        self.whole = true;
        Ok(())
    }

    /// Ends the transaction without a change. Without an answer the connection is thrown away, which
    /// comes to the same.
    pub(super) async fn rollback(&mut self) {
        if self.plain("rollback").await.is_ok() {
            self.whole = true;
        }
    }

    async fn plain(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        let open = self.open.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        self.whole = false;
        let answer = timeout_at(self.deadline, open.connection.execute(sql)).await;
        answer.unwrap_or_else(|_| Err(too_late())).map(drop)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        match self.open.take() {
            Some(open) if self.whole && !self.home.permits.is_closed() => {
                self.home.idle().push(Idle { open, since: Instant::now() });
            }
            // Dropping a connection closes its socket at once, whatever is still under way in it. What
            // broke it may have broken its neighbours: they are asked before they are used.
            Some(_) => {
                let long_ago = Instant::now().checked_sub(TRUSTED_FOR);
                for idle in self.home.idle().iter_mut() {
                    idle.since = long_ago.unwrap_or(idle.since);
                }
            }
            None => {}
        }
    }
}

/// Whether the server answered: then the connection can be used on. An error that ends the session
/// is followed by an end of file, which the next user's statement must not be the one to find.
fn answered<T>(answer: &Result<T, sqlx::Error>) -> bool {
    match answer {
        Ok(_) => true,
        Err(sqlx::Error::Database(error)) => {
            // 0A000 is what a statement gets whose cached plan a migration made wrong.
            error.code().is_none_or(|code| {
                !code.starts_with("57P")
                    && !code.starts_with("08")
                    && code != "25P03"
                    && code != "0A000"
            })
        }
        Err(_) => false,
    }
}

fn too_late() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::from(std::io::ErrorKind::TimedOut))
}
