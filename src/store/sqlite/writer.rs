//! The one writer: every write is a piece of work that runs here, one after the other, each in a
//! transaction of its own.
//!
//! A piece of work that was handed over runs to its end whether or not somebody still waits for its
//! answer, so a caller that goes away never leaves half a transaction. What may wait is bounded.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::shutdown::Tasks;
use crate::store::{Result, StoreError};

use super::checkpoint::Checkpoints;
use super::connect::Lock;
use super::failure;

/// Pieces of work that may wait: the journal hands over one at a time, so these are guests and claims.
const MOST_WAITING: usize = 256;

/// How long one waits for a place among them.
const TURN: Duration = Duration::from_secs(5);

/// How long one waits for a write, its turn included. Far longer than any takes on a disk that answers.
const DEADLINE: Duration = Duration::from_secs(10);

/// What a piece of work says about the connection it leaves behind.
enum Left {
    /// As it found it.
    Sound {
        /// Whether it may have written.
        wrote: bool,
    },
    /// Nobody knows what state it is in: get another.
    Broken,
}

type Work = Box<dyn for<'c> FnOnce(Result<&'c mut SqliteConnection>) -> BoxFuture<'c, Left> + Send>;

/// Hands work to the writer.
#[derive(Debug)]
pub(super) struct Writer {
    work: mpsc::Sender<Work>,
    tasks: Tasks,
}

impl Writer {
    /// Starts the writer on an open connection.
    pub(super) fn start(
        connection: SqliteConnection,
        options: SqliteConnectOptions,
        checkpoints: Checkpoints,
        lock: Option<Lock>,
    ) -> Self {
        let (work, queue) = mpsc::channel(MOST_WAITING);
        let tasks = Tasks::new();
        let seat = Seat { connection: Some(connection), options, checkpoints, lock };
        tasks.spawn(run(seat, queue, tasks.clone()));
        Self { work, tasks }
    }

    /// Does `work` in `begin immediate … commit`. An error of it rolls back.
    ///
    /// # Errors
    /// What `work` says; [`StoreError::Unavailable`] when there was no turn in time;
    /// [`StoreError::InDoubt`] when the writer died over it, or the disk hangs.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let asked = self.ask(move |connection| Box::pin(in_transaction(connection, work)));
        // A disk that hangs: the work goes on, and may be done in the end.
        let late = || Err(StoreError::InDoubt(sqlx::Error::PoolTimedOut));
        timeout(DEADLINE, asked).await.unwrap_or_else(|_| late())
    }

    /// Does `work` on the bare connection, for what manages its own transactions and takes as long as
    /// it takes.
    pub(super) async fn manage<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        self.ask(move |connection| {
            Box::pin(async move {
                let result = work(connection).await;
                let left = if result.is_ok() { Left::Sound { wrote: true } } else { Left::Broken };
                (result, left)
            })
        })
        .await
    }

    /// Refuses new work, does what waits, empties the write-ahead log and ends the connection.
    pub(super) async fn close(&self) {
        self.tasks.stop();
        self.tasks.finish().await;
    }

    async fn ask<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, (Result<T>, Left)>
            + Send
            + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let work: Work = Box::new(move |connection| {
            Box::pin(async move {
                let (result, left) = match connection {
                    Ok(connection) => work(connection).await,
                    Err(error) => (Err(error), Left::Broken),
                };
                // Whoever asked may have gone; what was committed stays.
                let _ = answer.send(result);
                left
            })
        });
        match timeout(TURN, self.work.send(work)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(failure::closed()),
            Err(_) => return Err(failure::no_turn()),
        }
        answered.await.unwrap_or(Err(StoreError::InDoubt(sqlx::Error::WorkerCrashed)))
    }
}

/// The writer's connection and what it needs for another one.
struct Seat {
    connection: Option<SqliteConnection>,
    options: SqliteConnectOptions,
    checkpoints: Checkpoints,
    /// Let go last: the next server must not find us still at work. `None`: the file is lent to us.
    lock: Option<Lock>,
}

