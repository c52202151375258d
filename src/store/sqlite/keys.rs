//! Idempotency keys: bound in the transaction of what they stand for.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};

use crate::store::{IdempotencyKey, KeyRow, NewKey, Result, rows};

use super::failure;
use super::readers::{Query, Readers};

/// By the primary key of `idempotency`.
const FIND: &str = "\
select fingerprint, resource
from idempotency
where workspace_id = ?
and scope = ?
and key = ?";

const BIND: &str = "\
insert into idempotency (workspace_id, scope, key, fingerprint, resource, created_at)
values (?, ?, ?, ?, ?, ?)";

/// The row of a key.
pub(super) async fn find(readers: &Readers, key: &IdempotencyKey) -> Result<Option<KeyRow>> {
    readers.first(by_key(key)).await?.map(|row| read(&row)).transpose()
}

/// Who has bound this key, within a write. Nobody can bind it between this and [`bind`].
pub(super) async fn taken(
    connection: &mut SqliteConnection,
    key: Option<&NewKey>,
) -> Result<Option<KeyRow>> {
    let Some(new) = key else { return Ok(None) };
    let row = by_key(&new.key).fetch_optional(connection).await.map_err(failure::of)?;
    row.map(|row| read(&row)).transpose()
}

/// Binds a key that is not taken.
pub(super) async fn bind(connection: &mut SqliteConnection, key: Option<&NewKey>) -> Result<()> {
    let Some(new) = key else { return Ok(()) };
    sqlx::query(BIND)
        .bind(new.key.workspace_id.0)
        .bind(new.key.scope)
        .bind(new.key.key.clone())
        .bind(new.key.fingerprint.to_vec())
        .bind(new.resource.clone())
        .bind(new.created_at.millis())
        .execute(connection)
        .await
        .map_err(failure::of)?;
    Ok(())
}

/// The key's row out of its columns `fingerprint` and `resource`.
pub(super) fn read(row: &SqliteRow) -> Result<KeyRow> {
    let fingerprint: Vec<u8> = row.try_get("fingerprint").map_err(failure::of)?;
    rows::key_row(&fingerprint, row.try_get("resource").map_err(failure::of)?)
}

fn by_key(key: &IdempotencyKey) -> Query<'static> {
    sqlx::query(FIND).bind(key.workspace_id.0).bind(key.scope).bind(key.key.clone())
}
