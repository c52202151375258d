//! Idempotency keys: bound in the transaction of what they stand for.

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::store::{IdempotencyKey, KeyRow, NewKey, Result, rows};

use super::connections::Lease;
use super::failure;

/// By the primary key of `idempotency`.
const FIND: &str = "\
select fingerprint, resource
from idempotency
where workspace_id = $1
and scope = $2
and key = $3";

/// Waits for whoever is binding the same key, and then changes nothing.
const BIND: &str = "\
insert into idempotency (workspace_id, scope, key, fingerprint, resource, created_at)
values ($1, $2, $3, $4, $5, $6)
on conflict do nothing";

/// The row of a key.
pub(super) async fn find(lease: &mut Lease<'_>, key: &IdempotencyKey) -> Result<Option<KeyRow>> {
    let query = sqlx::query(FIND).bind(key.workspace_id.0).bind(key.scope).bind(&key.key);
    let row = lease.row(query).await.map_err(failure::of_read)?;
    row.map(|row| read(&row)).transpose()
}

/// The key's row out of its columns `fingerprint` and `resource`.
pub(super) fn read(row: &PgRow) -> Result<KeyRow> {
    let fingerprint: Vec<u8> = row.try_get("fingerprint").map_err(failure::of_value)?;
    rows::key_row(&fingerprint, row.try_get("resource").map_err(failure::of_value)?)
}

/// What became of binding a key.
pub(super) enum Bound {
    /// It is bound once the transaction commits.
    Now,
    /// Somebody else had bound it.
    Before(KeyRow),
}

/// Binds a key inside the lease's transaction, which must not have locked anything before.
pub(super) async fn bind(lease: &mut Lease<'_>, new: Option<&NewKey>) -> Result<Bound> {
    let Some(new) = new else { return Ok(Bound::Now) };
    // A key that goes between the two statements (by retention) is free again: one more turn binds it.
    for _ in 0..2 {
        let query = sqlx::query(BIND)
            .bind(new.key.workspace_id.0)
            .bind(new.key.scope)
            .bind(&new.key.key)
            .bind(new.key.fingerprint)
            .bind(&new.resource)
            .bind(new.created_at.millis());
        if lease.change(query).await.map_err(failure::of_read)? == 1 {
            return Ok(Bound::Now);
        }
        if let Some(row) = find(lease, &new.key).await? {
            return Ok(Bound::Before(row));
        }
    }
    Err(rows::corrupt("idempotency", "a key that is neither free nor bound"))
}
