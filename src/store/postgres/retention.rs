//! Deleting what is old, slice by slice. Two nodes may sweep at once: each steps over what the other
//! has locked.

use sqlx::types::Uuid;
use sqlx::{FromRow, Row as _};

use crate::domain::ids::{RunId, WorkspaceId};
use crate::domain::time::Timestamp;
use crate::store::retention::{self, Bounds, Held, Slice, Walked};
use crate::store::{KeySweep, Result, RunSweep, Swept, SweptDeltas};

use super::connections::{Lease, Statement};
use super::{PARTITIONS_AHEAD, PostgresStore, failure};

/// A slice is a transaction of some ten milliseconds, in which nobody waits for what it locks.
const SLICE: Bounds = Bounds { walked: 500, runs: 100, events: 2_000 };
/// Keys of a slice, and those that were bound in the same millisecond as its last.
const KEYS: i64 = 500;
/// Deltas of a slice, where they do not go with their day.
const DELTAS: i64 = 1_000;
/// Flush numbers of a slice.
const FLUSHES: i64 = 1_000;

/// By the primary key of `runs`, in its order.
const WALK: &str = "\
select r.run_id, coalesce(r.status >= 10 and r.completed_at < $3, false) as is_old
from runs r
where r.run_id > $1
and r.run_id < $2
order by r.run_id
limit $4";

/// By the primary keys of `runs` and `run_bodies`, in ascending order. What was erased has no body.
const HOLD: &str = "\
select r.run_id, r.workspace_id, r.fact_seq, b.metadata
from (
    select v.run_id
    from unnest($1::uuid[]) v (run_id)
    order by v.run_id
) v
cross join lateral (
    select r.run_id, r.workspace_id, r.fact_seq
    from runs r
    where r.run_id = v.run_id
    limit 1
    for update skip locked
) r
left join lateral (
    select b.metadata
    from run_bodies b
    where b.run_id = r.run_id
    limit 1
) b
on true";

/// By primary keys. `= any` where the table has but one index; `>=` and `<=` where it has others (why:
/// see `statements.rs`).
const DELETE_WHOLE: &str = "\
with facts as (
    delete from run_facts f
    where f.run_id = any($1)
), deltas as (
    delete from run_deltas d
    where d.run_id = any($1)
), bodies as (
    delete from run_bodies b
    where b.run_id = any($1)
), labels as (
    delete from run_labels l
    using unnest($2::int[], $3::text[], $4::text[], $5::uuid[]) v (workspace_id, key, value, run_id)
    where l.workspace_id = v.workspace_id
    and l.key = v.key
    and l.value = v.value
    and l.run_id = v.run_id
)
delete from runs r
using unnest($1::uuid[]) v (run_id)
where r.run_id >= v.run_id
and r.run_id <= v.run_id";

/// By primary keys: as an erasure, of the log's end only.
const DELETE_PART: &str = "\
with facts as (
    delete from run_facts f
    where f.run_id = $1
    and f.seq > $2
), deltas as (
    delete from run_deltas d
    where d.run_id = $1
    and d.seq > $2
), bodies as (
    delete from run_bodies b
    where b.run_id = $1
), labels as (
    delete from run_labels l
    using unnest($5::text[], $6::text[]) v (key, value)
    where l.workspace_id = $4
    and l.key = v.key
    and l.value = v.value
    and l.run_id = $1
)
update runs r
set rev = r.rev + 1,
    deleted_at = coalesce(r.deleted_at, $3),
    fact_seq = $2,
    node_id = null,
    due_at = null,
    status_message = null,
    end_user_id = null
where r.run_id = $1";

/// By `idempotency_by_age`, in its order; then by the primary key of `runs`. A key stands for an
/// agent, for a run, or for a run that is not there any more. Runs are only looked at: nothing of
/// them is locked behind the keys.
const SWEEP_KEYS: &str = "\
with slice as materialized (
    select max(o.created_at) as until
    from (
        select i.created_at
        from idempotency i
        where i.created_at > $1
        and i.created_at < $2
        order by i.created_at
        limit $4
    ) o
), gone as (
    delete from idempotency i
    where i.ctid = any (array(
        select i.ctid
        from idempotency i
        where i.created_at > $1
        and i.created_at <= (select slice.until from slice)
        and (
            select r.status < 10 or r.completed_at >= $3
            from (
                select case
                    when i.resource ~ '^run_[0-9a-f]{32}$' then substr(i.resource, 5)::uuid
                end as run_id
            ) v
            cross join lateral (
                select r.status, r.completed_at
                from runs r
                where r.run_id >= v.run_id
                and r.run_id <= v.run_id
                limit 1
            ) r
        ) is not true
        for update skip locked
    ))
    returning 1
)
select slice.until, (select count(*) from gone) as gone
from slice";

