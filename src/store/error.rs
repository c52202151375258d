//! What can go wrong with a database.

/// A failed store operation.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, is too busy or too slow. Nothing was written.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// Too much waits to be written already. Nothing was written.
    #[error("too much is waiting to be written")]
    Overloaded,
    /// The answer to a commit was lost: it is written or it is not.
    #[error("the answer to a commit was lost")]
    InDoubt(#[source] sqlx::Error),
    /// Nobody waits any longer: what was asked for is written, or not, or will be.
    #[error("the database did not answer in time")]
    Late,
    /// The database refused a value or a statement. Nothing was written.
    #[error("the database refused a row")]
    Rejected(#[source] sqlx::Error),
    /// What is stored cannot be read, or a guest's decision could not be made.
    #[error("stored data cannot be used: {0}")]
    Corrupt(String),
    /// The database cannot be used at all: wrong version, wrong settings, already in use.
    #[error("{0}")]
    Unusable(String),
}

impl StoreError {
    /// Whether the same operation may succeed later without anybody doing anything.
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::InDoubt(_) | Self::Late | Self::Overloaded)
    }

    /// The same for one more who waited for the same thing: the driver's own error stays with the
    /// first, the others get its words.
    #[must_use]
    pub fn again(&self) -> Self {
        let words = |source: &sqlx::Error| sqlx::Error::Protocol(source.to_string());
        match self {
            Self::Unavailable(source) => Self::Unavailable(words(source)),
            Self::InDoubt(source) => Self::InDoubt(words(source)),
            Self::Rejected(source) => Self::Rejected(words(source)),
            Self::Overloaded => Self::Overloaded,
            Self::Late => Self::Late,
            Self::Corrupt(what) => Self::Corrupt(what.clone()),
            Self::Unusable(what) => Self::Unusable(what.clone()),
        }
    }
}
