//! Files and connections: how they are opened, and the lock that keeps everybody else out.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

use crate::store::{Result, StoreError};

use super::{Options, failure};

/// How long a connection waits for a lock that a process to which the file is lent, or a tool of
/// somebody else, holds.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Rows that may wait between SQLite's thread and ours: a page of a log fits, so the threads do not
/// take turns row by row.
const ROW_BUFFER: usize = 512;

/// How the writer connects. It makes the file if there is none, unless it is lent.
pub(super) fn writer(path: &Path, options: &Options) -> SqliteConnectOptions {
    let connection = common(path);
    let connection = if options.lent {
        connection
    } else {
        connection
            .create_if_missing(true)
            // Both count only before the first table: what retention frees can then be given back in
            // slices, without a rewrite of the whole file.
            .page_size(options.page_size)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
    };
    connection
        .journal_mode(SqliteJournalMode::Wal)
        // FULL: a commit is on the disk before anybody is told.
        .synchronous(SqliteSynchronous::Full)
        // The writer checkpoints by itself, between flushes.
        .pragma("wal_autocheckpoint", "0")
        // After a full checkpoint the log is cut back to this.
        .pragma("journal_size_limit", options.wal_limit_bytes.to_string())
        // The pages that are written again and again: 16 MiB.
        .pragma("cache_size", "-16384")
        .thread_name(|_| "sqlite-writer".to_owned())
}

/// How a reader connects.
pub(super) fn reader(path: &Path) -> SqliteConnectOptions {
    // No memory map: a disk that fails would be a signal that ends the process, not an error.
    common(path)
        .read_only(true)
        .pragma("query_only", "on")
        .row_buffer_size(ROW_BUFFER)
        .thread_name(|n| format!("sqlite-reader-{n}"))
}

fn common(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(false)
        .pragma("temp_store", "memory")
        // Statements are constants; what they are bound to must not be in any log.
        .disable_statement_logging()
}

/// Holds the side file's exclusive lock until it is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the database at `path`, or says at once that somebody has it.
    pub(super) fn take(path: &Path) -> Result<Self> {
        let side = side_file(path);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&side)
            .map_err(|error| failure::of_open(&side, &error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Unusable(format!(
                "{} is in use by another stepwell; one SQLite file serves one process",
                path.display()
            ))),
            Err(TryLockError::Error(error)) => Err(failure::of_open(&side, &error)),
        }
    }
}

fn side_file(path: &Path) -> PathBuf {
    let mut side = path.as_os_str().to_owned();
    side.push(".lock");
    PathBuf::from(side)
}
