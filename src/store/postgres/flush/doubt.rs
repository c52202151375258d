//! Batches whose answers were lost: is one in, or can it never come in any more?

use std::collections::HashMap;
use std::sync::PoisonError;

use sqlx::Row as _;
use sqlx::types::Uuid;

use crate::store::postgres::connections::{Backend, Lease};
use crate::store::postgres::{PostgresStore, binding, failure};
use crate::store::{
    Batch, BatchOutcome, CreateOutcome, Entrance, NewRun, Result, StoreError, turns,
};

use super::{Done, FlushId, id, ids, outcome};

/// Takes the number of a batch in doubt. Waits for a backend that is still writing the batch.
const TAKE: &str = "\
insert into flushes (node_id, lane, n, at)
values ($1, $2, $3, -1 - $4)
on conflict do nothing";

/// By the primary key of `flushes`.
const TAKEN_BY: &str = "\
select at
from flushes
where node_id = $1
and lane = $2
and n = $3";

/// A number may serve another session by now; that one is left alone.
const TERMINATE: &str = "\
select pg_terminate_backend(pid)
from pg_stat_activity
where pid = $1
and extract(epoch from backend_start)::float8 = $2";

/// By the primary key of `runs`.
const CREATED: &str = "\
select v.run_id
from unnest($1::uuid[]) v (run_id)
cross join lateral (
    select r.run_id
    from runs r
    where r.run_id = v.run_id
    limit 1
) r";

/// By the primary keys of `run_facts` and `run_deltas`.
const WRITTEN: &str = "\
select v.run_id
from unnest($1::uuid[], $2::int[], $3::text[]) v (run_id, seq, data)
cross join lateral (
    select f.data
    from run_facts f
    where f.run_id = v.run_id
    and f.seq = v.seq
    union all
    select d.data
    from run_deltas d
    where d.run_id = v.run_id
    and d.seq = v.seq
    limit 1
) e
where e.data = v.data";

impl PostgresStore {
    pub(in crate::store::postgres) async fn resolve_batch(
        &self,
        batch: &Batch,
    ) -> Result<Option<BatchOutcome>> {
        // What is still in the old connection's way must not be in ours.
        let mut lease = self.journal.fresh().await.map_err(failure::of_lease)?;
        let take = || binding::flush(sqlx::query(TAKE), batch);
        let taken = match lease.change(take()).await {
            Err(error) if is_blocked(&error) => {
                let backend = self.doubts().get(&id(batch)).copied();
                if let Some(backend) = backend {
                    let end = sqlx::query(TERMINATE).bind(backend.pid).bind(backend.started_at);
                    lease.rows(end).await.map_err(failure::of_read)?;
                }
                lease.change(take()).await
            }
            answer => answer,
        };
        let outcome = if taken.map_err(failure::of_write)? == 1 {
            None
        } else {
            let by = sqlx::query(TAKEN_BY)
                .bind(batch.node_id.uuid())
                .bind(batch.lane)
                .bind(batch.number);
            let row = lease.row(by).await.map_err(failure::of_read)?;
            let at: Option<i64> =
                row.map(|row| row.try_get("at")).transpose().map_err(failure::of_value)?;
            match at {
                // An earlier resolver of the same batch took it, and its answer was lost.
                Some(..0) => None,
                Some(_) => Some(rebuild(&mut lease, batch).await?),
                None => return Err(StoreError::Corrupt("a flush that came and went".to_owned())),
            }
        };
        self.doubts().remove(&id(batch));
        Ok(outcome)
    }

    pub(super) fn doubts(&self) -> std::sync::MutexGuard<'_, HashMap<FlushId, Backend>> {
        self.in_doubt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether somebody else holds what the statement waited for.
fn is_blocked(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|e| e.code())
        .is_some_and(|code| code == "55P03" || code == "57014")
}

/// What became of a batch that is in, read back from what it wrote: an append is known by its last
/// event, a creation by its run.
async fn rebuild(lease: &mut Lease<'_>, batch: &Batch) -> Result<BatchOutcome> {
    let created: Vec<Uuid> = batch.creates.iter().map(|c| c.row.run_id.uuid()).collect();
    let created = ids(lease, sqlx::query(CREATED).bind(created)).await.map_err(failure::of_read)?;
    let last: Vec<_> = batch
        .appends
        .iter()
        .filter_map(|append| append.entries.last().map(|entry| (append.run_id.uuid(), entry)))
        .collect();
    let written = sqlx::query(WRITTEN)
        .bind(last.iter().map(|(run_id, _)| *run_id).collect::<Vec<_>>())
        .bind(last.iter().map(|(_, entry)| entry.seq).collect::<Vec<_>>())
        .bind(last.iter().map(|(_, entry)| entry.text()).collect::<Vec<_>>());
    let appended = ids(lease, written).await.map_err(failure::of_read)?;
    let turns = batch.creates.iter().filter(|new| new.turn.is_some());
    let entered: HashMap<Uuid, Entrance> =
        match turns.map(|new| new.row.run_id.uuid()).collect::<Vec<_>>() {
            none if none.is_empty() => HashMap::new(),
            run_ids => crate::store::postgres::turns::entrances(lease, run_ids)
                .await?
                .into_iter()
                .collect(),
        };
    let told = |new: &NewRun| match entered.get(&new.row.run_id.uuid()) {
        Some(entrance) => CreateOutcome::Entered(*entrance),
        None => CreateOutcome::Created,
    };
    let outcome = outcome(lease, batch, &Done { created, appended }, told).await?;
    // Who was promoted is not known any more: whoever looks finds nothing, or them.
    Ok(BatchOutcome { promoted: !turns::touched(batch).is_empty(), ..outcome })
}
