//! What an error of SQLite means: not now, a row that cannot be, or a file that cannot be used.

use crate::store::StoreError;

/// An error of a read, or of a transaction that is not committed.
pub(super) fn of(error: sqlx::Error) -> StoreError {
    match verdict(&error) {
        Verdict::NotNow | Verdict::Lost => StoreError::Unavailable(error),
        Verdict::Refused => StoreError::Rejected(error),
        Verdict::Unreadable => StoreError::Corrupt(error.to_string()),
    }
}

/// An error of `commit`. SQLite has rolled back, or is about to be told to; only a connection that
/// died in the middle leaves it open what happened.
pub(super) fn of_commit(error: sqlx::Error) -> StoreError {
    match verdict(&error) {
        Verdict::Lost => StoreError::InDoubt(error),
        Verdict::NotNow | Verdict::Refused | Verdict::Unreadable => of(error),
    }
}

/// An error of opening the file: whoever starts the server must do something about it.
pub(super) fn of_open(path: &std::path::Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unusable(format!("cannot use the database {}: {error}", path.display()))
}

/// The answer to everything that comes after the end.
pub(super) fn closed() -> StoreError {
    StoreError::Unavailable(sqlx::Error::PoolClosed)
}

/// The answer to a read that the disk does not answer.
pub(super) fn too_late() -> StoreError {
    StoreError::Unavailable(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
}

/// The answer when there was no turn in time.
pub(super) fn no_turn() -> StoreError {
    StoreError::Unavailable(sqlx::Error::PoolTimedOut)
}

/// Whether the connection is of no use any more, or in a state that nobody expects.
pub(super) fn is_broken(error: &sqlx::Error) -> bool {
    match primary_code(error) {
        // "cannot start a transaction within a transaction" and the like have the general code.
        Some(code) => code == ERROR || code == MISUSE,
        None => true,
    }
}

enum Verdict {
    /// Later it may work.
    NotNow,
    /// It will never work.
    Refused,
    /// What is in the file makes no sense.
    Unreadable,
    /// The connection is gone.
    Lost,
}

// https://www.sqlite.org/rescode.html
const ERROR: i32 = 1;
const PERM: i32 = 3;
const ABORT: i32 = 4;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const NOMEM: i32 = 7;
const READONLY: i32 = 8;
const INTERRUPT: i32 = 9;
const IOERR: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const PROTOCOL: i32 = 15;
const SCHEMA: i32 = 17;
const MISUSE: i32 = 21;
const NOTADB: i32 = 26;

fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let extended: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(extended & 0xff)
}

fn verdict(error: &sqlx::Error) -> Verdict {
    match error {
        sqlx::Error::Database(_) => match primary_code(error) {
            Some(
                PERM | ABORT | BUSY | LOCKED | NOMEM | READONLY | INTERRUPT | IOERR | FULL
                | CANTOPEN | PROTOCOL | SCHEMA,
            ) => Verdict::NotNow,
            Some(CORRUPT | NOTADB) => Verdict::Unreadable,
            // Constraints, types, sizes; and what nobody thought of: one run that fails is better
            // than a node that tries for ever.
            _ => Verdict::Refused,
        },
        sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => Verdict::Refused,
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::RowNotFound => Verdict::Unreadable,
        _ => Verdict::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_in_doubt_only_at_the_commit() {
        assert!(matches!(of(sqlx::Error::WorkerCrashed), StoreError::Unavailable(_)));
        assert!(matches!(of_commit(sqlx::Error::WorkerCrashed), StoreError::InDoubt(_)));
        assert!(matches!(of_commit(sqlx::Error::RowNotFound), StoreError::Corrupt(_)));
    }
}