/// Of days without a partition: by `run_deltas_rest_by_day`, in its order; then by the primary key of
/// `runs`. As in `drop_delta_partition`, the newest event of a run that will go on stays.
const SWEEP_REST: &str = "\
with gone as (
    delete from run_deltas_rest d
    where d.ctid = any (array(
        select d.ctid
        from run_deltas_rest d
        where d.written_on < (to_timestamp($1::bigint / 1000) at time zone 'UTC')::date
        and (
            select r.status < 10 and d.seq > r.fact_seq
            from runs r
            where r.run_id >= d.run_id
            and r.run_id <= d.run_id
            limit 1
        ) is not true
        order by d.written_on
        limit $2
        for update skip locked
    ))
    returning d.written_on
), noted as (
    update meta
    set deltas_gone_before = greatest(deltas_gone_before, (
        select (extract(epoch from max(gone.written_on) + 1) * 1000)::bigint
        from gone
    ))
    where exists (select 1 from gone)
)
select count(*)
from gone";

const DROP_DAY: &str = "\
select drop_delta_partition((to_timestamp($1::bigint / 1000) at time zone 'UTC')::date)
    is not null";

const MAKE_PARTITIONS: &str = "select make_delta_partitions(current_date, $1)";

/// A new partition needs `run_deltas_rest` for itself, and readers queue up behind the wait.
const WAIT_BRIEFLY: &str = "select set_config('lock_timeout', '100ms', true)";

/// All of `meta`: one row.
const GONE_BEFORE: &str = "\
select deltas_gone_before
from meta";

/// By the primary key of `flushes`: from node to node, of whom there are few, and then along the
/// oldest numbers of those that are not entered any more.
const SWEEP_FLUSHES: &str = "\
with recursive writers (node_id) as (
    (
        select f.node_id
        from flushes f
        order by f.node_id
        limit 1
    )
    union all
    select (
        select f.node_id
        from flushes f
        where f.node_id > w.node_id
        order by f.node_id
        limit 1
    )
    from writers w
    where w.node_id is not null
)
delete from flushes f
where f.ctid = any (array(
    select o.ctid
    from (
        select w.node_id
        from writers w
        where w.node_id is not null
        and not exists (
            select 1
            from nodes n
            where n.node_id = w.node_id
        )
        limit 16
    ) gone
    cross join lateral (
        select f.ctid, f.at
        from flushes f
        where f.node_id = gone.node_id
        order by f.node_id, f.lane, f.n
        limit $2
        for update skip locked
    ) o
    where abs(o.at) < $1
    limit $2
))";

impl PostgresStore {
    /// Makes the partitions of `run_deltas` for the next week; those that exist stay. To be called at
    /// start and once a day. Without it writes go on, into a partition that retention cannot drop.
    ///
    /// # Errors
    /// As every write.
    pub async fn make_partitions(&self) -> Result<()> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let query = sqlx::query(MAKE_PARTITIONS).bind(PARTITIONS_AHEAD + 1);
        lease.rows(query).await.map(drop).map_err(failure::of_write)
    }

    /// As [`PostgresStore::make_partitions`], but gives up rather than hold up readers.
    pub(super) async fn make_partitions_if_free(&self) -> Result<()> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        lease.begin().await.map_err(failure::of_read)?;
        let made = make_partitions_in(&mut lease).await;
        if made.is_ok() {
            return lease.commit().await.map_err(failure::of_write);
        }
        lease.rollback().await;
        made
    }

    pub(super) async fn sweep_run_rows(&self, sweep: RunSweep) -> Result<Swept<RunId>> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let walk = sqlx::query(WALK)
            .bind(sweep.after.uuid())
            .bind(retention::ids_before(sweep.ended_before))
            .bind(sweep.ended_before.millis())
            .bind(SLICE.walked as i64);
        let walked = lease.rows(walk).await.map_err(failure::of_read)?;
        let walked = walked
            .iter()
            .map(|row| {
                let (run_id, is_old) = FromRow::from_row(row).map_err(failure::of_value)?;
                Ok(Walked { run_id: RunId::from_uuid(run_id), is_old })
            })
            .collect::<Result<Vec<_>>>()?;
        let candidates = retention::candidates(&walked, SLICE);
        if candidates.is_empty() {
            let Slice { more, .. } = retention::cut(sweep.after, &walked, Vec::new(), SLICE);
            return Ok(Swept { gone: 0, more });
        }
        lease.begin().await.map_err(failure::of_read)?;
        match delete_in(&mut lease, sweep, &walked, candidates).await {
            Ok(swept) => {
                lease.commit().await.map_err(failure::of_write)?;
                Ok(swept)
            }
            Err(error) => {
                lease.rollback().await;
                Err(error)
            }
        }
    }

    pub(super) async fn sweep_key_rows(&self, sweep: KeySweep) -> Result<Swept<Timestamp>> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let query = sqlx::query(SWEEP_KEYS)
            .bind(sweep.after.map_or(i64::MIN, Timestamp::millis))
            .bind(sweep.bound_before.millis())
            .bind(sweep.ended_before.millis())
            .bind(KEYS);
        let row = lease.row(query).await.map_err(failure::of_write)?;
        let Some(row) = row else { return Ok(Swept::NOTHING) };
        let until: Option<i64> = row.try_get("until").map_err(failure::of_value)?;
        let gone: i64 = row.try_get("gone").map_err(failure::of_value)?;
        Ok(Swept { gone: gone.unsigned_abs(), more: until.map(Timestamp::from_millis) })
    }

    pub(super) async fn sweep_delta_rows(&self, written_before: Timestamp) -> Result<SweptDeltas> {
        let before = written_before.millis();
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        if one(&mut lease, sqlx::query(DROP_DAY).bind(before)).await? {
            return Ok(SweptDeltas { days: 1, deltas: 0, more: Some(0) });
        }
        let query = sqlx::query(SWEEP_REST).bind(before).bind(DELTAS);
        let gone: i64 = one(&mut lease, query).await?;
        let more = (gone >= DELTAS).then_some(0);
        Ok(SweptDeltas { days: 0, deltas: gone.unsigned_abs(), more })
    }

    pub(super) async fn gone_before(&self) -> Result<Timestamp> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        one(&mut lease, sqlx::query(GONE_BEFORE)).await.map(Timestamp::from_millis)
    }

    pub(super) async fn sweep_node_rows(&self, before: Timestamp) -> Result<Swept<()>> {
        self.forget_nodes().await?;
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let query = sqlx::query(SWEEP_FLUSHES).bind(before.millis()).bind(FLUSHES);
        let gone = lease.change(query).await.map_err(failure::of_write)?;
        Ok(Swept { gone, more: (gone >= FLUSHES.unsigned_abs()).then_some(()) })
    }
}

