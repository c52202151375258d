//! Runs that other runs called: what their ends set in motion.

use sqlx::types::Uuid;
use sqlx::{Row as _, SqliteConnection};

use crate::domain::ids::RunId;
use crate::domain::time::Timestamp;
use crate::store::{Result, Roused};

use super::failure;
use super::readers::Readers;
use super::writer::Writer;

/// By the primary key of `child_signals`, which is normally empty.
const ANY: &str = "\
select 1
from child_signals
limit 1";

/// By the primary key of `child_signals`: the newest of the oldest, and how many they are.
const OLDEST: &str = "\
select max(o.signal_id), count(*)
from (
    select signal_id
    from child_signals
    order by signal_id
    limit ?1
) o";

/// By the primary key of `child_signals` and the unique index of `runs`.
const ROUSE: &str = "\
update runs
set rev = rev + 1,
    due_at = iif(node_id is null, ?2, due_at)
where run_id in (
    select s.parent_run_id
    from child_signals s
    where s.signal_id <= ?1
)
and status < 10
returning run_id";

/// By the primary key of `child_signals`.
const TAKE: &str = "\
delete from child_signals
where signal_id <= ?1";

pub(super) async fn rouse(
    readers: &Readers,
    writer: &Writer,
    now: Timestamp,
    limit: i64,
) -> Result<Roused> {
    // Asked every second: writers are not held up for nothing.
    if readers.first(sqlx::query(ANY)).await?.is_none() {
        return Ok(Roused { signals: 0, run_ids: Vec::new() });
    }
    writer
        .write(move |connection| Box::pin(async move { apply(connection, now, limit).await }))
        .await
}

async fn apply(connection: &mut SqliteConnection, now: Timestamp, limit: i64) -> Result<Roused> {
    let oldest = sqlx::query(OLDEST).bind(limit).fetch_one(&mut *connection).await;
    let oldest = oldest.map_err(failure::of)?;
    let last: Option<i64> = oldest.try_get(0).map_err(failure::of)?;
    let signals = oldest.try_get(1).map_err(failure::of)?;
    let rouse = sqlx::query(ROUSE).bind(last).bind(now.millis());
    let rows = rouse.fetch_all(&mut *connection).await.map_err(failure::of)?;
    let run_id = |row| -> Result<RunId> {
        let run_id: Uuid = sqlx::Row::try_get(row, "run_id").map_err(failure::of)?;
        Ok(RunId::from_uuid(run_id))
    };
    let mut run_ids: Vec<RunId> = rows.iter().map(run_id).collect::<Result<_>>()?;
    run_ids.sort_unstable();
    let take = sqlx::query(TAKE).bind(last);
    take.execute(&mut *connection).await.map_err(failure::of)?;
    Ok(Roused { signals, run_ids })
}

/// For `plans.rs`.
#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[ANY, OLDEST, ROUSE, TAKE];
