//! From a database's address to its store.

use std::sync::Arc;

use super::postgres::PostgresStore;
use super::sqlite::SqliteStore;
use super::{Result, SharedStore, StoreError, postgres, sqlite};

/// How to use a database.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    /// Use a server even if it may lose what it committed.
    pub unsafe_durability: bool,
    /// The server that started this process has it open and has brought its schema up to date: take
    /// no lock and change no schema.
    pub lent: bool,
}

/// Opens the database at `url` (`sqlite://PATH` or `postgres://…`) and brings its schema up to date,
/// unless it is lent.
///
/// # Errors
/// When it cannot be reached, is in use by another server (SQLite), would lose what it commits, or is
/// of a newer version.
pub async fn open(url: &str, options: OpenOptions) -> Result<SharedStore> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        let lent = options.lent;
        let options = sqlite::Options { lent, ..sqlite::Options::default() };
        let store = SqliteStore::open(path, options).await?;
        if !lent {
            store.migrate().await?;
        }
        return Ok(Arc::new(store));
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        let OpenOptions { unsafe_durability, lent } = options;
        let options = postgres::Options { unsafe_durability, ..postgres::Options::default() };
        let store = PostgresStore::open(url, options).await?;
        if !lent {
            store.migrate().await?;
        }
        return Ok(Arc::new(store));
    }
    Err(StoreError::Unusable(
        "a database's address begins with sqlite:// or postgres://".to_owned(),
    ))
}
