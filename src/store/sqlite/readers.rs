//! The connections that read.
//!
//! One statement a read, fetched to its end: a reader that stops in the middle would hold its snapshot,
//! and the write-ahead log could not be cut. sqlx's pool is not used because it asks every connection
//! whether it lives after every use, which costs as much as the read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteRow};
use sqlx::{ConnectOptions as _, Connection as _, Sqlite, SqliteConnection};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::store::Result;

use super::failure;

/// A statement with what it is bound to.
pub(super) type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

/// How long a read waits for its turn.
const TURN: Duration = Duration::from_secs(5);

/// How long a read may take. Far longer than any takes on a disk that answers.
const DEADLINE: Duration = Duration::from_secs(10);

/// Up to a fixed number of connections, opened when they are needed first.
#[derive(Debug)]
pub(super) struct Readers {
    options: SqliteConnectOptions,
    turns: Arc<Semaphore>,
    most: u32,
    idle: Mutex<Vec<SqliteConnection>>,
}

impl Readers {
    /// None is open yet.
    pub(super) fn new(options: SqliteConnectOptions, most: usize) -> Self {
        let most = u32::try_from(most.max(1)).unwrap_or(1);
        let turns = Arc::new(Semaphore::new(most as usize));
        Self { options, turns, most, idle: Mutex::new(Vec::new()) }
    }

    /// How somebody makes them pause.
    pub(super) fn pause(&self) -> Pause {
        Pause { turns: self.turns.clone(), most: self.most }
    }

    /// All rows of one statement.
    pub(super) async fn all(&self, query: Query<'_>) -> Result<Vec<SqliteRow>> {
        let _turn = match timeout(TURN, self.turns.acquire()).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) => return Err(failure::closed()),
            Err(_) => return Err(failure::no_turn()),
        };
        let idle = self.idle().pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.options.connect().await.map_err(failure::of)?,
        };
        // If this future is dropped here the connection goes with it: nobody reads on in the middle.
        let rows = timeout(DEADLINE, query.fetch_all(&mut connection)).await;
        match rows.map_err(|_| failure::too_late())? {
            Ok(rows) => {
                self.idle().push(connection);
                Ok(rows)
            }
            Err(error) => {
                if !failure::is_broken(&error) {
                    self.idle().push(connection);
                }
                Err(failure::of(error))
            }
        }
    }

    /// The first row of one statement that has one at most.
    pub(super) async fn first(&self, query: Query<'_>) -> Result<Option<SqliteRow>> {
        Ok(self.all(query).await?.into_iter().next())
    }

    /// Ends all connections once the reads that have begun are done; every later read is refused.
    pub(super) async fn close(&self) {
        let all = self.turns.acquire_many(self.most).await;
        self.turns.close();
        drop(all);
        let idle = std::mem::take(&mut *self.idle());
        for connection in idle {
            // It only read: there is nothing to lose.
            let _ = connection.close().await;
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<SqliteConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes readers pause.
#[derive(Debug, Clone)]
pub(super) struct Pause {
    turns: Arc<Semaphore>,
    most: u32,
}

impl Pause {
    /// Resolves when nobody reads; until what it gives is dropped nobody does. Reads that are asked for
    /// meanwhile, also while it waits, come behind it. `None`: those that had begun took longer.
    pub(super) async fn within(&self, patience: Duration) -> Option<SemaphorePermit<'_>> {
        timeout(patience, self.turns.acquire_many(self.most)).await.ok()?.ok()
    }
}
