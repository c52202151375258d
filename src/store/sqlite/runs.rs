//! Reading runs: one, the newest ends of an agent, and what a driver needs. Lists are in `list.rs`.

use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow as _, Row as _};

use crate::domain::event::Entry;
use crate::domain::ids::{AgentId, NodeId, RunId, WorkspaceId};
use crate::domain::run::RunStatus;
use crate::store::rows::{self, RunFields};
use crate::store::{Driveable, Result, RunRecord};

use super::readers::Readers;
use super::{failure, log};

/// By the unique index of `run_deltas`. Nothing follows a final event, so an ended run (a status of 10
/// and above) needs no look at its deltas.
macro_rules! last_seq {
    () => {
        "\
iif(r.status >= 10, r.fact_seq, max(r.fact_seq, coalesce((
        select max(d.seq)
        from run_deltas d
        where d.run_no = r.run_no
    ), 0))) as last_seq"
    };
}
pub(super) use last_seq;

/// What [`RunFields`] reads.
macro_rules! columns {
    () => {
        concat!(
            "\
r.run_id, r.workspace_id, r.agent_id, r.agent_version, r.status, r.node_id, r.rev, r.epoch,
    r.due_at, r.crashes, r.fact_seq, r.steps_completed, r.input_tokens, r.cached_input_tokens,
    r.output_tokens, r.reasoning_tokens, r.cost_micros, r.children_cost_micros, r.status_message,
    r.conversation_id, r.parent_run_id, r.forked_from_run_id, r.end_user_id, r.history_of,
    r.history_length, r.cost_ceiling_micros, r.root_run_id, r.created_at, r.started_at,
    r.completed_at, b.model, b.config, b.max_steps, b.estimated_cost_micros, b.metadata,
    ",
            $crate::store::sqlite::runs::last_seq!()
        )
    };
}
pub(super) use columns;

/// The newest fact of a run that ended or (3) waits for somebody. By the unique index of `run_facts`.
macro_rules! newest_fact {
    () => {
        "
left join run_facts newest
on newest.run_no = r.run_no
and newest.seq = r.fact_seq
and (r.status >= 10 or r.status = 3)"
    };
}
pub(super) use newest_fact;

/// What clients read of a run's open actions, by the primary key of `actions`. An ended run has none.
macro_rules! actions {
    () => {
        "iif(r.status >= 10, null, (
        select '[' || group_concat(a.data, ',') || ']'
        from actions a
        where a.run_id = r.run_id
    )) as actions"
    };
}
pub(super) use actions;

/// By the unique indexes of `runs` and `run_facts`, and the primary key of `run_bodies`.
const LOAD: &str = concat!(
    "select ",
    columns!(),
    ",
    ",
    actions!(),
    ",
    first.seq as first_seq, first.kind as first_kind, first.data as first_data,
    newest.seq as newest_seq, newest.kind as newest_kind, newest.data as newest_data
from runs r
join run_bodies b
on b.run_id = r.run_id
left join run_facts first
on first.run_no = r.run_no
and first.seq = 1",
    newest_fact!(),
    "
where r.workspace_id = ?1
and r.run_id = ?2
and r.deleted_at is null"
);

/// By the same. The facts are read by a second statement, up to `fact_seq`: they never change, so it
/// sees what this one saw.
const DRIVEABLE: &str = concat!(
    "select ",
    columns!(),
    ",
    coalesce((
        select sum(octet_length(f.data))
        from run_facts f
        where f.run_no = r.run_no
    ), 0) + coalesce((
        select sum(octet_length(d.data))
        from run_deltas d
        where d.run_no = r.run_no
    ), 0) as bytes
from runs r
join run_bodies b
on b.run_id = r.run_id
where r.run_id = ?1
and r.node_id = ?2
and r.deleted_at is null"
);

/// By `runs_by_agent`, newest first.
const DURATIONS: &str = "\
select r.completed_at - r.created_at
from runs r indexed by runs_by_agent
where r.workspace_id = ?1
and r.agent_id = ?2
and r.status = ?3
and r.completed_at is not null
and r.deleted_at is null
order by r.run_id desc
limit 50";

pub(super) async fn load(
    readers: &Readers,
    workspace_id: WorkspaceId,
    run_id: RunId,
) -> Result<Option<RunRecord>> {
    let query = sqlx::query(LOAD).bind(workspace_id.0).bind(run_id.uuid());
    let Some(row) = readers.first(query).await? else { return Ok(None) };
    let mut record = listed(&row)?;
    record.first = joined(&row, ["first_seq", "first_kind", "first_data"])?;
    Ok(Some(record))
}

/// A run with its newest fact, as lists have it.
pub(super) fn listed(row: &SqliteRow) -> Result<RunRecord> {
    let mut record = RunFields::from_row(row).map_err(failure::of)?.record()?;
    record.newest_fact = joined(row, ["newest_seq", "newest_kind", "newest_data"])?;
    Ok(record)
}

/// A fact that is there or is not.
fn joined(row: &SqliteRow, [seq, kind, data]: [&str; 3]) -> Result<Option<Entry>> {
    let found: Option<String> = row.try_get(data).map_err(failure::of)?;
    let Some(found) = found else { return Ok(None) };
    let seq = row.try_get(seq).map_err(failure::of)?;
    let kind = row.try_get(kind).map_err(failure::of)?;
    rows::entry(seq, kind, found).map(Some)
}

pub(super) async fn load_driveable(
    readers: &Readers,
    node_id: NodeId,
    run_id: RunId,
) -> Result<Option<Driveable>> {
    let query = sqlx::query(DRIVEABLE).bind(run_id.uuid()).bind(node_id.uuid());
    let Some(row) = readers.first(query).await? else { return Ok(None) };
    let log_bytes = rows::count(row.try_get("bytes").map_err(failure::of)?)?;
    let record = RunFields::from_row(&row).map_err(failure::of)?.record()?;
    let workspace_id = record.row.workspace_id;
    let facts = log::read_facts(readers, workspace_id, run_id, 0, record.row.fact_seq).await?;
    // Erased between the two statements: it is nobody's any more.
    if facts.is_empty() {
        return Ok(None);
    }
    Ok(Some(Driveable { record, facts, log_bytes }))
}

pub(super) async fn recent_durations(
    readers: &Readers,
    workspace_id: WorkspaceId,
    agent_id: &AgentId,
) -> Result<Vec<i64>> {
    let query = sqlx::query(DURATIONS)
        .bind(workspace_id.0)
        .bind(agent_id.as_str())
        .bind(RunStatus::Completed.code());
    readers.all(query).await?.iter().map(|row| row.try_get(0).map_err(failure::of)).collect()
}

/// For `plans.rs`.
#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[LOAD, DRIVEABLE, DURATIONS];
