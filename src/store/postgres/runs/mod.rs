//! Reading runs: one, and [`lists`] of them.

mod lists;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row as _};

use crate::domain::event::Entry;
use crate::domain::ids::{AgentId, NodeId, RunId, WorkspaceId};
use crate::domain::run::RunStatus;
use crate::store::rows::{self, RunFields};
use crate::store::{Driveable, Result, RunRecord, StoreError};

use super::{PostgresStore, failure};

/// What [`RunFields`] reads, but for `last_seq`.
macro_rules! run_columns {
    () => {
        "\
r.run_id, r.workspace_id, r.agent_id, r.agent_version, r.status, r.node_id, r.rev, r.epoch,
    r.due_at, r.crashes, r.fact_seq, r.steps_completed, r.input_tokens, r.cached_input_tokens,
    r.output_tokens, r.reasoning_tokens, r.cost_micros, r.children_cost_micros, r.status_message,
    r.conversation_id, r.parent_run_id, r.forked_from_run_id, r.end_user_id, r.history_of,
    r.history_length, r.cost_ceiling_micros, r.root_run_id, r.created_at, r.started_at,
    r.completed_at, b.model, b.config, b.max_steps, b.estimated_cost_micros, b.metadata"
    };
}
pub(super) use run_columns;

/// By the primary key of `run_deltas`. Nothing follows a final event, so an ended run (a status of 10
/// and above) needs no look at its deltas.
macro_rules! last_seq {
    () => {
        "\
case
        when r.status >= 10 then r.fact_seq
        else greatest(r.fact_seq, (select max(d.seq) from run_deltas d where d.run_id = r.run_id))
    end as last_seq"
    };
}
pub(super) use last_seq;

/// What clients read of a run's open actions, by the primary key of `actions`. An ended run has none.
macro_rules! open_actions {
    () => {
        "\
case
        when r.status >= 10 then null
        else (
            select '[' || string_agg(a.data, ',') || ']'
            from actions a
            where a.run_id = r.run_id
        )
    end as actions"
    };
}
use open_actions;

/// By primary keys. The newest fact counts once the run ended or (3) waits for somebody.
const LOAD: &str = concat!(
    "select ",
    run_columns!(),
    ", ",
    last_seq!(),
    ",
    ",
    open_actions!(),
    ",
    first.seq as first_seq, first.kind as first_kind, first.data as first_data,
    newest.seq as newest_seq, newest.kind as newest_kind, newest.data as newest_data
from runs r
join run_bodies b
on b.run_id = r.run_id
left join run_facts first
on first.run_id = r.run_id
and first.seq = 1
left join run_facts newest
on newest.run_id = r.run_id
and newest.seq = r.fact_seq
and (r.status >= 10 or r.status = 3)
where r.workspace_id = $1
and r.run_id = $2
and r.deleted_at is null"
);

/// By primary keys, in one snapshot: the row says what the log is folded to.
const DRIVEABLE: &str = concat!(
    "select ",
    run_columns!(),
    ",
    greatest(r.fact_seq, deltas.newest) as last_seq,
    facts.seqs, facts.kinds, facts.texts,
    coalesce(facts.bytes, 0) + coalesce(deltas.bytes, 0) as bytes
from runs r
join run_bodies b
on b.run_id = r.run_id
cross join lateral (
    select array_agg(f.seq) as seqs, array_agg(f.kind) as kinds, array_agg(f.data) as texts,
        sum(octet_length(f.data)) as bytes
    from (
        select f.seq, f.kind, f.data
        from run_facts f
        where f.run_id = r.run_id
        order by f.seq
    ) f
) facts
cross join lateral (
    select max(d.seq) as newest, sum(octet_length(d.data)) as bytes
    from run_deltas d
    where d.run_id = r.run_id
) deltas
where r.run_id = $1
and r.node_id = $2
and r.deleted_at is null"
);

/// By `runs_by_agent`, backwards. An agent whose runs all fail must not cost a walk through its past:
/// what is older than its 1,000 newest runs tells nothing.
const DURATIONS: &str = "\
select r.completed_at - r.created_at
from (
    select r.run_id, r.status, r.created_at, r.completed_at, r.deleted_at
    from runs r
    where (r.workspace_id, r.agent_id, r.run_id)
        < ($1, $2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
    and (r.workspace_id, r.agent_id, r.run_id)
        > ($1, $2, '00000000-0000-0000-0000-000000000000'::uuid)
    order by r.workspace_id desc, r.agent_id desc, r.run_id desc
    limit 1000
) r
where r.status = $3
and r.completed_at is not null
and r.deleted_at is null
order by r.run_id desc
limit 50";

impl PostgresStore {
    pub(super) async fn load_run_row(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
    ) -> Result<Option<RunRecord>> {
        let query = sqlx::query(LOAD).bind(workspace_id.0).bind(run_id.uuid());
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let Some(row) = lease.row(query).await.map_err(failure::of_read)? else { return Ok(None) };
        let mut record = record(&row)?;
        record.first = entry(&row, "first_seq", "first_kind", "first_data")?;
        Ok(Some(record))
    }

    pub(super) async fn recent_duration_rows(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
    ) -> Result<Vec<i64>> {
        let query = sqlx::query(DURATIONS)
            .bind(workspace_id.0)
            .bind(agent_id.as_str())
            .bind(RunStatus::Completed.code());
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let rows = lease.rows(query).await.map_err(failure::of_read)?;
        rows.iter().map(|row| row.try_get(0).map_err(failure::of_value)).collect()
    }

    pub(super) async fn load_driveable_row(
        &self,
        node_id: NodeId,
        run_id: RunId,
    ) -> Result<Option<Driveable>> {
        let query = sqlx::query(DRIVEABLE).bind(run_id.uuid()).bind(node_id.uuid());
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let row = lease.row(query).await.map_err(failure::of_read)?;
        row.as_ref().map(driveable).transpose()
    }
}

/// A run as lists show it.
fn record(row: &PgRow) -> Result<RunRecord> {
    let mut record = RunFields::from_row(row).map_err(failure::of_value)?.record()?;
    record.newest_fact = entry(row, "newest_seq", "newest_kind", "newest_data")?;
    Ok(record)
}

fn entry(row: &PgRow, seq: &str, kind: &str, data: &str) -> Result<Option<Entry>> {
    let seq: Option<i32> = row.try_get(seq).map_err(failure::of_value)?;
    let Some(seq) = seq else { return Ok(None) };
    let kind: i16 = row.try_get(kind).map_err(failure::of_value)?;
    rows::entry(seq, kind, row.try_get(data).map_err(failure::of_value)?).map(Some)
}

fn driveable(row: &PgRow) -> Result<Driveable> {
    let record = RunFields::from_row(row).map_err(failure::of_value)?.record()?;
    let seqs: Option<Vec<i32>> = row.try_get("seqs").map_err(failure::of_value)?;
    let kinds: Option<Vec<i16>> = row.try_get("kinds").map_err(failure::of_value)?;
    let texts: Option<Vec<String>> = row.try_get("texts").map_err(failure::of_value)?;
    let bytes: i64 = row.try_get("bytes").map_err(failure::of_value)?;
    let (Some(seqs), Some(kinds), Some(texts)) = (seqs, kinds, texts) else {
        return Err(StoreError::Corrupt("a run without facts".to_owned()));
    };
    let facts = seqs
        .into_iter()
        .zip(kinds)
        .zip(texts)
        .map(|((seq, kind), data)| rows::entry(seq, kind, data))
        .collect::<Result<_>>()?;
    Ok(Driveable { record, facts, log_bytes: rows::count(bytes)? })
}
