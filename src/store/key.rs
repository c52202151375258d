//! Idempotency keys, as writes name and find them.

use crate::domain::ids::WorkspaceId;
use crate::domain::time::Timestamp;

/// An idempotency key as a client sent it, with what the request asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    /// Whose key.
    pub workspace_id: WorkspaceId,
    /// Method and route template, for example `POST /v1/agents`.
    pub scope: &'static str,
    /// The key, 1–255 visible ASCII.
    pub key: String,
    /// SHA-256 of the path and the canonical body.
    pub fingerprint: [u8; 32],
}

/// An idempotency key that is to be bound to what a write makes, in the same transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// The key.
    pub key: IdempotencyKey,
    /// What it stands for: an `agent_id` or a `run_id`.
    pub resource: String,
    /// When it was bound.
    pub created_at: Timestamp,
}

/// A key that is bound already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// What the first request asked for; another fingerprint is another request.
    pub fingerprint: [u8; 32],
    /// What the first request made.
    pub resource: String,
}

/// A write that names an idempotency key: done, or done before by somebody with the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written<T> {
    /// Done now, and the key (if any) bound.
    Done(T),
    /// The key was bound already; nothing was changed.
    KeyTaken(KeyRow),
}
