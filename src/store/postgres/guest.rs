//! Writes of everybody who is not the driver: lock the run, decide, append.

use sqlx::types::Uuid;
use sqlx::{FromRow, Row as _};

use crate::domain::event::Entry;
use crate::domain::ids::{ConversationId, WorkspaceId};
use crate::domain::money::Usd;
use crate::domain::time::Timestamp;
use crate::store::rows::{self, RunFields};
use crate::store::turns::Changes;
use crate::store::{
    GuestDecision, GuestOutcome, GuestWrite, Locked, Result, RunRecord, RunUpdate, StoreError,
};

use super::connections::Lease;
use super::runs::run_columns;
use super::{PostgresStore, actions, binding, failure, keys, turns};

/// By the primary keys of `runs` and `run_bodies`. The newest delta is read under the lock, by the
/// next statement: this one's snapshot may be older than what it waited for.
const LOCK: &str = concat!(
    "select ",
    run_columns!(),
    ",
    r.fact_seq as last_seq
from runs r
join run_bodies b
on b.run_id = r.run_id
where r.workspace_id = $1
and r.run_id = $2
and r.deleted_at is null
for update of r"
);

/// By the primary keys of `run_facts` and `run_deltas`. The row without data is the newest delta.
const LOG: &str = "\
select f.seq, f.kind, f.data
from run_facts f
where f.run_id = $1
union all
select max(d.seq), null, null
from run_deltas d
where d.run_id = $1";

/// By the primary key of `runs`, whose row is locked. What leaves a signal: see `statements.rs`.
const APPEND: &str = "\
with facts as (
    insert into run_facts (run_id, seq, kind, data)
    select $2, v.seq, v.kind, v.data
    from unnest($3::int[], $4::smallint[], $5::text[]) v (seq, kind, data)
), signalled as (
    insert into child_signals (parent_run_id)
    select r.parent_run_id
    from runs r
    where r.run_id = $2
    and r.parent_run_id is not null
    and (r.status = 3 or $6 = 3 or $6 >= 10)
)
update runs r
set rev = r.rev + 1,
    status = $6,
    fact_seq = $7,
    crashes = case when $8 > r.steps_completed then 0 else r.crashes end,
    steps_completed = $8,
    input_tokens = $9,
    cached_input_tokens = $10,
    output_tokens = $11,
    reasoning_tokens = $12,
    cost_micros = $13,
    children_cost_micros = $19,
    status_message = $14,
    started_at = $15,
    completed_at = $16,
    node_id = case $17 when 1 then null else r.node_id end,
    due_at = case
        when $17 = 1 or ($17 = 2 and r.node_id is null) then $18
        else r.due_at
    end
where r.workspace_id = $1
and r.run_id = $2";

/// By primary keys. What people wrote goes; what the run cost stays.
const ERASE: &str = "\
with bodies as (
    delete from run_bodies b
    where b.run_id = $2
), labels as (
    delete from run_labels l
    using unnest($4::text[], $5::text[]) v (key, value)
    where l.workspace_id = $1
    and l.key = v.key
    and l.value = v.value
    and l.run_id = $2
), facts as (
    delete from run_facts f
    where f.run_id = $2
), deltas as (
    delete from run_deltas d
    where d.run_id = $2
)
update runs r
set rev = r.rev + 1,
    deleted_at = $3,
    fact_seq = 0,
    node_id = null,
    due_at = null,
    status_message = null,
    end_user_id = null
where r.workspace_id = $1
and r.run_id = $2";

/// What a try at a guest's write came to.
enum Tried {
    Done(GuestOutcome),
    /// It means something to this conversation, which must be locked before the run is.
    Means(ConversationId),
}

/// By the primary key of `run_bodies`.
const METADATA: &str = "\
select metadata
from run_bodies
where run_id = $1";

impl PostgresStore {
    pub(super) async fn guest_write(&self, write: &GuestWrite) -> Result<GuestOutcome> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let mut of = None;
        loop {
            lease.begin().await.map_err(failure::of_read)?;
            match guest_in(&mut lease, write, of).await {
                Ok(Tried::Done(outcome @ GuestOutcome::Done { .. })) => {
                    lease.commit().await.map_err(failure::of_write)?;
                    return Ok(outcome);
                }
                Ok(Tried::Done(outcome)) => {
                    lease.rollback().await;
                    return Ok(outcome);
                }
                // A run's conversation never changes, so this is the last time.
                Ok(Tried::Means(conversation_id)) => {
                    lease.rollback().await;
                    of = Some(conversation_id);
                }
                Err(error) => {
                    lease.rollback().await;
                    return Err(error);
                }
            }
        }
    }
}

/// `of`: the run's conversation, if the write is known to mean something to it.
async fn guest_in(
    lease: &mut Lease<'_>,
    write: &GuestWrite,
    of: Option<ConversationId>,
) -> Result<Tried> {
    // Keys before conversations and runs, as everywhere.
    if let keys::Bound::Before(row) = keys::bind(lease, write.key.as_ref()).await? {
        return Ok(Tried::Done(GuestOutcome::KeyTaken(row)));
    }
    let mut turns = turns::lock(lease, of.as_slice()).await?;
    let Some(locked) = lock(lease, write).await? else {
        return Ok(Tried::Done(GuestOutcome::Absent));
    };
    let decision = (write.decide)(&locked).map_err(StoreError::Corrupt)?;
    let mut promoted = false;
    let appended = match decision {
        GuestDecision::Nothing => Vec::new(),
        GuestDecision::Append { facts, update } => {
            if let (Some(spoken), None) = (&update.spoken, of) {
                return Ok(Tried::Means(spoken.conversation_id));
            }
            append(lease, &locked.record, &facts, &update).await?;
            if let Some(spoken) = &update.spoken {
                let mut changes = Changes::default();
                turns.heard(write.run_id, spoken, &mut changes);
                promoted = turns::write(lease, turns, changes, spoken.at).await?;
            }
            facts
        }
        GuestDecision::Refuse(refusal) => {
            return Ok(Tried::Done(GuestOutcome::Refused(refusal)));
        }
        GuestDecision::Erase { at } => {
            erase(lease, &locked.record, at).await?;
            Vec::new()
        }
    };
    let node_id = locked.record.row.node_id;
    Ok(Tried::Done(GuestOutcome::Done { node_id, appended, promoted }))
}