async fn make_partitions_in(lease: &mut Lease<'_>) -> Result<()> {
    lease.rows(sqlx::query(WAIT_BRIEFLY)).await.map_err(failure::of_read)?;
    let query = sqlx::query(MAKE_PARTITIONS).bind(PARTITIONS_AHEAD + 1);
    lease.rows(query).await.map(drop).map_err(failure::of_read)
}

/// The one value of a statement that may have written something.
async fn one<T>(lease: &mut Lease<'_>, query: Statement<'_>) -> Result<T>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    let row = lease.row(query).await.map_err(failure::of_write)?;
    let row = row.ok_or(sqlx::Error::RowNotFound).map_err(failure::of_value)?;
    row.try_get(0).map_err(failure::of_value)
}

async fn delete_in(
    lease: &mut Lease<'_>,
    sweep: RunSweep,
    walked: &[Walked],
    candidates: Vec<Uuid>,
) -> Result<Swept<RunId>> {
    let rows = lease.rows(sqlx::query(HOLD).bind(candidates)).await.map_err(failure::of_read)?;
    let held = rows
        .iter()
        .map(|row| {
            let (run_id, workspace_id, fact_seq, metadata) =
                FromRow::from_row(row).map_err(failure::of_value)?;
            let (run_id, workspace_id) = (RunId::from_uuid(run_id), WorkspaceId(workspace_id));
            Ok(Held { run_id, run_no: 0, workspace_id, fact_seq, metadata })
        })
        .collect::<Result<Vec<_>>>()?;
    let Slice { whole, part, more } = retention::cut(sweep.after, walked, held, SLICE);
    let mut gone = 0;
    if !whole.is_empty() {
        gone = lease.change(delete_whole(&whole)).await.map_err(failure::of_read)?;
    }
    if let Some((run, keep)) = part {
        lease.change(delete_part(&run, keep, sweep.now)).await.map_err(failure::of_read)?;
    }
    Ok(Swept { gone, more })
}

fn delete_whole(runs: &[Held]) -> Statement<'static> {
    let labels: Vec<_> = runs
        .iter()
        .flat_map(|run| run.labels().into_iter().map(move |label| (run, label)))
        .collect();
    let (keys, values): (Vec<_>, Vec<_>) = labels.iter().map(|(_, label)| label.clone()).unzip();
    sqlx::query(DELETE_WHOLE)
        .bind(runs.iter().map(|run| run.run_id.uuid()).collect::<Vec<_>>())
        .bind(labels.iter().map(|(run, _)| run.workspace_id.0).collect::<Vec<_>>())
        .bind(keys)
        .bind(values)
        .bind(labels.iter().map(|(run, _)| run.run_id.uuid()).collect::<Vec<_>>())
}

fn delete_part(run: &Held, keep: i32, now: Timestamp) -> Statement<'static> {
    let (keys, values): (Vec<_>, Vec<_>) = run.labels().into_iter().unzip();
    sqlx::query(DELETE_PART)
        .bind(run.run_id.uuid())
        .bind(keep)
        .bind(now.millis())
        .bind(run.workspace_id.0)
        .bind(keys)
        .bind(values)
}