impl Seat {
    async fn connection(&mut self) -> Result<&mut SqliteConnection> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.options.connect().await.map_err(failure::of)?,
        };
        Ok(self.connection.insert(connection))
    }

    async fn serve(&mut self, work: Work) {
        let connection = self.connection().await;
        // A panic must not take the writer, and with it the whole server, along. Dropping the
        // connection rolls back.
        let left = AssertUnwindSafe(work(connection)).catch_unwind().await;
        match left {
            Ok(Left::Sound { wrote: true }) => {
                if let Some(connection) = &mut self.connection {
                    self.checkpoints.after_write(connection).await;
                }
            }
            Ok(Left::Sound { wrote: false }) => {}
            Ok(Left::Broken) | Err(_) => self.connection = None,
        }
    }
}

async fn run(mut seat: Seat, mut queue: mpsc::Receiver<Work>, tasks: Tasks) {
    let mut closing = false;
    loop {
        tokio::select! {
            biased;
            () = tasks.stopped(), if !closing => {
                closing = true;
                queue.close();
            }
            work = queue.recv() => match work {
                Some(work) => seat.serve(work).await,
                None => break,
            },
        }
    }
    if let Some(mut connection) = seat.connection.take() {
        // Whoever lent us the file goes on writing: emptying its log would keep it from that.
        if seat.lock.is_some() {
            seat.checkpoints.at_end(&mut connection).await;
        }
        // Everything is committed: an error here loses nothing.
        let _ = connection.close().await;
    }
    drop(seat.lock);
}

async fn in_transaction<T, F>(connection: &mut SqliteConnection, work: F) -> (Result<T>, Left)
where
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send,
    T: Send,
{
    // Immediate: a lock that cannot be had is told here, before anything was done.
    if let Err(error) = sqlx::query("begin immediate").execute(&mut *connection).await {
        let left =
            if failure::is_broken(&error) { Left::Broken } else { Left::Sound { wrote: false } };
        return (Err(failure::of(error)), left);
    }
    let result = match work(&mut *connection).await {
        Ok(done) => match sqlx::query("commit").execute(&mut *connection).await {
            Ok(_) => return (Ok(done), Left::Sound { wrote: true }),
            Err(error) => Err(failure::of_commit(error)),
        },
        Err(error) => Err(error),
    };
    // SQLite rolls back by itself after some errors, and then has nothing to roll back: begin tells
    // the next time if it is otherwise.
    let left = match sqlx::query("rollback").execute(connection).await {
        Ok(_) | Err(sqlx::Error::Database(_)) => Left::Sound { wrote: false },
        Err(_) => Left::Broken,
    };
    (result, left)
}

#[cfg(test)]
mod tests {
    use sqlx::Row as _;

    use crate::domain::ids::NodeId;
    use crate::domain::time::Timestamp;
    use crate::store::sqlite::{Options, SqliteStore, failure};
    use crate::store::{Store as _, StoreError};

    async fn pragma(store: &SqliteStore, sql: &'static str) -> i64 {
        store
            .writer
            .manage(move |connection| {
                Box::pin(async move {
                    let row = sqlx::query(sql).fetch_one(connection).await.map_err(failure::of)?;
                    row.try_get(0).map_err(failure::of)
                })
            })
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_full_disk_is_an_outage_that_passes() {
        let clock = crate::clock::Clock::system();
        let directory = std::env::temp_dir().join(clock.uuid().to_string());
        std::fs::create_dir(&directory).unwrap();
        let store = SqliteStore::open(directory.join("db"), Options::default()).await.unwrap();
        store.migrate().await.unwrap();
        // The file may not grow any more: SQLite says the same as for a full disk.
        pragma(&store, "pragma max_page_count = 1").await;
        let mut entered = 0;
        let full = loop {
            let node = NodeId::from_uuid(clock.uuid());
            match store.register_node(node, Timestamp::from_millis(0)).await {
                Ok(()) => entered += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(full, StoreError::Unavailable(_)), "{full:?}");
        assert!(full.is_passing());
        let nobody = NodeId::from_uuid(clock.uuid());
        assert_eq!(store.other_nodes(nobody).await.unwrap().len(), entered);
        pragma(&store, "pragma max_page_count = 1000000").await;
        store.register_node(nobody, Timestamp::from_millis(0)).await.unwrap();
        store.close().await;
        std::fs::remove_dir_all(directory).unwrap();
    }
}
