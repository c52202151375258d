//! What a repeated request gets: the same outcome, never a second one.

use crate::store::{IdempotencyKey, KeyRow, NewKey};

use super::{App, AppError, Caller};

/// An idempotency key as a request named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// Method and route template, for example `POST /v1/agents`.
    pub scope: &'static str,
    /// The key: 1–255 visible ASCII.
    pub key: String,
    /// SHA-256 of the path and the canonical body.
    pub fingerprint: [u8; 32],
}

/// What a write answers: done now, or found done by an earlier request with the same key.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer<T> {
    /// The thing, as it is today.
    pub value: T,
    /// Whether an earlier request made it.
    pub replayed: bool,
}

impl<T> Answer<T> {
    /// Done by this request.
    pub const fn new(value: T) -> Self {
        Self { value, replayed: false }
    }

    /// Done by an earlier one.
    pub const fn replay(value: T) -> Self {
        Self { value, replayed: true }
    }
}

impl App {
    /// What an earlier request with this key made: an `agent_id` or a `run_id`. `None` without a key,
    /// and when the key is not bound. Asked before anything else is looked at.
    ///
    /// # Errors
    /// [`AppError::KeyReused`] when that request was a different one.
    pub async fn find_key(
        &self,
        caller: &Caller,
        key: Option<&RequestKey>,
    ) -> Result<Option<String>, AppError> {
        let Some(key) = key else { return Ok(None) };
        let row = self.store().find_key(&stored(caller, key)).await?;
        row.map(|row| same_request(&key.fingerprint, row)).transpose()
    }

    /// The key, bound to what the write makes.
    pub(super) fn new_key(
        &self,
        caller: &Caller,
        key: Option<&RequestKey>,
        resource: &impl ToString,
    ) -> Option<NewKey> {
        key.map(|key| NewKey {
            key: stored(caller, key),
            resource: resource.to_string(),
            created_at: self.now(),
        })
    }
}

fn stored(caller: &Caller, key: &RequestKey) -> IdempotencyKey {
    IdempotencyKey {
        workspace_id: caller.workspace_id,
        scope: key.scope,
        key: key.key.clone(),
        fingerprint: key.fingerprint,
    }
}

/// What the winner made, if it asked for the same.
pub(super) fn same_request(fingerprint: &[u8; 32], row: KeyRow) -> Result<String, AppError> {
    if row.fingerprint == *fingerprint { Ok(row.resource) } else { Err(AppError::KeyReused) }
}

/// The same, when a write found the key taken: the loser of a race attaches to the winner.
pub(super) fn taken(key: Option<&NewKey>, row: KeyRow) -> Result<String, AppError> {
    match key {
        Some(key) => same_request(&key.key.fingerprint, row),
        // Without a key nothing can be taken; if it were, it would be another request's.
        None => Err(AppError::KeyReused),
    }
}
