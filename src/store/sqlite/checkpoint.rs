//! Moving the write-ahead log into the file, between flushes.
//!
//! Left to background checkpoints alone the log grew to 921 MiB in 8 s of load: there was never a
//! moment without a reader. Here the one who writes stops for it.

use std::time::Duration;

use sqlx::{Row as _, SqliteConnection};

use super::Options;
use super::readers::Pause;

/// A look at the log costs a round trip to SQLite's thread, so not after every write.
const LOOK_EVERY: u32 = 4;

/// Looks at the log without doing anything: (busy, frames, frames that are in the file).
const LOOK: &str = "pragma wal_checkpoint(noop)";

/// Copies what no reader is in the way of, and waits for nobody.
const COPY: &str = "pragma wal_checkpoint(passive)";

/// Copies everything and makes the next write begin at the start of the log. Waits for readers of other
/// processes, 20 ms at most, because every write waits along. The last number must match
/// [`super::connect::BUSY_TIMEOUT`].
const RESTART: &str = "\
pragma busy_timeout = 20;
pragma wal_checkpoint(restart);
pragma busy_timeout = 5000";

/// Copies everything and cuts the file to nothing.
const EMPTY: &str = "pragma wal_checkpoint(truncate)";

/// How long the writer waits for our own readers, who make way for it: it must find a moment in which
/// nobody reads, and where somebody always does there would be none. Each time in vain it waits twice as
/// long, up to the second: a log that grows is worse than a pause every now and then.
const PATIENCE: Duration = Duration::from_millis(20);
const MOST_PATIENCE: Duration = Duration::from_millis(160);

/// When to checkpoint.
#[derive(Debug)]
pub(super) struct Checkpoints {
    copy_at: i64,
    restart_at: i64,
    unseen: u32,
    /// A reader that does not let go must not cost a pause at every look: the next attempt comes when
    /// the log has grown by another quarter of its limit.
    next_restart: i64,
    patience: Duration,
    readers: Pause,
}

impl Checkpoints {
    /// By the page size that the file has.
    pub(super) fn new(options: &Options, page_size: u32, readers: Pause) -> Self {
        let frames =
            |bytes: u64| i64::try_from(bytes / u64::from(page_size.max(1))).unwrap_or(i64::MAX);
        let restart_at = frames(options.wal_limit_bytes).max(1);
        Self {
            copy_at: frames(options.checkpoint_bytes).max(1),
            restart_at,
            unseen: 0,
            next_restart: restart_at,
            patience: PATIENCE,
            readers,
        }
    }

    /// After a commit. An error is left alone: the log only stays as it is, and the next write that
    /// cannot go on says so itself.
    pub(super) async fn after_write(&mut self, connection: &mut SqliteConnection) {
        self.unseen += 1;
        if self.unseen < LOOK_EVERY {
            return;
        }
        self.unseen = 0;
        let Some((frames, copied)) = checkpoint(connection, LOOK).await else { return };
        if frames < self.restart_at {
            self.next_restart = self.restart_at;
            self.patience = PATIENCE;
        }
        if frames - copied >= self.copy_at {
            let _ = checkpoint(connection, COPY).await;
        }
        if frames >= self.next_restart {
            if let Some(_nobody_reads) = self.readers.within(self.patience).await {
                let _ = sqlx::raw_sql(RESTART).execute(connection).await;
            }
            // If it was in vain; a log that is short again says that it was not.
            self.next_restart = frames.saturating_add(self.restart_at / 4);
            self.patience = (self.patience * 2).min(MOST_PATIENCE);
        }
    }

    /// Before the connection ends.
    pub(super) async fn at_end(&self, connection: &mut SqliteConnection) {
        let _ = checkpoint(connection, EMPTY).await;
    }
}

async fn checkpoint(connection: &mut SqliteConnection, sql: &'static str) -> Option<(i64, i64)> {
    let row = sqlx::query(sql).fetch_one(connection).await.ok()?;
    Some((row.try_get(1).ok()?, row.try_get(2).ok()?))
}
