//! What an error means: nothing written, nobody knows, or a row that cannot be.

use crate::store::StoreError;

/// An error of a statement that wrote nothing whatever became of it: a read, or a part of a
/// transaction that was not committed.
pub(super) fn of_read(error: sqlx::Error) -> StoreError {
    match verdict(&error) {
        Verdict::Refused => StoreError::Rejected(error),
        Verdict::Unreadable => StoreError::Corrupt(error.to_string()),
        Verdict::NotNow | Verdict::Lost => StoreError::Unavailable(error),
    }
}

/// An error of a statement that commits by itself, or of a commit.
pub(super) fn of_write(error: sqlx::Error) -> StoreError {
    match verdict(&error) {
        Verdict::Refused => StoreError::Rejected(error),
        Verdict::Unreadable => StoreError::Corrupt(error.to_string()),
        Verdict::NotNow => StoreError::Unavailable(error),
        Verdict::Lost => StoreError::InDoubt(error),
    }
}

/// An error of a statement inside the transaction of a flush, which was not committed: but when its
/// number is in already, an earlier try with the same number was.
pub(super) fn of_part(error: sqlx::Error) -> StoreError {
    if is_number_taken(&error) { StoreError::InDoubt(error) } else { of_read(error) }
}

fn is_number_taken(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|e| e.constraint() == Some("flushes_pkey"))
}

/// No connection could be had: nothing was sent.
pub(super) fn of_lease(error: sqlx::Error) -> StoreError {
    StoreError::Unavailable(error)
}

/// An answer that did not come in time, to something that writes nothing.
pub(super) fn too_late() -> StoreError {
    of_lease(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
}

/// A stored value that is not what it must be.
pub(super) fn of_value(error: sqlx::Error) -> StoreError {
    StoreError::Corrupt(error.to_string())
}

enum Verdict {
    /// The server said no, and would say it again.
    Refused,
    /// The server said no; later it may say yes.
    NotNow,
    /// There was no answer, or an answer that does not tell.
    Lost,
    /// The answer came and makes no sense.
    Unreadable,
}

fn verdict(error: &sqlx::Error) -> Verdict {
    match error {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            match code.as_ref() {
                // This very number is in already: the batch had been committed, or was given up.
                "23505" if is_number_taken(error) => Verdict::Lost,
                // The server is going down and says so in answer to a commit: it does not say
                // on which side of the commit it stopped.
                "57P01" | "57P02" => Verdict::Lost,
                code => of_class(code.get(..2).unwrap_or_default()),
            }
        }
        sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => Verdict::Refused,
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. } => Verdict::Unreadable,
        _ => Verdict::Lost,
    }
}

/// The first two letters of an SQLSTATE. The server rolled back before it answered, in every class.
fn of_class(class: &str) -> Verdict {
    match class {
        // Connection; feature (a cached plan that a migration made wrong); who we are; transaction
        // state (read-only after a fail-over); database gone; deadlock and serialization; resources;
        // not in this state (a lock time-out); operator; system; internal.
        "08" | "0A" | "28" | "25" | "3D" | "40" | "53" | "55" | "57" | "58" | "XX" => {
            Verdict::NotNow
        }
        // Data, integrity, syntax and privileges, limits of the program; and what nobody thought of:
        // one run that fails is better than a node that tries for ever.
        _ => Verdict::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_answer_is_in_doubt_only_where_something_could_be_written() {
        let lost = || sqlx::Error::Io(std::io::Error::from(std::io::ErrorKind::TimedOut));
        assert!(matches!(of_read(lost()), StoreError::Unavailable(_)));
        assert!(matches!(of_write(lost()), StoreError::InDoubt(_)));
        assert!(matches!(of_lease(lost()), StoreError::Unavailable(_)));
    }
}
