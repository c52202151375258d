//! Runs that other runs called: what their ends set in motion.

use sqlx::Row as _;
use sqlx::types::Uuid;

use crate::domain::ids::RunId;
use crate::domain::time::Timestamp;
use crate::store::{Result, Roused};

use super::{PostgresStore, failure};

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

impl PostgresStore {
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
