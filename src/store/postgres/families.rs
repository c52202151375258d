//! Runs that other runs called: what their ends set in motion, and how they go with their parents.

use sqlx::Row as _;
use sqlx::types::Uuid;

use crate::domain::ids::{RunId, WorkspaceId};
use crate::domain::time::Timestamp;
use crate::store::retention::ERASED_IN_A_SLICE;
use crate::store::{Below, Result, Roused};

use super::connections::Lease;
use super::{PostgresStore, failure, guest};

/// By the primary keys of `child_signals` and `runs` (why not `=`: see `statements.rs`). Signals that
/// another node is taking are left to it; runs are locked in ascending order, as everywhere.
const ROUSE: &str = "\
with taken as (
    delete from child_signals s
    where s.signal_id in (
        select c.signal_id
        from child_signals c
        order by c.signal_id
        limit $2
        for update skip locked
    )
    returning s.parent_run_id
), parents as materialized (
    select r.run_id
    from (
        select distinct t.parent_run_id
        from taken t
        order by t.parent_run_id
    ) t
    cross join lateral (
        select r.run_id
        from runs r
        where r.run_id = t.parent_run_id
        and r.status < 10
        limit 1
        for no key update
    ) r
), roused as (
    update runs r
    set rev = r.rev + 1,
        due_at = case when r.node_id is null then $1 else r.due_at end
    from parents p
    where r.run_id >= p.run_id
    and r.run_id <= p.run_id
    returning r.run_id
)
select (select count(*) from taken) as signals,
    array(select r.run_id from roused r order by r.run_id) as run_ids";

/// By `runs_by_parent` and the primary key of `runs`. First those that have not ended, then the deepest.
/// Through erased ones, too: what is below them may have been left. `fact_seq` is 0 once a log is gone.
const BELOW: &str = "\
with recursive below (run_id, depth) as (
    select $2::uuid, 0
    union all
    select r.run_id, b.depth + 1
    from below b
    cross join lateral (
        select r.run_id
        from runs r
        where r.workspace_id = $1
        and r.parent_run_id = b.run_id
    ) r
)
select r.run_id, r.status < 10 as is_alive
from below b
cross join lateral (
    select r.run_id, r.status, r.fact_seq
    from runs r
    where r.run_id = b.run_id
    limit 1
) r
where b.depth > 0
and r.fact_seq > 0
order by is_alive desc, b.depth desc, r.run_id
limit $3";

/// By the primary key of `runs`, in ascending order.
const HOLD: &str = "\
select r.run_id
from runs r
where r.run_id = any($1)
and r.fact_seq > 0
order by r.run_id
for update";

impl PostgresStore {
    pub(super) async fn erase_below_rows(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        at: Timestamp,
    ) -> Result<Below> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        lease.begin().await.map_err(failure::of_read)?;
        let of = (workspace_id, run_id);
        match erase_below(&mut lease, of, ERASED_IN_A_SLICE, at).await {
            Ok(below) if !below.erased.is_empty() => {
                lease.commit().await.map_err(failure::of_write)?;
                Ok(below)
            }
            done => {
                lease.rollback().await;
                done
            }
        }
    }

    pub(super) async fn rouse_parent_rows(&self, now: Timestamp, limit: i64) -> Result<Roused> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let query = sqlx::query(ROUSE).bind(now.millis()).bind(limit);
        let row = lease.row(query).await.map_err(failure::of_write)?;
        let Some(row) = row else { return Ok(Roused { signals: 0, run_ids: Vec::new() }) };
        let run_ids: Vec<Uuid> = row.try_get("run_ids").map_err(failure::of_value)?;
        Ok(Roused {
            signals: row.try_get("signals").map_err(failure::of_value)?,
            run_ids: run_ids.into_iter().map(RunId::from_uuid).collect(),
        })
    }
}

/// Erases at most so many of the runs below this one, the deepest first; none if one is alive.
pub(super) async fn erase_below(
    lease: &mut Lease<'_>,
    (workspace_id, run_id): (WorkspaceId, RunId),
    room: usize,
    at: Timestamp,
) -> Result<Below> {
    let query = sqlx::query(BELOW).bind(workspace_id.0).bind(run_id.uuid()).bind(room as i64);
    let found = lease.rows(query).await.map_err(failure::of_read)?;
    let mut below = Vec::with_capacity(found.len());
    for row in &found {
        let run_id: Uuid = row.try_get("run_id").map_err(failure::of_value)?;
        if row.try_get("is_alive").map_err(failure::of_value)? {
            return Ok(Below::alive(RunId::from_uuid(run_id)));
        }
        below.push(run_id);
    }
    let (count, mut erased) = (below.len(), Vec::with_capacity(below.len()));
    if count > 0 {
        let held = lease.rows(sqlx::query(HOLD).bind(below)).await.map_err(failure::of_read)?;
        for row in &held {
            let run_id: Uuid = row.try_get("run_id").map_err(failure::of_value)?;
            guest::erase_log(lease, workspace_id, run_id, at).await?;
            erased.push(RunId::from_uuid(run_id));
        }
    }
    Ok(Below::erased(erased, count, room))
}
