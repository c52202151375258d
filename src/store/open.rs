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
}

/// Opens the database at `url` (`sqlite://PATH` or `postgres://…`) and brings its schema up to date.
///
/// # Errors
/// When it cannot be reached, is in use by another server (SQLite), would lose what it commits, or is
/// of a newer version.
pub async fn open(url: &str, options: OpenOptions) -> Result<SharedStore> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        let store = SqliteStore::open(path, sqlite::Options::default()).await?;
        store.migrate().await?;
        return Ok(Arc::new(store));
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        let unsafe_durability = options.unsafe_durability;
        let options = postgres::Options { unsafe_durability, ..postgres::Options::default() };
        let store = PostgresStore::open(url, options).await?;
        store.migrate().await?;
        return Ok(Arc::new(store));
    }
    Err(StoreError::Unusable(
        "a database's address begins with sqlite:// or postgres://".to_owned(),
    ))
}