async fn lock(lease: &mut Lease<'_>, write: &GuestWrite) -> Result<Option<Locked>> {
    let run_id = write.run_id.uuid();
    let query = sqlx::query(LOCK).bind(write.workspace_id.0).bind(run_id);
    let Some(row) = lease.row(query).await.map_err(failure::of_read)? else { return Ok(None) };
    let mut record = RunFields::from_row(&row).map_err(failure::of_value)?.record()?;
    let log = lease.rows(sqlx::query(LOG).bind(run_id)).await.map_err(failure::of_read)?;
    let mut facts = Vec::with_capacity(log.len());
    for row in &log {
        let (seq, kind, data): (Option<i32>, Option<i16>, Option<String>) =
            FromRow::from_row(row).map_err(failure::of_value)?;
        match (seq, kind, data) {
            (Some(seq), Some(kind), Some(data)) => facts.push(rows::entry(seq, kind, data)?),
            (Some(newest), _, _) => record.last_seq = record.last_seq.max(newest),
            (None, _, _) => {}
        }
    }
    facts.sort_unstable_by_key(|fact: &Entry| fact.seq);
    Ok(Some(Locked { record, facts }))
}

async fn append(
    lease: &mut Lease<'_>,
    record: &RunRecord,
    facts: &[Entry],
    update: &RunUpdate,
) -> Result<()> {
    let mut follows = (record.last_seq.saturating_add(1)..).zip(facts);
    if facts.is_empty()
        || !follows.all(|(seq, fact)| fact.seq == seq && !fact.event_type.is_delta())
    {
        return Err(rows::corrupt("a guest's facts", "they do not follow the log"));
    }
    let (owner, due_at) = binding::owner(update.owner);
    let query = sqlx::query(APPEND)
        .bind(record.row.workspace_id.0)
        .bind(record.row.run_id.uuid())
        .bind(facts.iter().map(|fact| fact.seq).collect::<Vec<_>>())
        .bind(facts.iter().map(|fact| fact.event_type.code()).collect::<Vec<_>>())
        .bind(facts.iter().map(Entry::text).collect::<Vec<_>>())
        .bind(update.status.code())
        .bind(update.fact_seq)
        .bind(update.steps_completed)
        .bind(rows::stored_count(update.usage.input_tokens))
        .bind(rows::stored_count(update.usage.cached_input_tokens))
        .bind(rows::stored_count(update.usage.output_tokens))
        .bind(rows::stored_count(update.usage.reasoning_tokens))
        .bind(update.cost.map(Usd::micros))
        .bind(update.status_message.as_deref())
        .bind(update.started_at.map(Timestamp::millis))
        .bind(update.completed_at.map(Timestamp::millis))
        .bind(owner)
        .bind(due_at)
        .bind(update.children_cost.map(Usd::micros));
    one_row(lease.change(query).await.map_err(failure::of_read)?)?;
    if let Some(open) = &update.actions {
        let mut changes = actions::Changes::default();
        changes.add(record.row.run_id.uuid(), open)?;
        changes.write(lease, |_| true).await.map_err(failure::of_read)?;
    }
    Ok(())
}

async fn erase(lease: &mut Lease<'_>, record: &RunRecord, at: Timestamp) -> Result<()> {
    let labels = &record.body.metadata;
    let query = sqlx::query(ERASE)
        .bind(record.row.workspace_id.0)
        .bind(record.row.run_id.uuid())
        .bind(at.millis())
        .bind(labels.keys().map(String::as_str).collect::<Vec<_>>())
        .bind(labels.values().map(String::as_str).collect::<Vec<_>>());
    one_row(lease.change(query).await.map_err(failure::of_read)?)
}

/// Erases a run of a conversation that was erased: everything but its tombstone.
pub(super) async fn erase_log(
    lease: &mut Lease<'_>,
    workspace_id: WorkspaceId,
    run_id: Uuid,
    at: Timestamp,
) -> Result<()> {
    let body = lease.row(sqlx::query(METADATA).bind(run_id)).await.map_err(failure::of_read)?;
    let labels = match body {
        Some(row) => rows::read_metadata(row.try_get("metadata").map_err(failure::of_value)?)?,
        None => std::collections::BTreeMap::new(),
    };
    let query = sqlx::query(ERASE)
        .bind(workspace_id.0)
        .bind(run_id)
        .bind(at.millis())
        .bind(labels.keys().map(String::as_str).collect::<Vec<_>>())
        .bind(labels.values().map(String::as_str).collect::<Vec<_>>());
    one_row(lease.change(query).await.map_err(failure::of_read)?)
}

fn one_row(changed: u64) -> Result<()> {
    if changed == 1 { Ok(()) } else { Err(rows::corrupt("runs", "a locked row is not there")) }
}
