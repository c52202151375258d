//! Runs that other runs called: what their ends set in motion, and how they go with their parents.

use sqlx::types::Uuid;
use sqlx::{Row as _, SqliteConnection};

use crate::domain::ids::{RunId, WorkspaceId};
use crate::domain::time::Timestamp;
use crate::store::retention::ERASED_IN_A_SLICE;
use crate::store::{Below, Result, Roused};

use super::readers::{Query, Readers};
use super::writer::Writer;
use super::{failure, guest};

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

/// By `runs_by_parent` and the unique index of `runs`. First those that have not ended, then the deepest.
/// Through erased ones, too: what is below them may have been left. `fact_seq` is 0 once a log is gone.
const BELOW: &str = "\
with recursive below (run_id, depth) as (
    select ?2, 0
    union all
    select r.run_id, b.depth + 1
    from below b
    cross join runs r indexed by runs_by_parent
    on r.workspace_id = ?1
    and r.parent_run_id = b.run_id
)
select r.run_no, r.workspace_id, r.run_id, m.metadata, r.status < 10 as is_alive
from below b
cross join runs r
on r.run_id = b.run_id
left join run_bodies m
on m.run_id = r.run_id
where b.depth > 0
and r.fact_seq > 0
order by is_alive desc, b.depth desc, r.run_id
limit ?3";

pub(super) async fn erase(
    readers: &Readers,
    writer: &Writer,
    (workspace_id, run_id): (WorkspaceId, RunId),
    at: Timestamp,
) -> Result<Below> {
    // Most runs have called no other: writers are not held up for nothing.
    if readers.first(below(workspace_id, run_id, 1)).await?.is_none() {
        return Ok(Below::erased(Vec::new(), 0, ERASED_IN_A_SLICE));
    }
    let of = (workspace_id, run_id);
    writer
        .write(move |connection| {
            Box::pin(async move { erase_below(connection, of, ERASED_IN_A_SLICE, at).await })
        })
        .await
}

fn below(workspace_id: WorkspaceId, run_id: RunId, limit: usize) -> Query<'static> {
    sqlx::query(BELOW).bind(workspace_id.0).bind(run_id.uuid()).bind(limit as i64)
}

/// Erases at most so many of the runs below this one, the deepest first; none if one is alive.
pub(super) async fn erase_below(
    connection: &mut SqliteConnection,
    (workspace_id, run_id): (WorkspaceId, RunId),
    room: usize,
    at: Timestamp,
) -> Result<Below> {
    let found = below(workspace_id, run_id, room).fetch_all(&mut *connection).await;
    let found = found.map_err(failure::of)?;
    let mut erased = Vec::with_capacity(found.len());
    for row in &found {
        let run = guest::Erased::read(row)?;
        let (_, run_id) = run.place();
        // They come first.
        if row.try_get("is_alive").map_err(failure::of)? {
            return Ok(Below::alive(run_id));
        }
        guest::erase_log(connection, &run, at).await?;
        erased.push(run_id);
    }
    Ok(Below::erased(erased, found.len(), room))
}

/// For `plans.rs`.
#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[ANY, OLDEST, ROUSE, TAKE, BELOW];
